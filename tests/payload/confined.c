/* What whoever takes over scow-untar can do: tries one thing, before or after its confinement.
 *
 *   confined LAYER free|confined|without|broken WHAT
 *
 * Prints "0" or an errno. "without" hides Landlock as an old kernel does, "broken" lets only its last step
 * fail; both print what the applet says of its confinement. Compiled with native/untar*.c. */
#include "../../native/untar.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int outside, inside;

static void refuse(int number, int error) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = 4, .filter = code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
        _exit(9);
}

static int many(void) {
    int n = 0;
    while (n < 200 && openat(inside, ".", O_RDONLY) >= 0)
        n++;
    return n == 200 ? 0 : -1;
}

static long forked(void) {
    long pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (pid == 0)
        _exit(0);
    return pid;
}

static long attempt(const char *what) {
    char buf[16] = {0};
#define IS(name) (strcmp(what, name) == 0)
    /* of the host, by a descriptor that leaked */
    if (IS("read")) return openat(outside, "canary/f", O_RDONLY);
    if (IS("list")) return openat(outside, "canary", O_RDONLY | O_DIRECTORY);
    if (IS("write")) return openat(outside, "canary/f", O_WRONLY);
    if (IS("truncate")) return openat(outside, "canary/f", O_WRONLY | O_TRUNC);
    if (IS("make")) return mkdirat(outside, "canary/made", 0700);
    if (IS("node")) return mknodat(outside, "canary/node", S_IFCHR | 0600, 0x103);
    if (IS("unlink")) return unlinkat(outside, "canary/f", 0);
    if (IS("link out")) return linkat(inside, "f", outside, "canary/linked", 0);
    if (IS("link in")) return linkat(outside, "canary/f", inside, "linked", 0);
    /* of the host, by a name */
    if (IS("root")) return openat(AT_FDCWD, "/proc", O_RDONLY);
    if (IS("climb")) return openat(AT_FDCWD, "../../../../../../proc", O_RDONLY);
    /* other things */
    if (IS("socket")) return syscall(SYS_socket, AF_INET, SOCK_STREAM, 0);
    if (IS("unix socket")) return syscall(SYS_socket, AF_UNIX, SOCK_STREAM, 0);
    if (IS("netlink")) return syscall(SYS_socket, AF_NETLINK, SOCK_RAW, 0);
    if (IS("fork")) return forked();
    if (IS("execve")) return syscall(SYS_execve, "", NULL, NULL) < 0 && errno == ENOENT ? 0 : -1;
    if (IS("ptrace")) return syscall(SYS_ptrace, 0, 0, 0, 0);
    if (IS("signal")) return syscall(SYS_kill, getppid(), 0);
    if (IS("unshare")) return syscall(SYS_unshare, 0);
    if (IS("setuid")) return syscall(SYS_setuid, 0);
    if (IS("mount")) return syscall(SYS_fsopen, "tmpfs", 0);
    if (IS("bpf")) return syscall(SYS_bpf, 0, NULL, 0) < 0 && errno != ENOSYS ? 0 : -1;
    if (IS("memory")) return mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ? -1 : 0;
    if (IS("descriptors")) return many();
    /* its trade */
    if (IS("own file")) return openat(inside, "made", O_CREAT | O_EXCL | O_WRONLY, 0600);
    if (IS("own read")) return openat(inside, "f", O_RDONLY) < 0 ? -1 : read(openat(inside, "f", O_RDONLY), buf, 4) == 4 ? 0 : -1;
    if (IS("own link")) return linkat(inside, "f", inside, "d/f", 0);
    if (IS("own node")) return mknodat(inside, "node", S_IFCHR, 0x103);
    if (IS("own owner")) return fchownat(inside, "f", 5, 6, AT_SYMLINK_NOFOLLOW);
    if (IS("own truncate")) return openat(inside, "f", O_WRONLY | O_TRUNC);
    if (IS("own remove")) return unlinkat(inside, "f", 0);
    abort();
}

int main(int argc, char **argv) {
    struct untar *u = calloc(1, sizeof *u);
    char parent[4096];
    long r;

    if (argc != 4 || !u)
        return 9;
    snprintf(parent, sizeof parent, "%s/..", argv[1]);
    outside = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    inside = u->root_fd = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    setvbuf(stdout, NULL, _IONBF, 0);
    if (strcmp(argv[2], "without") == 0)
        refuse(SYS_landlock_create_ruleset, ENOSYS);
    if (strcmp(argv[2], "broken") == 0)
        refuse(SYS_landlock_restrict_self, EPERM);
    if (strcmp(argv[2], "free") != 0 && untar_confine(u) < 0) {
        dprintf(1, "%s\n", u->failure.message);
        return 1;
    }
    if (strcmp(argv[3], "tell") == 0) {
        dprintf(1, "landlock %llu\n", (unsigned long long)u->counts.landlock);
        _exit(0);
    }
    r = attempt(argv[3]);
    dprintf(1, "%d\n", r < 0 ? errno : 0);
    _exit(0);
}
