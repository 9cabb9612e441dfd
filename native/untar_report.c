/* What the applet tells its starter: NUL-terminated fields on the report descriptor.
 *
 *   L name target     a hard link whose target is not in this layer
 *   I dir             a parent directory that the tar did not list
 *   X dir             ... and then did list
 *   O                 the root is opaque: no lower layer shows through
 *   E errno offset entry message
 *   S key=number ...  the end of a good run */
#include "untar.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void flush(struct untar *u)
{
    size_t done = 0;

    while (done < u->report_used) {
        ssize_t n = write(u->report_fd, u->report + done, u->report_used - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break; /* Nobody listens; the exit status still tells. */
        done += (size_t)n;
    }
    u->report_used = 0;
}

static void put(struct untar *u, const char *text)
{
    size_t size = strlen(text) + 1;

    if (u->report_used + size > sizeof(u->report))
        flush(u);
    u->report_total += size;
    memcpy(u->report + u->report_used, text, size); /* fields are shorter than UNTAR_PATH */
    u->report_used += size;
}

/* Describe the first failure; later ones are consequences. Returns -error. */
int untar_fail(struct untar *u, int error, const char *format, ...)
{
    va_list args;

    if (u->failure.error == 0) {
        u->failure.error = error;
        u->failure.offset = u->entry_offset;
        va_start(args, format);
        (void)vsnprintf(u->failure.message, sizeof(u->failure.message), format, args);
        va_end(args);
    }
    return -error;
}

/* Notes are many only in a hostile layer, and the reader holds them in memory. */
int untar_note(struct untar *u, char kind, const char *first, const char *second)
{
    char letter[2] = { kind, '\0' };

    if (kind != 'E' && kind != 'S' && (u->report_total > UNTAR_REPORT || ++u->n_notes > UNTAR_NOTES))
        return -E2BIG;
    put(u, letter);
    if (first)
        put(u, first);
    if (second)
        put(u, second);
    return 0;
}

void untar_report_end(struct untar *u, int result)
{
    const struct untar_counts *c = &u->counts;
    char text[512];

    if (result < 0) {
        (void)untar_fail(u, -result, "%s", strerror(-result));
        (void)snprintf(text, sizeof(text), "%d", u->failure.error);
        (void)untar_note(u, 'E', text, NULL);
        (void)snprintf(text, sizeof(text), "%llu", (unsigned long long)u->failure.offset);
        put(u, text);
        put(u, u->entry.path);
        put(u, u->failure.message);
    } else {
        (void)snprintf(text, sizeof(text),
            "entries=%llu files=%llu dirs=%llu symlinks=%llu hardlinks=%llu devices=%llu "
            "whiteouts=%llu skipped=%llu data_bytes=%llu stream_bytes=%llu dropped_xattrs=%llu landlock=%llu",
            (unsigned long long)c->entries, (unsigned long long)c->files,
            (unsigned long long)c->dirs, (unsigned long long)c->symlinks,
            (unsigned long long)c->hardlinks, (unsigned long long)c->devices,
            (unsigned long long)c->whiteouts, (unsigned long long)c->skipped,
            (unsigned long long)c->data_bytes, (unsigned long long)u->stream.offset,
            (unsigned long long)c->dropped_xattrs, (unsigned long long)c->landlock);
        (void)untar_note(u, 'S', text, NULL);
    }
    flush(u);
}
