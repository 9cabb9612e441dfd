/* The child's messages until execve, its death, and that of every orphan that falls to us. */
#include "monitor.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

/* SIGTERM and friends must not end a monitor silently: the container would have no log, no record
 * and no parent. Who wants an end kills the container. All but SIGCHLD are ignored, and the child
 * resets them. */
int child_prepare(struct monitor *m, struct failure *ret_failure) {
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    sigset_t mask;
    for (int sig = 1; sig < NSIG; sig++) {
        /* a fault of our own should stay visible */
        if (sig == SIGCHLD || sig == SIGSEGV || sig == SIGBUS || sig == SIGILL || sig == SIGFPE ||
            sig == SIGABRT)
            continue;
        (void)sigaction(sig, &ignore, NULL);
    }
    ret_failure->step = STEP_MONITOR_SIGNALS;
    sigemptyset(&mask);
    sigaddset(&mask, SIGCHLD);
    if (sigprocmask(SIG_BLOCK, &mask, NULL) < 0) return -errno;
    m->signal_fd = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
    if (m->signal_fd < 0) return -errno;
    /* What the container's processes leave behind in our pid namespace becomes ours, not init's. */
    return prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0 ? -errno : 0;
}

static int write_status(struct monitor *m) {
    struct status_record record = {.container_id = m->plan->container_id,
                                   .pid = m->child.pid,
                                   .monitor_pid = getpid(),
                                   .created_ns = now_ns(CLOCK_REALTIME)};
    if (!*m->plan->status_path) return 0;
    int r = process_start_time(record.pid, &record.start_time);
    if (r == 0) r = process_start_time(record.monitor_pid, &record.monitor_start_time);
    return r < 0 ? r : status_record_write(m->plan->status_path, &record);
}

/* The record of who runs comes before the word that it runs. */
static void on_ready(struct monitor *m) {
    m->phase = PHASE_CREATED;
    int r = write_status(m);
    if (r < 0) {
        struct failure failure = {STEP_MONITOR_STATUS, -r, PLAN_NONE, 0};
        monitor_fail(m, &failure);
        child_kill(m);
        return;
    }
    struct msg_ready message = {.type = MSG_READY, .pid = (uint32_t)m->child.pid};
    client_tell_all(m, &message, sizeof(message));
    if (m->start_wanted || !m->awaits_start) child_start(m);
}

static void on_end_of_file(struct monitor *m) {
    close_fdp(&m->child.sock);
    m->child.sock = -1;
    if (m->failed) return;
    if (m->phase == PHASE_RELEASED) {
        m->phase = PHASE_RUNNING;
        close_fdp(&m->plan->lock_fd); /* whoever waits finds a container that runs */
        m->plan->lock_fd = -1;
        m->started_ns = now_ns(CLOCK_REALTIME);
        if (m->plan->time_limit_ms)
            m->limit_at_ms = now_ns(CLOCK_MONOTONIC) / 1000000 + (int64_t)m->plan->time_limit_ms;
        m->untidy = true; /* set-up leaves pages behind */
        char message = MSG_STARTED;
        client_tell_all(m, &message, 1);
        return;
    }
    struct failure failure = {STEP_CHILD_GONE, ESRCH, PLAN_NONE, 0};
    monitor_fail(m, &failure);
    child_kill(m);
}

void child_events(struct monitor *m) {
    while (m->child.sock >= 0) {
        struct child_msg message;
        int fd = -1;
        int r = child_receive(m->child.sock, &message, &fd);
        if (r == -EAGAIN) return;
        if (r <= 0) {
            on_end_of_file(m);
            return;
        }
        if (message.type == CHILD_READY) {
            if (fd >= 0) stream_open_terminal(m, steal_fd(&fd));
            on_ready(m);
        } else if (message.type == CHILD_FAILED) {
            monitor_fail(m, &message.failure);
        } else if (message.type == CHILD_WARNING) {
            struct msg_failed warning = {.type = MSG_WARNING, .failure = message.failure};
            client_tell_all(m, &warning, sizeof(warning));
        }
        close_fdp(&fd);
    }
}

void child_start(struct monitor *m) {
    m->start_wanted = true;
    if (m->phase != PHASE_CREATED) return;
    m->phase = PHASE_RELEASED;
    if (m->awaits_start) (void)child_release(m->child.sock); /* EPIPE: it died; end-of-file tells */
}

void child_kill(struct monitor *m) {
    if (m->exited || m->child.pidfd < 0) return;
    (void)syscall(SYS_pidfd_send_signal, m->child.pidfd, SIGKILL, NULL, 0); /* ESRCH: as wanted */
}

/* The time of an exec is over: it and what it has started in its session's first process group. It is not
 * reaped yet, so the number of the group, which is its own since setsid, is nobody else's. */
void child_time_out(struct monitor *m) {
    m->timed_out = true;
    m->limit_at_ms = 0;
    if (!m->exited && m->child.pid > 1) (void)kill(-m->child.pid, SIGKILL);
    child_kill(m);
}

void child_reap(struct monitor *m) {
    struct signalfd_siginfo info;
    pid_t pid;
    int status;
    while (read(m->signal_fd, &info, sizeof(info)) > 0) {
    }
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        if (pid != m->child.pid || m->exited) continue;
        m->exited = true;
        m->status = status;
        m->finished_ns = now_ns(CLOCK_REALTIME);
        m->drain_until_ms = now_ns(CLOCK_MONOTONIC) / 1000000 + DRAIN_MS;
    }
    if (m->exited) {
        child_events(m);
        stream_child_exited(m);
    }
}
