/* Directory times (and default ACLs), applied when nothing more will be made in them. In memory up to
 * UNTAR_SPOOL, then in an unnamed file: ten million directories must not need memory. */
#include "untar.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

struct record {
    uint64_t ino; /* of the directory: the path may mean another one by now */
    int64_t seconds;
    uint32_t nanos;
    uint32_t path_size; /* with NUL */
    uint32_t acl_size;
};

static int write_all(int fd, const void *data, size_t size)
{
    const char *at = data;

    while (size > 0) {
        ssize_t n = write(fd, at, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        at += n;
        size -= (size_t)n;
    }
    return 0;
}

static int open_spill(struct untar *u)
{
    static const char name[] = ".scow-directory-times";
    int fd = openat(u->root_fd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

    if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR)) {
        fd = openat(u->root_fd, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (fd >= 0)
            (void)unlinkat(u->root_fd, name, 0);
    }
    if (fd < 0)
        return -errno;
    u->spill_fd = fd;
    return 0;
}

static int spill(struct untar *u)
{
    int r = u->spill_fd < 0 ? open_spill(u) : 0;

    if (r == 0)
        r = write_all(u->spill_fd, u->spool, u->spool_used);
    u->spool_used = 0;
    return r;
}

int untar_spool_dir(struct untar *u, int fd)
{
    const struct untar_entry *e = &u->entry;
    struct record record = { .seconds = e->mtime.tv_sec, .nanos = (uint32_t)e->mtime.tv_nsec };
    const void *acl = NULL;
    unsigned char *at;
    struct stat st;

    if (fstat(fd, &st) < 0)
        return -errno;
    for (size_t i = 0; i < u->over.n_xattrs; i++) {
        if (strcmp(u->over.xattrs[i].name, "system.posix_acl_default"))
            continue;
        if (u->over.xattrs[i].size > UINT16_MAX)
            return untar_fail(u, E2BIG, "default ACL is too long");
        acl = u->over.xattrs[i].value;
        record.acl_size = (uint32_t)u->over.xattrs[i].size;
    }
    record.ino = st.st_ino;
    record.path_size = (uint32_t)strlen(e->clean) + 1;
    if (u->spool_used + sizeof(record) + record.path_size + record.acl_size > sizeof(u->spool)) {
        int r = spill(u);
        if (r < 0)
            return r;
    }
    at = u->spool + u->spool_used;
    memcpy(at, &record, sizeof(record));
    memcpy(at + sizeof(record), e->clean, record.path_size);
    if (acl)
        memcpy(at + sizeof(record) + record.path_size, acl, record.acl_size);
    u->spool_used += sizeof(record) + record.path_size + record.acl_size;
    return 0;
}

static int apply(struct untar *u, const struct record *record, const char *path, const void *acl)
{
    struct timespec t = { .tv_sec = (time_t)record->seconds, .tv_nsec = (long)record->nanos };
    struct timespec times[2] = { t, t };
    struct stat st;
    int fd, r = 0;

    fd = untar_openat2(u->root_fd, path[0] ? path : ".", O_RDONLY | O_DIRECTORY | O_NOFOLLOW,
        RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV);
    if (fd == -ENOENT || fd == -ENOTDIR || fd == -ELOOP)
        return 0; /* replaced by a later entry */
    if (fd < 0)
        return fd;
    if (fstat(fd, &st) < 0)
        r = -errno;
    else if (st.st_ino == record->ino) {
        if (acl && fsetxattr(fd, "system.posix_acl_default", acl, record->acl_size, 0) < 0 && errno != ENOTSUP)
            r = -errno;
        else if (futimens(fd, times) < 0)
            r = -errno;
    }
    (void)close(fd);
    return r;
}

/* Apply the whole records among the first `size` bytes; returns how many bytes they were. */
static ssize_t apply_records(struct untar *u, size_t size)
{
    size_t at = 0;

    while (size - at >= sizeof(struct record)) {
        struct record record;
        const char *path;
        int r;
        memcpy(&record, u->spool + at, sizeof(record));
        if (size - at < sizeof(record) + record.path_size + record.acl_size)
            break;
        path = (const char *)u->spool + at + sizeof(record);
        r = apply(u, &record, path, record.acl_size ? path + record.path_size : NULL);
        if (r < 0)
            return r;
        at += sizeof(record) + record.path_size + record.acl_size;
    }
    return (ssize_t)at;
}

int untar_apply_spool(struct untar *u)
{
    size_t have = 0;
    off_t offset = 0;
    ssize_t n = 0;

    if (u->spill_fd < 0)
        n = apply_records(u, u->spool_used);
    if (u->spill_fd < 0 || n < 0)
        return (int)(n < 0 ? n : 0);
    n = spill(u);
    while (n == 0) {
        ssize_t got = pread(u->spill_fd, u->spool + have, sizeof(u->spool) - have, offset);
        if (got < 0)
            return -errno;
        if (got == 0)
            break;
        offset += got;
        have += (size_t)got;
        ssize_t used = apply_records(u, have);
        if (used < 0)
            return (int)used;
        have -= (size_t)used;
        memmove(u->spool, u->spool + used, have);
    }
    (void)close(u->spill_fd);
    u->spill_fd = -1;
    return (int)n;
}
