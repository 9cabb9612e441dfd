#include <limits.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "child.h"
#include "paths.h"
#include "sys.h"

int op_make_directory(struct child *child, const struct plan_op *op) {
    bool created;
    int root = child_root(child);
    if (root < 0)
        return root;
    cleanup_fd int fd = path_make_directories(root, op_text(child, op, 0), (mode_t)op->num[0] & 07777, &created);
    if (fd < 0)
        return fd;
    if (!created || (op->num[1] == 0 && op->num[2] == 0))
        return 0; /* what the image has keeps its owner and mode */
    return fchownat(fd, "", (uid_t)op->num[1], (gid_t)op->num[2], AT_EMPTY_PATH) < 0 ? -errno : 0;
}

/* num: mode with S_IFCHR.., major << 32 | minor, uid, gid */
int op_make_device(struct child *child, const struct plan_op *op) {
    mode_t mode = (mode_t)op->num[0];
    dev_t device = makedev((unsigned)(op->num[1] >> 32), (unsigned)op->num[1]);
    const char *name;
    struct stat st;
    cleanup_fd int parent = -1;
    int root = child_root(child);
    if (root < 0)
        return root;
    int r = path_open_parent(root, op_text(child, op, 0), true, &parent, &name);
    if (r < 0)
        return r;
    if (mknodat(parent, name, mode, device) == 0)
        return fchownat(parent, name, (uid_t)op->num[2], (gid_t)op->num[3], AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
    if (errno != EEXIST)
        return -errno;
    if (fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return -errno;
    return (st.st_mode & S_IFMT) == (mode & S_IFMT) && st.st_rdev == device ? 0 : -EEXIST;
}

/* What is there already stays, link or not: the image wins. */
int op_make_symlink(struct child *child, const struct plan_op *op) {
    const char *name;
    cleanup_fd int parent = -1;
    int root = child_root(child);
    if (root < 0)
        return root;
    int r = path_open_parent(root, op_text(child, op, 1), true, &parent, &name);
    if (r < 0)
        return r;
    return symlinkat(op_text(child, op, 0), parent, name) < 0 && errno != EEXIST ? -errno : 0;
}

int child_write_proc(struct child *child, const char *path, const char *value) {
    const uint64_t beneath =
        RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS;
    int proc = child_proc(child);
    if (proc < 0)
        return proc;
    cleanup_fd int fd = sys_openat2(proc, path, O_WRONLY, 0, beneath);
    if (fd < 0)
        return fd;
    return write(fd, value, strlen(value)) < 0 ? -errno : 0;
}

int op_set_sysctl(struct child *child, const struct plan_op *op) {
    char path[PATH_MAX];
    const char *key = op_text(child, op, 0);
    size_t n = strlen(key);
    if (n + 5 > sizeof path)
        return -ENAMETOOLONG;
    memcpy(path, "sys/", 4);
    memcpy(path + 4, key, n + 1);
    return child_write_proc(child, path, op_text(child, op, 1));
}

/* Decimal, at the end of the buffer. */
static char *number(char *end, int64_t value) {
    uint64_t left = value < 0 ? (uint64_t)-value : (uint64_t)value;
    *--end = '\0';
    do
        *--end = (char)('0' + left % 10);
    while (left /= 10);
    if (value < 0)
        *--end = '-';
    return end;
}

int op_set_oom_score_adj(struct child *child, const struct plan_op *op) {
    char path[64], digits[24], value[24];
    /* "self" is a link, and those are refused; getpid is of the namespace that the procfs shows */
    const char *pid = number(digits + sizeof digits, getpid());
    size_t n = strlen(pid);
    memcpy(path, pid, n);
    memcpy(path + n, "/oom_score_adj", sizeof "/oom_score_adj");
    return child_write_proc(child, path, number(value + sizeof value, (int64_t)op->num[0]));
}

int op_set_cwd(struct child *child, const struct plan_op *op) {
    const char *path = op_text(child, op, 0);
    char here[PATH_MAX];
    /* The path is the image's: /proc/self/fd/N in it must find nothing of ours. */
    close_fdp(&child->root);
    close_fdp(&child->proc);
    child->root = child->proc = -1;
    /* but for those that KeepFds has put there for the program */
    unsigned first = child->kept > FD_FIRST - 3 ? 3 + child->kept : FD_FIRST;
    unsigned end = (unsigned)plan_fd(child->plan->n_fds);
    if (first < end)
        sys_close_range(first, end - 1, 0);
    if (chdir(path) < 0)
        return -errno;
    /* A directory outside of the root, reached by a leaked descriptor, reads "(unreachable)..."
     * (CVE-2024-21626). */
    if (syscall(SYS_getcwd, here, sizeof here) < 0)
        return -errno;
    return here[0] == '/' ? 0 : -EXDEV;
}
