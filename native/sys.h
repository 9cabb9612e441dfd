/* System calls that musl and older glibc have no wrapper for; each returns a value >= 0 or -errno.
 *
 * linux/mount.h and sys/mount.h of glibc >= 2.36 declare the same names, so sys/mount.h is never
 * included and the few names that only it has are below. */
#ifndef SCOW_SYS_H
#define SCOW_SYS_H

#include <linux/mount.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <sys/types.h>

#include "scow.h"

/* The same numbers on every architecture (asm-generic, since 5.0). */
#ifndef SYS_open_tree
#define SYS_open_tree 428
#define SYS_move_mount 429
#define SYS_fsopen 430
#define SYS_fsconfig 431
#define SYS_fsmount 432
#define SYS_fspick 433
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_clone3
#define SYS_clone3 435
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif
#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#endif
#ifndef MNT_DETACH
#define MNT_DETACH 2
#define UMOUNT_NOFOLLOW 8
#endif
#ifndef AT_EMPTY_PATH
#define AT_EMPTY_PATH 0x1000
#endif
#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000
#endif
#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC (1U << 2)
#endif
#ifndef MOUNT_ATTR_NOSYMFOLLOW
#define MOUNT_ATTR_NOSYMFOLLOW 0x00200000
#endif
#ifndef MFD_EXEC
#define MFD_EXEC 0x0010U
#endif

static inline long sys_result(long value) {
    return value < 0 ? -errno : value;
}

/* Every signal to its default. By the raw call: libc keeps the numbers from 32 on to itself and refuses
 * them, and a caller may have left them ignored, which an execve would hand on. */
static inline void sys_default_signals(void) {
    const struct {
        void *handler;
        unsigned long flags;
        void *restorer;
        uint64_t mask;
    } standard = {0};
    for (int sig = 1; sig <= 64; sig++)
        (void)syscall(SYS_rt_sigaction, sig, &standard, NULL, sizeof standard.mask);
}

static inline int sys_openat2(int dirfd, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve) {
    struct open_how how = {.flags = flags | O_CLOEXEC, .mode = mode, .resolve = resolve};
    return (int)sys_result(syscall(SYS_openat2, dirfd, path, &how, sizeof how));
}

static inline int sys_open_tree(int dirfd, const char *path, unsigned flags) {
    return (int)sys_result(syscall(SYS_open_tree, dirfd, path, flags | OPEN_TREE_CLOEXEC));
}

static inline int sys_move_mount(int from_fd, const char *from, int to_fd, const char *to, unsigned flags) {
    return (int)sys_result(syscall(SYS_move_mount, from_fd, from, to_fd, to, flags));
}

static inline int sys_fsopen(const char *fstype) {
    return (int)sys_result(syscall(SYS_fsopen, fstype, FSOPEN_CLOEXEC));
}

static inline int sys_fsconfig(int fd, unsigned command, const char *key, const void *value, int aux) {
    return (int)sys_result(syscall(SYS_fsconfig, fd, command, key, value, aux));
}

static inline int sys_fsmount(int fd, unsigned attributes) {
    return (int)sys_result(syscall(SYS_fsmount, fd, FSMOUNT_CLOEXEC, attributes));
}

static inline int sys_mount_setattr(int fd, const char *path, unsigned flags, struct mount_attr *attr) {
    return (int)sys_result(syscall(SYS_mount_setattr, fd, path, flags, attr, sizeof *attr));
}

static inline int sys_mount(const char *source, const char *target, const char *fstype, unsigned long flags,
                            const void *data) {
    return (int)sys_result(syscall(SYS_mount, source, target, fstype, flags, data));
}

static inline int sys_umount2(const char *target, int flags) {
    return (int)sys_result(syscall(SYS_umount2, target, flags));
}

static inline int sys_pivot_root(const char *new_root, const char *put_old) {
    return (int)sys_result(syscall(SYS_pivot_root, new_root, put_old));
}

static inline int sys_setns(int fd, int kinds) {
    return (int)sys_result(syscall(SYS_setns, fd, kinds));
}

static inline int sys_unshare(uint64_t flags) {
    return (int)sys_result(syscall(SYS_unshare, flags));
}

static inline int sys_close_range(unsigned first, unsigned last, unsigned flags) {
    return (int)sys_result(syscall(SYS_close_range, first, last, flags));
}

static inline int sys_pidfd_open(pid_t pid) {
    return (int)sys_result(syscall(SYS_pidfd_open, pid, 0));
}

#endif
