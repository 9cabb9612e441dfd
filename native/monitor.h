/* The inside of the monitor: one loop over poll(2), no threads, no allocation, nothing that blocks
 * on a client or on the container.
 *
 *   monitor.c         the life cycle and the loop
 *   monitor_child.c   what the child says; signals; reaping
 *   monitor_stream.c  output and input of the container
 *   monitor_client.c  connections, what clients say, what is said to them
 *   monitor_end.c     OOM, exit record, cleanup
 */
#ifndef SCOW_MONITOR_H
#define SCOW_MONITOR_H

#include "scow.h" /* first: it asks for _GNU_SOURCE */

#include <poll.h>

#include "exitrec.h"
#include "log.h"
#include "protocol.h"
#include "spawn.h"

#define CLIENTS_MAX 17 /* the starter and 16 by the path socket */
#define STARTER 0
#define RELAY_READ 32768u /* at a time from the container */
#define DRAIN_MS 500      /* how long others may hold the output after the process has ended */
#define TIDY_MS 1000      /* of quiet, before heads of lines are logged and memory is given back */
#define BUFFER_SLOW (512 << 10)  /* SO_SNDBUF of who may be dropped; the kernel doubles it */
#define BUFFER_LAST (2 << 20)    /* of any client once its last bytes are on the way */

enum phase {
    PHASE_SETUP,    /* the child carries out the plan */
    PHASE_CREATED,  /* it waits for the start */
    PHASE_RELEASED, /* told to start, execve not yet seen */
    PHASE_RUNNING,
};

struct client {
    int fd;             /* -1: free */
    uint8_t flags;      /* ATTACH_* */
    bool watching;      /* said MSG_WATCH */
    bool waits_room;    /* lossless and its socket is full: output stops until there is room */
    bool waits_stdin;   /* its first message is input that the container does not take yet */
    bool hung_up;       /* the other side is gone; what it sent is still to be read */
    uint32_t input_done; /* bytes of that first message that the container has taken */
};

struct stream {
    int fd; /* -1: ended */
    enum log_stream kind;
};

struct monitor {
    struct plan *plan;
    struct child_handle child;
    enum phase phase;
    bool awaits_start;    /* the plan holds OP_AWAIT_START */
    bool start_wanted;    /* MSG_START came before the child was ready */
    bool failed, exited;
    struct failure failure;
    int status;           /* of wait(2), when exited */
    int64_t started_ns, finished_ns;
    int64_t drain_until_ms; /* monotonic; when exited */
    int64_t limit_at_ms;  /* monotonic; 0: it may run for as long as it likes */
    bool timed_out;
    bool untidy;          /* something to do when TIDY_MS pass quietly */

    int signal_fd, listen_fd;
    int stdin_fd;         /* pipe or pty master; -1: none or closed */
    int slave_fd;         /* our own open end of the pty: see monitor_stream.c */
    bool have_size;
    struct msg_winsize size;
    struct stream streams[2];
    struct client clients[CLIENTS_MAX];
    struct log log;

    /* Every message in either direction passes through here: the type byte, then the bytes. On
     * pages of its own, which are given back in quiet times. */
    _Alignas(4096) char relay[MESSAGE_MAX + 1];
};

/* monitor.c */
int64_t now_ns(clockid_t clock);
void monitor_fail(struct monitor *m, const struct failure *failure);

/* monitor_child.c */
int child_prepare(struct monitor *m, struct failure *ret_failure);
void child_events(struct monitor *m);
void child_start(struct monitor *m);
void child_kill(struct monitor *m);
void child_time_out(struct monitor *m);
void child_reap(struct monitor *m);

/* monitor_stream.c */
void stream_open_terminal(struct monitor *m, int master_fd);
void stream_read(struct monitor *m, struct stream *stream);
bool stream_is_held(const struct monitor *m, const struct stream *stream);
void stream_child_exited(struct monitor *m);
bool stdin_take(struct monitor *m, struct client *client, const char *data, size_t len);
void stdin_end(struct monitor *m);
void stdin_unblock(struct monitor *m);
void stream_resize(struct monitor *m, const struct msg_winsize *size);

/* monitor_client.c */
int client_listen(struct monitor *m, const char *path);
bool client_accept(struct monitor *m);
void client_events(struct monitor *m, struct client *client, short revents);
bool client_receive(struct monitor *m, struct client *client);
bool client_has_room(struct client *client);
void client_output(struct monitor *m, struct client *client, const char *message, size_t len);
void client_tell(struct monitor *m, struct client *client, const void *message, size_t len);
void client_tell_all(struct monitor *m, const void *message, size_t len);
void client_last_bytes(struct client *client);
void client_close(struct monitor *m, struct client *client);

/* monitor_end.c */
void monitor_end(struct monitor *m);

#endif
