#include "paths.h"

#include <limits.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "sys.h"

/* A rename or mount anywhere on the machine during ".." resolution gives EAGAIN; on a busy host a
 * few tries are normal, a storm of them is an attack or a broken host. */
#define MAX_TRIES 128
#define MAX_LINKS 40

int path_open(int root, const char *path, uint64_t flags, uint64_t resolve) {
    resolve |= RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
    if (path[0] == '\0')
        path = ".";
    for (int i = 0;; i++) {
        int fd = sys_openat2(root, path, flags, 0, resolve);
        if (fd != -EAGAIN || i == MAX_TRIES)
            return fd;
    }
}

/* The walk of mkdir -p: `done` is what exists, `rest` what is still to come. */
struct walk {
    char done[PATH_MAX];
    char rest[PATH_MAX];
    int links;
};

static int put_rest(struct walk *walk, const char *head, const char *tail) {
    char joined[PATH_MAX];
    size_t a = strlen(head), b = strlen(tail);
    if (a + b + 2 > sizeof joined)
        return -ENAMETOOLONG;
    memcpy(joined, head, a);
    joined[a] = '/';
    memcpy(joined + a + 1, tail, b + 1);
    memcpy(walk->rest, joined, a + b + 2);
    return 0;
}

/* The text of a link that seems to lead nowhere. Not on procfs: there a magic link can come to life
 * between the kernel's answer and ours (/proc/self/fd/N, by opening its very directory), and its text
 * is a path of the host. */
static ssize_t read_link(int parent, const char *name, char *ret, size_t size) {
    struct statfs fs;
    if (fstatfs(parent, &fs) < 0)
        return -errno;
    if (fs.f_type == PROC_SUPER_MAGIC)
        return -ELOOP;
    ssize_t n = readlinkat(parent, name, ret, size);
    return n < 0 ? -errno : n;
}

/* The component exists but leads nowhere: a dangling link. Its target takes its place in the walk,
 * where `parent_len` is how much of `done` lies before it. */
static int follow_link(struct walk *walk, int parent, const char *name, size_t parent_len) {
    char target[PATH_MAX];
    ssize_t n = read_link(parent, name, target, sizeof target - 1);
    if (n < 0)
        return (int)n;
    target[n] = '\0';
    if (++walk->links > MAX_LINKS)
        return -ELOOP;
    walk->done[target[0] == '/' ? 0 : parent_len] = '\0';
    return put_rest(walk, target, walk->rest);
}

/* Takes one component off `rest` and puts it on `done`. Its length; 0 at the end. */
static ssize_t take_component(struct walk *walk) {
    char *start = walk->rest + strspn(walk->rest, "/");
    size_t n = strcspn(start, "/"), have = strlen(walk->done);
    if (n == 0)
        return 0;
    if (n > NAME_MAX || have + n + 2 > sizeof walk->done)
        return -ENAMETOOLONG;
    walk->done[have] = '/';
    memcpy(walk->done + have + 1, start, n);
    walk->done[have + 1 + n] = '\0';
    memmove(walk->rest, start + n, strlen(start + n) + 1);
    return (ssize_t)n;
}

static int make_component(struct walk *walk, int root, size_t name_len, mode_t mode, bool *ret_created) {
    size_t parent_len = strlen(walk->done) - name_len - 1;
    char name[NAME_MAX + 1];
    memcpy(name, walk->done + parent_len + 1, name_len + 1);
    walk->done[parent_len] = '\0';
    cleanup_fd int parent = path_open(root, walk->done, O_PATH | O_DIRECTORY, 0);
    walk->done[parent_len] = '/';
    if (parent < 0)
        return parent;
    if (mkdirat(parent, name, mode) == 0) {
        *ret_created = true;
        return 0;
    }
    if (errno != EEXIST)
        return -errno;
    int r = follow_link(walk, parent, name, parent_len);
    return r == -EINVAL ? 0 : r; /* no link: somebody made the directory meanwhile */
}

/* What is missing is the last component most of the time, which spares the walk two calls for each of
 * those before it. Where anything is in the way, the walk knows what. */
static bool make_last(int root, const char *path, mode_t mode) {
    cleanup_fd int parent = -1;
    const char *name;
    return path_open_parent(root, path, false, &parent, &name) == 0 && mkdirat(parent, name, mode) == 0;
}

int path_make_directories(int root, const char *path, mode_t mode, bool *ret_created) {
    struct walk walk;
    bool created = false;
    int fd = path_open(root, path, O_PATH | O_DIRECTORY, 0);
    if (ret_created)
        *ret_created = false;
    if (fd != -ENOENT)
        return fd;
    if (make_last(root, path, mode)) {
        if (ret_created)
            *ret_created = true;
        return path_open(root, path, O_PATH | O_DIRECTORY, 0);
    }
    if (strlen(path) >= sizeof walk.rest)
        return -ENAMETOOLONG;
    walk.done[0] = '\0';
    walk.links = 0;
    memcpy(walk.rest, path, strlen(path) + 1);
    for (;;) {
        ssize_t n = take_component(&walk);
        if (n <= 0) {
            if (n < 0)
                return (int)n;
            break;
        }
        cleanup_fd int here = path_open(root, walk.done, O_PATH | O_DIRECTORY, 0);
        created = false;
        if (here >= 0)
            continue;
        if (here != -ENOENT)
            return here;
        bool last = walk.rest[strspn(walk.rest, "/")] == '\0';
        int r = make_component(&walk, root, (size_t)n, last ? mode : 0755, &created);
        if (r < 0)
            return r;
    }
    if (ret_created)
        *ret_created = created;
    return path_open(root, walk.done, O_PATH | O_DIRECTORY, 0);
}

int path_open_parent(int root, const char *path, bool create, int *ret_fd, const char **ret_name) {
    char parent[PATH_MAX];
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    size_t n = slash ? (size_t)(slash - path) : 0;
    if (name[0] == '\0' || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return -EINVAL;
    if (n >= sizeof parent)
        return -ENAMETOOLONG;
    memcpy(parent, path, n);
    parent[n] = '\0';
    int fd = create ? path_make_directories(root, parent, 0755, NULL)
                    : path_open(root, parent, O_PATH | O_DIRECTORY, 0);
    if (fd < 0)
        return fd;
    *ret_fd = fd;
    *ret_name = name;
    return 0;
}

/* Where a dangling link at parent/name points to, as a path below the root. */
static int link_target(int parent, const char *path, const char *name, char *ret, size_t size) {
    size_t head = (size_t)(name - path);
    if (head >= size)
        return -ENAMETOOLONG;
    memcpy(ret, path, head);
    ssize_t n = read_link(parent, name, ret + head, size - head - 1);
    if (n < 0)
        return (int)n;
    if ((size_t)n == size - head - 1)
        return -ENAMETOOLONG;
    ret[head + (size_t)n] = '\0';
    if (ret[head] == '/')
        memmove(ret, ret + head, (size_t)n + 1);
    return 0;
}

int path_make_file(int root, const char *path, mode_t mode) {
    char now[PATH_MAX], next[PATH_MAX];
    if (strlen(path) >= sizeof now)
        return -ENAMETOOLONG;
    memcpy(now, path, strlen(path) + 1);
    for (int i = 0; i < MAX_LINKS; i++) {
        int fd = path_open(root, now, O_PATH, 0);
        if (fd != -ENOENT)
            return fd;
        cleanup_fd int parent = -1;
        const char *name;
        int r = path_open_parent(root, now, true, &parent, &name);
        if (r < 0)
            return r;
        /* mknodat never follows a link and never opens: no O_CREAT on a hostile name */
        if (mknodat(parent, name, S_IFREG | mode, 0) == 0)
            continue;
        if (errno != EEXIST)
            return -errno;
        r = link_target(parent, now, name, next, sizeof next);
        if (r == -EINVAL)
            continue; /* made by somebody else meanwhile */
        if (r < 0)
            return r;
        memcpy(now, next, sizeof now);
    }
    return -ELOOP;
}
