#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <termios.h>

#include "child.h"
#include "paths.h"
#include "sys.h"

#ifndef TIOCGPTPEER
#define TIOCGPTPEER _IO('T', 0x41)
#endif

static bool is_device(const struct stat *st, unsigned maj, unsigned min) {
    return S_ISCHR(st->st_mode) && major(st->st_rdev) == maj && minor(st->st_rdev) == min;
}

/* The master of a new pty in the container's devpts, found out to be one (CVE-2025-52565). */
static int open_master(int root) {
    struct statfs fs;
    struct stat st;
    const int unlock = 0;
    cleanup_fd int fd = path_open(root, "dev/pts/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK, RESOLVE_NO_SYMLINKS);
    if (fd < 0)
        return fd;
    if (fstatfs(fd, &fs) < 0 || fstat(fd, &st) < 0)
        return -errno;
    if (fs.f_type != DEVPTS_SUPER_MAGIC || !is_device(&st, 5, 2))
        return -ENOTTY;
    if (ioctl(fd, TIOCSPTLCK, &unlock) < 0)
        return -errno;
    return steal_fd(&fd);
}

static int put_on_stdio(int fd) {
    for (int i = 0; i < 3; i++)
        if (dup2(fd, i) < 0)
            return -errno;
    return 0;
}

static int bind_console(int root, int slave) {
    cleanup_fd int tree = sys_open_tree(slave, "", AT_EMPTY_PATH | OPEN_TREE_CLONE);
    if (tree < 0)
        return tree;
    cleanup_fd int target = path_make_file(root, "dev/console", 0600);
    if (target < 0)
        return target;
    int r = child_check_destination(target, "/dev/console");
    return r < 0 ? r : sys_move_mount(tree, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
}

/* num: rows, cols, uid, whether to bind /dev/console */
int op_terminal(struct child *child, const struct plan_op *op) {
    struct winsize size = {.ws_row = (unsigned short)op->num[0], .ws_col = (unsigned short)op->num[1]};
    int r, root = child_root(child);
    if (root < 0)
        return root;
    cleanup_fd int master = open_master(root);
    if (master < 0)
        return master;
    /* by the master, never by the path /dev/pts/N. Without O_CLOEXEC, which the kernel would keep in
     * the file's own flags, where F_GETFL and CRIU find it; this descriptor is closed below. */
    cleanup_fd int slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY);
    if (slave < 0)
        return -errno;
    if (size.ws_row && ioctl(slave, TIOCSWINSZ, &size) < 0)
        return -errno;
    if (fchown(slave, (uid_t)op->num[2], (gid_t)-1) < 0)
        return -errno;
    /* the console is the first process's; an exec must not take it over */
    if (op->num[3] && child->plan->mode == PLAN_RUN && (r = bind_console(root, slave)) < 0)
        return r;
    if (setsid() < 0)
        return -errno;
    if ((r = put_on_stdio(slave)) < 0)
        return r;
    if (ioctl(0, TIOCSCTTY, 0) < 0)
        return -errno;
    child->master = steal_fd(&master);
    return 0;
}

/* The container's own /dev/null, or a pipe that is at its end: the host's /dev/null would be an inode
 * of the host that root in there can chmod. */
static int open_empty_stdin(int root) {
    int ends[2];
    struct stat st;
    cleanup_fd int fd = path_open(root, "dev/null", O_RDONLY | O_NOCTTY | O_NONBLOCK, RESOLVE_NO_SYMLINKS);
    if (fd >= 0 && fstat(fd, &st) == 0 && is_device(&st, 1, 3)) {
        fcntl(fd, F_SETFL, 0);
        return steal_fd(&fd);
    }
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -errno;
    close(ends[1]);
    return ends[0];
}

/* num: uid, gid; count: the monitor has given the pipes away, where we have no right to */
int op_stdio_from_monitor(struct child *child, const struct plan_op *op) {
    int *io = child->ends.io;
    int root = child_root(child);
    if (root < 0)
        return root;
    if (setsid() < 0)
        return -errno;
    if (io[0] < 0 && (io[0] = open_empty_stdin(root)) < 0)
        return io[0];
    for (int i = 0; i < 3; i++) {
        struct stat st;
        if (io[i] < 0)
            return -EBADF;
        if (fstat(io[i], &st) < 0)
            return -errno;
        /* so that /dev/stdout can be opened by the user; never the owner of a device node. In a user
         * namespace of our own the pipe's owner has no name, and nobody may change it. */
        if (S_ISFIFO(st.st_mode) && !op->count && fchown(io[i], (uid_t)op->num[0], (gid_t)op->num[1]) < 0 &&
            !(errno == EPERM && child->plan->uid_map[0]))
            return -errno;
        if (dup2(io[i], i) < 0)
            return -errno;
    }
    return 0;
}
