/* Operations of plans without a monitor. */
#include <fcntl.h>
#include <limits.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <sys/fsuid.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>

#include "child.h"
#include "paths.h"
#include "sys.h"

#ifndef SYS_faccessat2
#define SYS_faccessat2 439
#endif

static void die(int sig) {
    _exit(128 + sig);
}

/* As pid 1 of a namespace we would not die of a signal that has no handler. */
static void set_deadly_signals(void (*handler)(int)) {
    static const int deadly[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM, SIGABRT};
    struct sigaction action = {.sa_handler = handler};
    for (size_t i = 0; i < ARRAY_SIZE(deadly); i++)
        sigaction(deadly[i], &action, NULL);
}

/* The container is created. Whoever made it has written that down when it says so; it may die then, and
 * any process that reaches the socket in the state directory may start us. What comes of it goes back
 * over that connection: the record of a failure, or the end of file that execve makes. */
int op_await_start_socket(struct child *child, const struct plan_op *op) {
    int listener = plan_fd(op->fd);
    int r = child_tell_ready(child);
    if (r < 0 || (r = child_await(child, CHILD_PARENT_READY)) < 0)
        return r;
    close_fdp(&child->ends.sock);
    child->ends.sock = -1;
    set_deadly_signals(die);
    for (;;) {
        char byte = 0;
        cleanup_fd int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0 && (errno == EINTR || errno == ECONNABORTED))
            continue;
        if (fd < 0)
            return -errno;
        if (read(fd, &byte, 1) != 1 || byte != CHILD_START)
            continue;
        set_deadly_signals(SIG_DFL);
        close(listener);
        child->ends.sock = steal_fd(&fd);
        return 0;
    }
}

static bool is_null_device(const struct stat *st) {
    return S_ISCHR(st->st_mode) && major(st->st_rdev) == 1 && minor(st->st_rdev) == 3;
}

static int open_null(int root) {
    struct stat st;
    cleanup_fd int fd = path_open(root, "dev/null", O_RDWR | O_NOCTTY | O_NONBLOCK, RESOLVE_NO_SYMLINKS);
    if (fd < 0 || fstat(fd, &st) < 0 || !is_null_device(&st))
        return -ENODEV;
    fcntl(fd, F_SETFL, 0);
    return steal_fd(&fd);
}

/* Never an inode of the host's /dev: who has it open may change its mode. */
int child_own_null(struct child *child) {
    int root = child_root(child);
    if (root < 0)
        return root;
    for (int i = 0; i < 3; i++) {
        struct stat st;
        if (fstat(i, &st) < 0)
            return -errno;
        if (!is_null_device(&st))
            continue;
        cleanup_fd int null = open_null(root);
        if (null >= 0 && dup2(null, i) < 0)
            return -errno;
    }
    return 0;
}

/* The caller's own 0, 1 and 2. num: uid that they are given to, whether this is a session of our own */
int op_stdio_inherit(struct child *child, const struct plan_op *op) {
    int r = child_own_null(child);
    if (r < 0)
        return r;
    if (setsid() < 0)
        return -errno;
    for (int i = 0; i < 3; i++) {
        struct stat st;
        if (fstat(i, &st) < 0)
            return -errno;
        /* so that /dev/stdout can be opened by the user; where it cannot be given away it stays. What has
         * a name on the host (a file, a directory) stays its owner's. */
        if ((S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode)) && st.st_uid != op->num[0])
            (void)!fchown(i, (uid_t)op->num[0], (gid_t)-1);
    }
    return 0;
}

/* The plan's descriptors become 3, 4, ... of the program. Last of all that uses a descriptor. */
int op_keep_fds(struct child *child, const struct plan_op *op) {
    const uint32_t *fds = op_blob(child, op);
    int first = plan_fd(child->plan->n_fds) + 16 + (int)op->count;
    int sock = child->ends.sock < 0 ? -1 : fcntl(child->ends.sock, F_DUPFD_CLOEXEC, first);
    int sources[PLAN_MAX_FDS];
    if (sock < 0)
        return -errno;
    close(child->ends.sock);
    child->ends.sock = sock;
    int *own[] = {&child->root, &child->proc, &child->cover, &child->master};
    for (size_t i = 0; i < ARRAY_SIZE(own); i++)
        if (*own[i] >= 0 && (*own[i] = fcntl(*own[i], F_DUPFD_CLOEXEC, first)) < 0)
            return -errno;
    for (uint32_t i = 0; i < op->count; i++)
        if ((sources[i] = fcntl(plan_fd(fds[i]), F_DUPFD_CLOEXEC, first)) < 0)
            return -errno;
    for (uint32_t i = 0; i < op->count; i++)
        if (dup2(sources[i], 3 + (int)i) < 0)
            return -errno;
    child->kept = op->count;
    return 0;
}

static int probe_path(const char *path) {
    struct stat st;
    if (stat(path, &st) < 0)
        return -errno;
    if (!S_ISREG(st.st_mode))
        return -EACCES;
    return syscall(SYS_faccessat2, AT_FDCWD, path, X_OK, AT_EACCESS) < 0 ? -errno : 0;
}

static int probe_name(const char *name, const char *path) {
    char full[PATH_MAX + 1];
    int found = -ENOENT;
    size_t name_len = strlen(name);
    if (name[0] == '\0')
        return -ENOENT;
    if (strchr(name, '/'))
        return probe_path(name);
    for (const char *part = path;; part++) {
        size_t n = strcspn(part, ":"), length = n ? n : 1;
        if (length + name_len + 2 <= sizeof full) {
            memcpy(full, n ? part : ".", length);
            full[length] = '/';
            memcpy(full + length + 1, name, name_len + 1);
            int r = probe_path(full);
            if (r == 0)
                return 0;
            if (r == -EACCES)
                found = r;
        }
        part += n;
        if (*part == '\0')
            return found;
    }
}

static const struct plan_op *find_op(const struct plan *plan, uint32_t code) {
    for (uint32_t i = 0; i < plan->n_ops; i++)
        if (plan->ops[i].code == code)
            return &plan->ops[i];
    return NULL;
}

/* Engines want to hear from `create`, not from `start`, that there is no such command. Looked at with
 * the user's rights over files; execve has the last word. num[0]: "permission denied" counts, too */
int op_probe_command(struct child *child, const struct plan_op *op) {
    const struct plan_op *execute = find_op(child->plan, OP_EXECUTE), *user = find_op(child->plan, OP_SET_USER);
    const struct plan_op *cwd = find_op(child->plan, OP_SET_CWD);
    char **argv = (char **)(void *)(child->plan->block + execute->blob);
    const char *path = child_find_variable(argv + execute->num[0] + 1, "PATH");
    uid_t uid = user ? (uid_t)user->num[0] : 0;
    gid_t gid = user ? (gid_t)user->num[1] : 0;
    if (user && syscall(SYS_setgroups, user->count, op_blob(child, user)) < 0 && errno != EPERM)
        return -errno;
    setfsgid(gid);
    setfsuid(uid);
    int r = cwd && chdir(op_text(child, cwd, 0)) < 0 ? 0 : probe_name(argv[0], path ? path : CHILD_DEFAULT_PATH);
    setfsuid(geteuid());
    setfsgid(getegid());
    if (chdir("/") < 0)
        return -errno;
    /* the change of the fsuid may have touched it */
    if (prctl(PR_SET_DUMPABLE, 0) < 0)
        return -errno;
    return r == -ENOENT || (r == -EACCES && op->num[0]) ? r : 0;
}

/* text: path, state before the pid, state after it. A file and not a pipe: a hook that does not read
 * its state cannot block anybody. */
static int open_state(struct child *child, const struct plan_op *op) {
    char digits[16], *number = digits + sizeof digits;
    cleanup_fd int fd = memfd_create("state", MFD_CLOEXEC);
    if (fd < 0)
        return -errno;
    *--number = '\0';
    for (pid_t left = getpid(); left; left /= 10)
        *--number = (char)('0' + left % 10);
    const char *parts[] = {op_text(child, op, 1), number, op_text(child, op, 2)};
    for (size_t i = 0; i < ARRAY_SIZE(parts); i++)
        if (write(fd, parts[i], strlen(parts[i])) < 0)
            return -errno;
    return lseek(fd, 0, SEEK_SET) < 0 ? -errno : steal_fd(&fd);
}

/* As the other runtimes have it: the container's root before it is the root, process.cwd after. */
static void enter_hook_directory(struct child *child, bool is_inside) {
    const struct plan_op *cwd = find_op(child->plan, OP_SET_CWD);
    if (is_inside ? cwd && chdir(op_text(child, cwd, 0)) == 0 : child->root >= 0 && fchdir(child->root) == 0)
        return;
    (void)!chdir("/");
}

static _Noreturn void become_hook(const char *path, char **argv, char **env, int state) {
    umask(022);
    if (dup2(state, 0) < 0 || sys_close_range(3, UINT_MAX, CLOSE_RANGE_CLOEXEC) < 0)
        _exit(127);
    execve(path, argv, env);
    _exit(errno == ENOENT ? 127 : 126);
}

/* Runs a hook where we are: in the container's namespaces. num: argc, envc, timeout in ms or 0, whether
 * its root is ours. The detail says how it ended, as wait(2) does. */
int op_run_hook(struct child *child, const struct plan_op *op) {
    char **argv = (char **)(void *)(child->plan->block + op->blob);
    int status = 0, pidfd = -1, r = 0;
    cleanup_fd int state = open_state(child, op);
    if (state < 0)
        return state;
    struct clone_args args = {
        .flags = CLONE_PIDFD, .pidfd = (uint64_t)(uintptr_t)&pidfd, .exit_signal = SIGCHLD};
    long pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid < 0)
        return -errno;
    if (pid == 0) {
        enter_hook_directory(child, op->num[3]);
        become_hook(op_text(child, op, 0), argv, argv + op->num[0] + 1, state);
    }
    struct pollfd wait = {.fd = pidfd, .events = POLLIN};
    int n;
    do
        n = poll(&wait, 1, op->num[2] ? (int)op->num[2] : -1);
    while (n < 0 && errno == EINTR);
    if (n == 0) {
        r = -ETIMEDOUT;
        kill((pid_t)pid, SIGKILL);
    }
    close(pidfd);
    while (waitpid((pid_t)pid, &status, 0) < 0 && errno == EINTR)
        ;
    child->detail = (uint32_t)status;
    return r < 0 ? r : status ? -ECANCELED : 0;
}

/* In a new user namespace we are still who we were outside, which is nobody here. */
int op_become_root(struct child *child, const struct plan_op *op) {
    (void)child;
    (void)op;
    if (syscall(SYS_setgroups, 0, NULL) < 0 && errno != EPERM) /* EPERM: setgroups is denied in here */
        return -errno;
    if (syscall(SYS_setresgid, 0, 0, 0) < 0 || syscall(SYS_setresuid, 0, 0, 0) < 0)
        return -errno;
    return prctl(PR_SET_DUMPABLE, 0) < 0 ? -errno : 0;
}
