#include "spawn.h"

#include <linux/sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "child.h"
#include "netlink.h"
#include "sys.h"

/* What spawn_child holds while it works; everything still in here at the end is undone. */
struct spawn {
    const struct plan *plan;
    struct child_handle handle;
    struct child_ends ends;
    struct failure *failure;
};

static int failed(struct spawn *spawn, uint32_t step, int error, uint32_t detail) {
    *spawn->failure = (struct failure){step, -error, PLAN_NONE, detail};
    return error;
}

static void close_ends(struct child_ends *ends) {
    close_fdp(&ends->sock);
    for (int i = 0; i < 3; i++)
        close_fdp(&ends->io[i]);
    *ends = (struct child_ends){-1, {-1, -1, -1}};
}

static void release(struct spawn *spawn) {
    struct child_handle *h = &spawn->handle;
    close_ends(&spawn->ends);
    close_fdp(&h->pidfd);
    close_fdp(&h->sock);
    close_fdp(&h->stdin_w);
    close_fdp(&h->stdout_r);
    close_fdp(&h->stderr_r);
    if (h->pid > 0) {
        kill(h->pid, SIGKILL); /* our own child, not reaped yet: the pid is still its own */
        while (waitpid(h->pid, NULL, 0) < 0 && errno == EINTR)
            ;
    }
}

/* A pipe whose monitor end does not block. */
static int make_pipe(int *ret_child, int *ret_monitor, bool child_reads) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -errno;
    *ret_child = ends[child_reads ? 0 : 1];
    *ret_monitor = ends[child_reads ? 1 : 0];
    return fcntl(*ret_monitor, F_SETFL, O_NONBLOCK) < 0 ? -errno : 0;
}

/* So that /dev/stdout can be opened by a user of a namespace, in which nobody may give them away. */
static int give_pipes(const struct spawn *spawn) {
    for (uint32_t i = 0; i < spawn->plan->n_ops; i++) {
        const struct plan_op *op = &spawn->plan->ops[i];
        for (int k = 0; op->code == OP_STDIO_FROM_MONITOR && op->count && k < 3; k++)
            if (spawn->ends.io[k] >= 0 && fchown(spawn->ends.io[k], (uid_t)op->num[2], (gid_t)op->num[3]) < 0)
                return -errno;
    }
    return 0;
}

static int make_channels(struct spawn *spawn) {
    struct child_handle *h = &spawn->handle;
    int pair[2], r;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return -errno;
    h->sock = pair[0];
    spawn->ends.sock = pair[1];
    if (spawn->plan->terminal)
        return 0;
    if (spawn->plan->open_stdin && (r = make_pipe(&spawn->ends.io[0], &h->stdin_w, true)) < 0)
        return r;
    if ((r = make_pipe(&spawn->ends.io[1], &h->stdout_r, false)) < 0)
        return r;
    if ((r = make_pipe(&spawn->ends.io[2], &h->stderr_r, false)) < 0)
        return r;
    return give_pipes(spawn);
}

static long clone_first(const struct plan *plan, uint64_t flags, int *ret_pidfd) {
    struct clone_args args = {
        .flags = plan->namespaces | CLONE_PIDFD | flags,
        .pidfd = (uint64_t)(uintptr_t)ret_pidfd,
        .exit_signal = flags & CLONE_PARENT ? 0 : SIGCHLD,
    };
    if (plan->cgroup_fd >= 0) {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = (uint64_t)plan->cgroup_fd;
    }
    return syscall(SYS_clone3, &args, sizeof args);
}

/* In a process of a moment: a user namespace is joined for good, and what is made afterwards is its. The
 * first process is born as the monitor's own child, and waits until that knows it. */
static _Noreturn void join_and_clone(const struct plan *plan, const struct child_ends *ends) {
    struct child child = {.plan = plan, .ends = *ends, .root = -1, .proc = -1, .cover = -1, .master = -1};
    struct child_msg msg = {.type = CHILD_MOVED};
    int pidfd = -1;
    uint32_t index = PLAN_NONE;
    int r = child_join_first(plan, &index);
    long pid = r < 0 ? r : clone_first(plan, CLONE_PARENT, &pidfd);
    if (pid == 0 && child_await(&child, CHILD_PARENT_READY) == 0)
        child_main(plan, ends);
    if (r < 0)
        msg = (struct child_msg){.type = CHILD_FAILED, .failure = {plan->ops[index].code, -r, index, 0}};
    else if (pid < 0)
        msg = (struct child_msg){.type = CHILD_FAILED, .failure = {STEP_CLONE, errno, PLAN_NONE, 0}};
    else
        msg.pid = (int32_t)pid;
    _exit(child_tell(&child, &msg, pidfd) < 0 || pid < 0 ? 127 : 0);
}

static int clone_child(struct spawn *spawn) {
    const struct plan *plan = spawn->plan;
    bool joins = plan_joins_user(plan);
    struct clone_args plain = {
        .flags = CLONE_PIDFD,
        .pidfd = (uint64_t)(uintptr_t)&spawn->handle.pidfd,
        .exit_signal = SIGCHLD,
    };
    long pid = joins ? syscall(SYS_clone3, &plain, sizeof plain) : clone_first(plan, 0, &spawn->handle.pidfd);
    if (pid < 0)
        return -errno;
    if (pid == 0) {
        close_fdp(&spawn->handle.sock); /* else the monitor's end of file would never come */
        if (joins)
            join_and_clone(plan, &spawn->ends);
        child_main(plan, &spawn->ends);
    }
    spawn->handle.pid = (pid_t)pid;
    return 0;
}

static int write_map(pid_t pid, const char *name, const char *text) {
    char path[64] = "/proc/", digits[16], *end = digits + sizeof digits;
    if (text[0] == '\0')
        return 0;
    *--end = '\0';
    for (pid_t left = pid; left; left /= 10)
        *--end = (char)('0' + left % 10);
    strcat(strcat(strcat(path, end), "/"), name);
    cleanup_fd int fd = open(path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return -errno;
    return write(fd, text, strlen(text)) < 0 ? -errno : 0;
}

/* What only the host's side can do for the child: id maps, the host's end of the network. */
static int serve_child(struct spawn *spawn) {
    const struct plan *plan = spawn->plan;
    uint32_t pid = (uint32_t)spawn->handle.pid, at = 0;
    int r = write_map(spawn->handle.pid, "uid_map", plan->uid_map);
    if (r == 0)
        r = write_map(spawn->handle.pid, "gid_map", plan->gid_map);
    if (r < 0)
        return failed(spawn, STEP_ID_MAP, r, 0);
    for (uint32_t i = 0; i < plan->n_pid_offsets; i++)
        memcpy(plan->host_netlink + plan->pid_offsets[i], &pid, sizeof pid);
    if (plan->host_netlink_len && (r = netlink_send(plan->host_netlink, plan->host_netlink_len, &at)) < 0)
        return failed(spawn, STEP_HOST_NETLINK, r, at);
    for (uint32_t i = 0; i < plan->n_ops; i++) {
        if (plan->ops[i].code != OP_AWAIT_PARENT)
            continue;
        char byte = CHILD_PARENT_READY;
        /* a child that is gone already has left its record, which the caller reads */
        send(spawn->handle.sock, &byte, 1, MSG_NOSIGNAL);
        break;
    }
    return 0;
}

/* A joined pid or user namespace: the first child makes the real one (CLONE_PARENT) and ends. */
static int follow_move(struct spawn *spawn) {
    struct child_handle *h = &spawn->handle;
    struct child_msg msg;
    cleanup_fd int pidfd = -1;
    char byte = CHILD_PARENT_READY;
    int r;
    while ((r = child_receive(h->sock, &msg, &pidfd)) == 1 && msg.type == CHILD_WARNING)
        ;
    if (r == 1 && msg.type == CHILD_FAILED) {
        *spawn->failure = msg.failure;
        return msg.failure.error > 0 ? -msg.failure.error : -EIO;
    }
    if (r != 1 || msg.type != CHILD_MOVED || pidfd < 0)
        return failed(spawn, STEP_CHILD_GONE, r < 0 ? r : -ECHILD, 0);
    while (waitpid(h->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    close_fdp(&h->pidfd);
    h->pid = msg.pid;
    h->pidfd = steal_fd(&pidfd);
    send(h->sock, &byte, 1, MSG_NOSIGNAL);
    return 0;
}

static bool moves(const struct plan *plan) {
    for (uint32_t i = 0; i < plan->n_ops; i++)
        if (plan->ops[i].code == OP_ENTER_PID_NAMESPACE)
            return true;
    return false;
}

static int spawn_steps(struct spawn *spawn) {
    int r = make_channels(spawn);
    if (r < 0)
        return failed(spawn, STEP_PIPES, r, 0);
    r = clone_child(spawn);
    if (r < 0)
        return failed(spawn, STEP_CLONE, r, 0);
    close_ends(&spawn->ends);
    r = plan_joins_user(spawn->plan) ? follow_move(spawn) : 0;
    if (r == 0)
        r = serve_child(spawn);
    if (r == 0 && moves(spawn->plan))
        r = follow_move(spawn);
    if (r == 0 && fcntl(spawn->handle.sock, F_SETFL, O_NONBLOCK) < 0)
        r = failed(spawn, STEP_PIPES, -errno, 0);
    return r;
}

int spawn_child(const struct plan *plan, struct child_handle *ret, struct failure *ret_failure) {
    struct spawn spawn = {
        .plan = plan,
        .handle = {.pid = 0, .pidfd = -1, .sock = -1, .stdin_w = -1, .stdout_r = -1, .stderr_r = -1},
        .ends = {-1, {-1, -1, -1}},
        .failure = ret_failure,
    };
    int r = spawn_steps(&spawn);
    if (r < 0) {
        release(&spawn);
        return r;
    }
    *ret = spawn.handle;
    return 0;
}

int child_receive(int sock, struct child_msg *ret, int *ret_fd) {
    union {
        char space[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec part = {.iov_base = ret, .iov_len = sizeof *ret};
    struct msghdr head = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.space, .msg_controllen = sizeof control.space};
    ssize_t n;
    *ret_fd = -1;
    /* ECONNRESET: the child ended with a byte of ours unread. The kernel tells that once, before what
     * the child had sent: its last words are still there to be read. */
    do
        n = recvmsg(sock, &head, MSG_CMSG_CLOEXEC);
    while (n < 0 && (errno == EINTR || errno == ECONNRESET));
    if (n < 0)
        return -errno;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&head); c; c = CMSG_NXTHDR(&head, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof(int)))
            memcpy(ret_fd, CMSG_DATA(c), sizeof *ret_fd);
    if (n == 0)
        return 0;
    if ((size_t)n == sizeof *ret)
        return 1;
    close_fdp(ret_fd);
    *ret_fd = -1;
    return -EBADMSG;
}

int child_release(int sock) {
    char byte = CHILD_START;
    return send(sock, &byte, 1, MSG_NOSIGNAL) < 0 ? -errno : 0;
}
