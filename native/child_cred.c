#include <grp.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "child.h"
#include "init.h"
#include "sys.h"

#define LAST_CAPABILITY 63

/* num: resource, soft, hard */
int op_set_rlimit(struct child *child, const struct plan_op *op) {
    struct {
        uint64_t soft, hard;
    } limit = {op->num[1], op->num[2]};
    (void)child;
    return (int)sys_result(syscall(SYS_prlimit64, 0, (int)op->num[0], &limit, NULL));
}

int op_new_session_keyring(struct child *child, const struct plan_op *op) {
    if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, op_text(child, op, 0)) >= 0)
        return 0;
    int error = -errno;
    /* A kernel without keys, or the quota of ~200 keyrings per user: the old keyring is the host
     * root's session, which the container's seccomp profile keeps out of reach. */
    if (error != -ENOSYS && error != -EDQUOT)
        return error;
    child_warn(child, op, error);
    return 0;
}

/* The mask is inherited from whoever started us; the kernel cuts it down to the cgroup's cpuset. */
int op_reset_affinity(struct child *child, const struct plan_op *op) {
    unsigned char all[1024];
    (void)child;
    (void)op;
    memset(all, 0xff, sizeof all);
    return (int)sys_result(syscall(SYS_sched_setaffinity, 0, sizeof all, all));
}

/* num[0]: capabilities to keep */
int op_drop_bounding(struct child *child, const struct plan_op *op) {
    for (int cap = 0; cap <= LAST_CAPABILITY; cap++) {
        if (op->num[0] >> cap & 1)
            continue;
        int has = prctl(PR_CAPBSET_READ, cap, 0, 0, 0);
        if (has < 0)
            break; /* EINVAL: the kernel knows no more of them */
        child->detail = (uint32_t)cap;
        if (has && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0)
            return -errno;
    }
    return 0;
}

/* Raw calls: those of libc want to change every thread and take a lock. num: uid, gid */
int op_set_user(struct child *child, const struct plan_op *op) {
    uid_t uid = (uid_t)op->num[0];
    gid_t gid = (gid_t)op->num[1];
    /* the permitted set must outlive the change: SetCapabilities makes the final sets from it */
    if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0)
        return -errno;
    if (syscall(SYS_setgroups, op->count, op_blob(child, op)) < 0)
        return -errno;
    if (syscall(SYS_setresgid, gid, gid, gid) < 0)
        return -errno;
    if (syscall(SYS_setresuid, uid, uid, uid) < 0)
        return -errno;
    /* the change of ids may have put dumpable back to fs.suid_dumpable */
    return prctl(PR_SET_DUMPABLE, 0) < 0 ? -errno : 0;
}

static int set_capabilities(uint64_t effective, uint64_t permitted, uint64_t inheritable) {
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    for (int i = 0; i < 2; i++) {
        data[i].effective = (uint32_t)(effective >> (32 * i));
        data[i].permitted = (uint32_t)(permitted >> (32 * i));
        data[i].inheritable = (uint32_t)(inheritable >> (32 * i));
    }
    return (int)sys_result(syscall(SYS_capset, &head, data));
}

/* Those of `mask` that we have; the others are gone for good once the bounding set lacks them, too. */
int child_keep_capabilities(uint64_t mask) {
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    if (syscall(SYS_capget, &head, data) < 0)
        return -errno;
    mask &= data[0].permitted | (uint64_t)data[1].permitted << 32;
    return set_capabilities(mask, mask, 0);
}

/* num: effective, permitted, inheritable, ambient */
int op_set_capabilities(struct child *child, const struct plan_op *op) {
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
        return -errno;
    int r = set_capabilities(op->num[0], op->num[1], op->num[2]);
    if (r < 0)
        return r;
    for (int cap = 0; cap <= LAST_CAPABILITY; cap++) {
        if (!(op->num[3] >> cap & 1))
            continue;
        child->detail = (uint32_t)cap;
        if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0) < 0)
            return -errno;
    }
    return prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0) < 0 ? -errno : 0;
}

int op_no_new_privileges(struct child *child, const struct plan_op *op) {
    (void)child;
    (void)op;
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ? -errno : 0;
}

/* What must be done while every system call is still there. */
static int before_the_filter(struct child *child) {
    if (child->sealed)
        return 0;
    child->sealed = true;
    int r = child_tell_ready(child);
    if (r < 0)
        return r;
    if (!child->plan->direct && fcntl(child->ends.sock, F_SETFL, O_NONBLOCK) < 0) /* for die_with_monitor */
        return -errno;
    /* last barrier against a descriptor of the host in the container (CVE-2024-21626) */
    return sys_close_range(3 + child->kept, UINT_MAX, CLOSE_RANGE_CLOEXEC);
}

/* The starter takes the descriptor by pidfd_getfd(2) and gives it to the agent; execve would close it.
 * Nothing here but write and read: the filter has the say by now, and it may ask the agent about any
 * other call, which nobody answers yet. (Of write the compiler knows that it is not asked about.) */
static int hand_over_listener(struct child *child, int fd) {
    struct child_msg msg = {.type = CHILD_LISTENER, .pid = fd};
    if (!child->plan->direct)
        return -EINVAL; /* no monitor passes it on */
    int r = child_tell(child, &msg, -1);
    return r < 0 ? r : child_await(child, CHILD_PARENT_READY);
}

/* num[0]: SECCOMP_FILTER_FLAG_* */
int op_load_seccomp(struct child *child, const struct plan_op *op) {
    struct sock_fprog program = {
        .len = (unsigned short)(op->blob_len / sizeof(struct sock_filter)),
        .filter = (struct sock_filter *)(uintptr_t)op_blob(child, op),
    };
    int r = before_the_filter(child);
    if (r < 0)
        return r;
    int fd = (int)sys_result(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, (unsigned)op->num[0], &program));
    return fd < 0 || !(op->num[0] & SECCOMP_FILTER_FLAG_NEW_LISTENER) ? fd : hand_over_listener(child, fd);
}

const char *child_find_variable(char **env, const char *name) {
    size_t n = strlen(name);
    for (; *env; env++)
        if (strncmp(*env, name, n) == 0 && (*env)[n] == '=')
            return *env + n + 1;
    return NULL;
}

/* Searches PATH like execvpe. Which error counts: a command that is there but not executable says
 * more than one that is missing. No fallback to /bin/sh for scripts without "#!": nobody's does. */
static int execute_in_path(const char *name, const char *path, char **argv, char **env) {
    char full[PATH_MAX + 1];
    int error = -ENOENT;
    size_t name_len = strlen(name);
    for (const char *part = path;; part++) {
        size_t n = strcspn(part, ":");
        if (n + name_len + 2 <= sizeof full) {
            memcpy(full, n ? part : ".", n ? n : 1); /* an empty part is the current directory */
            memcpy(full + (n ? n : 1), "/", 1);
            memcpy(full + (n ? n : 1) + 1, name, name_len + 1);
            execve(full, argv, env);
            /* the file is there, and its content or the machine is what is wrong */
            if (errno == ENOEXEC || errno == ENOMEM || errno == E2BIG || errno == ETXTBSY)
                return -errno;
            if (errno != ENOENT && errno != ENOTDIR && error == -ENOENT)
                error = -errno;
        }
        part += n;
        if (*part == '\0')
            return error;
    }
}

/* A container whose monitor was killed has no log, no record and nobody who waits for it: it dies at
 * once. Set here because every change of ids or capabilities before takes it back (prctl(2)); execve of
 * a setuid program does so, too, and the next command kills the cgroup of such a one. */
static int die_with_monitor(struct child *child) {
    char byte;
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
        return -errno;
    /* It may have died a moment before; then its end of the socket is closed. Nothing is ever sent here
     * after the start, and read(2) passes any filter that lets a program work at all. */
    return read(child->ends.sock, &byte, 1) == 0 ? -EPIPE : 0;
}

/* num: length of argv, of env; EXECUTE_...: whether an init of ours is pid 1 */
int op_execute(struct child *child, const struct plan_op *op) {
    if (child->must_move)
        return -EINVAL; /* it would run outside of the pid namespace that the plan joins */
    char **argv = (char **)(void *)(child->plan->block + op->blob);
    char **env = argv + op->num[0] + 1;
    int r = before_the_filter(child);
    if (r < 0 || (!child->plan->direct && (r = die_with_monitor(child)) < 0))
        return r;
    if (argv[0][0] == '\0')
        return -ENOENT;
    if (op->num[2] == EXECUTE_NOTHING)
        init_hold();
    if (op->num[2] == EXECUTE_BELOW_INIT && (r = init_become()) < 0)
        return r;
    if (strchr(argv[0], '/')) {
        execve(argv[0], argv, env);
        return -errno;
    }
    const char *path = child_find_variable(env, "PATH");
    return execute_in_path(argv[0], path ? path : CHILD_DEFAULT_PATH, argv, env);
}
