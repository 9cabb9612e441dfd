#include "child.h"

#include <limits.h>
#include <linux/sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "netlink.h"
#include "sys.h"

int child_root(struct child *child) {
    if (child->root < 0) {
        /* exec mode: the mount namespace was joined, "/" is the container's root */
        int fd = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0)
            return -errno;
        child->root = fd;
    }
    return child->root;
}

/* A procfs that nobody else can mount over: never the one that the container sees (CVE-2025-52881). */
int child_proc(struct child *child) {
    if (child->proc < 0) {
        cleanup_fd int context = sys_fsopen("proc");
        if (context < 0)
            return context;
        int r = sys_fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0);
        if (r < 0)
            return r;
        child->proc = sys_fsmount(context, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
    }
    return child->proc;
}

int child_tell(struct child *child, const struct child_msg *msg, int fd) {
    union {
        char space[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    struct iovec part = {.iov_base = (void *)(uintptr_t)msg, .iov_len = sizeof *msg};
    struct msghdr head = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd < 0) /* plain write: any seccomp filter that may be loaded by now allows it */
        return write(child->ends.sock, msg, sizeof *msg) < 0 ? -errno : 0;
    head.msg_control = control.space;
    head.msg_controllen = sizeof control.space;
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&head);
    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(cmsg), &fd, sizeof fd);
    return sendmsg(child->ends.sock, &head, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

int child_tell_ready(struct child *child) {
    struct child_msg msg = {.type = CHILD_READY};
    if (child->told_ready)
        return 0;
    child->told_ready = true;
    int r = child_tell(child, &msg, child->master);
    close_fdp(&child->master);
    child->master = -1;
    return r;
}

void child_warn(struct child *child, const struct plan_op *op, int error) {
    uint32_t index = (uint32_t)(op - child->plan->ops);
    struct child_msg msg = {.type = CHILD_WARNING, .failure = {op->code, -error, index, child->detail}};
    child_tell(child, &msg, -1);
}

static _Noreturn void fail(struct child *child, uint32_t step, uint32_t index, int error) {
    struct child_msg msg = {.type = CHILD_FAILED, .failure = {step, -error, index, child->detail}};
    child_tell(child, &msg, -1);
    _exit(step == OP_EXECUTE && error != -ENOENT ? 126 : 127);
}

/* One byte from the monitor. Its end of file means that it died: then nobody wants us. */
int child_await(struct child *child, char wanted) {
    for (;;) {
        char byte;
        ssize_t n = read(child->ends.sock, &byte, 1);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            fail(child, STEP_PARENT_GONE, PLAN_NONE, -EPIPE);
        if (byte == wanted)
            return 0;
    }
}

static int op_join_cgroups(struct child *child, const struct plan_op *op) {
    const uint32_t *fds = op_blob(child, op);
    for (uint32_t i = 0; i < op->count; i++) {
        child->detail = i;
        if (write(plan_fd(fds[i]), "0", 1) < 0)
            return -errno;
    }
    child->detail = 0;
    return 0;
}

/* num: CLONE_NEW*, whether this is done here in any case */
static int op_join_namespace(struct child *child, const struct plan_op *op) {
    if (child->plan->mode == PLAN_RUN && !op->num[1] && (child->plan->direct || plan_joins_user(child->plan)))
        return 0; /* done before the clone, with rights that are gone (child_join_first) */
    if (op->num[0] & CLONE_NEWPID)
        child->must_move = true; /* pid_namespaces(7): only children live in it */
    return sys_setns(plan_fd(op->fd), (int)op->num[0]);
}

/* direct.c made it: only those who are born later are in it. */
static int op_new_time_namespace(struct child *child, const struct plan_op *op) {
    (void)op;
    return child->plan->direct ? 0 : -EINVAL;
}

static int op_unshare(struct child *child, const struct plan_op *op) {
    (void)child;
    return sys_unshare(op->num[0]);
}

static int op_set_hostname(struct child *child, const struct plan_op *op) {
    const char *name = op_text(child, op, 0);
    return sethostname(name, strlen(name)) < 0 ? -errno : 0;
}

static int op_set_domainname(struct child *child, const struct plan_op *op) {
    const char *name = op_text(child, op, 0);
    return setdomainname(name, strlen(name)) < 0 ? -errno : 0;
}

/* num[0]: what to call the moment, for who has several things to do for us; 0: tell nothing */
static int op_await_parent(struct child *child, const struct plan_op *op) {
    struct child_msg msg = {.type = CHILD_WAITS, .pid = (int32_t)op->num[0]};
    int r = op->num[0] ? child_tell(child, &msg, -1) : 0;
    if (r < 0)
        return r;
    return child_await(child, CHILD_PARENT_READY);
}

static int op_netlink(struct child *child, const struct plan_op *op) {
    /* the block is our own copy, and the messages get their sequence numbers in place */
    return netlink_send(child->plan->block + op->blob, op->blob_len, &child->detail);
}

static int op_set_umask(struct child *child, const struct plan_op *op) {
    (void)child;
    umask((mode_t)op->num[0] & 0777);
    return 0;
}

static int op_await_start(struct child *child, const struct plan_op *op) {
    (void)op;
    int r = child_tell_ready(child);
    return r < 0 ? r : child_await(child, CHILD_START);
}

static int op_enter_pid_namespace(struct child *child, const struct plan_op *op);

typedef int (*op_function)(struct child *child, const struct plan_op *op);

static const op_function FUNCTIONS[OP_END] = {
    [OP_JOIN_CGROUPS] = op_join_cgroups,
    [OP_JOIN_NAMESPACE] = op_join_namespace,
    [OP_UNSHARE] = op_unshare,
    [OP_MOUNT_PROPAGATION] = op_mount_propagation,
    [OP_ATTACH_ROOT] = op_attach_root,
    [OP_MOUNT_FILESYSTEM] = op_mount_filesystem,
    [OP_MOUNT_TREE] = op_mount_tree,
    [OP_MAKE_DIRECTORY] = op_make_directory,
    [OP_MAKE_DEVICE] = op_make_device,
    [OP_MAKE_SYMLINK] = op_make_symlink,
    [OP_MASK] = op_mask,
    [OP_READ_ONLY_PATH] = op_read_only_path,
    [OP_SET_HOSTNAME] = op_set_hostname,
    [OP_SET_DOMAINNAME] = op_set_domainname,
    [OP_SET_SYSCTL] = op_set_sysctl,
    [OP_AWAIT_PARENT] = op_await_parent,
    [OP_NETLINK] = op_netlink,
    [OP_TERMINAL] = op_terminal,
    [OP_STDIO_FROM_MONITOR] = op_stdio_from_monitor,
    [OP_PIVOT_ROOT] = op_pivot_root,
    [OP_REMOUNT_ROOT_READ_ONLY] = op_remount_root_read_only,
    [OP_SET_CWD] = op_set_cwd,
    [OP_SET_RLIMIT] = op_set_rlimit,
    [OP_SET_OOM_SCORE_ADJ] = op_set_oom_score_adj,
    [OP_SET_UMASK] = op_set_umask,
    [OP_NEW_SESSION_KEYRING] = op_new_session_keyring,
    [OP_RESET_AFFINITY] = op_reset_affinity,
    [OP_AWAIT_START] = op_await_start,
    [OP_DROP_BOUNDING] = op_drop_bounding,
    [OP_SET_USER] = op_set_user,
    [OP_SET_CAPABILITIES] = op_set_capabilities,
    [OP_NO_NEW_PRIVILEGES] = op_no_new_privileges,
    [OP_LOAD_SECCOMP] = op_load_seccomp,
    [OP_EXECUTE] = op_execute,
    [OP_SET_MOUNT_ATTRIBUTES] = op_change_mount,
    [OP_ENTER_PID_NAMESPACE] = op_enter_pid_namespace,
    [OP_MOUNT_JOINED_PROC] = op_mount_joined_proc,
    [OP_AWAIT_START_SOCKET] = op_await_start_socket,
    [OP_STDIO_INHERIT] = op_stdio_inherit,
    [OP_KEEP_FDS] = op_keep_fds,
    [OP_PROBE_COMMAND] = op_probe_command,
    [OP_RUN_HOOK] = op_run_hook,
    [OP_BECOME_ROOT] = op_become_root,
    [OP_NEW_TIME_NAMESPACE] = op_new_time_namespace,
    [OP_SET_PERSONALITY] = op_set_personality,
    [OP_SET_SCHEDULER] = op_set_scheduler,
    [OP_SET_IO_PRIORITY] = op_set_io_priority,
    [OP_SET_AFFINITY] = op_set_affinity,
    [OP_SET_MEMORY_POLICY] = op_set_memory_policy,
    [OP_SET_LABEL] = op_set_label,
    [OP_LABEL_MOUNT] = op_label_mount,
    [OP_SET_PROPAGATION] = op_change_mount,
    [OP_HIDE_HOST] = op_hide_host,
};

/* The monitor's log, sockets and signalfd came along with the clone. Only the plan's descriptors stay
 * where they are; the report socket and the pipes move right above them, and all else is closed. */
static int drop_monitor_fds(struct child *child) {
    struct child_ends *ends = &child->ends;
    int *all[] = {&ends->sock, &ends->io[0], &ends->io[1], &ends->io[2]};
    int first = plan_fd(child->plan->n_fds), count = (int)ARRAY_SIZE(all);
    for (int i = 0; i < count; i++)
        if (*all[i] >= 0 && (*all[i] = fcntl(*all[i], F_DUPFD_CLOEXEC, first + count)) < 0)
            return -errno;
    for (int i = 0; i < count; i++) {
        if (*all[i] >= 0 && dup3(*all[i], first + i, O_CLOEXEC) < 0)
            return -errno;
        if (*all[i] < 0)
            close(first + i); /* whatever the monitor had there */
        else
            *all[i] = first + i;
    }
    close(FD_PLAN);
    close(FD_CONTROL);
    return sys_close_range((unsigned)(first + count), UINT_MAX, 0);
}

static bool is_kept(const struct plan *plan, uint32_t fd) {
    for (uint32_t i = 0; i < plan->n_ops; i++) {
        const struct plan_op *op = &plan->ops[i];
        if (op->code == OP_AWAIT_START_SOCKET && op->fd == fd)
            return true; /* it says no more than "start", and only once */
        const uint32_t *fds = (const uint32_t *)(const void *)(plan->block + op->blob);
        for (uint32_t k = 0; op->code == OP_KEEP_FDS && k < op->count; k++)
            if (fds[k] == fd)
                return true;
    }
    return false;
}

/* Closes what the plan brought, and lets go of the host's /dev/null that the monitor has for stdio:
 * through /proc/PID/fd its inode could be opened and its mode changed. */
static int forget_host(struct child *child) {
    int ends[2];
    for (uint32_t i = 0; i < child->plan->n_fds; i++)
        if (!is_kept(child->plan, i))
            close(plan_fd(i));
    if (child->plan->direct)
        return 0; /* stdio is the caller's own, and meant for the program */
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -errno;
    for (int i = 0; i < 3; i++)
        if (dup2(ends[i > 0], i) < 0)
            return -errno;
    close(ends[0]);
    close(ends[1]);
    return 0;
}

/* Enters the joined pid namespace by a new process that keeps nothing of the host: whoever may trace
 * in there (CAP_SYS_PTRACE) finds the report socket and stdio, no more (CVE-2016-9962). The root is
 * the container's by now, and what is not needed any more of our capabilities is gone: a tracer could
 * use them. CLONE_PARENT makes the monitor its parent; this process ends. num[0]: capabilities */
static int op_enter_pid_namespace(struct child *child, const struct plan_op *op) {
    uint32_t index = (uint32_t)(op - child->plan->ops);
    int pidfd = -1;
    struct clone_args args = {
        .flags = CLONE_PARENT | CLONE_PIDFD, .pidfd = (uint64_t)(uintptr_t)&pidfd};
    if (!child->must_move)
        return -EINVAL;
    int r = child->plan->direct ? child_own_null(child) : 0;
    if (r < 0)
        return r;
    close_fdp(&child->root);
    close_fdp(&child->proc);
    close_fdp(&child->cover);
    child->root = child->proc = child->cover = -1;
    r = child_keep_capabilities(op->num[0]);
    if (r < 0)
        return r;
    r = forget_host(child);
    if (r < 0)
        fail(child, STEP_PREPARE, index, r);
    long pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid < 0)
        fail(child, STEP_CLONE, index, -errno);
    if (pid > 0) {
        struct child_msg msg = {.type = CHILD_MOVED, .pid = (int32_t)pid};
        _exit(child_tell(child, &msg, pidfd) < 0 ? 127 : 0);
    }
    child->must_move = false;
    return child_await(child, CHILD_PARENT_READY);
}

static int prepare(struct child *child) {
    sigset_t none;
    if (prctl(PR_SET_DUMPABLE, 0) < 0)
        return -errno;
    sys_default_signals(); /* the monitor's handlers and ignored ones */
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    umask(0); /* every mode in the plan is meant exactly */
    return drop_monitor_fds(child);
}

_Noreturn void child_main(const struct plan *plan, const struct child_ends *ends) {
    struct child child = {.plan = plan, .ends = *ends, .root = -1, .proc = -1, .cover = -1, .master = -1};
    int r = prepare(&child);
    if (r < 0)
        fail(&child, STEP_PREPARE, PLAN_NONE, r);
    for (uint32_t i = 0; i < plan->n_ops; i++) {
        const struct plan_op *op = &plan->ops[i];
        r = FUNCTIONS[op->code](&child, op);
        if (r < 0)
            fail(&child, op->code, i, r);
        child.detail = 0;
    }
    fail(&child, OP_EXECUTE, plan->n_ops - 1, -ENOEXEC); /* plan.c lets no plan end otherwise */
}
