#include "launch.h"

#include <limits.h>
#include <signal.h>
#include <sys/wait.h>

#include "sys.h"

#define MAX_FDS 600

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
