/* The loop over a layer's entries. */
#include "untar.h"

#include <errno.h>
#include <string.h>

static uint64_t padding(uint64_t size)
{
    return (UNTAR_BLOCK - size % UNTAR_BLOCK) % UNTAR_BLOCK;
}

static int read_pax(struct untar *u)
{
    uint64_t size = u->entry.size;
    int r;

    if (size > UNTAR_PAX)
        return untar_fail(u, E2BIG, "extended header of %llu bytes is longer than %d",
            (unsigned long long)size, UNTAR_PAX);
    r = untar_stream_read(&u->stream, u->pax, (size_t)size);
    if (r == 0 && u->entry.type != 'g')
        r = untar_parse_pax(u, u->pax, (size_t)size);
    return r < 0 ? r : untar_stream_skip(&u->stream, padding(size));
}

static int read_long_name(struct untar *u, char *to, bool *has)
{
    uint64_t size = u->entry.size;
    int r;

    if (size > UNTAR_PATH)
        return untar_fail(u, ENAMETOOLONG, "a name of %llu bytes is longer than %d", (unsigned long long)size,
            UNTAR_PATH - 1);
    r = untar_stream_read(&u->stream, to, (size_t)size);
    if (r < 0)
        return r;
    if (size == UNTAR_PATH && to[size - 1] != '\0')
        return untar_fail(u, ENAMETOOLONG, "a name is longer than %d bytes", UNTAR_PATH - 1);
    if (size < UNTAR_PATH)
        to[size] = '\0';
    *has = size > 0;
    return untar_stream_skip(&u->stream, padding(size));
}

/* Clean the name and put the entry, or what its name means, into the layer. */
static int place(struct untar *u)
{
    struct untar_entry *e = &u->entry;
    int kind, r = untar_clean_path(e->path, e->clean);

    if (r == -EINVAL)
        return untar_fail(u, EINVAL, "its name has '..' in it");
    if (r == -ELOOP)
        return untar_fail(u, ELOOP, "it is deeper than %d directories", UNTAR_DEPTH);
    if (r < 0)
        return r;
    if (e->path[0] == '\0')
        return untar_fail(u, EINVAL, "it has no name");
    kind = untar_whiteout_kind(e->clean);
    if (kind < 0)
        return untar_fail(u, EINVAL, "it is a whiteout of nothing");
    if (kind == WHITEOUT_NONE)
        return untar_make_entry(u);
    if (kind == WHITEOUT_SKIP)
        u->counts.skipped++;
    else
        r = untar_make_whiteout(u);
    return r < 0 ? r : untar_stream_skip(&u->stream, e->size);
}

static int read_entry(struct untar *u)
{
    int r;

    if (++u->counts.entries > u->max_entries)
        return untar_fail(u, EDQUOT, "the layer has more than %llu entries", (unsigned long long)u->max_entries);
    if (u->entry.type >= '0' && u->entry.type <= '6') {
        r = place(u);
    } else if (u->entry.type == 's') {
        /* Sockets (star): whoever listened is gone. */
        u->counts.skipped++;
        r = untar_stream_skip(&u->stream, u->entry.size);
    } else {
        return untar_fail(u, EBADMSG, "unknown entry type %d", (unsigned char)u->entry.type);
    }
    if (r == 0)
        r = untar_stream_skip(&u->stream, padding(u->entry.size));
    untar_reset_overrides(u);
    return r;
}

static int read_member(struct untar *u, const unsigned char *block)
{
    int r;

    u->entry.path[0] = '\0';
    u->entry_offset = u->stream.offset - UNTAR_BLOCK;
    if (!untar_checksum_ok(block))
        return untar_fail(u, EBADMSG, "bad checksum");
    r = untar_parse_header(u, block);
    if (r < 0)
        return r;
    switch (u->entry.type) {
    case 'x':
    case 'X':
    case 'g':
        return read_pax(u);
    case 'L':
        return read_long_name(u, u->over.path, &u->over.has_path);
    case 'K':
        return read_long_name(u, u->over.link, &u->over.has_link);
    case 'V':
        return untar_stream_skip(&u->stream, u->entry.size + padding(u->entry.size));
    default:
        return read_entry(u);
    }
}

/* After the two zero blocks only padding may come: bytes that no reader sees are a hiding place. */
static int drain(struct untar *u)
{
    const unsigned char *block;
    int r = untar_stream_block(&u->stream, &block);

    if (r == 1 && !untar_is_zero(block))
        return untar_fail(u, EBADMSG, "a lone zero block");
    while (r == 1) {
        const unsigned char *data;
        size_t size;
        r = untar_stream_fill(&u->stream, 1);
        if (r <= 0)
            return r;
        r = untar_stream_some(&u->stream, (uint64_t)r, &data, &size);
        if (r < 0)
            return r;
        for (size_t i = 0; i < size; i++)
            if (data[i])
                return untar_fail(u, EBADMSG, "data after the end of the archive");
        r = 1;
    }
    return r;
}

/* Unpack the whole stream below root_fd. */
int untar_extract(struct untar *u)
{
    const unsigned char *block;
    int r;

    while ((r = untar_stream_block(&u->stream, &block)) == 1) {
        if (untar_is_zero(block)) {
            u->entry.path[0] = '\0';
            u->entry_offset = u->stream.offset - UNTAR_BLOCK;
            r = drain(u);
            break;
        }
        r = read_member(u, block);
        if (r < 0)
            break;
    }
    if (r == -ENODATA) {
        u->entry_offset = u->stream.offset;
        return untar_fail(u, EBADMSG, "the archive ends in the middle");
    }
    if (r == -EFBIG && u->stream.offset > u->stream.limit)
        return untar_fail(u, EDQUOT, "the layer is larger than the limit of %llu bytes",
            (unsigned long long)u->stream.limit);
    if (r < 0)
        return r;
    untar_forget_dirs(u);
    return untar_apply_spool(u);
}
