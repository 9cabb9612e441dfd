#include "ext_sys.h"

#include <linux/capability.h>
#include <unistd.h>

int scow_openat2(int dirfd, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve) {
    /* EAGAIN: a rename or mount elsewhere raced with ".." below a root; a few tries are normal */
    for (int i = 0;; i++) {
        int fd = sys_openat2(dirfd, path, flags, mode, resolve);
        if (fd != -EAGAIN || i == 128)
            return fd;
    }
}

int scow_open_tree(int dirfd, const char *path, unsigned flags) {
    return sys_open_tree(dirfd, path, flags);
}

int scow_move_mount(int from_fd, const char *from, int to_fd, const char *to, unsigned flags) {
    return sys_move_mount(from_fd, from, to_fd, to, flags);
}

int scow_fsopen(const char *fstype) {
    return sys_fsopen(fstype);
}

int scow_fsconfig_string(int fd, const char *key, const char *value) {
    return sys_fsconfig(fd, FSCONFIG_SET_STRING, key, value, 0);
}

int scow_fsconfig_flag(int fd, const char *key) {
    return sys_fsconfig(fd, FSCONFIG_SET_FLAG, key, NULL, 0);
}

int scow_fsconfig_create(int fd) {
    return sys_fsconfig(fd, FSCONFIG_CMD_CREATE, NULL, NULL, 0);
}

int scow_fsmount(int fd, unsigned attributes) {
    return sys_fsmount(fd, attributes);
}

int scow_mount_setattr(int fd, const char *path, unsigned flags, uint64_t set, uint64_t clear,
                       uint64_t propagation, uint64_t userns_fd) {
    struct mount_attr attr = {
        .attr_set = set, .attr_clr = clear, .propagation = propagation, .userns_fd = userns_fd};
    return sys_mount_setattr(fd, path, flags, &attr);
}

int scow_mount(const char *source, const char *target, const char *fstype, unsigned long flags, const char *data) {
    return sys_mount(source, target, fstype, flags, data);
}

int scow_umount2(const char *target, int flags) {
    return sys_umount2(target, flags);
}

int scow_setns(int fd, int kinds) {
    return sys_setns(fd, kinds);
}

int scow_unshare(uint64_t flags) {
    return sys_unshare(flags);
}

int scow_pidfd_getfd(int pidfd, int fd) {
    return (int)sys_result(syscall(SYS_pidfd_getfd, pidfd, fd, 0));
}

/* setfsuid(2) away from 0 takes the capabilities over files from the effective set: they are put back. */
int scow_set_fs_ids(uint32_t uid, uint32_t gid) {
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];

    if (syscall(SYS_capget, &head, data) < 0)
        return -errno;
    (void)syscall(SYS_setfsgid, gid);
    (void)syscall(SYS_setfsuid, uid);
    /* Neither says whether it did: an id that cannot be is no change, and tells what is. */
    if ((uint32_t)syscall(SYS_setfsuid, -1) != uid || (uint32_t)syscall(SYS_setfsgid, -1) != gid)
        return -EPERM;
    return (int)sys_result(syscall(SYS_capset, &head, data));
}

/* What of Landlock the kernel has: its ABI, or -ENOSYS, or -EOPNOTSUPP where it is not turned on. */
int scow_landlock_abi(void) {
    return (int)sys_result(syscall(SYS_landlock_create_ruleset, NULL, 0, 1U));
}

int scow_syncfs(int fd) {
    return (int)sys_result(syncfs(fd));
}

int scow_bpf(int command, void *attributes, unsigned size) {
    return (int)sys_result(syscall(SYS_bpf, command, attributes, size));
}
