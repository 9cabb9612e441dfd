/* The container's log: CRI's line format, rotated by size. Never blocks on anything but the disk,
 * and what the disk does not take is dropped and counted. */
#ifndef SCOW_LOG_H
#define SCOW_LOG_H

#include "scow.h"

#define LOG_LINE_MAX 16384u /* longer lines become several records (CRI: P, P, ..., F) */

enum log_stream { LOG_STDOUT, LOG_STDERR };

/* The head of a line whose end has not come yet. */
struct log_partial {
    size_t len;
    char data[LOG_LINE_MAX];
};

struct log {
    int fd, dir_fd;
    const char *path, *name; /* name: the last component of path; borrowed */
    uint64_t max_bytes;      /* 0: never rotate */
    uint32_t max_files;      /* the live one counts */
    uint64_t size;
    uint64_t lost_bytes;     /* of the container's output */
    int error;               /* the errno of the last loss, or 0 */
    struct log_partial partial[2];
};

/* Opens or creates `path` and appends to it; an empty path is a log that swallows everything. `log`
 * must be zeroed. 0 or -errno. */
int log_open(struct log *log, const char *path, uint64_t max_bytes, uint32_t max_files);

/* Logs the stream's next bytes. */
void log_write(struct log *log, enum log_stream stream, const char *data, size_t len);

/* Writes heads of lines as partial records (P). At the end of a stream that gives exactly the bytes
 * that were written: a reader adds a newline after F only. */
void log_flush(struct log *log);

/* Whether log_flush has something to do. */
bool log_has_partial(const struct log *log);

/* Opens the path anew, after another program has renamed the file. 0 or -errno; on error the old
 * file stays. */
int log_reopen(struct log *log);

void log_close(struct log *log);

#endif
