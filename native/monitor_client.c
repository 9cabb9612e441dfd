/* Connections. A client has no queue of ours: its socket's buffer is the queue, so a client costs a
 * few bytes, and what was sent outlives the monitor. */
#include "monitor.h"

#include <limits.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "monitor_text.h"

/* The socket's directory by descriptor: sun_path holds only 108 bytes. */
static int bind_path(int sock, const char *path) {
    char dir[PATH_MAX];
    const char *slash = strrchr(path, '/');
    if (!slash || (size_t)(slash - path) >= sizeof(dir)) return -EINVAL;
    memcpy(dir, path, (size_t)(slash - path) + 1);
    dir[slash - path + 1] = '\0';
    cleanup_fd int dir_fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (dir_fd < 0) return -errno;
    if (unlinkat(dir_fd, slash + 1, 0) < 0 && errno != ENOENT) return -errno;

    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct text text = {.data = address.sun_path, .cap = sizeof(address.sun_path) - 1};
    text_str(&text, "/proc/self/fd/");
    text_u64(&text, (uint64_t)dir_fd, 1);
    text_str(&text, "/");
    text_str(&text, slash + 1);
    if (text.full) return -ENAMETOOLONG;
    mode_t mask = umask(0177);
    int r = bind(sock, (struct sockaddr *)&address, sizeof(address)) < 0 ? -errno : 0;
    umask(mask);
    return r;
}

int client_listen(struct monitor *m, const char *path) {
    if (!*path) return 0;
    cleanup_fd int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (sock < 0) return -errno;
    int r = bind_path(sock, path);
    if (r < 0) return r;
    if (listen(sock, CLIENTS_MAX) < 0) return -errno;
    m->listen_fd = steal_fd(&sock);
    return 0;
}

/* The mode of the socket says who may connect; this says it again, should the file have been opened
 * up. */
static bool is_ours(int fd) {
    struct ucred peer;
    socklen_t len = sizeof(peer);
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0 &&
           (peer.uid == 0 || peer.uid == geteuid());
}

static void tell_state(struct monitor *m, struct client *client) {
    if (m->phase >= PHASE_CREATED) {
        struct msg_ready ready = {.type = MSG_READY, .pid = (uint32_t)m->child.pid};
        client_tell(m, client, &ready, sizeof(ready));
    }
    if (m->phase == PHASE_RUNNING) {
        char started = MSG_STARTED;
        client_tell(m, client, &started, 1);
    }
}

static struct client *free_place(struct monitor *m) {
    for (int i = STARTER + 1; i < CLIENTS_MAX; i++)
        if (m->clients[i].fd < 0) return &m->clients[i];
    for (int i = STARTER + 1; i < CLIENTS_MAX; i++) {
        /* gone, and input of its own that nobody reads is all that is left of it: the living come
         * first */
        if (!m->clients[i].hung_up || !m->clients[i].waits_stdin) continue;
        client_close(m, &m->clients[i]);
        return &m->clients[i];
    }
    return NULL;
}

/* Takes one, if there is one. One a round: who comes as fast as we answer must not keep us from
 * those who are here, and from learning that they have gone. */
bool client_accept(struct monitor *m) {
    cleanup_fd int fd = m->listen_fd < 0 ? -1 : accept4(m->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) return false;
    if (!is_ours(fd)) return true;
    struct client *client = free_place(m);
    if (!client) {
        struct msg_dropped full = {MSG_DROPPED, DROPPED_FULL};
        (void)send(fd, &full, sizeof(full), MSG_DONTWAIT | MSG_NOSIGNAL);
        return true;
    }
    *client = (struct client){.fd = steal_fd(&fd)};
    tell_state(m, client);
    return true;
}

/* Beyond wmem_max where we may; within it where not. */
static void set_buffer(int fd, int bytes) {
    if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof(bytes)) < 0)
        (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
}

void client_last_bytes(struct client *client) {
    client->waits_room = false;
    if (client->flags & (ATTACH_STDOUT | ATTACH_STDERR)) set_buffer(client->fd, BUFFER_LAST);
}

/* unix(7) sockets report POLLOUT while at most a quarter of the buffer is taken, and then a message
 * of any size that we send is taken whole. A hung-up peer "has room": sending finds out. */
bool client_has_room(struct client *client) {
    struct pollfd fd = {.fd = client->fd, .events = POLLOUT};
    return poll(&fd, 1, 0) != 0;
}

/* The far side closed. What it had sent is still worth reading, so only its output ends here. */
static void hang_up(struct client *client) {
    client->hung_up = true;
    client->flags &= ATTACH_STDIN;
    client->waits_room = false;
}

static void drop(struct monitor *m, struct client *client) {
    struct msg_dropped slow = {MSG_DROPPED, DROPPED_SLOW};
    set_buffer(client->fd, 2 * BUFFER_LAST); /* room for the farewell */
    (void)send(client->fd, &slow, sizeof(slow), MSG_DONTWAIT | MSG_NOSIGNAL);
    client_close(m, client);
}

/* Whether it went out; where not, `errno` is about room. */
static bool send_message(struct client *client, const void *message, size_t len) {
    if (send(client->fd, message, len, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) return true;
    if (errno != EPIPE && errno != ECONNRESET) return false;
    hang_up(client);
    return true;
}

void client_output(struct monitor *m, struct client *client, const char *message, size_t len) {
    if (client->hung_up || send_message(client, message, len)) return;
    if (m->exited)
        /* more than was left in the pipes: not of the process that ended. Its exit is still to be
         * told. */
        client->flags &= ATTACH_STDIN;
    else
        drop(m, client);
}

void client_tell(struct monitor *m, struct client *client, const void *message, size_t len) {
    if (client->fd < 0 || client->hung_up || send_message(client, message, len)) return;
    set_buffer(client->fd, BUFFER_LAST);
    if (!send_message(client, message, len)) drop(m, client);
}

void client_tell_all(struct monitor *m, const void *message, size_t len) {
    for (int i = 0; i < CLIENTS_MAX; i++)
        client_tell(m, &m->clients[i], message, len);
}

static void attach(struct client *client, uint8_t flags) {
    client->flags = flags;
    client->waits_room = false;
    if (!(flags & ATTACH_LOSSLESS) && flags & (ATTACH_STDOUT | ATTACH_STDERR))
        set_buffer(client->fd, BUFFER_SLOW);
}

static void reopen_log(struct monitor *m, struct client *client) {
    struct msg_reopened answer = {.type = MSG_REOPENED, .error = -log_reopen(&m->log)};
    client_tell(m, client, &answer, sizeof(answer));
}

/* One message; false when it has to wait where it is. */
static bool handle(struct monitor *m, struct client *client, const char *message, size_t len) {
    struct msg_winsize size;
    switch (message[0]) {
    case MSG_START:
        child_start(m);
        break;
    case MSG_STDIN:
        if (client->flags & ATTACH_STDIN) return stdin_take(m, client, message + 1, len - 1);
        break;
    case MSG_STDIN_END:
        /* a terminal has no half-close; without stdin_once others may still come with input */
        if (client->flags & ATTACH_STDIN && m->plan->stdin_once && !m->plan->terminal) stdin_end(m);
        break;
    case MSG_WINSIZE:
        if (len != sizeof(size)) break;
        memcpy(&size, message, sizeof(size));
        stream_resize(m, &size);
        break;
    case MSG_ATTACH:
        if (len == 2) attach(client, (uint8_t)message[1]);
        break;
    case MSG_WATCH:
        client->watching = true;
        break;
    case MSG_REOPEN_LOG:
        reopen_log(m, client);
        break;
    default: /* of a later version; not knowing it must not end a connection */
        break;
    }
    return true;
}

/* Looks at the client's first message and takes it if it could be handled. Whether there may be
 * more. */
bool client_receive(struct monitor *m, struct client *client) {
    if (client->fd < 0 || client->waits_stdin) return false;
    ssize_t n = recv(client->fd, m->relay, sizeof(m->relay), MSG_DONTWAIT | MSG_PEEK | MSG_TRUNC);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return false;
    /* It closed with words of ours unread: said once, and ahead of what it had sent before. */
    if (n < 0 && errno == ECONNRESET) {
        hang_up(client);
        return true;
    }
    if (n <= 0 || (size_t)n > MESSAGE_MAX) { /* the end, or not our protocol */
        client_close(m, client);
        return false;
    }
    if (!handle(m, client, m->relay, (size_t)n)) return false;
    if (client->fd >= 0) (void)recv(client->fd, m->relay, 1, MSG_DONTWAIT);
    return client->fd >= 0;
}

void client_events(struct monitor *m, struct client *client, short revents) {
    if (client->fd < 0) return;
    if (revents & POLLOUT) client->waits_room = false;
    if (revents & (POLLHUP | POLLERR | POLLNVAL)) hang_up(client);
    /* input for a program that nobody can start any more */
    if (client->hung_up && client->waits_stdin && m->phase < PHASE_RELEASED)
        client_close(m, client);
    if (revents & ~POLLOUT) (void)client_receive(m, client);
}

void client_close(struct monitor *m, struct client *client) {
    bool had_stdin = client->flags & ATTACH_STDIN;
    close(client->fd);
    *client = (struct client){.fd = -1};
    if (had_stdin && m->plan->stdin_once && !m->plan->terminal) stdin_end(m);
    /* Created for somebody who is gone: nobody would ever start it. */
    if (client == &m->clients[STARTER] && m->phase < PHASE_RELEASED && !m->start_wanted)
        child_kill(m);
}
