"""The declarations of `scow.native._scow` (cffi, API mode): read by setup.py, never imported at run time.

What belongs here: what Python may call in C. The constants come from the headers (`...`), so a wrong
number is a build error and not a wrong mount.
"""

from __future__ import annotations

from cffi import FFI

CONSTANTS = [
    "AT_EMPTY_PATH",
    "AT_NO_AUTOMOUNT",
    "AT_RECURSIVE",
    "AT_SYMLINK_NOFOLLOW",
    "CLONE_NEWCGROUP",
    "CLONE_NEWIPC",
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWPID",
    "CLONE_NEWTIME",
    "CLONE_NEWUSER",
    "CLONE_NEWUTS",
    "FSMOUNT_CLOEXEC",
    "FSOPEN_CLOEXEC",
    "MNT_DETACH",
    "MNT_FORCE",
    "UMOUNT_NOFOLLOW",
    "MOUNT_ATTR_IDMAP",
    "MOUNT_ATTR_NOATIME",
    "MOUNT_ATTR_NODEV",
    "MOUNT_ATTR_NODIRATIME",
    "MOUNT_ATTR_NOEXEC",
    "MOUNT_ATTR_NOSUID",
    "MOUNT_ATTR_NOSYMFOLLOW",
    "MOUNT_ATTR_RDONLY",
    "MOUNT_ATTR_RELATIME",
    "MOUNT_ATTR_STRICTATIME",
    "MOUNT_ATTR__ATIME",
    "MOVE_MOUNT_F_EMPTY_PATH",
    "MOVE_MOUNT_F_SYMLINKS",
    "MOVE_MOUNT_T_EMPTY_PATH",
    "MS_BIND",
    "MS_NODEV",
    "MS_NOEXEC",
    "MS_NOSUID",
    "MS_PRIVATE",
    "MS_RDONLY",
    "MS_REC",
    "MS_REMOUNT",
    "MS_SHARED",
    "MS_SLAVE",
    "MS_UNBINDABLE",
    "OPEN_TREE_CLOEXEC",
    "OPEN_TREE_CLONE",
    "RESOLVE_BENEATH",
    "RESOLVE_IN_ROOT",
    "RESOLVE_NO_MAGICLINKS",
    "RESOLVE_NO_SYMLINKS",
    "RESOLVE_NO_XDEV",
]

FUNCTIONS = """
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
int scow_monitor_memfd(void);
size_t scow_monitor_size(void);
int scow_launch(int exe_fd, char *const *argv, char *const *envp, const int *stdio, const int *fds, int n_fds);
"""

SOURCES = ["native/ext_sys.c", "native/launch.c", "native/embed.c"]

ffibuilder = FFI()
ffibuilder.cdef("".join(f"#define {name} ...\n" for name in CONSTANTS) + FUNCTIONS)
ffibuilder.set_source(
    "scow.native._scow",
    '#include "ext_sys.h"\n#include "launch.h"\n',
    sources=SOURCES,
    include_dirs=["native"],
    depends=[
        "native/ext_sys.h",
        "native/launch.h",
        "native/scow.h",
        "native/sys.h",
    ],
    extra_compile_args=[
        "-std=gnu11",
        "-D_GNU_SOURCE",
        "-Wall",
        "-Wextra",
        "-Werror=implicit-function-declaration",
    ],
)
