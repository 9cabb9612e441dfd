/* What the scheduler, the allocator and the security modules shall know of the program. */
#include <limits.h>
#include <sys/personality.h>
#include <sys/xattr.h>

#include "child.h"
#include "paths.h"
#include "sys.h"

#define IOPRIO_WHO_PGRP 2

/* num[0]: persona */
int op_set_personality(struct child *child, const struct plan_op *op) {
    (void)child;
    return personality((unsigned long)op->num[0]) < 0 ? -errno : 0;
}

/* blob: struct sched_attr */
int op_set_scheduler(struct child *child, const struct plan_op *op) {
    return (int)sys_result(syscall(SYS_sched_setattr, 0, op_blob(child, op), 0));
}

/* num[0]: class and level, as ioprio_set(2) packs them */
int op_set_io_priority(struct child *child, const struct plan_op *op) {
    (void)child;
    return (int)sys_result(syscall(SYS_ioprio_set, IOPRIO_WHO_PGRP, 0, (int)op->num[0]));
}

/* blob: mask of processors */
int op_set_affinity(struct child *child, const struct plan_op *op) {
    return (int)sys_result(syscall(SYS_sched_setaffinity, 0, (size_t)op->blob_len, op_blob(child, op)));
}

/* num[0]: mode with its flags; blob: mask of nodes */
int op_set_memory_policy(struct child *child, const struct plan_op *op) {
    unsigned long bits = (unsigned long)op->blob_len * 8;
    const void *mask = op->blob_len ? op_blob(child, op) : NULL;
    /* the kernel counts one more than it reads */
    return (int)sys_result(syscall(SYS_set_mempolicy, (int)op->num[0], mask, mask ? bits + 1 : 0));
}

/* text: "attr/exec" or the like, below /proc/PID; the label */
int op_set_label(struct child *child, const struct plan_op *op) {
    char path[PATH_MAX], digits[16], *number = digits + sizeof digits;
    const char *name = op_text(child, op, 0);
    *--number = '\0';
    for (pid_t left = getpid(); left; left /= 10)
        *--number = (char)('0' + left % 10);
    if (strlen(number) + strlen(name) + 2 > sizeof path)
        return -ENAMETOOLONG;
    strcat(strcat(strcpy(path, number), "/"), name);
    return child_write_proc(child, path, op_text(child, op, 1));
}

/* text: a directory in the root; the label of SELinux that its inode gets */
int op_label_mount(struct child *child, const struct plan_op *op) {
    const char *label = op_text(child, op, 1);
    int root = child_root(child);
    if (root < 0)
        return root;
    cleanup_fd int fd = path_open(root, op_text(child, op, 0), O_RDONLY | O_DIRECTORY, RESOLVE_NO_SYMLINKS);
    if (fd < 0)
        return fd;
    /* with its zero, as attr(5) of SELinux has it */
    return fsetxattr(fd, "security.selinux", label, strlen(label) + 1, 0) < 0 ? -errno : 0;
}
