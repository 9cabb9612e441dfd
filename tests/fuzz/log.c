/* The log writer under libFuzzer: what a container prints, cut anywhere, comes back whole from the file.
 *
 * The first byte says where to rotate (0: never), then pieces: a byte with length and stream, the bytes. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "log.h"

#define MOST (1 << 20)

static struct log the_log;
static char given[2][MOST], found[2][MOST], file[4 * MOST];
static size_t n_given[2], n_found[2];

/* A line "time stream F|P text". */
static void take_line(const char *line, const char *end) {
    const char *text = line + 38; /* "2006-01-02T15:04:05.000000000Z stdout F " less one */
    if (end - line < 38 || line[29] != 'Z' || line[30] != ' ' || line[37] != ' ')
        abort();
    int stream = strncmp(line + 31, "stderr", 6) == 0;
    if (!stream && strncmp(line + 31, "stdout", 6) != 0)
        abort();
    if ((*text != 'F' && *text != 'P') || text[1] != ' ')
        abort();
    size_t n = (size_t)(end - text) - 2 + (*text == 'F');
    if (n_found[stream] + n > MOST)
        abort();
    memcpy(found[stream] + n_found[stream], text + 2, n);
    n_found[stream] += n;
}

static void read_back(const char *path) {
    FILE *in = fopen(path, "rb");
    if (!in)
        return;
    size_t n = fread(file, 1, sizeof file, in);
    fclose(in);
    for (char *line = file; line < file + n;) {
        char *end = memchr(line, '\n', (size_t)(file + n - line));
        if (!end)
            abort(); /* every record ends with a newline */
        take_line(line, end);
        line = end + 1;
    }
}

static void feed(const unsigned char *data, size_t size) {
    while (size > 1) {
        int stream = data[0] & 1;
        size_t n = (size_t)(data[0] >> 1) * (data[1] & 1 ? 331 : 1);
        data += 1, size -= 1;
        n = n < size ? n : size;
        char *piece = malloc(n ? n : 1); /* exactly: one byte beyond is a report */
        memcpy(piece, data, n);
        memcpy(given[stream] + n_given[stream], piece, n);
        n_given[stream] += n;
        log_write(&the_log, stream ? LOG_STDERR : LOG_STDOUT, piece, n);
        free(piece);
        data += n, size -= n;
    }
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);
int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size) {
    char path[512], old[600];
    if (size < 2 || size > MOST / 2)
        return -1;
    snprintf(path, sizeof path, "%s/log", getenv("SCOW_FUZZ_DIR"));
    memset(&the_log, 0, sizeof the_log);
    memset(n_given, 0, sizeof n_given);
    memset(n_found, 0, sizeof n_found);
    uint64_t max = data[0] ? 64u * data[0] : 0;
    for (int i = 0; i < 4; i++) {
        snprintf(old, sizeof old, i ? "%s.%d" : "%s", path, i);
        unlink(old);
    }
    if (log_open(&the_log, path, max, 3) < 0)
        abort();
    feed(data + 1, size - 1);
    log_flush(&the_log);
    log_close(&the_log);
    for (int i = 3; i >= 0; i--) {
        snprintf(old, sizeof old, i ? "%s.%d" : "%s", path, i);
        read_back(old);
    }
    for (int i = 0; i < 2 && !max; i++)
        if (n_found[i] != n_given[i] || memcmp(found[i], given[i], n_given[i]) != 0)
            abort(); /* nothing lost, nothing changed */
    for (int i = 0; i < 2 && max; i++) /* the oldest files are gone: what is left is the end */
        if (n_found[i] > n_given[i] || memcmp(given[i] + n_given[i] - n_found[i], found[i], n_found[i]) != 0)
            abort();
    return 0;
}
