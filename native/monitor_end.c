/* What is left to do when the process has ended: find out why, write it down, tell, clean up. */
#include "monitor.h"

#include "sys.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

/* The counter behind "oom_kill " at a line's start: v1 memory.oom_control, v2 memory.events. */
static bool read_oom_kills(int fd, uint64_t *ret_kills) {
    static const char key[] = "oom_kill ";
    char data[512];
    ssize_t n = pread(fd, data, sizeof(data) - 1, 0);
    if (n <= 0) return false;
    data[n] = '\0';
    for (const char *line = data; line; line = strchr(line, '\n')) {
        if (*line == '\n') line++;
        if (strncmp(line, key, sizeof(key) - 1) != 0) continue;
        uint64_t kills = 0;
        for (line += sizeof(key) - 1; *line >= '0' && *line <= '9'; line++)
            kills = kills * 10 + (uint64_t)(*line - '0');
        *ret_kills = kills;
        return true;
    }
    return false;
}

/* Counters, not events: an event may come without a kill, and late. Of an exec'd process we know
 * only that something in its cgroup was killed; it was it when it died by SIGKILL. */
static bool was_oom_killed(const struct monitor *m) {
    uint64_t kills;
    if (!m->exited || m->plan->oom_fd < 0) return false;
    if (!read_oom_kills(m->plan->oom_fd, &kills) || kills <= m->plan->oom_baseline) return false;
    if (m->plan->mode == PLAN_EXEC) return WIFSIGNALED(m->status) && WTERMSIG(m->status) == SIGKILL;
    return true;
}

static bool is_watched(const struct monitor *m) {
    for (int i = 0; i < CLIENTS_MAX; i++)
        if (m->clients[i].fd >= 0 && m->clients[i].watching && !m->clients[i].hung_up) return true;
    return false;
}

/* Words that arrived while we were busy, MSG_WATCH above all; bounded, for a client could talk for
 * ever. */
static void hear_out(struct monitor *m) {
    for (int i = 0; i < CLIENTS_MAX && client_accept(m); i++) {
    }
    for (int i = 0; i < CLIENTS_MAX; i++)
        for (int n = 0; n < 64 && client_receive(m, &m->clients[i]); n++) {
        }
}

/* vfork: one child that only makes system calls before execve. It gets standard signals, no
 * descriptor of ours but the standard three, and is left to init. */
static void call_cleanup(struct monitor *m) {
    char **const argv = m->plan->cleanup_argv;
    static char *no_env[] = {NULL};
    if (!argv || !argv[0]) return;
    pid_t pid = vfork();
    if (pid != 0) return;
    sigset_t none;
    sys_default_signals();
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    (void)syscall(SYS_close_range, 3u, ~0u, 0u);
    execve(argv[0], argv, m->plan->cleanup_env ? m->plan->cleanup_env : no_env);
    _exit(127);
}

void monitor_end(struct monitor *m) {
    log_flush(&m->log);
    struct exit_record record = {.pid = m->child.pid,
                                 .status = m->exited ? m->status : 127 << 8,
                                 .oom_killed = was_oom_killed(m),
                                 .started_ns = m->started_ns,
                                 .finished_ns = m->exited ? m->finished_ns : now_ns(CLOCK_REALTIME),
                                 .failure = m->failed ? &m->failure : NULL,
                                 .log_lost_bytes = m->log.lost_bytes,
                                 .log_error = m->log.error};
    log_close(&m->log);
    /* First the name goes: once the record is seen, the next run may begin, with a socket of its own. */
    if (m->listen_fd >= 0) (void)unlink(m->plan->socket_path);
    /* On the disk before anybody hears of it. If the disk does not take it, the word is all there
     * is. */
    (void)exit_record_write(m->plan->exit_path, &record);

    hear_out(m);
    struct msg_exit message = {.type = MSG_EXIT,
                               .status = record.status,
                               .oom_killed = record.oom_killed,
                               .started_ns = record.started_ns,
                               .finished_ns = record.finished_ns,
                               .timed_out = m->timed_out};
    client_tell_all(m, &message, sizeof(message));
    if (!is_watched(m)) call_cleanup(m);
}
