/* What the warm process cannot do for its caller: be the parent of the container's first process, get the
 * caller's signals, end with a status. */
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "front.h"
#include "launch.h"
#include "sys.h"

struct service {
    int sock;
    int fds[FRONT_PLAN_FDS_MAX + 3];
    int n_fds;
    sigset_t before; /* the caller's mask */
};

/* Signals that are ours, not the container's (runtime/oci_parent.py has the same ones). */
static void forwarded_signals(sigset_t *set) {
    static const int ours[] = {SIGCHLD, SIGPIPE, SIGURG, SIGKILL, SIGSTOP};
    sigfillset(set);
    for (size_t i = 0; i < ARRAY_SIZE(ours); i++)
        sigdelset(set, ours[i]);
}

static void drop_fds(struct service *service) {
    while (service->n_fds > 0)
        close(service->fds[--service->n_fds]);
}

/* One packet, and the descriptors that came along. Its length, 0 at the end, or -errno. */
static ssize_t receive(struct service *service, char *packet, size_t size) {
    int more[FRONT_FDS_MAX];
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof more)];
    } control;
    struct iovec part = {packet, size};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t n;
    do
        n = recvmsg(service->sock, &message, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return errno == ECONNRESET ? 0 : -errno;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (!header || header->cmsg_type != SCM_RIGHTS)
        return n;
    int count = (int)((header->cmsg_len - CMSG_LEN(0)) / sizeof *more);
    memcpy(more, CMSG_DATA(header), (size_t)count * sizeof *more);
    for (int i = 0; i < count; i++) {
        if (service->n_fds == ARRAY_SIZE(service->fds))
            close(more[i]); /* the launch is refused for its missing descriptors */
        else
            service->fds[service->n_fds++] = more[i];
    }
    return n;
}

static int answer(const struct service *service, int32_t value) {
    return send(service->sock, &value, sizeof value, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static int bury(pid_t pid) {
    int status = 0;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return -errno;
    return status;
}

/* The binary clones the container's process as a child of ours, and is gone. */
static void launch(struct service *service, const int32_t *stdio) {
    char *argv[] = {"scow-init", NULL}, *envp[] = {NULL};
    int r = -EINVAL;
    signal(SIGCHLD, SIG_DFL); /* wait(2): a caller that ignores it would leave us nothing to wait for */
    if (service->n_fds >= 3)
        r = scow_launch(service->fds[0], argv, envp, stdio, service->fds + 1, service->n_fds - 1);
    drop_fds(service);
    (void)answer(service, r); /* who is gone will be found to be at the next packet */
    if (r > 0)
        (void)bury(r);
}

/* Passes signals on until the process ends. It is a child of ours and not yet reaped: its pid is its own. */
static int wait_for(pid_t pid) {
    sigset_t all;
    int status = 0;
    forwarded_signals(&all);
    sigaddset(&all, SIGCHLD);
    sigprocmask(SIG_BLOCK, &all, NULL);
    for (;;) {
        pid_t found = waitpid(pid, &status, WNOHANG);
        if (found != 0)
            return found < 0 ? -errno : status;
        int received = sigwaitinfo(&all, NULL);
        if (received > 0 && received != SIGCHLD)
            (void)kill(pid, received);
    }
}

static int exit_code(int status) {
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* The warm process was killed, or is broken: what it began is found by `delete --force`. */
static int lost(const char *how, int code) {
    fprintf(stderr, "scow-oci: %s\n", how);
    return code;
}

/* Not taken in time. It may have been in this very moment: then it must not be done twice. */
static int give_up(struct service *service, char *ret_reason, size_t size) {
    char packet[256];
    shutdown(service->sock, SHUT_RDWR);
    if (receive(service, packet, sizeof packet) > 0 && packet[0] != WARM_COLD)
        return lost("the warm process is too slow", 1);
    snprintf(ret_reason, size, "it does not answer");
    return -1;
}

static int cold(struct service *service, const char *reason, size_t len, char *ret_reason, size_t size) {
    drop_fds(service);
    sigprocmask(SIG_SETMASK, &service->before, NULL);
    snprintf(ret_reason, size, "%.*s", (int)len, reason);
    return -1;
}

int front_serve(int sock, char *ret_reason, size_t size) {
    struct service service = {.sock = sock};
    struct timeval never = {0};
    sigset_t held;
    bool taken = false;
    sigprocmask(SIG_SETMASK, NULL, &service.before);
    for (;;) {
        char packet[256];
        int32_t value[3] = {0};
        ssize_t n = receive(&service, packet, sizeof packet);
        if (n <= 0 && !taken) /* 0: it ended before it began */
            return n < 0 ? give_up(&service, ret_reason, size)
                         : cold(&service, "it has just ended", 17, ret_reason, size);
        if (n <= 0)
            return lost("the warm process is gone; `delete --force` removes what it has left", 1);
        memcpy(value, packet + 1, (size_t)n - 1 < sizeof value ? (size_t)n - 1 : sizeof value);
        switch (packet[0]) {
        case WARM_COLD:
            return cold(&service, packet + 1, (size_t)n - 1, ret_reason, size);
        case WARM_TAKEN:
            taken = true;
            setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &never, sizeof never);
            break;
        case WARM_HOLD:
            forwarded_signals(&held);
            sigprocmask(SIG_BLOCK, &held, NULL);
            break;
        case WARM_LAUNCH:
            launch(&service, value);
            break;
        case WARM_BURY:
            (void)answer(&service, bury(value[0]));
            break;
        case WARM_WAIT:
            value[1] = wait_for(value[0]);
            if (answer(&service, value[1]) < 0)
                return lost("the warm process is gone; `delete` removes the container", exit_code(value[1]));
            break;
        case WARM_EXIT:
            return value[0];
        }
    }
}
