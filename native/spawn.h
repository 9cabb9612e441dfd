/* The border between the monitor and the container's first process. */
#ifndef SCOW_SPAWN_H
#define SCOW_SPAWN_H

#include <sys/types.h>

#include "plan.h"

/* What the monitor holds of a child. Descriptors are -1 where there is none: with plan->terminal all
 * three pipe ends are -1 and the pty's master comes with CHILD_READY; stdin_w is -1 unless
 * plan->open_stdin. All are close-on-exec; all but pidfd are non-blocking. */
struct child_handle {
    pid_t pid; /* in the monitor's pid namespace */
    int pidfd;
    int sock; /* SOCK_SEQPACKET; end-of-file after CHILD_READY and 's' means that execve worked */
    int stdin_w, stdout_r, stderr_r;
};

/* child -> monitor, one packet each. */
enum child_msg_type {
    CHILD_READY = 1,   /* created; waits for 's' when the plan says so; SCM_RIGHTS: pty master */
    CHILD_FAILED = 2,  /* `failure` says where; the child is about to _exit(127 or 126) */
    CHILD_WARNING = 3, /* a step failed that may; the child goes on */
    CHILD_MOVED = 4,   /* inside spawn_child only (exec mode): SCM_RIGHTS pidfd of the new process */
    CHILD_CLONED = 5,  /* direct.c: `pid` exists; SCM_RIGHTS its pidfd */
    CHILD_WAITS = 6,   /* direct plans: AwaitParent waits, `pid` is what the operation calls itself */
    CHILD_LISTENER = 7, /* direct plans: LoadSeccomp waits, `pid` is its descriptor of the notifications */
};

struct child_msg {
    uint32_t type;
    int32_t pid; /* CHILD_MOVED */
    struct failure failure;
};

/* monitor -> child, one byte. spawn_child itself sends CHILD_PARENT_READY. */
#define CHILD_PARENT_READY 'n'
#define CHILD_START 's'

/* Clones the child, sends the plan's host_netlink, releases AwaitParent. Returns when the child
 * runs (its further fate comes over ret->sock), 0 or -errno. On error nothing is left: no process,
 * no descriptor. The caller reaps ret->pid. */
int spawn_child(const struct plan *plan, struct child_handle *ret, struct failure *ret_failure);

/* Receives one packet. 1: *ret is filled (*ret_fd: the descriptor that came along, or -1);
 * 0: end of file; -EAGAIN: nothing yet; other -errno. */
int child_receive(int sock, struct child_msg *ret, int *ret_fd);

/* Sends CHILD_START. 0 or -errno. */
int child_release(int sock);

/* The whole life of the binary when there is no monitor (direct.c). plan is NULL when the block was
 * refused. The exit code of the process. */
int direct_main(const struct plan *plan, const struct failure *refused);

/* The monitor's entry (monitor.c). plan is NULL when the block was refused: then only the failure is
 * told on FD_CONTROL. The exit code of the process. */
int monitor_main(struct plan *plan, const struct failure *refused);

#endif
