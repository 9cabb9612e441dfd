/* A container without a monitor (scow-oci): its first process is a child of whoever started this binary,
 * and so falls to the engine's own supervisor, which reaps it as a subreaper. The binary joins what there
 * is to join, clones, and is gone; the child has the control socket from then on. */
#include <linux/sched.h>
#include <signal.h>
#include <sys/socket.h>

#include "child.h"
#include "sys.h"

static int tell(const struct child_msg *msg, int fd) {
    struct child child = {.ends = {FD_CONTROL, {-1, -1, -1}}};
    return child_tell(&child, msg, fd);
}

static int failed(uint32_t step, uint32_t index, int error) {
    struct child_msg msg = {.type = CHILD_FAILED, .failure = {step, -error, index, 0}};
    tell(&msg, -1);
    return 1;
}

/* time_namespaces(7): offsets can be set as long as nobody lives in it, and only children do. */
static int new_time_namespace(const struct plan *plan, const struct plan_op *op) {
    const char *offsets = plan->block + op->text[0];
    int r = sys_unshare(CLONE_NEWTIME);
    if (r < 0 || offsets[0] == '\0')
        return r;
    cleanup_fd int fd = open("/proc/self/timens_offsets", O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return -errno;
    return write(fd, offsets, strlen(offsets)) < 0 ? -errno : 0;
}

/* In two rounds: a user namespace comes last, because joining it takes the rights over the others. The
 * mount namespace changes what paths mean, and nothing here uses one after it. */
static int join(const struct plan *plan, bool user, uint32_t *ret_index) {
    for (uint32_t i = 0; i < plan->n_ops; i++) {
        const struct plan_op *op = &plan->ops[i];
        int r = 0;
        *ret_index = i;
        if (op->code == OP_JOIN_NAMESPACE && !op->num[1] && !(op->num[0] & CLONE_NEWUSER) == !user)
            r = sys_setns(plan_fd(op->fd), (int)op->num[0]);
        if (op->code == OP_NEW_TIME_NAMESPACE && !user)
            r = new_time_namespace(plan, op);
        if (r < 0)
            return r;
    }
    return 0;
}

int child_join_first(const struct plan *plan, uint32_t *ret_index) {
    int r = join(plan, false, ret_index);
    return r < 0 ? r : join(plan, true, ret_index);
}

int direct_main(const struct plan *plan, const struct failure *refused) {
    struct child_ends ends = {FD_CONTROL, {-1, -1, -1}};
    struct child_msg msg = {.type = CHILD_CLONED};
    int pidfd = -1, r = 0;
    uint32_t index = PLAN_NONE;
    if (!plan)
        return failed(refused->step, refused->index, -refused->error);
    if (plan->mode == PLAN_RUN && (r = child_join_first(plan, &index)) < 0)
        return failed(plan->ops[index].code, index, r);
    struct clone_args args = {
        .flags = plan->namespaces | CLONE_PIDFD | CLONE_PARENT,
        .pidfd = (uint64_t)(uintptr_t)&pidfd,
    };
    if (plan->cgroup_fd >= 0) {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = (uint64_t)plan->cgroup_fd;
    }
    long pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid < 0)
        return failed(STEP_CLONE, PLAN_NONE, -errno);
    if (pid == 0)
        child_main(plan, &ends);
    msg.pid = (int32_t)pid;
    if ((r = tell(&msg, pidfd)) < 0) { /* the starter is dead: nobody will ever know of the child */
        syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
        return 1;
    }
    return 0;
}
