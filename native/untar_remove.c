/* Removing what an entry replaces. The staging directory is private and holds no mounts: ".." leads
 * back where we came from. */
#include "untar.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

struct dirent64_head {
    uint64_t ino;
    int64_t off;
    unsigned short reclen;
    unsigned char type;
    char name[];
};

static bool is_dots(const char *name)
{
    return name[0] == '.' && (name[1] == '\0' || (name[1] == '.' && name[2] == '\0'));
}

/* Unlink one name. Returns 1 if it is a directory that is not empty. */
static int remove_name(int dir_fd, const char *name)
{
    if (unlinkat(dir_fd, name, 0) == 0)
        return 0;
    if (errno != EISDIR && errno != EPERM)
        return -errno;
    if (unlinkat(dir_fd, name, AT_REMOVEDIR) == 0)
        return 0;
    return errno == ENOTEMPTY || errno == EEXIST ? 1 : -errno;
}

/* Unlink all names of a directory from `*at` on. Stops with 1, the descriptor of a child that is not empty, and
 * `*at` before it. */
static int sweep(int dir_fd, off_t *at, int *ret_child)
{
    _Alignas(8) char buf[8192];
    long n;

    if (lseek(dir_fd, *at, SEEK_SET) < 0)
        return -errno;
    while ((n = syscall(SYS_getdents64, dir_fd, buf, sizeof(buf))) > 0) {
        for (long i = 0; i < n;) {
            struct dirent64_head *entry = (struct dirent64_head *)(void *)(buf + i);
            i += entry->reclen;
            int r = is_dots(entry->name) ? 0 : remove_name(dir_fd, entry->name);
            if (r < 0)
                return r;
            if (r == 1) {
                *ret_child = openat(dir_fd, entry->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
                return *ret_child < 0 ? -errno : 1;
            }
            *at = entry->off;
        }
    }
    return n < 0 ? -errno : 0;
}

/* Where a directory that has been left for a child was: to begin again would look at all that was removed, for
 * each child. */
enum { PLACES = 256 };
struct place {
    int depth;
    off_t at;
};

/* Empty a directory of any depth with two descriptors and no recursion. Takes over `fd`. */
static int empty(int fd)
{
    struct place places[PLACES] = { 0 };
    int depth = 0, next = -1, r;

    for (;;) {
        struct place *here = &places[depth % PLACES];
        if (here->depth != depth)
            *here = (struct place){ .depth = depth }; /* one far below took the room */
        r = sweep(fd, &here->at, &next);
        if (r < 0 || (r == 0 && depth == 0))
            break;
        if (r == 0) {
            next = openat(fd, "..", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            if (next < 0) {
                r = -errno;
                break;
            }
        }
        depth += r == 1 ? 1 : -1;
        if (r == 1)
            places[depth % PLACES] = (struct place){ .depth = depth };
        (void)close(fd);
        fd = next;
    }
    (void)close(fd);
    return r;
}

int untar_remove(struct untar *u, int parent_fd, const char *name)
{
    int r, fd;

    /* A kept descriptor may lead through what goes. `parent_fd` is borrowed from there. */
    parent_fd = fcntl(parent_fd, F_DUPFD_CLOEXEC, 3);
    if (parent_fd < 0)
        return -errno;
    r = remove_name(parent_fd, name);
    while (r == 1) { /* again if the file system's readdir skipped a name */
        fd = openat(parent_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        r = fd < 0 ? -errno : empty(fd);
        if (r == 0)
            r = remove_name(parent_fd, name);
    }
    (void)close(parent_fd);
    (void)u;
    return r;
}
