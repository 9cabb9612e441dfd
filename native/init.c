/* Pid 1 for programs that were not written to be one (--init): starts the program, passes signals on to
 * it, reaps what it orphans, ends as it ends. It stays in this binary, whose image is a sealed memfd:
 * /proc/1/exe leads to nothing of the host's (CVE-2019-5736). */
#include "init.h"

#include <limits.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "sys.h"

/* The program gets a process group of its own, in front of the terminal if there is one: what is typed
 * reaches it from the kernel, and the signals of job control stop it and not its parent. */
static void go_to_front(void) {
    sigset_t ttou;
    if (setpgid(0, 0) < 0)
        return; /* without a group of its own everything but job control still works */
    sigemptyset(&ttou);
    sigaddset(&ttou, SIGTTOU); /* tcsetpgrp from behind stops who does not block it */
    sigprocmask(SIG_BLOCK, &ttou, NULL);
    (void)tcsetpgrp(0, getpid()); /* ENOTTY: no terminal */
    sigprocmask(SIG_UNBLOCK, &ttou, NULL);
}

static int exit_status(int status) {
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* Whoever has ended; ends us when it was the program. */
static void reap(pid_t program) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        if (pid == program)
            _exit(exit_status(status));
}

static _Noreturn void serve(pid_t program, const sigset_t *all) {
    prctl(PR_SET_NAME, "scow-init");
    /* the report socket too: its end tells that the program's execve worked */
    (void)sys_close_range(3, UINT_MAX, 0);
    for (;;) {
        siginfo_t info;
        int sig = sigwaitinfo(all, &info);
        if (sig == SIGCHLD)
            reap(program);
        else if (sig > 0)
            (void)kill(program, sig); /* ESRCH: its SIGCHLD is on the way */
    }
}

_Noreturn void init_hold(void) {
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    prctl(PR_SET_NAME, "scow-init");
    (void)sys_close_range(0, UINT_MAX, 0); /* the report socket too: its end tells that we run */
    for (;;) {
        siginfo_t info;
        if (sigwaitinfo(&all, &info) == SIGCHLD)
            while (waitpid(-1, NULL, WNOHANG) > 0) {
            }
    }
}

int init_become(void) {
    sigset_t all, none;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    /* not fork(): libc's has handlers and locks to think of, this one does not */
    long pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (pid < 0)
        return -errno;
    if (pid > 0)
        serve((pid_t)pid, &all);
    go_to_front();
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    return 0;
}
