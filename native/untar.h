/* scow-untar: one layer tar on a pipe -> one directory in overlayfs's own form.
 *
 * Everything in the stream is hostile. All memory is one fixed block (`struct untar`), there is no
 * malloc; every path is reached from the layer's root descriptor and never leaves it. Functions
 * return 0 (or a count) and -errno; the first failure is described in `struct untar.failure`. */
#ifndef SCOW_UNTAR_H
#define SCOW_UNTAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>

enum {
    UNTAR_BLOCK = 512,
    UNTAR_BUFFER = 1 << 20,    /* one read of a full pipe (F_SETPIPE_SZ 1 MiB) */
    UNTAR_PATH = 4096,         /* PATH_MAX: the kernel takes no longer name, NUL included */
    UNTAR_PAX = 1 << 20,       /* the extended header of one entry */
    UNTAR_XATTRS = 128,        /* of one entry */
    UNTAR_SEGMENTS = 1 << 20,  /* of one sparse file */
    UNTAR_DEPTH = 1024,        /* components of a path */
    UNTAR_SYMLINKS = 40,       /* followed for one path, as the kernel's MAXSYMLINKS */
    UNTAR_DIRS = 16,           /* open directories kept between entries */
    UNTAR_SPOOL = 256 << 10,   /* directory times kept in memory before they spill to disk */
    UNTAR_REPORT = 16 << 20,   /* bytes of report about things that need the lower layers */
    UNTAR_NOTES = 1 << 18,     /* ... and how many: each is a hundred bytes more where it is read */
};

struct untar_stream {
    int fd;
    bool eof;
    uint64_t offset; /* bytes consumed */
    uint64_t limit;  /* most bytes the stream may have */
    size_t start, end;
    unsigned char buf[UNTAR_BUFFER];
};

struct untar_xattr {
    const char *name;
    const void *value;
    size_t size;
};

struct untar_segment {
    uint64_t offset, length;
};

/* What `x`, `L` and `K` headers say about the entry that follows them. */
struct untar_overrides {
    bool has_path, has_link, has_size, has_uid, has_gid, has_mtime, has_major, has_minor;
    bool has_sparse_name, has_sparse_size;
    uint64_t size, uid, gid, major, minor, sparse_size;
    uint64_t sparse_version; /* 0: by records of the header, 1: map at the start of the data */
    bool is_sparse;
    uint64_t next_offset; /* GNU.sparse.offset waiting for its numbytes */
    struct timespec mtime;
    size_t n_xattrs;
    struct untar_xattr xattrs[UNTAR_XATTRS];
    char path[UNTAR_PATH], link[UNTAR_PATH];
};

struct untar_entry {
    char type;
    uint32_t mode, uid, gid, major, minor;
    uint64_t size;      /* bytes in the stream */
    uint64_t real_size; /* bytes of the file; differs for sparse ones */
    struct timespec mtime;
    bool is_sparse;
    char path[UNTAR_PATH]; /* as written, for messages */
    char link[UNTAR_PATH];
    char clean[UNTAR_PATH]; /* no leading, double or trailing slash, no "."; "" is the root */
};

struct untar_dir {
    int fd; /* -1: free */
    uint32_t stamp;
    size_t length;
    char path[UNTAR_PATH];
};

struct untar_counts {
    uint64_t entries, files, dirs, symlinks, hardlinks, devices, whiteouts, skipped;
    uint64_t data_bytes, dropped_xattrs;
    uint64_t landlock; /* the ABI that confines us, 0 without */
};

struct untar_failure {
    int error;
    uint64_t offset;
    char message[192];
};

struct untar {
    int root_fd, report_fd, privileged_fd;
    uint64_t max_entries;
    uint64_t entry_offset;
    struct untar_counts counts;
    struct untar_failure failure;
    struct untar_entry entry;
    struct untar_overrides over;
    uint32_t clock;
    struct untar_dir dirs[UNTAR_DIRS];
    int spill_fd;
    size_t spool_used;
    size_t n_segments;
    size_t report_used, report_total, n_notes;
    bool noted_implied, noted_opaque;
    char report[8192];
    struct untar_stream stream;
    unsigned char pax[UNTAR_PAX + 1];
    unsigned char spool[UNTAR_SPOOL];
    struct untar_segment segments[UNTAR_SEGMENTS];
};

/* untar_stream.c */
void untar_stream_cancel_on(int number);
int untar_stream_fill(struct untar_stream *s, size_t want);
int untar_stream_block(struct untar_stream *s, const unsigned char **ret_block);
int untar_stream_some(struct untar_stream *s, uint64_t want, const unsigned char **ret, size_t *ret_size);
int untar_stream_read(struct untar_stream *s, void *to, size_t size);
int untar_stream_skip(struct untar_stream *s, uint64_t size);

/* untar_number.c */
int untar_field(const unsigned char *field, size_t size, int64_t *ret);
int untar_decimal(const char *text, size_t size, uint64_t *ret);
int untar_time(const char *text, size_t size, struct timespec *ret);

/* untar_header.c */
int untar_is_zero(const unsigned char *block);
int untar_checksum_ok(const unsigned char *block);
int untar_parse_header(struct untar *u, const unsigned char *block);

/* untar_pax.c */
int untar_parse_pax(struct untar *u, unsigned char *data, size_t size);
void untar_reset_overrides(struct untar *u);

/* untar_sparse.c */
int untar_add_segment(struct untar *u, uint64_t offset, uint64_t length);
int untar_sparse_old_gnu(struct untar *u, const unsigned char *block);
int untar_sparse_map_text(struct untar *u, const char *text, size_t size);
int untar_sparse_map_stream(struct untar *u);
int untar_sparse_check(struct untar *u);

/* untar_path.c */
int untar_clean_path(const char *path, char *ret_clean);
int untar_open_dir(struct untar *u, const char *path, size_t length, bool create, int *ret_fd);
int untar_open_parent(struct untar *u, const char *path, bool create, int *ret_fd, const char **ret_name);
void untar_keep_dir(struct untar *u, const char *path, int fd);
void untar_forget_dirs(struct untar *u);
int untar_openat2(int dir_fd, const char *path, int flags, uint64_t resolve);
bool untar_is_whiteout(const struct stat *st);

/* untar_remove.c */
int untar_remove(struct untar *u, int parent_fd, const char *name);

/* untar_attr.c */
int untar_set_owner_mode(int fd, uint32_t uid, uint32_t gid, uint32_t mode);
int untar_set_fd_attributes(struct untar *u, int fd);
int untar_set_name_attributes(struct untar *u, int parent_fd, const char *name);
int untar_set_opaque(struct untar *u, int dir_fd);

/* untar_spool.c */
int untar_spool_dir(struct untar *u, int fd);
int untar_apply_spool(struct untar *u);

/* untar_entry.c */
int untar_make_entry(struct untar *u);
int untar_make_dir_at(struct untar *u, int parent_fd, const char *name, uint32_t mode, bool *ret_existed);

/* untar_whiteout.c */
int untar_whiteout_kind(const char *clean);
int untar_make_whiteout(struct untar *u);
enum { WHITEOUT_NONE, WHITEOUT_SKIP, WHITEOUT_REMOVE, WHITEOUT_OPAQUE };

/* untar_report.c */
int untar_fail(struct untar *u, int error, const char *format, ...) __attribute__((format(printf, 3, 4)));
int untar_note(struct untar *u, char kind, const char *first, const char *second);
void untar_report_end(struct untar *u, int result);

/* untar_privilege.c */
int untar_start_helper(int *ret_fd);
int untar_confine(struct untar *u);

/* untar_filter.c */
int untar_filter_calls(void);
int untar_filter_opaque(void);

/* untar.c */
int untar_extract(struct untar *u);
/* untar_main.c */
int untar_main(int argc, char **argv);

#endif
