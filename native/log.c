/* The log writer: "2006-01-02T15:04:05.000000000Z stdout F line\n". */
#include "log.h"

#include <limits.h>
#include <stdio.h> /* renameat */
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>

#include "monitor_text.h"

#define HEADER_MAX 48
#define BATCH_PIECES 128 /* 2 KiB of iovecs; bigger batches were not faster */

/* Records gathered for one writev. Pieces point into the caller's bytes and at the two headers,
 * which all lines of one call share: they were read at the same moment. */
struct batch {
    struct log *log;
    char full[HEADER_MAX], part[HEADER_MAX];
    size_t header_len;
    struct iovec pieces[BATCH_PIECES];
    int n_pieces;
    size_t bytes;
};

static void make_headers(struct batch *batch, enum log_stream stream) {
    struct timespec now;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &tm);
    struct text text = {.data = batch->full, .cap = HEADER_MAX};
    text_u64(&text, (uint64_t)tm.tm_year + 1900, 4);
    text_str(&text, "-");
    text_u64(&text, (uint64_t)tm.tm_mon + 1, 2);
    text_str(&text, "-");
    text_u64(&text, (uint64_t)tm.tm_mday, 2);
    text_str(&text, "T");
    text_u64(&text, (uint64_t)tm.tm_hour, 2);
    text_str(&text, ":");
    text_u64(&text, (uint64_t)tm.tm_min, 2);
    text_str(&text, ":");
    text_u64(&text, (uint64_t)tm.tm_sec, 2);
    text_str(&text, ".");
    text_u64(&text, (uint64_t)now.tv_nsec, 9);
    text_str(&text, stream == LOG_STDOUT ? "Z stdout F " : "Z stderr F ");
    batch->header_len = text.len;
    memcpy(batch->part, batch->full, text.len);
    batch->part[text.len - 2] = 'P';
}

/* Opens `name` and makes it the log's file; on error the old file stays. */
static int open_file(struct log *log, const char *name) {
    struct stat st;
    int flags = O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY;
    cleanup_fd int fd = openat(log->dir_fd, name, flags, 0600);
    if (fd < 0) return -errno;
    if (fstat(fd, &st) < 0) return -errno;
    if (!S_ISREG(st.st_mode)) return -EINVAL;
    log->size = (uint64_t)st.st_size;
    /* A record torn by a power loss must not swallow the first line of this run. */
    char last = '\n';
    if (st.st_size > 0 && pread(fd, &last, 1, st.st_size - 1) == 1 && last != '\n' &&
        write(fd, "\n", 1) == 1)
        log->size++;
    if (log->fd >= 0) close(log->fd);
    log->fd = steal_fd(&fd);
    return 0;
}

int log_open(struct log *log, const char *path, uint64_t max_bytes, uint32_t max_files) {
    log->fd = log->dir_fd = -1;
    log->path = path;
    log->max_bytes = max_bytes;
    log->max_files = max_files ? max_files : 1;
    if (!*path) return 0;

    char dir[PATH_MAX];
    const char *slash = strrchr(path, '/');
    size_t len = slash ? (size_t)(slash - path) : 0;
    if (len >= sizeof(dir)) return -ENAMETOOLONG;
    memcpy(dir, path, len);
    dir[len] = '\0';
    log->name = slash ? slash + 1 : path;
    log->dir_fd = open(len ? dir : slash ? "/" : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (log->dir_fd < 0) return -errno;
    int r = open_file(log, log->name);
    if (r < 0) log_close(log);
    return r;
}

int log_reopen(struct log *log) {
    return log->dir_fd < 0 ? 0 : open_file(log, log->name);
}

void log_close(struct log *log) {
    close_fdp(&log->fd);
    close_fdp(&log->dir_fd);
    log->fd = log->dir_fd = -1;
}

#define SUFFIX_MAX 12

/* "name.N", or the name itself for 0, or "name.new" for NEW_FILE. */
#define NEW_FILE UINT32_MAX
static const char *file_name(const struct log *log, uint32_t n,
                             char ret_name[NAME_MAX + SUFFIX_MAX]) {
    struct text text = {.data = ret_name, .cap = NAME_MAX + SUFFIX_MAX - 1};
    text_str(&text, log->name);
    if (n) text_str(&text, ".");
    if (n == NEW_FILE)
        text_str(&text, "new");
    else if (n)
        text_u64(&text, n, 1);
    ret_name[text.len] = '\0';
    return ret_name;
}

/* log -> log.1 -> log.2 ...; the oldest falls off. A follower keeps the old file by its inode. The
 * new file is made first, so that a full disk cannot cost the history its files; when the directory
 * cannot be changed the old file goes on: too large beats lost. */
static void rotate(struct log *log) {
    char from[NAME_MAX + SUFFIX_MAX], to[NAME_MAX + SUFFIX_MAX];
    file_name(log, NEW_FILE, from);
    if (unlinkat(log->dir_fd, from, 0) < 0 && errno != ENOENT) return;
    int r = open_file(log, from);
    if (r < 0) {
        log->error = -r;
        return;
    }
    for (uint32_t n = log->max_files - 1; n > 0; n--)
        (void)renameat(log->dir_fd, file_name(log, n - 1, from),
                       log->dir_fd, file_name(log, n, to));
    (void)renameat(log->dir_fd, file_name(log, NEW_FILE, from), log->dir_fd, log->name);
}

/* What of the batch came through: `written` bytes, cut back to whole records, since half a record
 * would spoil the next one, too. Every record ends with a piece that ends with a newline, and
 * nothing else does. */
static void account_loss(struct batch *batch, size_t written, int error) {
    struct log *log = batch->log;
    size_t at = 0, whole = 0;
    uint64_t lost = 0;
    for (int i = 0; i < batch->n_pieces; i++) {
        const struct iovec *piece = &batch->pieces[i];
        bool header = piece->iov_base == batch->full || piece->iov_base == batch->part;
        at += piece->iov_len;
        if (!header) lost += piece->iov_len;
        if (((const char *)piece->iov_base)[piece->iov_len - 1] == '\n' && at <= written) {
            whole = at;
            lost = 0;
        }
    }
    if (written > whole && ftruncate(log->fd, (off_t)(log->size + whole)) < 0) {
        whole = written; /* the torn record stays; open_file mends the end of it one day */
    }
    log->size += whole;
    log->lost_bytes += lost;
    log->error = error;
}

static void flush_batch(struct batch *batch) {
    struct log *log = batch->log;
    struct iovec left[BATCH_PIECES];
    struct iovec *at = batch->pieces;
    int n = batch->n_pieces;
    size_t written = 0;

    while (written < batch->bytes) {
        ssize_t r = writev(log->fd, at, n);
        if (r < 0 && errno == EINTR) continue;
        if (r <= 0) {
            account_loss(batch, written, r < 0 ? errno : EIO);
            break;
        }
        written += (size_t)r;
        if (written == batch->bytes) {
            log->size += written;
            break;
        }
        /* A short write: a full disk says so on the next try only. The pieces themselves are kept
         * for the account. */
        if (at == batch->pieces) at = memcpy(left, at, sizeof(left[0]) * (size_t)n);
        for (size_t skip = (size_t)r; skip > 0;) {
            size_t step = skip < at->iov_len ? skip : at->iov_len;
            at->iov_base = (char *)at->iov_base + step;
            at->iov_len -= step;
            skip -= step;
            if (at->iov_len == 0) at++, n--;
        }
    }
    batch->n_pieces = 0;
    batch->bytes = 0;
}

static void add_piece(struct batch *batch, const char *data, size_t len) {
    if (len == 0) return;
    batch->pieces[batch->n_pieces++] = (struct iovec){.iov_base = (void *)data, .iov_len = len};
    batch->bytes += len;
}

/* One record: the header, the saved head of the line, the bytes, a newline if they have none. */
static void add_record(struct batch *batch, const char *header, const char *head, size_t head_len,
                       const char *data, size_t len) {
    struct log *log = batch->log;
    bool newline = len == 0 || data[len - 1] != '\n';
    size_t total = batch->header_len + head_len + len + newline;
    if (log->max_bytes && log->size + batch->bytes > 0 &&
        log->size + batch->bytes + total > log->max_bytes) {
        flush_batch(batch);
        if (log->size > 0) rotate(log);
    }
    if (batch->n_pieces > BATCH_PIECES - 4) flush_batch(batch);
    add_piece(batch, header, batch->header_len);
    add_piece(batch, head, head_len);
    add_piece(batch, data, len);
    if (newline) add_piece(batch, "\n", 1);
}

void log_write(struct log *log, enum log_stream stream, const char *data, size_t len) {
    if (log->dir_fd < 0 || len == 0) return;
    struct log_partial *partial = &log->partial[stream];
    struct batch batch;
    batch.log = log;
    batch.n_pieces = 0;
    batch.bytes = 0;
    make_headers(&batch, stream);

    size_t head = partial->len;
    while (len > 0) {
        size_t room = LOG_LINE_MAX - head;
        const char *end = memchr(data, '\n', len < room + 1 ? len : room + 1);
        size_t take;
        if (end) {
            take = (size_t)(end - data) + 1;
            add_record(&batch, batch.full, partial->data, head, data, take);
        } else if (len > room) {
            take = room;
            add_record(&batch, batch.part, partial->data, head, data, take);
        } else {
            break;
        }
        head = 0;
        data += take;
        len -= take;
    }
    flush_batch(&batch); /* before the head below is overwritten: pieces point at it */
    memcpy(partial->data + head, data, len);
    partial->len = head + len;
}

bool log_has_partial(const struct log *log) {
    return log->partial[LOG_STDOUT].len > 0 || log->partial[LOG_STDERR].len > 0;
}

void log_flush(struct log *log) {
    for (enum log_stream stream = LOG_STDOUT; stream <= LOG_STDERR; stream++) {
        struct log_partial *partial = &log->partial[stream];
        if (partial->len == 0) continue;
        struct batch batch;
        batch.log = log;
        batch.n_pieces = 0;
        batch.bytes = 0;
        make_headers(&batch, stream);
        add_record(&batch, batch.part, partial->data, partial->len, NULL, 0);
        flush_batch(&batch);
        partial->len = 0;
    }
}
