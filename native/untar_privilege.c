/* What the applet may do: file owners, modes, nodes and file capabilities below one directory. */
#include "untar.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <sched.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
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

/* What is left to every one of our processes: no new rights, no memory to read, little of everything. */
static int limit_process(void)
{
    const struct { int kind; rlim_t most; } limits[] = {
        { RLIMIT_CORE, 0 },
        { RLIMIT_NOFILE, 64 }, /* kept directories, a path's two, what we were started with */
#ifndef __SANITIZE_ADDRESS__
        { RLIMIT_AS, 64 << 20 }, /* three times struct untar */
#endif
    };

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
        return -errno;
    for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++)
        if (setrlimit(limits[i].kind, &(struct rlimit){ limits[i].most, limits[i].most }) < 0)
            return -errno;
    return 0;
}

/* The one deed of the helper: mark directories opaque, until the other end closes. */
static _Noreturn void serve_opaque(int sock)
{
    int32_t answer;
    int fd;

    if (limit_process() < 0 || keep_capabilities(CAP(CAP_SYS_ADMIN)) < 0 || untar_filter_opaque() < 0)
        _exit(1);
    while (receive_dir(sock, &fd) == 0) {
        answer = fsetxattr(fd, "trusted.overlay.opaque", "y", 1, 0) < 0 ? -errno : 0;
        (void)close(fd);
        if (send(sock, &answer, sizeof(answer), MSG_NOSIGNAL) < 0)
            break;
    }
    _exit(0);
}

/* Fork the helper at the other end of a socket, with the socket as 0 and nothing else: it must not hold the
 * pipe or the lock of the layer. It ends when we do. */
int untar_start_helper(int *ret_fd)
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
        if (dup2(pair[1], 0) < 0)
            _exit(1);
        (void)syscall(SYS_close_range, 1U, ~0U, 0U);
        serve_opaque(0);
    }
    (void)close(pair[1]);
    *ret_fd = pair[0];
    return 0;
}

/* Bits by the ABI that brought them; a kernel refuses those that it does not know. */
struct ruleset {
    uint64_t access_fs, access_net, scoped; /* the header of the build may be older than the kernel */
};

static size_t everything(long abi, struct ruleset *ret)
{
    ret->access_fs = (UINT64_C(1) << 14) - 1; /* 2: with REFER */
    if (abi >= 3)
        ret->access_fs |= UINT64_C(1) << 14; /* TRUNCATE */
    if (abi >= 5)
        ret->access_fs |= UINT64_C(1) << 15; /* IOCTL_DEV */
    ret->access_net = 3; /* 4: bind and connect of TCP; no rule gives them back */
    ret->scoped = 3;     /* 6: abstract sockets of others, signals to others */
    return abi >= 6 ? 24 : abi >= 4 ? 16 : 8;
}

/* The ABI that holds now, 0 where the kernel has none that serves us, or -errno: what the kernel offers
 * and does not do is no reason to go on. */
static int restrict_paths(int root_fd)
{
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    struct ruleset all = { 0 };
    struct landlock_path_beneath_attr beneath = { .parent_fd = root_fd };
    size_t size;
    int fd, r = 0;

    /* ABI 1 forbids every link between directories, so hard links would fail: 2 (5.19) has REFER. */
    if (abi < 2)
        return 0;
    size = everything(abi, &all);
    fd = (int)syscall(SYS_landlock_create_ruleset, &all, size, 0);
    if (fd < 0)
        return -errno;
    beneath.allowed_access = all.access_fs & ~(uint64_t)LANDLOCK_ACCESS_FS_EXECUTE & ~(UINT64_C(1) << 15);
    if (syscall(SYS_landlock_add_rule, fd, LANDLOCK_RULE_PATH_BENEATH, &beneath, 0) < 0 ||
        syscall(SYS_landlock_restrict_self, fd, 0) < 0)
        r = -errno;
    (void)close(fd);
    return r < 0 ? r : (int)abi;
}

/* After this the process reaches nothing but the layer: no network, another root, few capabilities, no
 * system calls but those of its trade. chroot(2) and Landlock are walls behind openat2(RESOLVE_IN_ROOT). */
int untar_confine(struct untar *u)
{
    const uint64_t keep = CAP(CAP_CHOWN) | CAP(CAP_DAC_OVERRIDE) | CAP(CAP_FOWNER) | CAP(CAP_FSETID) |
        CAP(CAP_MKNOD) | CAP(CAP_SETFCAP);
    int r = limit_process();

    if (r < 0)
        return untar_fail(u, -r, "cannot set limits: %s", strerror(-r));
    if (unshare(CLONE_NEWNET) < 0)
        return untar_fail(u, errno, "cannot leave the network: %s", strerror(errno));
    if (fchdir(u->root_fd) < 0 || chroot(".") < 0)
        return untar_fail(u, errno, "cannot enter the layer: %s", strerror(errno));
    r = restrict_paths(u->root_fd);
    if (r < 0)
        return untar_fail(u, -r, "cannot restrict itself to the layer by Landlock: %s", strerror(-r));
    u->counts.landlock = (uint64_t)r;
    r = keep_capabilities(keep);
    if (r < 0)
        return untar_fail(u, -r, "cannot drop capabilities: %s", strerror(-r));
    r = untar_filter_calls();
    if (r < 0)
        return untar_fail(u, -r, "cannot filter system calls: %s", strerror(-r));
    return 0;
}
