/* The exit record and the status record. */
#include "exitrec.h"

#include <limits.h>
#include <stdio.h> /* renameat */
#include <sys/stat.h>
#include <sys/wait.h>

#include "monitor_text.h"

#define RECORD_MAX 1024

static int write_all(int fd, const char *data, size_t len) {
    while (len > 0) {
        ssize_t r = write(fd, data, len);
        if (r < 0 && errno == EINTR) continue;
        if (r <= 0) return r < 0 ? -errno : -EIO;
        data += r;
        len -= (size_t)r;
    }
    return 0;
}

/* Where a record is made before it gets its name. */
struct place {
    int dir_fd;
    const char *name;
    char temporary[NAME_MAX + 1];
};

static int find_place(const char *path, struct place *ret) {
    char dir[PATH_MAX];
    const char *slash = strrchr(path, '/');
    size_t len = slash ? (size_t)(slash - path) : 0;
    ret->name = slash ? slash + 1 : path;
    if (len >= sizeof(dir)) return -ENAMETOOLONG;
    memcpy(dir, path, len);
    dir[len] = '\0';
    struct text text = {.data = ret->temporary, .cap = NAME_MAX};
    text_str(&text, ".");
    text_str(&text, ret->name);
    text_str(&text, ".tmp");
    if (text.full) return -ENAMETOOLONG;
    ret->temporary[text.len] = '\0';
    ret->dir_fd = open(len ? dir : slash ? "/" : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return ret->dir_fd < 0 ? -errno : 0;
}

/* A leftover of a dead attempt is not ours to write through: it could be anything. */
static int make_temporary(const struct place *place) {
    if (unlinkat(place->dir_fd, place->temporary, 0) < 0 && errno != ENOENT) return -errno;
    int fd = openat(place->dir_fd, place->temporary,
                    O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    return fd < 0 ? -errno : fd;
}

/* Fills the temporary file that `fd` is and gives it its name. */
static int publish(const struct place *place, int fd, const char *data, size_t len, bool durable) {
    int r = write_all(fd, data, len);
    if (r == 0 && (ftruncate(fd, (off_t)len) < 0 || (durable && fsync(fd) < 0))) r = -errno;
    if (r == 0 && renameat(place->dir_fd, place->temporary, place->dir_fd, place->name) < 0)
        r = -errno;
    if (r < 0) {
        (void)unlinkat(place->dir_fd, place->temporary, 0);
        return r;
    }
    return durable && fsync(place->dir_fd) < 0 ? -errno : 0;
}

int record_replace(const char *path, const char *data, size_t len, bool durable) {
    struct place place;
    int r = find_place(path, &place);
    if (r < 0) return r;
    cleanup_fd int dir_fd = place.dir_fd;
    cleanup_fd int fd = make_temporary(&place);
    return fd < 0 ? fd : publish(&place, fd, data, len, durable);
}

int exit_record_reserve(const char *path) {
    struct place place;
    char blanks[RECORD_MAX];
    if (!*path) return 0;
    int r = find_place(path, &place);
    if (r < 0) return r;
    cleanup_fd int dir_fd = place.dir_fd;
    cleanup_fd int fd = make_temporary(&place);
    memset(blanks, ' ', sizeof(blanks));
    return fd < 0 ? fd : write_all(fd, blanks, sizeof(blanks));
}

/* Into the reserved file; into a new one where there is none. */
static int replace_reserved(const char *path, const char *data, size_t len) {
    struct place place;
    int r = find_place(path, &place);
    if (r < 0) return r;
    cleanup_fd int dir_fd = place.dir_fd;
    cleanup_fd int fd = openat(place.dir_fd, place.temporary, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) fd = make_temporary(&place);
    return fd < 0 ? fd : publish(&place, fd, data, len, true);
}

static void field_i64(struct text *text, const char *key, int64_t value) {
    text_str(text, text->len > 1 ? ",\"" : "\"");
    text_str(text, key);
    text_str(text, "\":");
    text_i64(text, value);
}

int exit_record_write(const char *path, const struct exit_record *record) {
    char data[RECORD_MAX];
    struct text text = {.data = data, .cap = sizeof(data)};
    if (!*path) return 0;
    int status = record->status;
    int signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    text_str(&text, "{");
    field_i64(&text, "pid", record->pid);
    field_i64(&text, "status", status);
    field_i64(&text, "exit_code", signal ? 128 + signal : WEXITSTATUS(status));
    field_i64(&text, "signal", signal);
    text_str(&text, record->oom_killed ? ",\"oom_killed\":true" : ",\"oom_killed\":false");
    field_i64(&text, "started_at", record->started_ns);
    field_i64(&text, "finished_at", record->finished_ns);
    field_i64(&text, "log_lost_bytes", (int64_t)record->log_lost_bytes);
    field_i64(&text, "log_errno", record->log_error);
    text_str(&text, ",\"error\":");
    if (record->failure) {
        text_str(&text, "{\"step\":");
        text_u64(&text, record->failure->step, 1);
        field_i64(&text, "errno", record->failure->error);
        field_i64(&text, "index", (int32_t)record->failure->index); /* PLAN_NONE: -1 */
        field_i64(&text, "detail", record->failure->detail);
        text_str(&text, "}");
    } else {
        text_str(&text, "null");
    }
    text_str(&text, "}\n");
    return text.full ? -EOVERFLOW : replace_reserved(path, data, text.len);
}

/* The id is ours ([0-9a-f] or a checked name), but a record that is not JSON would be worse than an
 * id that is not whole. */
static void text_json(struct text *text, const char *str) {
    text_str(text, "\"");
    for (; *str; str++)
        if ((unsigned char)*str >= ' ' && *str != '"' && *str != '\\') text_bytes(text, str, 1);
    text_str(text, "\"");
}

int status_record_write(const char *path, const struct status_record *record) {
    char data[RECORD_MAX];
    struct text text = {.data = data, .cap = sizeof(data)};
    if (!*path) return 0;
    text_str(&text, "{\"id\":");
    text_json(&text, record->container_id);
    field_i64(&text, "pid", record->pid);
    field_i64(&text, "start_time", (int64_t)record->start_time);
    field_i64(&text, "monitor_pid", record->monitor_pid);
    field_i64(&text, "monitor_start_time", (int64_t)record->monitor_start_time);
    field_i64(&text, "created_at", record->created_ns);
    text_str(&text, "}\n");
    /* It says who runs, which a reboot makes untrue: atomic is enough, and a disk's fsync would be
     * the dearest part of a start. */
    return text.full ? -EOVERFLOW : record_replace(path, data, text.len, false);
}

int process_start_time(pid_t pid, uint64_t *ret_ticks) {
    char path[32], data[512];
    struct text text = {.data = path, .cap = sizeof(path) - 1};
    text_str(&text, "/proc/");
    text_i64(&text, pid);
    text_str(&text, "/stat");
    path[text.len] = '\0';
    cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -errno;
    ssize_t n = read(fd, data, sizeof(data) - 1);
    if (n < 0) return -errno;
    data[n] = '\0';
    /* Field 2 is the name in brackets and may hold brackets and blanks: count from the last ')'. */
    const char *at = strrchr(data, ')');
    for (int field = 2; at && field < 22; field++) at = strchr(at + 1, ' ');
    if (!at) return -EPROTO;
    uint64_t ticks = 0;
    for (at++; *at >= '0' && *at <= '9'; at++) ticks = ticks * 10 + (uint64_t)(*at - '0');
    *ret_ticks = ticks;
    return 0;
}
