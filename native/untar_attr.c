/* Owner, mode, extended attributes, times: in this order, because chown(2) takes set-id bits and
 * security.capability away, and everything else moves the times. */
#include "untar.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#ifndef SYS_fchmodat2
#define SYS_fchmodat2 452
#endif

/* Only what differs is changed: fstat costs a tenth of a journalled setattr. */
int untar_set_owner_mode(int fd, uint32_t uid, uint32_t gid, uint32_t mode)
{
    struct stat st;
    bool chowned;

    if (fstat(fd, &st) < 0)
        return -errno;
    chowned = st.st_uid != uid || st.st_gid != gid;
    if (chowned && fchown(fd, uid, gid) < 0)
        return -errno;
    if (((st.st_mode & 07777) != mode || (chowned && mode & 06000)) && fchmod(fd, mode) < 0)
        return -errno;
    return 0;
}

/* trusted.*: the host administrator's, among them all that overlayfs believes (opaque, redirect,
 * metacopy). security.*: labels of another machine's policy, save file capabilities.
 * posix_acl_default waits for the end (spool), else the children would inherit it. */
static bool is_wanted(const struct untar *u, const char *name)
{
    if (!strncmp(name, "user.", 5))
        return strncmp(name, "user.overlay.", 13) && (u->entry.type == '0' || u->entry.type == '5');
    if (!strcmp(name, "security.capability"))
        return u->entry.type == '0';
    return !strcmp(name, "system.posix_acl_access") && u->entry.type != '2';
}

static int set_xattrs(struct untar *u, int fd, const char *name)
{
    for (size_t i = 0; i < u->over.n_xattrs; i++) {
        const struct untar_xattr *x = &u->over.xattrs[i];
        int r;
        if (!is_wanted(u, x->name)) {
            u->counts.dropped_xattrs += strcmp(x->name, "system.posix_acl_default") != 0;
            continue;
        }
        /* With a name: relative to the parent, where untar_set_name_attributes has gone. */
        r = name ? lsetxattr(name, x->name, x->value, x->size, 0) : fsetxattr(fd, x->name, x->value, x->size, 0);
        if (r == 0)
            continue;
        if (errno != ENOTSUP)
            return untar_fail(u, errno, "cannot set attribute '%.80s': %s", x->name, strerror(errno));
        u->counts.dropped_xattrs++; /* this file system has none: not the layer's fault */
    }
    return 0;
}

/* A file or directory by its descriptor. A directory's times come last of all, from the spool. */
int untar_set_fd_attributes(struct untar *u, int fd)
{
    const struct untar_entry *e = &u->entry;
    struct timespec times[2] = { e->mtime, e->mtime };
    int r = untar_set_owner_mode(fd, e->uid, e->gid, e->mode);

    if (r < 0)
        return untar_fail(u, -r, "cannot set owner %u:%u and mode: %s", e->uid, e->gid, strerror(-r));
    if (u->over.n_xattrs > 0) {
        r = set_xattrs(u, fd, NULL);
        if (r < 0)
            return r;
    }
    if (e->type == '5')
        return untar_spool_dir(u, fd);
    return futimens(fd, times) < 0 ? -errno : 0;
}

/* chmod that cannot follow a symlink. Before Linux 6.6 there is no such call: the name was just made
 * by mknodat(2) in a directory that is ours alone, so it is no symlink. */
static int change_mode(int parent_fd, const char *name, uint32_t mode)
{
    if (syscall(SYS_fchmodat2, parent_fd, name, mode, AT_SYMLINK_NOFOLLOW) == 0)
        return 0;
    if (errno != ENOSYS)
        return -errno;
    return fchmodat(parent_fd, name, mode, 0) < 0 ? -errno : 0;
}

/* What cannot be opened without side effects: symlinks, devices, fifos. */
int untar_set_name_attributes(struct untar *u, int parent_fd, const char *name)
{
    const struct untar_entry *e = &u->entry;
    struct timespec times[2] = { e->mtime, e->mtime };
    struct stat st;
    int r;

    if (fstatat(parent_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return -errno;
    if ((st.st_uid != e->uid || st.st_gid != e->gid) &&
        fchownat(parent_fd, name, e->uid, e->gid, AT_SYMLINK_NOFOLLOW) < 0)
        return -errno;
    if (e->type != '2') {
        r = change_mode(parent_fd, name, e->mode);
        if (r < 0)
            return r;
    }
    if (u->over.n_xattrs > 0) {
        if (fchdir(parent_fd) < 0)
            return -errno;
        r = set_xattrs(u, -1, name);
        if (r < 0)
            return r;
    }
    return utimensat(parent_fd, name, times, AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
}

/* trusted.* needs CAP_SYS_ADMIN, which we gave up: the helper, which knows this one deed, does it. */
int untar_set_opaque(struct untar *u, int dir_fd)
{
    char byte = 0, control[CMSG_SPACE(sizeof(int))] = { 0 };
    struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control) };
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    int32_t answer;

    if (u->privileged_fd < 0)
        return fsetxattr(dir_fd, "trusted.overlay.opaque", "y", 1, 0) < 0 ? -errno : 0;
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &dir_fd, sizeof(int));
    if (sendmsg(u->privileged_fd, &msg, MSG_NOSIGNAL) < 0)
        return -errno;
    if (recv(u->privileged_fd, &answer, sizeof(answer), 0) != sizeof(answer))
        return -EPIPE;
    return answer;
}
