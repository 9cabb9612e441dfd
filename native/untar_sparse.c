/* Sparse maps: the old GNU header, the three PAX forms. A map is checked whole before it is used. */
#include "untar.h"

#include <errno.h>
#include <string.h>

int untar_add_segment(struct untar *u, uint64_t offset, uint64_t length)
{
    if (u->n_segments == UNTAR_SEGMENTS)
        return untar_fail(u, E2BIG, "a sparse file has more than %d segments", UNTAR_SEGMENTS);
    u->segments[u->n_segments++] = (struct untar_segment){ .offset = offset, .length = length };
    return 0;
}

/* Up to `count` pairs of 12-byte fields; an empty pair ends them. */
static int add_fields(struct untar *u, const unsigned char *at, int count)
{
    for (int i = 0; i < count; i++, at += 24) {
        int64_t offset, length;
        int r;
        if (at[0] == '\0' && at[12] == '\0')
            break;
        if (untar_field(at, 12, &offset) < 0 || untar_field(at + 12, 12, &length) < 0 || offset < 0 || length < 0)
            return untar_fail(u, EBADMSG, "bad number in a sparse map");
        r = untar_add_segment(u, (uint64_t)offset, (uint64_t)length);
        if (r < 0)
            return r;
    }
    return 0;
}

/* Old GNU: 4 segments and the real size in the header, then blocks of 21 while a flag says so.
 * `block` is lent by the stream and dies with the next call on it. */
int untar_sparse_old_gnu(struct untar *u, const unsigned char *block)
{
    bool more = block[482] != 0;
    int64_t real_size;
    int r;

    if (untar_field(block + 483, 12, &real_size) < 0 || real_size < 0)
        return untar_fail(u, EBADMSG, "bad size of a sparse file");
    u->entry.real_size = (uint64_t)real_size;
    u->entry.is_sparse = true;
    u->n_segments = 0;
    r = add_fields(u, block + 386, 4);
    while (r >= 0 && more) {
        r = untar_stream_block(&u->stream, &block);
        if (r == 0)
            r = -ENODATA;
        if (r < 0)
            break;
        more = block[504] != 0;
        r = add_fields(u, block, 21);
    }
    return r < 0 ? r : 0;
}

/* GNU.sparse.map of version 0.1: "offset,length,offset,length" */
int untar_sparse_map_text(struct untar *u, const char *text, size_t size)
{
    const char *end = text + size;
    uint64_t pair[2];
    int have = 0;

    while (text < end) {
        const char *comma = memchr(text, ',', (size_t)(end - text));
        if (!comma)
            comma = end;
        if (untar_decimal(text, (size_t)(comma - text), &pair[have]) < 0)
            return untar_fail(u, EBADMSG, "bad number in a sparse map");
        text = comma + 1;
        if (have++ == 1) {
            int r = untar_add_segment(u, pair[0], pair[1]);
            if (r < 0)
                return r;
            have = 0;
        }
    }
    return have == 0 ? 0 : untar_fail(u, EBADMSG, "a sparse map ends in the middle");
}

/* Version 1.0: the map is text at the start of the data, a number a line, padded to a block. */
int untar_sparse_map_stream(struct untar *u)
{
    uint64_t left = 1, value = 0, offset = 0, digits = 0; /* `left`: numbers still to come */
    bool is_count = true, is_offset = true;

    while (left > 0) {
        const unsigned char *block;
        int r = u->entry.size < UNTAR_BLOCK ? 0 : untar_stream_block(&u->stream, &block);
        if (r < 0)
            return r;
        if (r == 0)
            return untar_fail(u, EBADMSG, "a sparse map ends in the middle");
        u->entry.size -= UNTAR_BLOCK;
        for (int i = 0; i < UNTAR_BLOCK && left > 0; i++) {
            if (block[i] != '\n') {
                if (block[i] < '0' || block[i] > '9' || ++digits > 19)
                    return untar_fail(u, EBADMSG, "bad number in a sparse map");
                value = value * 10 + (uint64_t)(block[i] - '0');
                continue;
            }
            left--;
            if (is_count) {
                if (value > UNTAR_SEGMENTS)
                    return untar_fail(u, E2BIG, "a sparse file has more than %d segments", UNTAR_SEGMENTS);
                is_count = false;
                left = value * 2;
            } else if (is_offset) {
                offset = value;
                is_offset = false;
            } else {
                is_offset = true;
                r = untar_add_segment(u, offset, value);
                if (r < 0)
                    return r;
            }
            value = digits = 0;
        }
    }
    return 0;
}

/* In order, inside the file, and exactly as many bytes as the stream brings. */
int untar_sparse_check(struct untar *u)
{
    uint64_t at = 0, total = 0;

    if (u->entry.real_size > INT64_MAX)
        return untar_fail(u, EBADMSG, "bad size of a sparse file");
    for (size_t i = 0; i < u->n_segments; i++) {
        const struct untar_segment *s = &u->segments[i];
        if (s->offset < at || s->offset > u->entry.real_size || s->length > u->entry.real_size - s->offset)
            return untar_fail(u, EBADMSG, "a sparse map reaches outside its file");
        at = s->offset + s->length;
        total += s->length;
    }
    if (total != u->entry.size)
        return untar_fail(u, EBADMSG, "a sparse map does not match the size of its data");
    return 0;
}
