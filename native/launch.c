#include "launch.h"

#include <limits.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "sys.h"

#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC 0x0020
#endif
#define MAX_FDS 600

const char *scow_monitor_bytes(size_t *ret_size);

size_t scow_monitor_size(void) {
    size_t size;
    scow_monitor_bytes(&size);
    return size;
}

int scow_monitor_memfd(void) {
    size_t size, done = 0;
    const char *bytes = scow_monitor_bytes(&size);
    /* MFD_EXEC is refused before 6.3, and its absence is logged or refused by vm.memfd_noexec */
    cleanup_fd int fd = memfd_create("scow-monitor", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_EXEC);
    if (fd < 0 && errno == EINVAL)
        fd = memfd_create("scow-monitor", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -errno;
    if (fchmod(fd, 0500) < 0)
        return -errno;
    while (done < size) {
        ssize_t n = write(fd, bytes + done, size - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        done += (size_t)n;
    }
    int seals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
    /* the seal on the mode bits is of 6.3; before that nobody can chmod it without having it */
    if (fcntl(fd, F_ADD_SEALS, seals | F_SEAL_EXEC) < 0 && fcntl(fd, F_ADD_SEALS, seals) < 0)
        return -errno;
    return steal_fd(&fd);
}

struct launch {
    int exe_fd;
    char *const *argv;
    char *const *envp;
    const int *stdio;
    const int *fds;
    int n_fds;
    volatile int error;
};

/* Runs in the vfork child: the parent's memory, own descriptors. Only system calls. */
static void become_monitor(struct launch *launch, int *scratch) {
    int first = 3 + launch->n_fds + 1;
    /* Move every source above the targets first, so that no dup2 below closes one of them. */
    scratch[0] = fcntl(launch->exe_fd, F_DUPFD_CLOEXEC, first);
    for (int i = 0; i < 3; i++)
        scratch[1 + i] = launch->stdio[i] >= 0 ? fcntl(launch->stdio[i], F_DUPFD_CLOEXEC, first)
                                               : open("/dev/null", (i ? O_WRONLY : O_RDONLY) | O_CLOEXEC);
    for (int i = 0; i < launch->n_fds; i++)
        scratch[4 + i] = fcntl(launch->fds[i], F_DUPFD_CLOEXEC, first);
    for (int i = 0; i < launch->n_fds + 4; i++)
        if (scratch[i] < 0)
            goto fail;
    for (int i = 1; i < launch->n_fds + 4; i++) {
        if (scratch[i] < first && (scratch[i] = fcntl(scratch[i], F_DUPFD_CLOEXEC, first)) < 0)
            goto fail; /* /dev/null came low */
    }
    for (int i = 1; i < launch->n_fds + 4; i++)
        if (dup2(scratch[i], i - 1) < 0)
            goto fail;
    /* the executable keeps one close-on-exec descriptor just above the plan's own */
    if (dup3(scratch[0], first - 1, O_CLOEXEC) < 0 || sys_close_range((unsigned)first, UINT_MAX, 0) < 0)
        goto fail;
    if (setsid() < 0 || chdir("/") < 0)
        goto fail;
    syscall(SYS_execveat, first - 1, "", launch->argv, launch->envp, AT_EMPTY_PATH);
fail:
    launch->error = errno ? errno : EIO;
}

int scow_launch(int exe_fd, char *const *argv, char *const *envp, const int *stdio, const int *fds, int n_fds) {
    struct launch launch = {exe_fd, argv, envp, stdio, fds, n_fds, 0};
    int scratch[MAX_FDS + 4];
    sigset_t all, before;
    if (n_fds < 0 || n_fds > MAX_FDS)
        return -EINVAL;
    /* No handler of Python may run in the child, which shares its memory: every signal stays blocked
     * over the exec, and the monitor's main() opens and resets them. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pid_t pid = vfork();
    if (pid == 0) {
        become_monitor(&launch, scratch);
        _exit(127);
    }
    int error = pid < 0 ? errno : launch.error;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (pid > 0 && error)
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
            ;
    return error ? -error : pid;
}
