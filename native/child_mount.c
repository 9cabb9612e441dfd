#include <linux/magic.h>
#include <linux/sched.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "child.h"
#include "paths.h"
#include "sys.h"

#define PROC_ROOT_INODE 1 /* linux/proc_ns.h: PROC_ROOT_INO */
#define ONTO_FD (MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)

int op_mount_propagation(struct child *child, const struct plan_op *op) {
    (void)child;
    return sys_mount(NULL, "/", NULL, (op->num[1] ? 0 : MS_REC) | op->num[0], NULL);
}

static int make_filesystem(const char *fstype, const char *source, unsigned attributes,
                           const struct child *child, const struct plan_op *op) {
    const uint32_t *pair = op ? op_blob(child, op) : NULL;
    cleanup_fd int context = sys_fsopen(fstype);
    int r;
    if (context < 0)
        return context;
    if (source[0] && (r = sys_fsconfig(context, FSCONFIG_SET_STRING, "source", source, 0)) < 0)
        return r;
    for (uint32_t i = 0; op && i < op->count; i++) {
        const char *key = child->plan->block + pair[2 * i];
        if (pair[2 * i + 1] == PLAN_NONE)
            r = sys_fsconfig(context, FSCONFIG_SET_FLAG, key, NULL, 0);
        else
            r = sys_fsconfig(context, FSCONFIG_SET_STRING, key, child->plan->block + pair[2 * i + 1], 0);
        if (r < 0)
            return r;
    }
    r = sys_fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0);
    return r < 0 ? r : sys_fsmount(context, attributes);
}

/* A private tmpfs with an empty directory "d" and an empty file "f", read-only: what masked paths
 * are covered with. Nothing of the container's own /dev is trusted for that (CVE-2025-31133).
 *
 * It is attached below the root (same place, one mount deeper), because before 6.15 open_tree clones
 * only from mounts of the caller's namespace; it goes when the old root goes. */
static int attach_cover(struct child *child, const char *at) {
    struct mount_attr read_only = {.attr_set = MOUNT_ATTR_RDONLY};
    unsigned attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
    cleanup_fd int cover = make_filesystem("tmpfs", "scow-mask", attributes, child, NULL);
    if (cover < 0)
        return cover;
    if (mkdirat(cover, "d", 0555) < 0 || mknodat(cover, "f", S_IFREG | 0444, 0) < 0)
        return -errno;
    int r = sys_mount_setattr(cover, "", AT_EMPTY_PATH, &read_only);
    if (r < 0)
        return r;
    r = sys_move_mount(cover, "", AT_FDCWD, at, MOVE_MOUNT_F_EMPTY_PATH);
    if (r < 0)
        return r;
    child->cover = steal_fd(&cover);
    child->covers_root = at[0] == '/' && at[1] == '\0';
    return 0;
}

static bool plan_has(const struct plan *plan, uint32_t code) {
    for (uint32_t i = 0; i < plan->n_ops; i++)
        if (plan->ops[i].code == code)
            return true;
    return false;
}

int op_attach_root(struct child *child, const struct plan_op *op) {
    const char *at = op_text(child, op, 0);
    int root = plan_fd(op->fd), r;
    if (plan_has(child->plan, OP_MASK) && (r = attach_cover(child, at)) < 0)
        return r;
    r = sys_move_mount(root, "", AT_FDCWD, at, MOVE_MOUNT_F_EMPTY_PATH);
    if (r < 0)
        return r;
    child->root = root;
    return 0;
}

/* A link in the image must not lead a mount onto procfs, where it would hide or fake what the kernel
 * says (CVE-2019-16884); only a destination that says /proc itself may lie there. */
int child_check_destination(int fd, const char *dest) {
    struct statfs fs;
    if (strncmp(dest, "/proc/", 6) == 0 && !strstr(dest, "/.."))
        return 0;
    if (fstatfs(fd, &fs) < 0)
        return -errno;
    return fs.f_type == PROC_SUPER_MAGIC ? -EPERM : 0;
}

static int open_destination(struct child *child, const char *dest, bool is_dir) {
    int root = child_root(child);
    if (root < 0)
        return root;
    cleanup_fd int fd = is_dir ? path_make_directories(root, dest, 0755, NULL) : path_make_file(root, dest, 0644);
    if (fd < 0)
        return fd;
    int r = child_check_destination(fd, dest);
    return r < 0 ? r : steal_fd(&fd);
}

/* /proc and /sys must be real directories of the image: a link there would send everything that is
 * masked or verified later to another place. */
static int check_real_directory(struct child *child, const char *fstype, const char *dest) {
    if (strcmp(fstype, "proc") != 0 && strcmp(fstype, "sysfs") != 0)
        return 0;
    int root = child_root(child);
    if (root < 0)
        return root;
    cleanup_fd int fd = path_open(root, dest, O_PATH | O_DIRECTORY, RESOLVE_NO_SYMLINKS);
    return fd == -ENOENT || fd >= 0 ? 0 : fd;
}

int op_mount_filesystem(struct child *child, const struct plan_op *op) {
    const char *fstype = op_text(child, op, 0), *dest = op_text(child, op, 1);
    int r = check_real_directory(child, fstype, dest);
    if (r < 0)
        return r;
    cleanup_fd int tree = make_filesystem(fstype, op_text(child, op, 2), (unsigned)op->num[0], child, op);
    if (tree < 0)
        return tree;
    cleanup_fd int target = open_destination(child, dest, true);
    if (target < 0)
        return target;
    return sys_move_mount(tree, "", target, "", ONTO_FD);
}

/* The procfs of a container as its own mount namespace has it on /proc: a clone of that one mount,
 * found out to be the whole procfs of the pid namespace that we join. */
static int clone_proc(int pid_ns) {
    struct statfs fs;
    struct stat st, theirs, ours;
    cleanup_fd int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0)
        return -errno;
    cleanup_fd int proc = path_open(root, "proc", O_PATH | O_DIRECTORY, RESOLVE_NO_SYMLINKS);
    if (proc < 0)
        return proc;
    if (fstatfs(proc, &fs) < 0 || fstat(proc, &st) < 0 || fstat(pid_ns, &ours) < 0)
        return -errno;
    if (fs.f_type != PROC_SUPER_MAGIC || st.st_ino != PROC_ROOT_INODE)
        return -EPERM;
    if (fstatat(proc, "1/ns/pid", &theirs, 0) < 0)
        return -errno;
    if (theirs.st_dev != ours.st_dev || theirs.st_ino != ours.st_ino)
        return -EPERM;
    return sys_open_tree(proc, "", AT_EMPTY_PATH | OPEN_TREE_CLONE);
}

/* A new procfs shows the pid namespace of who makes it, and nobody of ours shall be in the joined one
 * before the root is the container's. So it is taken from a container that lives there, by a visit to
 * its mount namespace; from in there nobody sees us. fds: its mount and its pid namespace */
int op_mount_joined_proc(struct child *child, const struct plan_op *op) {
    const uint32_t *fds = op_blob(child, op);
    const char *dest = op_text(child, op, 0);
    struct mount_attr attr = {.attr_set = op->num[0], .attr_clr = MOUNT_ATTR_RDONLY, .propagation = MS_PRIVATE};
    int r = check_real_directory(child, "proc", dest), own_proc = child_proc(child);
    if (r < 0 || own_proc < 0)
        return r < 0 ? r : own_proc;
    cleanup_fd int own = openat(own_proc, "self/ns/mnt", O_RDONLY | O_CLOEXEC);
    cleanup_fd int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (own < 0 || root < 0)
        return -errno;
    r = sys_setns(plan_fd(fds[0]), CLONE_NEWNS);
    if (r < 0)
        return r;
    cleanup_fd int tree = clone_proc(plan_fd(fds[1]));
    r = sys_setns(own, CLONE_NEWNS);
    if (r < 0 || tree < 0)
        return r < 0 ? r : tree;
    /* setns put us on what lies on top of "/", which is the container's root when it is attached there:
     * pivot_root(2) wants to find us below it. */
    if (fchdir(root) < 0 || chroot(".") < 0)
        return -errno;
    r = sys_mount_setattr(tree, "", AT_EMPTY_PATH, &attr);
    if (r < 0)
        return r;
    cleanup_fd int target = open_destination(child, dest, true);
    return target < 0 ? target : sys_move_mount(tree, "", target, "", ONTO_FD);
}

int op_mount_tree(struct child *child, const struct plan_op *op) {
    struct mount_attr attr = {
        .attr_set = op->num[0], .attr_clr = op->num[1], .propagation = op->num[2]};
    unsigned recursive = op->num[3] & 1 ? AT_RECURSIVE : 0;
    int tree = plan_fd(op->fd), r;
    if (op->num[3] & 4 && attr.propagation) { /* of the whole tree, the attributes of its top alone */
        struct mount_attr whole = {.propagation = attr.propagation};
        attr.propagation = 0;
        if ((r = sys_mount_setattr(tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &whole)) < 0)
            return r;
    }
    if (attr.attr_set || attr.attr_clr || attr.propagation) {
        r = sys_mount_setattr(tree, "", AT_EMPTY_PATH | recursive, &attr);
        if (r < 0)
            return r;
    }
    cleanup_fd int target = open_destination(child, op_text(child, op, 0), op->num[3] & 2);
    if (target < 0)
        return target;
    return sys_move_mount(tree, "", target, "", ONTO_FD);
}

/* -ENOENT only when the path is not there. */
static int open_protected(struct child *child, const char *path) {
    int root = child_root(child);
    if (root < 0)
        return root;
    int fd = path_open(root, path, O_PATH, RESOLVE_NO_SYMLINKS);
    return fd == -ENOTDIR ? -ENOENT : fd;
}

int op_mask(struct child *child, const struct plan_op *op) {
    struct stat st;
    cleanup_fd int target = open_protected(child, op_text(child, op, 0));
    if (target < 0)
        return target == -ENOENT ? 0 : target;
    if (child->cover < 0)
        return -EBADF; /* a mask needs AttachRoot before it */
    if (fstat(target, &st) < 0)
        return -errno;
    cleanup_fd int tree = sys_open_tree(child->cover, S_ISDIR(st.st_mode) ? "d" : "f", OPEN_TREE_CLONE);
    if (tree < 0)
        return tree;
    return sys_move_mount(tree, "", target, "", ONTO_FD);
}

int op_read_only_path(struct child *child, const struct plan_op *op) {
    struct mount_attr read_only = {.attr_set = MOUNT_ATTR_RDONLY};
    cleanup_fd int target = open_protected(child, op_text(child, op, 0));
    if (target < 0)
        return target == -ENOENT ? 0 : target;
    cleanup_fd int tree = sys_open_tree(target, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | AT_RECURSIVE);
    if (tree < 0)
        return tree;
    int r = sys_mount_setattr(tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &read_only);
    return r < 0 ? r : sys_move_mount(tree, "", target, "", ONTO_FD);
}

/* Of SetMountAttributes and SetPropagation. num: attributes to set, to clear, MS_* of the propagation,
 * whether of all below it, too. A path that is no mount point is EINVAL. */
int op_change_mount(struct child *child, const struct plan_op *op) {
    struct mount_attr attr = {.attr_set = op->num[0], .attr_clr = op->num[1], .propagation = op->num[2]};
    int root = child_root(child);
    if (root < 0)
        return root;
    cleanup_fd int mount = path_open(root, op_text(child, op, 0), O_PATH, 0);
    return mount < 0 ? mount : sys_mount_setattr(mount, "", AT_EMPTY_PATH | (op->num[3] ? AT_RECURSIVE : 0), &attr);
}

/* text: a mount point of the host, in our copy of its mounts. What a user namespace may not unmount
 * (mount_namespaces(7): it came with the whole tree) is covered. */
int op_hide_host(struct child *child, const struct plan_op *op) {
    const char *path = op_text(child, op, 0);
    int r = sys_umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW);
    if (r == -EINVAL || r == -EPERM)
        r = sys_mount("none", path, "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    return r == -ENOENT ? 0 : r; /* it lay below another one, which is gone */
}

/* The working directory of an image need not exist; it is made while we are still root, through the
 * root's descriptor. What cannot be made (read-only root) is SetCwd's error to tell. */
static void make_cwd(struct child *child) {
    for (uint32_t i = 0; i < child->plan->n_ops; i++) {
        const struct plan_op *op = &child->plan->ops[i];
        if (op->code == OP_SET_CWD) {
            cleanup_fd int fd = path_make_directories(child->root, op_text(child, op, 0), 0755, NULL);
        }
    }
}

/* Nothing may be left on top of the new root. Our own "/" would not show it, but "/.." does, and so does
 * every setns into this mount namespace. */
static int check_alone(void) {
    struct stat root, above;
    if (stat("/", &root) < 0 || stat("/..", &above) < 0)
        return -errno;
    return root.st_dev == above.st_dev && root.st_ino == above.st_ino ? 0 : -EXDEV;
}

/* num[0]: without pivot_root(2), which needs a root that is no ramfs. The root lies on top of the
 * host's, as after MS_MOVE; what is below stays mounted. */
int op_pivot_root(struct child *child, const struct plan_op *op) {
    if (child->root < 0)
        return -EBADF;
    make_cwd(child);
    if (fchdir(child->root) < 0)
        return -errno;
    if (op->num[0])
        return chroot(".") < 0 || chdir("/") < 0 ? -errno : check_alone();
    /* New and old root on the same place: the old one lies on top and is "." then. */
    int r = sys_pivot_root(".", ".");
    if (r < 0)
        return r;
    for (int i = child->covers_root ? 2 : 1; i > 0; i--)
        if ((r = sys_umount2(".", MNT_DETACH)) < 0)
            return r;
    return chdir("/") < 0 ? -errno : check_alone();
}

int op_remount_root_read_only(struct child *child, const struct plan_op *op) {
    struct mount_attr read_only = {.attr_set = MOUNT_ATTR_RDONLY};
    (void)op;
    int root = child_root(child);
    return root < 0 ? root : sys_mount_setattr(root, "", AT_EMPTY_PATH, &read_only);
}
