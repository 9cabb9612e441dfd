/* The tar stream: one big buffer over a pipe, with a count of what was consumed. */
#include "untar.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

/* The one global: a signal handler has nothing else. */
static volatile sig_atomic_t cancelled;

static void cancel(int number)
{
    (void)number;
    cancelled = 1;
}

/* From this signal on the stream fails with ECANCELED: at once where it waits, at its end else. */
void untar_stream_cancel_on(int number)
{
    struct sigaction action = { .sa_handler = cancel }; /* no SA_RESTART: read(2) must return */

    (void)sigaction(number, &action, NULL);
}

/* Make at least `want` bytes contiguous. Returns the bytes there are: fewer only at the end. */
int untar_stream_fill(struct untar_stream *s, size_t want)
{
    if (s->end - s->start >= want)
        return (int)(s->end - s->start);
    if (s->start > 0) {
        memmove(s->buf, s->buf + s->start, s->end - s->start);
        s->end -= s->start;
        s->start = 0;
    }
    while (s->end < want && !s->eof) {
        ssize_t n = cancelled ? 0 : read(s->fd, s->buf + s->end, sizeof(s->buf) - s->end);
        if (cancelled)
            return -ECANCELED;
        if (n < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        if (n == 0)
            s->eof = true;
        s->end += (size_t)n;
    }
    return (int)(s->end - s->start);
}

static int consume(struct untar_stream *s, size_t size)
{
    s->start += size;
    s->offset += size;
    return s->offset > s->limit ? -EFBIG : 0;
}

/* Lend one block. Returns 1, or 0 when the stream ended before it; a torn block is -ENODATA. */
int untar_stream_block(struct untar_stream *s, const unsigned char **ret_block)
{
    int r = untar_stream_fill(s, UNTAR_BLOCK);
    if (r <= 0)
        return r;
    if (r < UNTAR_BLOCK)
        return -ENODATA;
    *ret_block = s->buf + s->start;
    r = consume(s, UNTAR_BLOCK);
    return r < 0 ? r : 1;
}

/* Lend as much of the next `want` bytes as is in memory, at least one. */
int untar_stream_some(struct untar_stream *s, uint64_t want, const unsigned char **ret, size_t *ret_size)
{
    int r = untar_stream_fill(s, 1);
    if (r < 0)
        return r;
    if (r == 0)
        return -ENODATA;
    *ret = s->buf + s->start;
    *ret_size = (uint64_t)r < want ? (size_t)r : (size_t)want;
    return consume(s, *ret_size);
}

int untar_stream_read(struct untar_stream *s, void *to, size_t size)
{
    unsigned char *at = to;

    while (size > 0) {
        const unsigned char *data;
        size_t n;
        int r = untar_stream_some(s, size, &data, &n);
        if (r < 0)
            return r;
        memcpy(at, data, n);
        at += n;
        size -= n;
    }
    return 0;
}

int untar_stream_skip(struct untar_stream *s, uint64_t size)
{
    if (size > s->limit)
        return -EFBIG;
    while (size > 0) {
        const unsigned char *data;
        size_t n;
        int r = untar_stream_some(s, size, &data, &n);
        if (r < 0)
            return r;
        size -= n;
    }
    return 0;
}
