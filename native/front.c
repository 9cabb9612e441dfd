/* scow-oci on the command line: a few hundred kilobytes that hand the work to a warm Python process, and carry
 * out themselves what has to be a descendant of the caller (docs/adr/008). Where there is no warm process,
 * or it will not do, the interpreter is started as ever: `scow-oci-cold`, beside this file.
 *
 * No policy here: flags, bundles and state are Python's, warm or cold. */
#include "front.h"

#include <limits.h>
#include <linux/keyctl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "sys.h"

#define DEFAULT_DIRECTORY "/run/scow/warm"
#define COLD_NAME "scow-oci-cold"

struct front {
    char self[PATH_MAX]; /* this file */
    char cold[PATH_MAX]; /* the interpreter's entry, beside it */
    char interpreter[PATH_MAX];
    char name[64]; /* of the socket: another file, after an upgrade, has another name */
    const char *directory;
};

static int find_self(struct front *front) {
    struct stat st;
    ssize_t n = readlink("/proc/self/exe", front->self, sizeof front->self - 1);
    if (n < 0 || stat("/proc/self/exe", &st) < 0)
        return -errno;
    front->self[n] = '\0';
    char *slash = strrchr(front->self, '/');
    if (!slash || (size_t)(slash - front->self) + sizeof COLD_NAME + 1 > sizeof front->cold)
        return -ENAMETOOLONG;
    memcpy(front->cold, front->self, (size_t)(slash - front->self) + 1);
    memcpy(front->cold + (slash - front->self) + 1, COLD_NAME, sizeof COLD_NAME);
    snprintf(front->name, sizeof front->name, "%llx-%llx", (unsigned long long)st.st_dev,
             (unsigned long long)st.st_ino);
    return 0;
}

/* pip writes the interpreter of its environment into the first line, and drops the flags that were there. */
static int find_interpreter(struct front *front) {
    cleanup_fd int fd = open(front->cold, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, front->interpreter, sizeof front->interpreter - 1);
    if (n < 0)
        return -errno;
    front->interpreter[n] = '\0';
    front->interpreter[strcspn(front->interpreter, " \n")] = '\0';
    if (strncmp(front->interpreter, "#!/", 3) != 0)
        return -ENOEXEC;
    return 0;
}

/* -I: nothing of the caller's environment or directory; -S: the entry knows where its modules are. */
static void execute(struct front *front, char *const *words, int count, char **envp) {
    char **argv = calloc((size_t)count + 4, sizeof *argv);
    if (!argv || find_interpreter(front) < 0)
        return;
    argv[0] = front->interpreter + 2;
    argv[1] = "-IS";
    argv[2] = front->cold;
    for (int i = 0; i < count; i++)
        argv[i + 3] = words[i];
    execve(argv[0], argv, envp);
}

static _Noreturn void start_cold(struct front *front, const char *reason, int argc, char **argv, char **envp) {
    argv[0] = (char *)reason;
    execute(front, argv, argc, envp);
    fprintf(stderr, "scow-oci: cannot execute '%s': %s\n", front->cold, strerror(errno));
    exit(1);
}

static bool same_link(const char *name) {
    char path[2][64], target[2][64] = {{0}};
    snprintf(path[0], sizeof path[0], "/proc/1/ns/%s", name);
    snprintf(path[1], sizeof path[1], "/proc/self/ns/%s", name);
    for (int i = 0; i < 2; i++)
        if (readlink(path[i], target[i], sizeof target[i] - 1) < 0)
            return true; /* ptrace(2): not everybody may see those of the first process */
    return strcmp(target[0], target[1]) == 0;
}

/* The first line names the root's mount, by a number that is unique on a host. */
static bool same_mounts(void) {
    char line[2][64] = {{0}};
    for (int i = 0; i < 2; i++) {
        cleanup_fd int fd = open(i ? "/proc/self/mountinfo" : "/proc/1/mountinfo", O_RDONLY | O_CLOEXEC);
        if (fd < 0 || read(fd, line[i], sizeof line[i] - 1) < 0)
            return false;
        line[i][strcspn(line[i], "\n")] = '\0';
    }
    return strcmp(line[0], line[1]) == 0;
}

/* In namespaces of somebody's own a warm process would keep those alive, and serve few callers. */
static bool is_at_home(void) {
    static const char *const names[] = {"cgroup", "ipc", "net", "pid", "pid_for_children",
                                        "time", "time_for_children", "user", "uts"};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        if (!same_link(names[i]))
            return false;
    return same_mounts();
}

/* In the grandchild: nothing of the caller's may be kept that somebody could wait for or be changed by. */
static _Noreturn void become_warm(struct front *front) {
    sigset_t none;
    char *words[] = {"warm", (char *)front->directory, front->name, front->self};
    char *environment[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                           "LC_ALL=C.UTF-8", NULL};
    sys_default_signals();
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    umask(077);
    /* keyctl(2): a new anonymous session keyring, so that the caller's dies when its owner does */
    (void)syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL);
    execute(front, words, (int)ARRAY_SIZE(words), environment);
    _exit(127);
}

/* Not waited for: this call is done the slow way meanwhile. */
static void start_warm(struct front *front) {
    pid_t pid = fork();
    if (pid < 0)
        return; /* the cold start will tell of it */
    if (pid > 0) {
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
            ;
        return;
    }
    if (sys_close_range(0, UINT_MAX, 0) < 0 || open("/dev/null", O_RDWR) != 0 || dup2(0, 1) < 0 ||
        dup2(0, 2) < 0 || setsid() < 0 || chdir("/") < 0)
        _exit(127);
    pid = fork(); /* whoever leads no session never gets a terminal */
    if (pid == 0)
        become_warm(front);
    _exit(0);
}

int main(int argc, char **argv, char **envp) {
    struct front front = {.directory = DEFAULT_DIRECTORY};
    char reason[128];
    const char *wanted = getenv("SCOW_OCI_WARM");
    int r = find_self(&front);
    if (r < 0) {
        fprintf(stderr, "scow-oci: cannot read /proc/self/exe: %s\n", strerror(-r));
        return 1;
    }
    if (argc < 1)
        return 1;
    if (wanted && wanted[0] == '/')
        front.directory = wanted;
    else if (wanted && wanted[0])
        start_cold(&front, "it is turned off", argc, argv, envp);
    if (geteuid() != 0)
        start_cold(&front, "not root", argc, argv, envp);
    cleanup_fd int sock = front_connect(front.directory, front.name);
    if (sock == -ENOENT || sock == -ECONNREFUSED) {
        if (is_at_home() && (argc < 2 || strcmp(argv[1], "warm") != 0)) /* which is to stop it */
            start_warm(&front);
        start_cold(&front, "none is there yet", argc, argv, envp);
    }
    if (sock < 0 || (r = front_send(sock, argc, argv, envp)) < 0) {
        snprintf(reason, sizeof reason, "cannot ask it: %s", strerror(sock < 0 ? -sock : -r));
        start_cold(&front, reason, argc, argv, envp);
    }
    r = front_serve(sock, reason, sizeof reason);
    if (r < 0)
        start_cold(&front, reason, argc, argv, envp);
    return r;
}
