/* Paths of a layer: cleaned, then resolved inside the layer's root, with a few directories kept open.
 *
 * The kernel resolves (openat2, RESOLVE_IN_ROOT). Only where a parent directory is missing do we walk
 * ourselves, because it must be made, also where a symlink of this layer points. */
#include "untar.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define DIR_FLAGS (O_RDONLY | O_DIRECTORY | O_CLOEXEC)

/* Refuses ".." (-EINVAL), too many components (-ELOOP) and too long a name. */
int untar_clean_path(const char *path, char *ret_clean)
{
    size_t used = 0;
    int depth = 0;

    while (*path) {
        size_t n = strcspn(path, "/");
        if (n == 2 && path[0] == '.' && path[1] == '.')
            return -EINVAL;
        if (n > 0 && !(n == 1 && path[0] == '.')) {
            if (++depth > UNTAR_DEPTH)
                return -ELOOP;
            if (used + n + 2 > UNTAR_PATH)
                return -ENAMETOOLONG;
            if (used > 0)
                ret_clean[used++] = '/';
            memcpy(ret_clean + used, path, n);
            used += n;
        }
        path += n;
        path += strspn(path, "/");
    }
    ret_clean[used] = '\0';
    return 0;
}

/* EAGAIN: "..", while something was renamed anywhere on the machine: try again, but not for ever. */
int untar_openat2(int dir_fd, const char *path, int flags, uint64_t resolve)
{
    struct open_how how = { .flags = (unsigned)(flags | O_CLOEXEC), .resolve = resolve };

    for (int tries = 0;; tries++) {
        long fd = syscall(SYS_openat2, dir_fd, path, &how, sizeof(how));
        if (fd >= 0)
            return (int)fd;
        if (errno != EAGAIN || tries == 100)
            return -errno;
    }
}

/* Entries cannot be char 0:0 (refused), so one that exists is a whiteout that we made. */
bool untar_is_whiteout(const struct stat *st)
{
    return S_ISCHR(st->st_mode) && st->st_rdev == makedev(0, 0);
}

void untar_forget_dirs(struct untar *u)
{
    for (int i = 0; i < UNTAR_DIRS; i++) {
        if (u->dirs[i].fd >= 0)
            (void)close(u->dirs[i].fd);
        u->dirs[i].fd = -1;
        u->dirs[i].stamp = 0;
    }
}

/* Take over `fd`, open on `path`. The one used longest ago goes; the last two never do, so a
 * caller may hold two borrowed descriptors. */
void untar_keep_dir(struct untar *u, const char *path, int fd)
{
    struct untar_dir *oldest = &u->dirs[0];

    for (int i = 1; i < UNTAR_DIRS; i++)
        if (u->dirs[i].stamp < oldest->stamp)
            oldest = &u->dirs[i];
    if (oldest->fd >= 0)
        (void)close(oldest->fd);
    oldest->fd = fd;
    oldest->stamp = ++u->clock;
    oldest->length = strlen(path);
    memcpy(oldest->path, path, oldest->length + 1);
}

static int find_kept(struct untar *u, const char *path, size_t length)
{
    for (int i = 0; i < UNTAR_DIRS; i++) {
        struct untar_dir *d = &u->dirs[i];
        if (d->fd >= 0 && d->length == length && !memcmp(d->path, path, length)) {
            d->stamp = ++u->clock;
            return d->fd;
        }
    }
    return -1;
}

struct walk {
    int fd;
    unsigned links;
    size_t done_length;
    char rest[2 * UNTAR_PATH];
    char done[UNTAR_PATH]; /* where `fd` is: no symlinks in it */
};

static int go_to(struct untar *u, struct walk *w)
{
    int fd = untar_openat2(u->root_fd, w->done_length ? w->done : ".", DIR_FLAGS,
        RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV);

    if (fd < 0)
        return fd;
    if (w->fd >= 0)
        (void)close(w->fd);
    w->fd = fd;
    return 0;
}

static int go_up(struct untar *u, struct walk *w)
{
    while (w->done_length > 0 && w->done[w->done_length - 1] != '/')
        w->done_length--;
    if (w->done_length > 0)
        w->done_length--;
    w->done[w->done_length] = '\0';
    return go_to(u, w);
}

/* Put the target of symlink `name` before what is left to walk. */
static int expand_symlink(struct untar *u, struct walk *w, const char *name)
{
    char target[UNTAR_PATH];
    size_t rest = strlen(w->rest);
    ssize_t n;

    if (++w->links > UNTAR_SYMLINKS)
        return -ELOOP;
    n = readlinkat(w->fd, name, target, sizeof(target));
    if (n < 0)
        return -errno;
    if ((size_t)n >= sizeof(target) || (size_t)n + 1 + rest >= sizeof(w->rest))
        return -ENAMETOOLONG;
    memmove(w->rest + n + 1, w->rest, rest + 1);
    memcpy(w->rest, target, (size_t)n);
    w->rest[n] = '/';
    if (target[0] != '/')
        return 0;
    w->done_length = 0;
    w->done[0] = '\0';
    return go_to(u, w);
}

/* Make a directory that the tar did not list (yet): 0755 root, as every unpacker does. */
static int make_implied(struct untar *u, struct walk *w, const char *name)
{
    bool existed = false;
    int r = untar_make_dir_at(u, w->fd, name, 0755, &existed), fd;

    if (r < 0 || existed)
        return r;
    fd = openat(w->fd, name, DIR_FLAGS | O_NOFOLLOW);
    if (fd < 0)
        return -errno;
    /* A set-group-id parent would hand its group and bit down. */
    r = untar_set_owner_mode(fd, 0, 0, 0755);
    (void)close(fd);
    return r;
}

/* Take one step; what is missing or a whiteout becomes a directory. */
static int step(struct untar *u, struct walk *w, const char *name)
{
    size_t n = strlen(name);
    struct stat st;
    bool made = false;
    int fd = openat(w->fd, name, DIR_FLAGS | O_NOFOLLOW), r;

    if (fd < 0 && errno != ENOENT && errno != ENOTDIR && errno != ELOOP)
        return -errno;
    if (fd < 0) {
        if (fstatat(w->fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0) {
            if (S_ISLNK(st.st_mode))
                return expand_symlink(u, w, name);
            if (!untar_is_whiteout(&st))
                return -ENOTDIR;
        }
        r = make_implied(u, w, name);
        if (r < 0)
            return r;
        made = true;
        fd = openat(w->fd, name, DIR_FLAGS | O_NOFOLLOW);
        if (fd < 0)
            return -errno;
    }
    (void)close(w->fd);
    w->fd = fd;
    if (w->done_length + n + 2 > sizeof(w->done))
        return -ENAMETOOLONG;
    if (w->done_length > 0)
        w->done[w->done_length++] = '/';
    memcpy(w->done + w->done_length, name, n + 1);
    w->done_length += n;
    if (made) {
        u->noted_implied = true;
        (void)untar_note(u, 'I', w->done, NULL); /* too many: the rest stay 0755 root */
    }
    return 0;
}

static int walk_and_make(struct untar *u, const char *path, int *ret_fd)
{
    struct walk w = { .fd = -1 };
    char name[UNTAR_PATH];
    int r = go_to(u, &w);

    strcpy(w.rest, path); /* clean: shorter than UNTAR_PATH */
    while (r == 0 && w.rest[0]) {
        size_t n = strcspn(w.rest, "/"), skip = n + strspn(w.rest + n, "/");
        if (n >= sizeof(name)) {
            r = -ENAMETOOLONG;
            break;
        }
        memcpy(name, w.rest, n);
        name[n] = '\0';
        memmove(w.rest, w.rest + skip, strlen(w.rest + skip) + 1);
        if (n == 0 || !strcmp(name, "."))
            continue;
        r = !strcmp(name, "..") ? go_up(u, &w) : step(u, &w, name);
    }
    if (r < 0) {
        if (w.fd >= 0)
            (void)close(w.fd);
        return r;
    }
    *ret_fd = w.fd;
    return 0;
}

/* Lend a descriptor of the directory at the first `length` bytes of a clean path. */
int untar_open_dir(struct untar *u, const char *path, size_t length, bool create, int *ret_fd)
{
    char dir[UNTAR_PATH];
    int fd, r;

    if (length == 0) {
        *ret_fd = u->root_fd;
        return 0;
    }
    fd = find_kept(u, path, length);
    if (fd >= 0) {
        *ret_fd = fd;
        return 0;
    }
    memcpy(dir, path, length);
    dir[length] = '\0';
    fd = untar_openat2(u->root_fd, dir, DIR_FLAGS, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV);
    if (fd < 0 && create && (fd == -ENOENT || fd == -ENOTDIR)) {
        r = walk_and_make(u, dir, &fd);
        if (r < 0)
            return r;
    }
    if (fd < 0)
        return fd;
    untar_keep_dir(u, dir, fd);
    *ret_fd = fd;
    return 0;
}

/* Lend the parent of a clean path that is not the root; `ret_name` points into `path`. */
int untar_open_parent(struct untar *u, const char *path, bool create, int *ret_fd, const char **ret_name)
{
    const char *slash = strrchr(path, '/');

    *ret_name = slash ? slash + 1 : path;
    return untar_open_dir(u, path, slash ? (size_t)(slash - path) : 0, create, ret_fd);
}
