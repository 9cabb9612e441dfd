/* One header block (V7, ustar, GNU, star) plus its overrides -> `struct untar_entry`. */
#include "untar.h"

#include <errno.h>
#include <string.h>

int untar_is_zero(const unsigned char *block)
{
    static const unsigned char zero[UNTAR_BLOCK];

    return !memcmp(block, zero, UNTAR_BLOCK);
}

/* Some old programs added signed bytes: both sums count. */
int untar_checksum_ok(const unsigned char *block)
{
    int64_t plain = 0, with_sign = 0, stored;

    for (int i = 0; i < UNTAR_BLOCK; i++) {
        unsigned char byte = i >= 148 && i < 156 ? ' ' : block[i];
        plain += byte;
        with_sign += (signed char)byte;
    }
    if (untar_field(block + 148, 8, &stored) < 0)
        return false;
    return stored == plain || stored == with_sign;
}

static size_t put_text(char *to, size_t at, const unsigned char *field, size_t size)
{
    size_t n = strnlen((const char *)field, size);

    memcpy(to + at, field, n);
    to[at + n] = '\0';
    return at + n;
}

static void parse_names(struct untar *u, const unsigned char *block)
{
    struct untar_entry *e = &u->entry;
    size_t at = 0, prefix = 0;

    /* "ustar\0": a prefix of 155. GNU's "ustar  \0" keeps other things there; star says "tar" at
     * the end and has 131. */
    if (!memcmp(block + 257, "ustar\0", 6))
        prefix = memcmp(block + 508, "tar\0", 4) ? 155 : 131;
    if (u->over.has_path || u->over.has_sparse_name) {
        strcpy(e->path, u->over.path); /* same size, NUL-terminated by set_path */
    } else {
        if (prefix > 0 && block[345] != '\0') {
            at = put_text(e->path, 0, block + 345, prefix);
            e->path[at++] = '/';
        }
        (void)put_text(e->path, at, block, 100);
    }
    if (u->over.has_link)
        strcpy(e->link, u->over.link);
    else
        (void)put_text(e->link, 0, block + 157, 100);
}

static int parse_id(struct untar *u, const unsigned char *field, const uint64_t *over, const char *what, uint32_t *ret)
{
    int64_t value;

    if (over)
        value = *over > INT64_MAX ? -1 : (int64_t)*over;
    else if (untar_field(field, 8, &value) < 0)
        return untar_fail(u, EBADMSG, "bad %s", what);
    /* chown(2) takes (uid_t)-1 as "leave it": such an owner cannot exist. */
    if (value < 0 || value >= UINT32_MAX)
        return untar_fail(u, ERANGE, "%s %lld is not an id", what, (long long)value);
    *ret = (uint32_t)value;
    return 0;
}

static bool is_extension(char type)
{
    return type && strchr("xXgLKV", type);
}

static int parse_size(struct untar *u, const unsigned char *block)
{
    struct untar_entry *e = &u->entry;
    int64_t value;

    /* What an extended header says is about the entry, not about the long name in between. */
    if (u->over.has_size && !is_extension(e->type))
        value = u->over.size > INT64_MAX ? -1 : (int64_t)u->over.size;
    else if (untar_field(block + 124, 12, &value) < 0)
        return untar_fail(u, EBADMSG, "bad size");
    if (value < 0)
        return untar_fail(u, EBADMSG, "size is negative or beyond 8 EiB");
    e->size = e->real_size = (uint64_t)value;
    return 0;
}

static int parse_device(struct untar *u, const unsigned char *block)
{
    int64_t major, minor;

    if (untar_field(block + 329, 8, &major) < 0 || untar_field(block + 337, 8, &minor) < 0)
        return untar_fail(u, EBADMSG, "bad device number");
    if (u->over.has_major)
        major = (int64_t)u->over.major;
    if (u->over.has_minor)
        minor = (int64_t)u->over.minor;
    if (major < 0 || major > 0xfff || minor < 0 || minor > 0xfffff)
        return untar_fail(u, ERANGE, "device number %lld:%lld does not exist", (long long)major, (long long)minor);
    u->entry.major = (uint32_t)major;
    u->entry.minor = (uint32_t)minor;
    return 0;
}

static int parse_attributes(struct untar *u, const unsigned char *block)
{
    struct untar_entry *e = &u->entry;
    int64_t mode, seconds;

    if (parse_id(u, block + 108, u->over.has_uid ? &u->over.uid : NULL, "uid", &e->uid) < 0 ||
        parse_id(u, block + 116, u->over.has_gid ? &u->over.gid : NULL, "gid", &e->gid) < 0)
        return -u->failure.error;
    if (untar_field(block + 100, 8, &mode) < 0)
        return untar_fail(u, EBADMSG, "bad mode");
    e->mode = (uint32_t)mode & 07777;
    if (u->over.has_mtime) {
        e->mtime = u->over.mtime;
        return 0;
    }
    if (untar_field(block + 136, 12, &seconds) < 0)
        return untar_fail(u, EBADMSG, "bad mtime");
    e->mtime = (struct timespec){ .tv_sec = (time_t)seconds };
    return 0;
}

/* `block` is lent by the stream; the old GNU sparse map may take further blocks. */
int untar_parse_header(struct untar *u, const unsigned char *block)
{
    struct untar_entry *e = &u->entry;
    size_t length;
    int r;

    e->type = (char)block[156];
    e->is_sparse = false;
    e->major = e->minor = 0;
    parse_names(u, block);
    r = parse_size(u, block);
    if (r < 0)
        return r;
    if (is_extension(e->type))
        return 0;
    r = parse_attributes(u, block);
    if (r == 0 && (e->type == '3' || e->type == '4'))
        r = parse_device(u, block);
    if (r < 0)
        return r;
    if (e->type == '\0' || e->type == '7')
        e->type = '0';
    /* V7 had no directories: a name that ends in a slash was one. */
    length = strlen(e->path);
    if (e->type == '0' && length > 0 && e->path[length - 1] == '/')
        e->type = '5';
    if (e->type == 'S') {
        e->type = '0';
        return untar_sparse_old_gnu(u, block);
    }
    if (e->type == '0' && u->over.is_sparse) {
        e->is_sparse = true;
        if (u->over.has_sparse_size)
            e->real_size = u->over.sparse_size;
    }
    /* Links, devices, directories and fifos have no data, whatever the size field says. */
    if (e->type >= '1' && e->type <= '6')
        e->size = 0;
    return 0;
}
