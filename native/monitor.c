/* The monitor's life: prepare, spawn, relay until the process has ended and its last bytes are out,
 * leave the record, tell, clean up. */
#include "monitor.h"

#include <limits.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>

/* Where everything stands in the poll set; a place with nothing to wait for has fd -1. */
enum slot { SLOT_SIGNAL, SLOT_CHILD, SLOT_LISTEN, SLOT_OUT, SLOT_ERR, SLOT_STDIN, SLOT_CLIENTS };
#define STACK_MAX (64 << 10)
#define SLOTS (SLOT_CLIENTS + CLIENTS_MAX)

int64_t now_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Remembers the first failure and tells it. */
void monitor_fail(struct monitor *m, const struct failure *failure) {
    if (m->failed) return;
    m->failed = true;
    m->failure = *failure;
    struct msg_failed message = {.type = MSG_FAILED, .failure = *failure};
    client_tell_all(m, &message, sizeof(message));
}

static void watch_clients(struct monitor *m, struct pollfd *fds, bool *ret_stdin) {
    for (int i = 0; i < CLIENTS_MAX; i++) {
        struct client *client = &m->clients[i];
        struct pollfd *slot = &fds[SLOT_CLIENTS + i];
        slot->fd = client->fd;
        slot->events = client->waits_stdin ? 0 : POLLIN;
        if (client->waits_room) slot->events |= POLLOUT;
        if (client->fd >= 0 && client->waits_stdin) {
            *ret_stdin = true;
            /* poll reports a hang-up unasked; once known, only the container can help */
            if (client->hung_up) slot->fd = -1;
        }
    }
}

static void fill_slots(struct monitor *m, struct pollfd fds[SLOTS]) {
    bool input_waits = false;
    for (int i = 0; i < SLOTS; i++)
        fds[i] = (struct pollfd){.fd = -1, .events = POLLIN};
    fds[SLOT_SIGNAL].fd = m->signal_fd;
    fds[SLOT_CHILD].fd = m->child.sock;
    fds[SLOT_LISTEN].fd = m->listen_fd;
    for (int i = 0; i < 2; i++)
        if (!stream_is_held(m, &m->streams[i])) fds[SLOT_OUT + i].fd = m->streams[i].fd;
    watch_clients(m, fds, &input_waits);
    if (input_waits) {
        fds[SLOT_STDIN].fd = m->stdin_fd;
        fds[SLOT_STDIN].events = POLLOUT;
    }
}

/* Milliseconds; -1 sleeps for as long as nothing happens, which is what an idle container costs. */
static int loop_timeout(const struct monitor *m) {
    if (m->exited) {
        int64_t left = m->drain_until_ms - now_ns(CLOCK_MONOTONIC) / 1000000;
        return left > 0 ? (int)left : 0;
    }
    int64_t wait = m->untidy ? TIDY_MS : -1;
    if (m->limit_at_ms) {
        int64_t left = m->limit_at_ms - now_ns(CLOCK_MONOTONIC) / 1000000;
        if (left < 0) left = 0;
        if (wait < 0 || left < wait) wait = left < INT_MAX ? left : INT_MAX;
    }
    return (int)wait;
}

/* Gives the whole pages of a range back; what is read there later is zero. */
static void forget(const void *from, const void *to) {
    uintptr_t first = ((uintptr_t)from + 4095) & ~(uintptr_t)4095;
    uintptr_t last = (uintptr_t)to & ~(uintptr_t)4095;
    if (first < last) (void)madvise((void *)first, last - first, MADV_DONTNEED);
}

/* Quiet: log the heads of lines (a prompt is worth reading, too), give back the pages of the relay
 * and of the stack that set-up used, which was deeper than this loop. */
static void tidy(struct monitor *m) {
    log_flush(&m->log);
    forget(m->relay, m->relay + sizeof(m->relay));
    for (int i = 0; i < 2; i++)
        forget(m->log.partial[i].data, m->log.partial[i].data + LOG_LINE_MAX);
    const char *here = __builtin_frame_address(0);
    forget(here - STACK_MAX, here - 512); /* the frames of these calls are in between */
    m->untidy = false;
}

static bool is_done(const struct monitor *m) {
    if (!m->exited) return false;
    if (m->streams[0].fd < 0 && m->streams[1].fd < 0) return true;
    return now_ns(CLOCK_MONOTONIC) / 1000000 >= m->drain_until_ms;
}

static void loop(struct monitor *m) {
    struct pollfd fds[SLOTS];
    while (!is_done(m)) {
        fill_slots(m, fds);
        int n = poll(fds, SLOTS, loop_timeout(m));
        if (m->limit_at_ms && !m->exited && now_ns(CLOCK_MONOTONIC) / 1000000 >= m->limit_at_ms)
            child_time_out(m);
        if (n < 0) continue; /* EINTR, or ENOMEM, which is for the kernel to mend */
        if (n == 0) {
            if (!m->exited) tidy(m);
            continue;
        }
        /* The child's own words before the news of its death, the starter's before both. */
        for (int i = 0; i < CLIENTS_MAX; i++)
            if (fds[SLOT_CLIENTS + i].fd >= 0 && fds[SLOT_CLIENTS + i].revents)
                client_events(m, &m->clients[i], fds[SLOT_CLIENTS + i].revents);
        if (fds[SLOT_STDIN].revents) stdin_unblock(m);
        if (fds[SLOT_CHILD].revents) child_events(m);
        for (int i = 0; i < 2; i++)
            if (fds[SLOT_OUT + i].revents) stream_read(m, &m->streams[i]);
        if (fds[SLOT_SIGNAL].revents) child_reap(m);
        if (fds[SLOT_LISTEN].revents) (void)client_accept(m);
    }
}

static void init(struct monitor *m, struct plan *plan) {
    m->plan = plan;
    m->child = (struct child_handle){0, -1, -1, -1, -1, -1};
    m->signal_fd = m->listen_fd = m->stdin_fd = m->slave_fd = -1;
    m->log.fd = m->log.dir_fd = -1;
    m->streams[0] = (struct stream){-1, LOG_STDOUT};
    m->streams[1] = (struct stream){-1, LOG_STDERR};
    for (int i = 0; i < CLIENTS_MAX; i++)
        m->clients[i].fd = -1;
    m->clients[STARTER].fd = FD_CONTROL;
    (void)fcntl(FD_CONTROL, F_SETFD, FD_CLOEXEC);
}

/* Everything that can fail before there is a process. */
static int prepare(struct monitor *m, struct failure *ret_failure) {
    int r = child_prepare(m, ret_failure);
    if (r < 0) return r;
    ret_failure->step = STEP_MONITOR_LOG;
    r = log_open(&m->log, m->plan->log_path, m->plan->log_max_bytes, m->plan->log_max_files);
    if (r < 0) return r;
    ret_failure->step = STEP_MONITOR_EXIT;
    r = exit_record_reserve(m->plan->exit_path);
    if (r < 0) return r;
    ret_failure->step = STEP_MONITOR_SOCKET;
    return client_listen(m, m->plan->socket_path);
}

static int spawn(struct monitor *m, struct failure *ret_failure) {
    for (uint32_t i = 0; i < m->plan->n_ops; i++)
        if (m->plan->ops[i].code == OP_AWAIT_START) m->awaits_start = true;
    int r = spawn_child(m->plan, &m->child, ret_failure);
    if (r < 0) return r;
    plan_drop_ops(m->plan);
    m->stdin_fd = m->child.stdin_w;
    m->streams[0].fd = m->child.stdout_r;
    m->streams[1].fd = m->child.stderr_r;
    return 0;
}

int monitor_main(struct plan *plan, const struct failure *refused) {
    static struct monitor monitor; /* in .bss: pages that are never touched cost nothing */
    struct monitor *m = &monitor;
    struct failure failure = {.index = PLAN_NONE};

    init(m, plan);
    if (!plan) {
        monitor_fail(m, refused);
        return 1;
    }
    int r = prepare(m, &failure);
    if (r == 0) r = spawn(m, &failure);
    if (r < 0) {
        if (!failure.error) failure.error = -r;
        monitor_fail(m, &failure);
    } else {
        loop(m);
    }
    monitor_end(m);
    return m->failed ? 1 : 0;
}
