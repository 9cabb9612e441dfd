/* scow-untar [LIMIT-BYTES [MAX-ENTRIES]]
 *
 * fd 0: the tar stream; fd 3: the layer's (empty) directory; fd 4: the report. Further descriptors are
 * kept open: the starter's lock lives as long as we do. SIGTERM gives up. Exit status 0, or 1 with a reason in the report. */
#include "untar.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { STREAM_FD = 0, LAYER_FD = 3, REPORT_FD = 4 };

static int parse_arguments(struct untar *u, int argc, char **argv)
{
    u->stream.limit = UINT64_C(64) << 30;
    u->max_entries = 10000000;
    if (argc > 1 && untar_decimal(argv[1], strlen(argv[1]), &u->stream.limit) < 0)
        return untar_fail(u, EINVAL, "bad limit '%.40s'", argv[1]);
    if (argc > 2 && untar_decimal(argv[2], strlen(argv[2]), &u->max_entries) < 0)
        return untar_fail(u, EINVAL, "bad limit '%.40s'", argv[2]);
    return 0;
}

static int prepare(struct untar *u)
{
    u->root_fd = openat(LAYER_FD, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (u->root_fd < 0)
        return untar_fail(u, errno, "cannot open the layer's directory: %s", strerror(errno));
    if (untar_start_helper(&u->privileged_fd) < 0)
        return untar_fail(u, errno, "cannot start the helper: %s", strerror(errno));
    return untar_confine(u);
}

int untar_main(int argc, char **argv)
{
    /* One block of untouched pages: an entry that needs none of the 16 MiB sparse map pays nothing. */
    struct untar *u = mmap(NULL, sizeof(*u), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int r;

    if (u == MAP_FAILED)
        return 1;
    (void)prctl(PR_SET_NAME, "scow-untar", 0, 0, 0);
    (void)signal(SIGPIPE, SIG_IGN);
    untar_stream_cancel_on(SIGTERM);
    (void)umask(0);
    u->stream.fd = STREAM_FD;
    u->report_fd = REPORT_FD;
    u->privileged_fd = u->spill_fd = -1;
    for (int i = 0; i < UNTAR_DIRS; i++)
        u->dirs[i].fd = -1;
    r = parse_arguments(u, argc, argv);
    if (r == 0)
        r = prepare(u);
    if (r == 0)
        r = untar_extract(u);
    untar_report_end(u, r);
    /* The helper ends with its socket. An orphan would be a zombie where pid 1 does not reap. */
    if (u->privileged_fd >= 0)
        (void)close(u->privileged_fd);
    while (waitpid(-1, NULL, 0) > 0 || errno == EINTR)
        ;
    return r < 0;
}

#ifdef UNTAR_STANDALONE
int main(int argc, char **argv)
{
    return untar_main(argc, argv);
}
#endif
