/* What the applet may do: file owners, modes, nodes and file capabilities below one directory. */
#include "untar.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <sched.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#define CAP(name) (UINT64_C(1) << (name))

static int keep_capabilities(uint64_t keep)
{
    struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
    struct __user_cap_data_struct data[2];

    if (syscall(SYS_capget, &head, data) < 0)
        return -errno;
    for (int i = 0; i < 2; i++) {
        data[i].permitted &= (uint32_t)(keep >> (32 * i));
        data[i].effective = data[i].permitted;
        data[i].inheritable = 0;
    }
    return syscall(SYS_capset, &head, data) < 0 ? -errno : 0;
}

static int receive_dir(int sock, int *ret_fd)
{
    char byte, control[CMSG_SPACE(sizeof(int))];
    struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control) };
    struct cmsghdr *c;

    if (recvmsg(sock, &msg, MSG_CMSG_CLOEXEC) <= 0)
        return -EPIPE;
    c = CMSG_FIRSTHDR(&msg);
    if (!c || c->cmsg_type != SCM_RIGHTS || c->cmsg_len != CMSG_LEN(sizeof(int)))
        return -EBADMSG;
    memcpy(ret_fd, CMSG_DATA(c), sizeof(int));
    return 0;
}

/* The one deed of the helper: mark directories opaque, until the other end closes. */
static _Noreturn void serve_opaque(int sock)
{
    int32_t answer;
    int fd;

    if (keep_capabilities(CAP(CAP_SYS_ADMIN)) < 0)
        _exit(1);
    while (receive_dir(sock, &fd) == 0) {
        answer = fsetxattr(fd, "trusted.overlay.opaque", "y", 1, 0) < 0 ? -errno : 0;
        (void)close(fd);
        if (send(sock, &answer, sizeof(answer), MSG_NOSIGNAL) < 0)
            break;
    }
    _exit(0);
}

/* Let the disk write while the layer is still coming: else all of it waits for the syncfs at the end. */
static _Noreturn void serve_flush(int sock, int root_fd)
{
    char byte;

    if (keep_capabilities(0) < 0)
        _exit(1);
    while (recv(sock, &byte, 1, 0) == 1) {
        while (recv(sock, &byte, 1, MSG_DONTWAIT) == 1)
            ; /* asked again meanwhile: once is enough */
        (void)syscall(SYS_syncfs, root_fd);
    }
    _exit(0);
}

/* Fork a server at the other end of a socket, with the socket as 0 and `keep_fd` as 1 and nothing else:
 * it must not hold the pipe or the lock of the layer. It ends when we do. */
static int start_server(int keep_fd, int *ret_fd)
{
    int pair[2], r;
    pid_t pid;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return -errno;
    pid = fork();
    if (pid < 0) {
        r = -errno;
        (void)close(pair[0]);
        (void)close(pair[1]);
        return r;
    }
    if (pid == 0) {
        int sock = fcntl(pair[1], F_DUPFD, 10), root_fd = keep_fd >= 0 ? fcntl(keep_fd, F_DUPFD, 10) : -1;
        if (sock < 0 || dup2(sock, 0) < 0 || (keep_fd >= 0 && dup2(root_fd, 1) < 0))
            _exit(1);
        (void)syscall(SYS_close_range, keep_fd >= 0 ? 2U : 1U, ~0U, 0U);
        if (keep_fd >= 0)
            serve_flush(0, 1);
        serve_opaque(0);
    }
    (void)close(pair[1]);
    *ret_fd = pair[0];
    return 0;
}

int untar_start_helper(int *ret_fd)
{
    return start_server(-1, ret_fd);
}

int untar_start_flusher(int root_fd, int *ret_fd)
{
    return start_server(root_fd, ret_fd);
}

/* Best effort: the kernel may be without Landlock. Bits newer than the kernel's ABI must be left out. */
static void restrict_paths(int root_fd)
{
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    struct landlock_ruleset_attr attr = { .handled_access_fs = (UINT64_C(1) << 13) - 1 };
    struct landlock_path_beneath_attr beneath = { .parent_fd = root_fd };
    long fd;

    /* ABI 1 forbids every link between directories, so hard links would fail: 2 (5.19) has REFER. */
    if (abi < 2)
        return;
    attr.handled_access_fs |= UINT64_C(1) << 13;
    fd = syscall(SYS_landlock_create_ruleset, &attr, sizeof(attr.handled_access_fs), 0);
    if (fd < 0)
        return;
    beneath.allowed_access = attr.handled_access_fs & ~(uint64_t)LANDLOCK_ACCESS_FS_EXECUTE;
    if (syscall(SYS_landlock_add_rule, fd, LANDLOCK_RULE_PATH_BENEATH, &beneath, 0) == 0)
        (void)syscall(SYS_landlock_restrict_self, fd, 0);
    (void)close((int)fd);
}

/* After this the process reaches nothing but the layer: no network, another root, few capabilities.
 * chroot(2) is the second wall behind openat2(RESOLVE_IN_ROOT). */
int untar_confine(struct untar *u)
{
    const uint64_t keep = CAP(CAP_CHOWN) | CAP(CAP_DAC_OVERRIDE) | CAP(CAP_FOWNER) | CAP(CAP_FSETID) |
        CAP(CAP_MKNOD) | CAP(CAP_SETFCAP);

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return untar_fail(u, errno, "cannot set no_new_privs: %s", strerror(errno));
    if (unshare(CLONE_NEWNET) < 0)
        return untar_fail(u, errno, "cannot leave the network: %s", strerror(errno));
    if (fchdir(u->root_fd) < 0 || chroot(".") < 0)
        return untar_fail(u, errno, "cannot enter the layer: %s", strerror(errno));
    restrict_paths(u->root_fd);
    if (keep_capabilities(keep) < 0)
        return untar_fail(u, errno, "cannot drop capabilities: %s", strerror(errno));
    (void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    return 0;
}
