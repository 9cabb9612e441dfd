from typing import Any

from typing_extensions import Buffer

class CData:
    def __getitem__(self, index: int) -> Any: ...
    def __setitem__(self, index: int, value: object) -> None: ...

class _FFI:
    NULL: CData
    def new(self, ctype: str, init: object = ...) -> CData: ...
    def from_buffer(self, ctype: str, data: Buffer, require_writable: bool = ...) -> CData: ...

class _Lib:
    AT_EMPTY_PATH: int
    AT_NO_AUTOMOUNT: int
    AT_RECURSIVE: int
    AT_SYMLINK_NOFOLLOW: int
    CLONE_NEWCGROUP: int
    CLONE_NEWIPC: int
    CLONE_NEWNET: int
    CLONE_NEWNS: int
    CLONE_NEWPID: int
    CLONE_NEWTIME: int
    CLONE_NEWUSER: int
    CLONE_NEWUTS: int
    FSMOUNT_CLOEXEC: int
    FSOPEN_CLOEXEC: int
    MNT_DETACH: int
    MNT_FORCE: int
    UMOUNT_NOFOLLOW: int
    MOUNT_ATTR_IDMAP: int
    MOUNT_ATTR_NOATIME: int
    MOUNT_ATTR_NODEV: int
    MOUNT_ATTR_NODIRATIME: int
    MOUNT_ATTR_NOEXEC: int
    MOUNT_ATTR_NOSUID: int
    MOUNT_ATTR_NOSYMFOLLOW: int
    MOUNT_ATTR_RDONLY: int
    MOUNT_ATTR_RELATIME: int
    MOUNT_ATTR_STRICTATIME: int
    MOUNT_ATTR__ATIME: int
    MOVE_MOUNT_F_EMPTY_PATH: int
    MOVE_MOUNT_F_SYMLINKS: int
    MOVE_MOUNT_T_EMPTY_PATH: int
    MS_BIND: int
    MS_NODEV: int
    MS_NOEXEC: int
    MS_NOSUID: int
    MS_PRIVATE: int
    MS_RDONLY: int
    MS_REC: int
    MS_REMOUNT: int
    MS_SHARED: int
    MS_SLAVE: int
    MS_UNBINDABLE: int
    OPEN_TREE_CLOEXEC: int
    OPEN_TREE_CLONE: int
    RESOLVE_BENEATH: int
    RESOLVE_IN_ROOT: int
    RESOLVE_NO_MAGICLINKS: int
    RESOLVE_NO_SYMLINKS: int
    RESOLVE_NO_XDEV: int
    def scow_openat2(
        self, dirfd: int, path: bytes, flags: int, mode: int, resolve: int, /
    ) -> int: ...
    def scow_open_tree(self, dirfd: int, path: bytes, flags: int, /) -> int: ...
    def scow_move_mount(
        self, from_fd: int, source: bytes, to_fd: int, target: bytes, flags: int, /
    ) -> int: ...
    def scow_fsopen(self, fstype: bytes, /) -> int: ...
    def scow_fsconfig_string(self, fd: int, key: bytes, value: bytes, /) -> int: ...
    def scow_fsconfig_flag(self, fd: int, key: bytes, /) -> int: ...
    def scow_fsconfig_create(self, fd: int, /) -> int: ...
    def scow_fsmount(self, fd: int, attributes: int, /) -> int: ...
    def scow_mount_setattr(
        self,
        fd: int,
        path: bytes,
        flags: int,
        attr_set: int,
        attr_clr: int,
        propagation: int,
        userns_fd: int,
        /,
    ) -> int: ...
    def scow_mount(
        self,
        source: bytes | CData,
        target: bytes,
        fstype: bytes | CData,
        flags: int,
        data: bytes | CData,
        /,
    ) -> int: ...
    def scow_umount2(self, target: bytes, flags: int, /) -> int: ...
    def scow_setns(self, fd: int, kinds: int, /) -> int: ...
    def scow_unshare(self, flags: int, /) -> int: ...
    def scow_pidfd_getfd(self, pidfd: int, fd: int, /) -> int: ...
    def scow_set_fs_ids(self, uid: int, gid: int, /) -> int: ...
    def scow_landlock_abi(self) -> int: ...
    def scow_syncfs(self, fd: int, /) -> int: ...
    def scow_bpf(self, command: int, attributes: CData, size: int, /) -> int: ...
    def scow_monitor_memfd(self) -> int: ...
    def scow_monitor_size(self) -> int: ...
    def scow_launch(
        self, exe_fd: int, argv: CData, envp: CData, stdio: CData, fds: CData, n_fds: int, /
    ) -> int: ...

ffi: _FFI
lib: _Lib
