/* The container's bytes: output to the log and the clients, input from them, the terminal. */
#include "monitor.h"

#include <sys/ioctl.h>
#include <termios.h>

static void set_nonblocking(int fd) {
    int flags = fcntl(fd, F_GETFL);
    if (flags >= 0) (void)fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}

/* A pty's master reads EIO as soon as no slave is open, which a program may do for a moment (close
 * and open /dev/console again). We hold a slave of our own until the process has ended, so that EIO
 * means the end. */
static int open_slave(int master_fd) {
    return ioctl(master_fd, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
}

void stream_open_terminal(struct monitor *m, int master_fd) {
    struct stream *stream = &m->streams[0];
    if (stream->fd >= 0) {
        close(master_fd);
        return;
    }
    (void)fcntl(master_fd, F_SETFD, FD_CLOEXEC);
    set_nonblocking(master_fd);
    stream->fd = master_fd;
    m->slave_fd = open_slave(master_fd);
    if (m->plan->open_stdin) m->stdin_fd = fcntl(master_fd, F_DUPFD_CLOEXEC, 0);
    if (m->have_size) stream_resize(m, &m->size);
}

void stream_resize(struct monitor *m, const struct msg_winsize *size) {
    m->size = *size;
    m->have_size = true;
    if (!m->plan->terminal || m->streams[0].fd < 0) return;
    struct winsize winsize = {.ws_row = size->rows, .ws_col = size->columns};
    (void)ioctl(m->streams[0].fd, TIOCSWINSZ, &winsize); /* the kernel sends SIGWINCH */
}

static bool wants(const struct client *client, enum log_stream kind) {
    return client->fd >= 0 && client->flags & (kind == LOG_STDOUT ? ATTACH_STDOUT : ATTACH_STDERR);
}

/* A lossless client without room holds the stream: the pipe fills, and the container waits. Once
 * the process has ended nothing waits; client_last_bytes made the room. */
bool stream_is_held(const struct monitor *m, const struct stream *stream) {
    if (m->exited) return false;
    for (int i = 0; i < CLIENTS_MAX; i++)
        if (wants(&m->clients[i], stream->kind) && m->clients[i].waits_room) return true;
    return false;
}

static bool all_have_room(struct monitor *m, const struct stream *stream) {
    bool room = true;
    if (m->exited) return true;
    for (int i = 0; i < CLIENTS_MAX; i++) {
        struct client *client = &m->clients[i];
        if (!wants(client, stream->kind) || !(client->flags & ATTACH_LOSSLESS)) continue;
        client->waits_room = !client_has_room(client);
        if (client->waits_room) room = false;
    }
    return room;
}

static void stream_end(struct stream *stream) {
    close_fdp(&stream->fd);
    stream->fd = -1;
}

void stream_read(struct monitor *m, struct stream *stream) {
    if (stream->fd < 0 || !all_have_room(m, stream)) return;
    ssize_t n = read(stream->fd, m->relay + 1, RELAY_READ);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n < 0 && errno == EIO && m->plan->terminal && !m->exited && m->slave_fd >= 0) {
        /* vhangup(2) took our slave, too; a new one brings the terminal back */
        close(m->slave_fd);
        m->slave_fd = open_slave(stream->fd);
        if (m->slave_fd >= 0) n = read(stream->fd, m->relay + 1, RELAY_READ);
        if (n < 0 && errno == EAGAIN) return;
    }
    /* n_tty_read() looks for data first and for the end then: last words may come between. */
    if (n < 0 && errno == EIO && m->plan->terminal) n = read(stream->fd, m->relay + 1, RELAY_READ);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        stream_end(stream);
        return;
    }
    m->relay[0] = stream->kind == LOG_STDOUT ? MSG_STDOUT : MSG_STDERR;
    log_write(&m->log, stream->kind, m->relay + 1, (size_t)n);
    for (int i = 0; i < CLIENTS_MAX; i++)
        if (wants(&m->clients[i], stream->kind))
            client_output(m, &m->clients[i], m->relay, (size_t)n + 1);
    if (n > 4096 || log_has_partial(&m->log)) m->untidy = true;
}

/* What is left in the pipes is bounded now: let go of our slave so that the pty ends, and give
 * every client a buffer that holds all of it, so that the end waits for nobody. */
void stream_child_exited(struct monitor *m) {
    close_fdp(&m->slave_fd);
    m->slave_fd = -1;
    for (int i = 0; i < CLIENTS_MAX; i++)
        if (m->clients[i].fd >= 0) client_last_bytes(&m->clients[i]);
}

/* Gives the container the client's first message, from where it last stopped. Whether it is done
 * with. */
bool stdin_take(struct monitor *m, struct client *client, const char *data, size_t len) {
    while (client->input_done < len && m->stdin_fd >= 0) {
        ssize_t n = write(m->stdin_fd, data + client->input_done, len - client->input_done);
        if (n >= 0) {
            client->input_done += (uint32_t)n;
        } else if (errno == EAGAIN) {
            client->waits_stdin = true;
            return false;
        } else if (errno != EINTR) {
            stdin_end(m); /* EPIPE: nobody reads it any more */
        }
    }
    client->input_done = 0;
    if (len > 4096) m->untidy = true;
    return true;
}

void stdin_end(struct monitor *m) {
    close_fdp(&m->stdin_fd);
    m->stdin_fd = -1;
    stdin_unblock(m);
}

/* Who waited looks again at its first message. */
void stdin_unblock(struct monitor *m) {
    for (int i = 0; i < CLIENTS_MAX; i++)
        m->clients[i].waits_stdin = false;
}
