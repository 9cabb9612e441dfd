/* The program that tests put into containers: it says what it sees, in lines "name value".
 *
 *   probe show               identity, limits, descriptors, signals, namespaces
 *   probe open r|w PATH...   the errno of each open ("0" when it works)
 *   probe create DIRECTORY... the errno of making a file in each
 *   probe read PATH          the first bytes of a file
 *   probe call NUMBER        the errno of a raw system call with zero arguments
 *   probe calls NUMBER...    the same for many, each in a process of its own
 *   probe int80 NUMBER...    the same by the 32-bit entry; 10102 is socketcall(socket, AF_ALG)
 *   probe sockets F:T:P...   the errno of socket() with family, type and protocol
 *   probe nodes DIR c:1:3... the errno of mknod, then of opening the node for reading and for writing
 *   probe env
 *   probe sleep SECONDS | exit N | kill N
 *   probe hunt SECONDS [DEV...]  as pid 1: tries to get at every other process that appears; with the
 *                            device numbers of the host's file systems only those count
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* musl has no strerrorname_np */
static const char *name_of(int error) {
    static char text[16];
    static const struct {
        int error;
        const char *name;
    } names[] = {{EPERM, "EPERM"},   {ENOENT, "ENOENT"}, {EACCES, "EACCES"},   {EROFS, "EROFS"}, {EINVAL, "EINVAL"},
                 {ENOSYS, "ENOSYS"}, {EISDIR, "EISDIR"}, {ETXTBSY, "ETXTBSY"}, {ELOOP, "ELOOP"}, {EFAULT, "EFAULT"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].error == error)
            return names[i].name;
    snprintf(text, sizeof text, "%d", error);
    return text;
}

static void show_status(void) {
    char line[512];
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status)) {
        static const char *const wanted[] = {"Cap", "NoNewPrivs", "Seccomp:", "Groups", "Sig", "Umask", "Cpus_allowed:"};
        for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
            char *colon = strchr(line, ':');
            if (strncmp(line, wanted[i], strlen(wanted[i])) == 0 && colon) {
                *colon = '\0';
                printf("%s %s", line, colon + 1 + strspn(colon + 1, "\t "));
                break;
            }
        }
    }
    if (status)
        fclose(status);
}

static void show_links(const char *dir, const char *prefix) {
    char target[512];
    DIR *list = opendir(dir);
    for (struct dirent *entry; list && (entry = readdir(list));) {
        ssize_t n = readlinkat(dirfd(list), entry->d_name, target, sizeof target - 1);
        if (n < 0 || atoi(entry->d_name) == dirfd(list))
            continue;
        target[n] = '\0';
        printf("%s%s %s\n", prefix, entry->d_name, target);
    }
    if (list)
        closedir(list);
}

static void show(void) {
    char text[4096];
    struct rlimit limit;
    printf("ids %d %d %d %d\n", getuid(), geteuid(), getgid(), getegid());
    printf("pid %d\nsid %d\n", getpid(), getsid(0));
    printf("cwd %s\n", getcwd(text, sizeof text) ? text : strerror(errno));
    gethostname(text, sizeof text);
    printf("hostname %s\n", text);
    printf("dumpable %d\n", prctl(PR_GET_DUMPABLE));
    printf("keepcaps %d\n", prctl(PR_GET_KEEPCAPS));
    getrlimit(RLIMIT_NOFILE, &limit);
    printf("nofile %lld %lld\n", (long long)limit.rlim_cur, (long long)limit.rlim_max);
    printf("tty %s\n", ttyname(0) ? ttyname(0) : "-");
    show_status();
    show_links("/proc/self/ns", "ns.");
    show_links("/proc/self/fd", "fd.");
}

static void try_open(const char *path, int flags) {
    int fd = open(path, flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    printf("%s %s\n", path, fd < 0 ? name_of(errno) : "0");
    if (fd >= 0)
        close(fd);
}

static void try_create(const char *directory) {
    char path[4096];
    snprintf(path, sizeof path, "%s/.probe", directory);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    printf("%s %s\n", directory, fd < 0 ? name_of(errno) : "0");
    if (fd >= 0) {
        close(fd);
        unlink(path);
    }
}

static long int80(long number, long a, long b, long c) {
#ifdef __x86_64__
    long r;
    __asm__ volatile("int $0x80" : "=a"(r) : "a"(number), "b"(a), "c"(b), "d"(c), "S"(0), "D"(0) : "memory", "r8", "r9", "r10", "r11");
    return r;
#else
    (void)number, (void)a, (void)b, (void)c;
    return -ENOSYS;
#endif
}

/* In a process of its own: some of them do not come back. */
static void try_call(const char *text, int by_int80) {
    int status, number = atoi(text);
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        long r;
        if (number == 10102) {
            unsigned *low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
            low[0] = 38, low[1] = SOCK_SEQPACKET, low[2] = 0;
            r = int80(102, 1, (long)low, 0);
        } else if (by_int80) {
            r = int80(number, number == 359 ? 38 : 0, number == 359 ? SOCK_SEQPACKET : 0, 0);
        } else {
            r = syscall(number, 0L, 0L, 0L, 0L, 0L, 0L);
            r = r < 0 ? -errno : r;
        }
        _exit(r < 0 && r > -200 ? (int)-r : 0);
    }
    waitpid(pid, &status, 0);
    if (WIFSIGNALED(status))
        printf("%s signal %d\n", text, WTERMSIG(status));
    else
        printf("%s %s\n", text, WEXITSTATUS(status) ? name_of(WEXITSTATUS(status)) : "0");
}

static void try_socket(const char *text) {
    int family = 0, type = 0, protocol = 0;
    sscanf(text, "%d:%d:%d", &family, &type, &protocol);
    int fd = socket(family, type, protocol);
    printf("%s %s\n", text, fd < 0 ? name_of(errno) : "0");
    if (fd >= 0)
        close(fd);
}

static void try_node(const char *directory, const char *text) {
    char kind = 'c', path[4096];
    unsigned maj = 0, min = 0;
    sscanf(text, "%c:%u:%u", &kind, &maj, &min);
    snprintf(path, sizeof path, "%s/.node", directory);
    printf("%s", text);
    int r = mknod(path, (kind == 'b' ? S_IFBLK : S_IFCHR) | 0666, makedev(maj, min));
    printf(" %s", r < 0 ? name_of(errno) : "0");
    for (int flags = O_RDONLY; r == 0 && flags <= O_WRONLY; flags++) {
        int fd = open(path, flags | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        printf(" %s", fd < 0 ? name_of(errno) : "0");
        if (fd >= 0)
            close(fd);
    }
    unlink(path);
    printf("\n");
}

/* File systems of the host, told by whoever starts the hunt. Without them every file that is not our
 * own counts: that is right as long as nobody with another root comes into our namespace. */
static struct {
    unsigned long long dev[16];
    int count;
} hosts;

static int is_of_host(const struct stat *st) {
    for (int i = 0; i < hosts.count; i++)
        if (st->st_dev == hosts.dev[i])
            return 1;
    return hosts.count == 0;
}

/* What a hostile pid 1 does to a process that somebody executes in its namespace. */
static void attack(int pid, int *successes) {
    char path[64], target[512];
    for (int fd = 0; fd < 40; fd++) {
        snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
        ssize_t n = readlink(path, target, sizeof target - 1);
        if (n < 0)
            continue;
        target[n] = '\0';
        /* sockets and pipes we may see, and our own files; anything else is an escape */
        struct stat theirs, ours;
        if (stat(path, &theirs) < 0)
            continue;
        if (stat(target, &ours) == 0 && ours.st_dev == theirs.st_dev && ours.st_ino == theirs.st_ino)
            continue;
        int is_cgroup = strncmp(target, "/sys/fs/cgroup", 14) == 0;
        if (strncmp(target, "socket:", 7) != 0 && strncmp(target, "pipe:", 5) != 0 && (is_of_host(&theirs) || is_cgroup)) {
            if (*successes < 20)
                printf("escape %d %s\n", fd, target);
            ++*successes;
        }
    }
    static const char *const places[] = {"root", "cwd"};
    for (int i = 0; i < 2; i++) {
        struct stat theirs, ours;
        snprintf(path, sizeof path, "/proc/%d/%s", pid, places[i]);
        if (stat(path, &theirs) < 0 || stat("/", &ours) < 0 || !is_of_host(&theirs))
            continue;
        if (hosts.count == 0 && theirs.st_dev == ours.st_dev)
            continue;
        if (*successes < 20)
            printf("escape %s\n", places[i]);
        ++*successes;
    }
    snprintf(path, sizeof path, "/proc/%d/exe", pid);
    int exe = open(path, O_WRONLY | O_CLOEXEC);
    if (exe >= 0) {
        if (*successes < 20)
            printf("escape exe\n");
        ++*successes;
        close(exe);
    }
}

static void hunt(int seconds) {
    int successes = 0, rounds = 0;
    time_t end = time(NULL) + seconds;
    while (time(NULL) < end) {
        DIR *proc = opendir("/proc");
        for (struct dirent *entry; proc && (entry = readdir(proc));) {
            int pid = atoi(entry->d_name);
            if (pid > 1)
                attack(pid, &successes);
        }
        if (proc)
            closedir(proc);
        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
        rounds++;
    }
    printf("rounds %d\nsuccesses %d\n", rounds, successes);
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "show";
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (strcmp(what, "show") == 0) {
        show();
    } else if (strcmp(what, "open") == 0 && argc > 3) {
        for (int i = 3; i < argc; i++)
            try_open(argv[i], argv[2][0] == 'w' ? O_WRONLY : O_RDONLY);
    } else if (strcmp(what, "create") == 0) {
        for (int i = 2; i < argc; i++)
            try_create(argv[i]);
    } else if (strcmp(what, "read") == 0 && argc > 2) {
        char data[4096];
        int fd = open(argv[2], O_RDONLY);
        ssize_t n = fd < 0 ? -1 : read(fd, data, sizeof data);
        if (n < 0)
            return 1;
        fwrite(data, 1, (size_t)n, stdout);
    } else if (strcmp(what, "call") == 0 && argc > 2) {
        long r = syscall(atoi(argv[2]), 0, 0, 0, 0, 0, 0);
        printf("call %s\n", r < 0 ? name_of(errno) : "0");
    } else if (strcmp(what, "calls") == 0 || strcmp(what, "int80") == 0) {
        for (int i = 2; i < argc; i++)
            try_call(argv[i], what[0] == 'i');
    } else if (strcmp(what, "sockets") == 0) {
        for (int i = 2; i < argc; i++)
            try_socket(argv[i]);
    } else if (strcmp(what, "nodes") == 0 && argc > 3) {
        for (int i = 3; i < argc; i++)
            try_node(argv[2], argv[i]);
    } else if (strcmp(what, "env") == 0) {
        for (char **e = environ; *e; e++)
            puts(*e);
    } else if (strcmp(what, "sleep") == 0 && argc > 2) {
        puts("sleeping");
        sleep((unsigned)atoi(argv[2]));
    } else if (strcmp(what, "exit") == 0 && argc > 2) {
        return atoi(argv[2]);
    } else if (strcmp(what, "kill") == 0 && argc > 2) {
        kill(getpid(), atoi(argv[2]));
    } else if (strcmp(what, "hunt") == 0 && argc > 2) {
        for (int i = 3; i < argc && hosts.count < 16; i++)
            hosts.dev[hosts.count++] = strtoull(argv[i], NULL, 10);
        hunt(atoi(argv[2]));
    } else {
        return 64;
    }
    return 0;
}
