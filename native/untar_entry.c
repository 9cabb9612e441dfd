/* Making one entry. What is in the way is unlinked, never written through. */
#include "untar.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static int write_at(int fd, const unsigned char *data, size_t size, uint64_t offset)
{
    while (size > 0) {
        ssize_t n = pwrite(fd, data, size, (off_t)offset);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        data += n;
        size -= (size_t)n;
        offset += (uint64_t)n;
    }
    return 0;
}

static int copy_data(struct untar *u, int fd, uint64_t offset, uint64_t size)
{
    while (size > 0) {
        const unsigned char *data;
        size_t n;
        int r = untar_stream_some(&u->stream, size, &data, &n);
        if (r == 0)
            r = write_at(fd, data, n, offset);
        if (r < 0)
            return r;
        u->counts.data_bytes += n;
        offset += n;
        size -= n;
    }
    return 0;
}

/* Holes stay holes; only data is written and counted. */
static int copy_sparse(struct untar *u, int fd)
{
    struct untar_entry *e = &u->entry;
    uint64_t data_size;
    int r = 0;

    if (u->over.is_sparse && u->over.sparse_version == 1)
        r = untar_sparse_map_stream(u);
    if (r == 0)
        r = untar_sparse_check(u);
    if (r == 0 && ftruncate(fd, (off_t)e->real_size) < 0)
        r = -errno;
    data_size = e->size;
    for (size_t i = 0; r == 0 && i < u->n_segments; i++)
        r = copy_data(u, fd, u->segments[i].offset, u->segments[i].length);
    e->size = data_size; /* what the padding is counted from */
    return r;
}

static int make_file(struct untar *u, int parent_fd, const char *name)
{
    const int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
    struct untar_entry *e = &u->entry;
    int fd = openat(parent_fd, name, flags, e->mode & 0777), r;

    if (fd < 0 && errno == EEXIST) {
        r = untar_remove(u, parent_fd, name);
        if (r < 0)
            return r;
        fd = openat(parent_fd, name, flags, e->mode & 0777);
        /* Only now: `parent_fd` is lent by the kept ones. */
        untar_forget_dirs(u);
    }
    if (fd < 0)
        return -errno;
    r = e->is_sparse ? copy_sparse(u, fd) : copy_data(u, fd, 0, e->size);
    if (r == 0)
        r = untar_set_fd_attributes(u, fd);
    if (close(fd) < 0 && r == 0)
        r = -errno;
    u->counts.files++;
    return r;
}

/* mkdir; over a directory it is nothing, over anything else the new one hides what lower layers
 * have there, as rmdir + mkdir would on a mounted overlay. The caller forgets kept directories. */
int untar_make_dir_at(struct untar *u, int parent_fd, const char *name, uint32_t mode, bool *ret_existed)
{
    struct stat st;
    int fd, r;

    *ret_existed = false;
    if (mkdirat(parent_fd, name, mode) == 0)
        return 0;
    if (errno != EEXIST)
        return -errno;
    if (fstatat(parent_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return -errno;
    if (S_ISDIR(st.st_mode)) {
        *ret_existed = true;
        return 0;
    }
    if (unlinkat(parent_fd, name, 0) < 0 || mkdirat(parent_fd, name, mode) < 0)
        return -errno;
    fd = openat(parent_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    r = untar_set_opaque(u, fd);
    (void)close(fd);
    return r;
}

static int make_dir(struct untar *u, int parent_fd, const char *name)
{
    struct stat st;
    bool existed, replaced = false;
    int fd, r;

    if (mkdirat(parent_fd, name, u->entry.mode & 0777) < 0) {
        if (errno != EEXIST)
            return -errno;
        replaced = fstatat(parent_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && !S_ISDIR(st.st_mode);
        r = untar_make_dir_at(u, parent_fd, name, u->entry.mode & 0777, &existed);
        if (r < 0)
            return r;
        if (u->noted_implied)
            (void)untar_note(u, 'X', u->entry.clean, NULL);
    }
    fd = openat(parent_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    /* A symlink may have been here that kept directories were reached through. */
    if (replaced)
        untar_forget_dirs(u);
    u->counts.dirs++;
    r = untar_set_fd_attributes(u, fd);
    untar_keep_dir(u, u->entry.clean, fd);
    return r;
}

static int make_node(struct untar *u, int parent_fd, const char *name)
{
    const struct untar_entry *e = &u->entry;
    mode_t type = e->type == '3' ? S_IFCHR : e->type == '4' ? S_IFBLK : S_IFIFO;
    dev_t device = e->type == '6' ? 0 : makedev(e->major, e->minor);

    if (e->type == '2')
        return symlinkat(e->link, parent_fd, name) < 0 ? -errno : 0;
    return mknodat(parent_fd, name, type | (e->mode & 0777), device) < 0 ? -errno : 0;
}

/* Symlinks, devices, fifos. */
static int make_special(struct untar *u, int parent_fd, const char *name)
{
    const struct untar_entry *e = &u->entry;
    bool replaced = false;
    int r;

    if (e->type == '3' && e->major == 0 && e->minor == 0)
        return untar_fail(u, EPERM, "character device 0:0 would be an overlay whiteout");
    if (e->type == '2' && e->link[0] == '\0')
        return untar_fail(u, EBADMSG, "symlink without a target");
    r = make_node(u, parent_fd, name);
    if (r == -EEXIST) {
        r = untar_remove(u, parent_fd, name);
        if (r == 0)
            r = make_node(u, parent_fd, name);
        replaced = true;
    }
    if (r == 0)
        r = untar_set_name_attributes(u, parent_fd, name);
    if (replaced)
        untar_forget_dirs(u);
    if (e->type == '2')
        u->counts.symlinks++;
    else
        u->counts.devices++;
    return r;
}

/* The target is not in this layer: whoever has the lower ones finishes it. */
static int leave_link(struct untar *u, int parent_fd, const char *name, const char *target)
{
    int r;

    r = untar_remove(u, parent_fd, name);
    untar_forget_dirs(u);
    if (r < 0 && r != -ENOENT)
        return r;
    if (untar_note(u, 'L', u->entry.clean, target) < 0)
        return untar_fail(u, E2BIG, "too many hard links into other layers");
    return 0;
}

static int make_hardlink(struct untar *u, int parent_fd, const char *name)
{
    char target[UNTAR_PATH];
    const char *target_name;
    struct stat st, old;
    int target_fd, r;

    /* An absolute target is meant from the layer's root (Docker writes such ones). */
    if (untar_clean_path(u->entry.link, target) < 0 || target[0] == '\0')
        return untar_fail(u, EINVAL, "hard link to '%.80s', which is no path in the layer", u->entry.link);
    r = untar_open_parent(u, target, false, &target_fd, &target_name);
    if (r == 0 && fstatat(target_fd, target_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        r = -errno;
    if (r == -ENOENT)
        return leave_link(u, parent_fd, name, target);
    if (r < 0)
        return untar_fail(u, -r, "hard link to '%.80s': %s", u->entry.link, strerror(-r));
    /* Linking to a whiteout would forge another one. */
    if (untar_is_whiteout(&st) || S_ISDIR(st.st_mode))
        return untar_fail(u, EPERM, "hard link to '%.80s', which is a %s", u->entry.link,
            S_ISDIR(st.st_mode) ? "directory" : "whiteout");
    u->counts.hardlinks++;
    if (linkat(target_fd, target_name, parent_fd, name, 0) == 0)
        return 0;
    r = -errno;
    if (r == -EEXIST && fstatat(parent_fd, name, &old, AT_SYMLINK_NOFOLLOW) == 0) {
        if (old.st_dev == st.st_dev && old.st_ino == st.st_ino)
            return 0;
        r = untar_remove(u, parent_fd, name);
        if (r == 0 && linkat(target_fd, target_name, parent_fd, name, 0) < 0)
            r = -errno;
        untar_forget_dirs(u);
    }
    return r < 0 ? untar_fail(u, -r, "hard link to '%.80s': %s", u->entry.link, strerror(-r)) : 0;
}

int untar_make_entry(struct untar *u)
{
    const char *name;
    int parent_fd, r;

    if (u->entry.clean[0] == '\0') {
        /* CVE-2021-29136: only attributes of the root may be set, never what it is. */
        if (u->entry.type != '5')
            return untar_fail(u, EINVAL, "the root of a layer must be a directory");
        return untar_set_fd_attributes(u, u->root_fd);
    }
    r = untar_open_parent(u, u->entry.clean, true, &parent_fd, &name);
    if (r < 0)
        return untar_fail(u, -r, "cannot reach its directory: %s", strerror(-r));
    switch (u->entry.type) {
    case '0':
        return make_file(u, parent_fd, name);
    case '1':
        return make_hardlink(u, parent_fd, name);
    case '5':
        return make_dir(u, parent_fd, name);
    default:
        return make_special(u, parent_fd, name);
    }
}
