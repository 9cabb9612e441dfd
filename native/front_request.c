/* Reaching the warm process, and handing it all that a cold start would have inherited. */
#include "front.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "sys.h"

int front_connect(const char *directory, const char *name) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval limit = {.tv_sec = FRONT_TIMEOUT_S};
    struct ucred peer;
    socklen_t len = sizeof peer;
    struct stat st;
    cleanup_fd int dir = open(directory, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (dir < 0)
        return -errno;
    /* who can put a socket in here would be told all that we are */
    if (fstat(dir, &st) < 0 || st.st_uid != 0 || (st.st_mode & 077))
        return -EPERM;
    /* by descriptor: sun_path holds only 108 bytes */
    snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d/%s", dir, name);
    cleanup_fd int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (sock < 0 || setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) < 0 ||
        setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) < 0)
        return -errno;
    if (connect(sock, (struct sockaddr *)&address, sizeof address) < 0)
        return -errno;
    if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0 || peer.uid != 0)
        return -EPERM;
    return steal_fd(&sock);
}

static int by_number(const void *a, const void *b) {
    return *(const int *)a - *(const int *)b;
}

/* Every descriptor that an execve would leave open. The number of them, or -errno. */
static int inherited(int *fds) {
    int n = 0;
    DIR *dir = opendir("/proc/self/fd");
    struct dirent *entry;
    if (!dir)
        return -errno;
    while ((entry = readdir(dir))) {
        int fd = atoi(entry->d_name), flags = entry->d_name[0] == '.' ? -1 : fcntl(fd, F_GETFD);
        if (flags < 0 || (flags & FD_CLOEXEC))
            continue;
        if (n == FRONT_FDS_MAX || fd >= FRONT_FD_END) {
            n = -E2BIG;
            break;
        }
        fds[n++] = fd;
    }
    closedir(dir);
    if (n > 0)
        qsort(fds, (size_t)n, sizeof *fds, by_number);
    return n;
}

/* execve(2) lays the strings out one behind the other; then they need not be copied. */
static size_t text_length(char **words, const char **ret_end) {
    const char *end = words[0];
    for (; *words; words++) {
        if (*words != end)
            return 0;
        end += strlen(end) + 1;
    }
    *ret_end = end;
    return 1;
}

int front_send(int sock, int argc, char **argv, char **envp) {
    int fds[FRONT_FDS_MAX], n = inherited(fds), bits = prctl(PR_GET_SECUREBITS);
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof fds)];
    } control;
    const char *end = NULL;
    if (n < 0 || bits < 0)
        return n < 0 ? n : -errno;
    if (!text_length(argv, &end) || (envp[0] && (envp[0] != end || !text_length(envp, &end))))
        return -EINVAL;
    size_t text = (size_t)(end - argv[0]);
    if (text > FRONT_TEXT_MAX)
        return -E2BIG;
    struct front_request request = {FRONT_VERSION, (uint32_t)argc, (uint32_t)n, (uint32_t)bits};
    struct iovec parts[] = {
        {&request, sizeof request}, {fds, (size_t)n * sizeof *fds}, {argv[0], text}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = ARRAY_SIZE(parts)};
    if (n > 0) {
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE((size_t)n * sizeof *fds);
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN((size_t)n * sizeof *fds);
        memcpy(CMSG_DATA(&control.header), fds, (size_t)n * sizeof *fds);
    }
    return sendmsg(sock, &message, MSG_NOSIGNAL) < 0 ? -errno : 0;
}
