/* The plan: one flat, bounded block that Python writes (native/plan.py) and the monitor carries out.
 *
 * All offsets count from the start of the block; PLAN_NONE means absent. The block is validated in
 * plan.c before anything is cloned; nothing after that checks a bound again. native/plan.py holds
 * the other half of this layout, tests/unit/test_native_plan.py holds them together. */
#ifndef SCOW_PLAN_H
#define SCOW_PLAN_H

#include "scow.h"

#define PLAN_MAGIC "SCOWPLN1"
#define PLAN_NONE UINT32_MAX
#define PLAN_MAX_BYTES (16u << 20)
#define PLAN_MAX_OPS 4096u
#define PLAN_MAX_FDS 512u

/* OP_EXECUTE: what becomes of this process */
enum execute_kind { EXECUTE_PROGRAM = 0, EXECUTE_BELOW_INIT = 1, EXECUTE_NOTHING = 2 };

enum plan_mode { PLAN_RUN = 0, PLAN_EXEC = 1 };

enum op_code {
    OP_JOIN_CGROUPS = 1,
    OP_JOIN_NAMESPACE,
    OP_UNSHARE,
    OP_MOUNT_PROPAGATION,
    OP_ATTACH_ROOT,
    OP_MOUNT_FILESYSTEM,
    OP_MOUNT_TREE,
    OP_MAKE_DIRECTORY,
    OP_MAKE_DEVICE,
    OP_MAKE_SYMLINK,
    OP_MASK,
    OP_READ_ONLY_PATH,
    OP_SET_HOSTNAME,
    OP_SET_DOMAINNAME,
    OP_SET_SYSCTL,
    OP_AWAIT_PARENT,
    OP_NETLINK,
    OP_TERMINAL,
    OP_STDIO_FROM_MONITOR,
    OP_PIVOT_ROOT,
    OP_REMOUNT_ROOT_READ_ONLY,
    OP_SET_CWD,
    OP_SET_RLIMIT,
    OP_SET_OOM_SCORE_ADJ,
    OP_SET_UMASK,
    OP_NEW_SESSION_KEYRING,
    OP_RESET_AFFINITY,
    OP_AWAIT_START,
    OP_DROP_BOUNDING,
    OP_SET_USER,
    OP_SET_CAPABILITIES,
    OP_NO_NEW_PRIVILEGES,
    OP_LOAD_SECCOMP,
    OP_EXECUTE,
    OP_SET_MOUNT_ATTRIBUTES,
    OP_ENTER_PID_NAMESPACE,
    OP_MOUNT_JOINED_PROC,
    OP_AWAIT_START_SOCKET,
    OP_STDIO_INHERIT,
    OP_KEEP_FDS,
    OP_PROBE_COMMAND,
    OP_RUN_HOOK,
    OP_BECOME_ROOT,
    OP_NEW_TIME_NAMESPACE,
    OP_SET_PERSONALITY,
    OP_SET_SCHEDULER,
    OP_SET_IO_PRIORITY,
    OP_SET_AFFINITY,
    OP_SET_MEMORY_POLICY,
    OP_SET_LABEL,
    OP_LABEL_MOUNT,
    OP_SET_PROPAGATION,
    OP_HIDE_HOST,
    OP_END,
};

/* Steps that are not operations of the plan. */
enum step {
    STEP_PLAN = 1000,    /* the block is not valid; detail: where */
    STEP_CLONE,          /* clone3 */
    STEP_PIPES,          /* stdio pipes and the report socket */
    STEP_ID_MAP,         /* uid_map, gid_map */
    STEP_HOST_NETLINK,   /* rtnetlink in the host's netns; detail: message */
    STEP_PREPARE,        /* signals, dumpable, before the first op */
    STEP_PARENT_GONE,    /* the monitor closed the socket while the child waited */
    STEP_CHILD_GONE,     /* the child died before it said anything */
};

struct plan_op {
    uint32_t code;
    uint32_t fd;      /* index into the plan's descriptors, or PLAN_NONE */
    uint32_t text[3]; /* NUL-terminated strings, or PLAN_NONE */
    uint32_t count;   /* of the elements in the blob */
    uint32_t blob;    /* offset, aligned to 8, or PLAN_NONE */
    uint32_t blob_len;
    uint64_t num[4];
};

struct plan_header {
    char magic[8];
    uint32_t size;
    uint32_t mode;
    uint64_t namespaces;
    uint32_t ops, n_ops;
    uint32_t n_fds;
    uint32_t cgroup_fd;
    uint32_t host_netlink, host_netlink_len;
    uint32_t pid_offsets, n_pid_offsets;
    uint32_t uid_map, gid_map;
    /* of the monitor */
    uint32_t container_id, log_path, socket_path, exit_path, status_path;
    uint32_t flags; /* PLAN_TERMINAL... */
    uint64_t log_max_bytes;
    uint32_t log_max_files;
    uint32_t oom_fd;
    uint64_t oom_baseline;
    uint32_t cleanup_argv, cleanup_argc; /* u64 offsets, one zero at the end, made pointers on load */
    uint32_t cleanup_env, cleanup_envc;
    uint32_t monitor_end; /* nothing of the monitor's own lies beyond this offset */
    uint32_t vectors, vectors_end; /* arrays of offsets lie in here and nothing else does */
    uint32_t lock_fd;
    uint64_t time_limit_ms; /* from the start on; 0: none */
};

#define PLAN_TERMINAL 1u
#define PLAN_OPEN_STDIN 2u
#define PLAN_STDIN_ONCE 4u
#define PLAN_DIRECT 8u /* no monitor: see direct.c */

/* A validated plan. Strings point into the block; absent strings are "", absent fds are -1. */
struct plan {
    char *block;
    size_t mapped;
    uint32_t vectors, vectors_end;
    enum plan_mode mode;
    uint64_t namespaces;
    const struct plan_op *ops;
    uint32_t n_ops;
    uint32_t n_fds;
    int cgroup_fd;
    char *host_netlink;
    uint32_t host_netlink_len;
    const uint32_t *pid_offsets;
    uint32_t n_pid_offsets;
    const char *uid_map, *gid_map;

    const char *container_id;
    const char *log_path;
    const char *socket_path;
    const char *exit_path;
    const char *status_path;
    uint64_t log_max_bytes;
    uint32_t log_max_files;
    bool terminal, open_stdin, stdin_once, direct;
    int oom_fd;
    int lock_fd; /* held until the program runs or the monitor is gone */
    uint64_t oom_baseline;
    uint64_t time_limit_ms;
    char **cleanup_argv; /* NULL when there is nothing to call */
    char **cleanup_env;
    uint32_t monitor_end;
};

/* Reads the block from `fd` (FD_PLAN) into private memory and validates it. 0 or -errno; on error
 * the record says where. */
int plan_load(int fd, struct plan *ret, struct failure *ret_failure);

/* Validates `size` bytes at `block` in place (arrays of offsets become pointers). */
int plan_parse(char *block, size_t size, struct plan *ret, struct failure *ret_failure);

/* After spawn_child: gives the pages of the operations back and closes the plan's descriptors other
 * than oom_fd and lock_fd. The strings of the monitor stay. */
void plan_drop_ops(struct plan *plan);

/* Whether a process of its own must join before the first one is born: the new namespaces are to belong
 * to a user namespace that is there already. */
bool plan_joins_user(const struct plan *plan);

static inline int plan_fd(uint32_t index) {
    return index == PLAN_NONE ? -1 : FD_FIRST + (int)index;
}

static inline const char *plan_text(const struct plan *plan, uint32_t offset) {
    return offset == PLAN_NONE ? "" : plan->block + offset;
}

#endif
