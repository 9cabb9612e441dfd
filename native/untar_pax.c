/* Extended headers (POSIX pax): records "LENGTH KEY=VALUE\n", decoded in place. */
#include "untar.h"

#include <errno.h>
#include <string.h>

void untar_reset_overrides(struct untar *u)
{
    struct untar_overrides *o = &u->over;

    /* The path buffers are 8 KiB and guarded by has_*: they need no clearing. */
    memset(o, 0, offsetof(struct untar_overrides, xattrs));
    u->n_segments = 0;
}

static int set_path(struct untar *u, const char *value, size_t size, char *to, bool *has)
{
    if (memchr(value, '\0', size))
        return untar_fail(u, EBADMSG, "a name in the extended header contains NUL");
    if (size >= UNTAR_PATH)
        return untar_fail(u, ENAMETOOLONG, "a name is longer than %d bytes", UNTAR_PATH - 1);
    memcpy(to, value, size);
    to[size] = '\0';
    *has = size > 0; /* POSIX: an empty value takes an earlier one back */
    return 0;
}

static int set_number(struct untar *u, const char *key, const char *value, size_t size, uint64_t *to, bool *has)
{
    if (untar_decimal(value, size, to) < 0)
        return untar_fail(u, EBADMSG, "bad number in extended header '%.40s'", key);
    if (has)
        *has = true;
    return 0;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return -1;
}

static void decode_url(char *name)
{
    char *to = name;

    for (; *name; name++) {
        if (*name == '%' && hex_digit(name[1]) >= 0 && hex_digit(name[2]) >= 0) {
            *to++ = (char)(hex_digit(name[1]) * 16 + hex_digit(name[2]));
            name += 2;
        } else {
            *to++ = *name;
        }
    }
    *to = '\0';
}

/* Base64 in place; padding ends it. Returns the size, or -EINVAL. */
static int decode_base64(char *value, size_t size)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint32_t bits = 0;
    int n_bits = 0, used = 0;

    for (size_t i = 0; i < size && value[i] != '='; i++) {
        const char *at = value[i] ? strchr(digits, value[i]) : NULL;
        if (!at)
            return -EINVAL;
        bits = (bits << 6) | (uint32_t)(at - digits);
        n_bits += 6;
        if (n_bits >= 8) {
            n_bits -= 8;
            value[used++] = (char)(bits >> n_bits);
            bits &= (1u << n_bits) - 1;
        }
    }
    return used;
}

static int add_xattr(struct untar *u, const char *name, const char *value, size_t size)
{
    struct untar_overrides *o = &u->over;

    if (o->n_xattrs == UNTAR_XATTRS)
        return untar_fail(u, E2BIG, "more than %d extended attributes", UNTAR_XATTRS);
    o->xattrs[o->n_xattrs++] = (struct untar_xattr){ .name = name, .value = value, .size = size };
    return 0;
}

static int set_sparse(struct untar *u, const char *key, const char *value, size_t size)
{
    struct untar_overrides *o = &u->over;
    uint64_t number;

    o->is_sparse = true;
    if (!strcmp(key, "map"))
        return untar_sparse_map_text(u, value, size);
    if (!strcmp(key, "name"))
        return set_path(u, value, size, o->path, &o->has_sparse_name);
    if (!strcmp(key, "major"))
        return set_number(u, key, value, size, &o->sparse_version, NULL);
    if (!strcmp(key, "size") || !strcmp(key, "realsize"))
        return set_number(u, key, value, size, &o->sparse_size, &o->has_sparse_size);
    if (!strcmp(key, "offset"))
        return set_number(u, key, value, size, &o->next_offset, NULL);
    if (!strcmp(key, "numbytes")) {
        int r = set_number(u, key, value, size, &number, NULL);
        return r < 0 ? r : untar_add_segment(u, o->next_offset, number);
    }
    return 0; /* numblocks, minor: nothing that the rest does not say */
}

static int set_time(struct untar *u, const char *value, size_t size)
{
    if (size == 0)
        return 0;
    if (untar_time(value, size, &u->over.mtime) < 0)
        return untar_fail(u, EBADMSG, "bad mtime in extended header");
    u->over.has_mtime = true;
    return 0;
}

/* `key` ends with NUL, `value` has `size` bytes and a writable byte after it. */
static int set_record(struct untar *u, char *key, char *value, size_t size)
{
    struct untar_overrides *o = &u->over;
    int r;

    if (!strcmp(key, "path"))
        /* GNU.sparse.name is the true name: `path` then is a made-up one for old programs. */
        return o->has_sparse_name ? 0 : set_path(u, value, size, o->path, &o->has_path);
    if (!strcmp(key, "linkpath"))
        return set_path(u, value, size, o->link, &o->has_link);
    if (!strcmp(key, "size"))
        return set_number(u, key, value, size, &o->size, &o->has_size);
    if (!strcmp(key, "uid"))
        return set_number(u, key, value, size, &o->uid, &o->has_uid);
    if (!strcmp(key, "gid"))
        return set_number(u, key, value, size, &o->gid, &o->has_gid);
    if (!strcmp(key, "mtime"))
        return set_time(u, value, size);
    if (!strcmp(key, "SCHILY.devmajor"))
        return set_number(u, key, value, size, &o->major, &o->has_major);
    if (!strcmp(key, "SCHILY.devminor"))
        return set_number(u, key, value, size, &o->minor, &o->has_minor);
    if (!strncmp(key, "SCHILY.xattr.", 13))
        return add_xattr(u, key + 13, value, size);
    if (!strncmp(key, "LIBARCHIVE.xattr.", 17)) {
        decode_url(key + 17);
        r = decode_base64(value, size);
        if (r < 0)
            return untar_fail(u, EBADMSG, "bad base64 in an extended attribute");
        return add_xattr(u, key + 17, value, (size_t)r);
    }
    if (!strncmp(key, "GNU.sparse.", 11))
        return set_sparse(u, key + 11, value, size);
    return 0; /* atime, ctime, uname, gname, comment, hdrcharset, vendors' own */
}

/* `data` has `size` bytes and room for one more. Attributes point into it until the next header. */
int untar_parse_pax(struct untar *u, unsigned char *data, size_t size)
{
    char *at = (char *)data, *end = at + size;

    u->over.n_xattrs = 0;
    while (at < end) {
        uint64_t length;
        char *space = memchr(at, ' ', (size_t)(end - at)), *key, *equals;
        int r;

        if (*at == '\0')
            return 0; /* padding */
        if (!space || untar_decimal(at, (size_t)(space - at), &length) < 0 ||
            length > (uint64_t)(end - at) || length < (uint64_t)(space - at) + 3 || at[length - 1] != '\n')
            return untar_fail(u, EBADMSG, "bad record in extended header");
        key = space + 1;
        at += length;
        equals = memchr(key, '=', (size_t)(at - key));
        if (!equals || equals == key || memchr(key, '\0', (size_t)(equals - key)))
            return untar_fail(u, EBADMSG, "bad key in extended header");
        *equals = '\0';
        r = set_record(u, key, equals + 1, (size_t)(at - 1 - (equals + 1)));
        if (r < 0)
            return r;
    }
    return 0;
}
