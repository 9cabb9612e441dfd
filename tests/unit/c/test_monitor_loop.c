/* The whole monitor under the sanitizers, with a child that is only forked: no namespaces, no root.
 * Options are key=value, then "--" and the command; tests/unit/test_monitor_loop.py is the starter.
 *
 * fail=N makes set-up fail with that step before the child says ready; die=1 makes it die there. */
#include "monitor.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <termios.h>

static char **command;
static int fail_step, die;

void plan_drop_ops(struct plan *plan) {
    plan->ops = NULL;
    plan->n_ops = 0;
}

int child_receive(int sock, struct child_msg *ret, int *ret_fd) {
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec piece = {ret, sizeof(*ret)};
    struct msghdr message = {.msg_iov = &piece,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof(control)};
    *ret_fd = -1;
    ssize_t n = recvmsg(sock, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n <= 0) return n < 0 ? -errno : 0;
    if (CMSG_FIRSTHDR(&message)) memcpy(ret_fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
    return 1;
}

int child_release(int sock) {
    return send(sock, "s", 1, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static void send_ready(int sock, int fd) {
    struct child_msg ready = {.type = CHILD_READY};
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {.header = {.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
    control.header.cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(&control.header), &fd, sizeof(int));
    struct iovec piece = {&ready, sizeof(ready)};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = &control;
        message.msg_controllen = sizeof(control);
    }
    if (sendmsg(sock, &message, 0) < 0) _exit(99);
}

static void be_child(const struct plan *plan, int sock, const int stdio[3]) {
    int master = -1, fds[3] = {stdio[0], stdio[1], stdio[2]};
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    for (int sig = 1; sig < NSIG; sig++)
        signal(sig, SIG_DFL);
    setsid();
    if (fail_step) {
        struct child_msg failed = {.type = CHILD_FAILED,
                                   .failure = {(uint32_t)fail_step, ENOENT, 3, 0}};
        send(sock, &failed, sizeof(failed), 0);
        _exit(127);
    }
    if (die) _exit(9);
    if (plan->terminal) {
        master = posix_openpt(O_RDWR | O_NOCTTY);
        grantpt(master);
        unlockpt(master);
        fds[0] = fds[1] = fds[2] = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY);
        ioctl(fds[0], TIOCSCTTY, 0);
    }
    send_ready(sock, master);
    char byte;
    if (recv(sock, &byte, 1, 0) != 1) _exit(98);
    for (int i = 0; i < 3; i++)
        dup2(fds[i], i);
    fcntl(sock, F_SETFD, FD_CLOEXEC);
    syscall(SYS_close_range, 3, ~0u, 4 /* CLOSE_RANGE_CLOEXEC */);
    execvp(command[0], command);
    _exit(127);
}

int spawn_child(const struct plan *plan, struct child_handle *ret, struct failure *ret_failure) {
    int sock[2], in[2] = {-1, -1}, out[2] = {-1, -1}, err[2] = {-1, -1};
    if (fail_step < 0) {
        *ret_failure = (struct failure){STEP_CLONE, EAGAIN, PLAN_NONE, 0};
        return -EAGAIN;
    }
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sock) < 0) return -errno;
    if (!plan->terminal && (pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0)) return -errno;
    if (!plan->terminal && plan->open_stdin && pipe2(in, O_CLOEXEC) < 0) return -errno;
    if (in[0] < 0) in[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
    pid_t pid = fork();
    if (pid == 0) {
        int stdio[3] = {in[0], out[1], err[1]};
        be_child(plan, sock[1], stdio);
    }
    close(sock[1]);
    close(in[0]);
    if (out[1] >= 0) close(out[1]);
    if (err[1] >= 0) close(err[1]);
    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    *ret = (struct child_handle){pid, pidfd, sock[0], in[1], out[0], err[0]};
    for (int *fd = &ret->sock; fd <= &ret->stderr_r; fd++)
        if (*fd >= 0) fcntl(*fd, F_SETFL, fcntl(*fd, F_GETFL) | O_NONBLOCK);
    return 0;
}

int main(int argc, char **argv) {
    static struct plan_op ops[1] = {{.code = OP_AWAIT_START}};
    static char *cleanup[4] = {NULL};
    struct plan plan = {.ops = ops, .n_ops = 1, .container_id = "c1", .oom_fd = -1, .lock_fd = -1,
                        .log_path = "", .socket_path = "", .exit_path = "", .status_path = ""};
    for (int i = 1; i < argc; i++) {
        char *value = strchr(argv[i], '=');
        if (!value) {
            command = argv + i + 1;
            break;
        }
        *value++ = '\0';
        if (!strcmp(argv[i], "control") && atoi(value) != FD_CONTROL) {
            dup2(atoi(value), FD_CONTROL);
            close(atoi(value));
        }
        if (!strcmp(argv[i], "log")) plan.log_path = value;
        if (!strcmp(argv[i], "max")) plan.log_max_bytes = strtoull(value, NULL, 10);
        if (!strcmp(argv[i], "files")) plan.log_max_files = (uint32_t)atol(value);
        if (!strcmp(argv[i], "socket")) plan.socket_path = value;
        if (!strcmp(argv[i], "exit")) plan.exit_path = value;
        if (!strcmp(argv[i], "status")) plan.status_path = value;
        if (!strcmp(argv[i], "terminal")) plan.terminal = true;
        if (!strcmp(argv[i], "stdin")) plan.open_stdin = true;
        if (!strcmp(argv[i], "once")) plan.stdin_once = true;
        if (!strcmp(argv[i], "exec")) plan.mode = PLAN_EXEC;
        if (!strcmp(argv[i], "fail")) fail_step = atoi(value);
        if (!strcmp(argv[i], "die")) die = 1;
        if (!strcmp(argv[i], "oom")) plan.oom_fd = open(value, O_RDONLY | O_CLOEXEC);
        if (!strcmp(argv[i], "baseline")) plan.oom_baseline = strtoull(value, NULL, 10);
        if (!strcmp(argv[i], "limit")) plan.time_limit_ms = strtoull(value, NULL, 10);
        if (!strcmp(argv[i], "cleanup")) cleanup[0] = "/bin/touch", cleanup[1] = value;
    }
    if (cleanup[0]) plan.cleanup_argv = cleanup;
    return monitor_main(&plan, NULL);
}
