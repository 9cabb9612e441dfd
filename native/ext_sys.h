/* The system calls that Python lacks, as the extension offers them: a value >= 0 or -errno. */
#ifndef SCOW_EXT_SYS_H
#define SCOW_EXT_SYS_H

#include <linux/sched.h>

#include "sys.h"

#ifndef MNT_FORCE
#define MNT_FORCE 1
#endif

int scow_openat2(int dirfd, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve);
int scow_open_tree(int dirfd, const char *path, unsigned flags);
int scow_move_mount(int from_fd, const char *from, int to_fd, const char *to, unsigned flags);
int scow_fsopen(const char *fstype);
int scow_fsconfig_string(int fd, const char *key, const char *value);
int scow_fsconfig_flag(int fd, const char *key);
int scow_fsconfig_create(int fd);
int scow_fsmount(int fd, unsigned attributes);
int scow_mount_setattr(int fd, const char *path, unsigned flags, uint64_t set, uint64_t clear,
                       uint64_t propagation, uint64_t userns_fd);
int scow_mount(const char *source, const char *target, const char *fstype, unsigned long flags, const char *data);
int scow_umount2(const char *target, int flags);
int scow_setns(int fd, int kinds);
int scow_unshare(uint64_t flags);
int scow_pidfd_getfd(int pidfd, int fd);
int scow_set_fs_ids(uint32_t uid, uint32_t gid);
int scow_landlock_abi(void);
int scow_syncfs(int fd);
int scow_bpf(int command, void *attributes, unsigned size);

#endif
