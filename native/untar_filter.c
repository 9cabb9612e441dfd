/* The system calls of the applet and of its helper: whoever takes one over gets no others.
 *
 * Who gives scow-untar a call gives it to the list here; the tests of hostile layers find it by SIGSYS. */
#include "untar.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#ifndef SYS_fchmodat2
#define SYS_fchmodat2 452
#endif

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#elif defined(__riscv)
#define ARCHITECTURE AUDIT_ARCH_RISCV64
#elif defined(__powerpc64__)
#define ARCHITECTURE AUDIT_ARCH_PPC64LE
#elif defined(__s390x__)
#define ARCHITECTURE AUDIT_ARCH_S390X
#endif

enum { MAX_CALLS = 64 };

/* The kernel remembers what is allowed whatever the arguments (5.11): a call pays nothing for the length. */
static int load(const int *calls, size_t n)
{
#if defined(__SANITIZE_ADDRESS__) || !defined(ARCHITECTURE)
    (void)calls;
    (void)n;
    return 0; /* a sanitizer has a trade of its own */
#else
    struct sock_filter code[MAX_CALLS + 5] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 0, (unsigned char)(n + 1)),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    };
    struct sock_fprog program = { .len = (unsigned short)(n + 5), .filter = code };

    if (n > MAX_CALLS)
        return -E2BIG;
    for (size_t i = 0; i < n; i++)
        code[i + 3] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)calls[i],
            (unsigned char)(n - i), 0);
    code[n + 3] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    code[n + 4] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0 ? -errno : 0;
#endif
}

#define LOAD(calls) load(calls, sizeof(calls) / sizeof((calls)[0]))

int untar_filter_calls(void)
{
    static const int calls[] = {
        /* the stream, the report, the data of files */
        SYS_read, SYS_write, SYS_pread64, SYS_pwrite64, SYS_lseek, SYS_ftruncate, SYS_fcntl, SYS_close,
        /* the layer */
        SYS_openat, SYS_openat2, SYS_fstat, SYS_newfstatat, SYS_statx, SYS_getdents64, SYS_mkdirat, SYS_mknodat,
        SYS_symlinkat, SYS_readlinkat, SYS_linkat, SYS_unlinkat, SYS_fchdir, SYS_fchmod, SYS_fchmodat,
        SYS_fchmodat2, SYS_fchown, SYS_fchownat, SYS_fsetxattr, SYS_lsetxattr, SYS_utimensat,
        /* the helper, the end */
        SYS_sendto, SYS_sendmsg, SYS_recvfrom, SYS_wait4, SYS_rt_sigreturn, SYS_restart_syscall, SYS_exit_group,
    };

    return LOAD(calls);
}

int untar_filter_opaque(void)
{
    static const int calls[] = { SYS_recvmsg, SYS_fsetxattr, SYS_close, SYS_sendto, SYS_exit_group };

    return LOAD(calls);
}
