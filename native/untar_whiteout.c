/* Whiteouts: from the image format's names (".wh.NAME", ".wh..wh..opq") to overlayfs's form.
 *
 * A whiteout is about lower layers only, wherever it stands in the tar: beside an entry of the same
 * name it changes nothing, save that a directory of this layer then hides the lower one's children. */
#include "untar.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static bool starts_with(const char *text, const char *with)
{
    return !strncmp(text, with, strlen(with));
}

/* -EINVAL for a name that the format reserves and that means nothing. */
int untar_whiteout_kind(const char *clean)
{
    const char *name = clean, *slash;

    /* .wh..wh.plnk, .wh..wh.aufs, .wh..wh.orph: AUFS's own book-keeping. */
    while ((slash = strchr(name, '/')) != NULL) {
        if (starts_with(name, ".wh..wh."))
            return WHITEOUT_SKIP;
        if (starts_with(name, ".wh."))
            return -EINVAL;
        name = slash + 1;
    }
    if (!starts_with(name, ".wh."))
        return WHITEOUT_NONE;
    if (!strcmp(name, ".wh..wh..opq"))
        return WHITEOUT_OPAQUE;
    if (starts_with(name, ".wh..wh."))
        return WHITEOUT_SKIP;
    name += 4;
    if (!strcmp(name, "") || !strcmp(name, ".") || !strcmp(name, ".."))
        return -EINVAL;
    return WHITEOUT_REMOVE;
}

static int hide_name(struct untar *u, int parent_fd, const char *name)
{
    struct stat st;
    int fd, r;

    if (mknodat(parent_fd, name, S_IFCHR, makedev(0, 0)) == 0) {
        u->counts.whiteouts++;
        return 0;
    }
    if (errno != EEXIST)
        return -errno;
    if (fstatat(parent_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return -errno;
    if (!S_ISDIR(st.st_mode))
        return 0;
    fd = openat(parent_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    r = untar_set_opaque(u, fd);
    (void)close(fd);
    return r;
}

int untar_make_whiteout(struct untar *u)
{
    const char *name;
    int parent_fd, r = untar_open_parent(u, u->entry.clean, true, &parent_fd, &name);

    if (r < 0)
        return r;
    if (strcmp(name, ".wh..wh..opq"))
        return hide_name(u, parent_fd, name + 4);
    u->counts.whiteouts++;
    /* overlayfs never asks whether a layer's root is opaque: whoever stacks the layers must. */
    if (parent_fd == u->root_fd && !u->noted_opaque) {
        u->noted_opaque = true;
        if (untar_note(u, 'O', NULL, NULL) < 0)
            return -E2BIG;
    }
    return untar_set_opaque(u, parent_fd);
}
