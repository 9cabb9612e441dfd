#include "plan.h"

#include <limits.h>
#include <linux/sched.h>
#include <sys/mman.h>
#include <sys/stat.h>

/* What an op must bring along. Texts: which of the three must be there. */
enum blob_kind { BLOB_NONE, BLOB_BYTES, BLOB_FDS, BLOB_TEXTS, BLOB_PAIRS, BLOB_U32, BLOB_VECTORS };

struct op_shape {
    bool fd;
    uint8_t texts; /* bit i: text[i] is required */
    uint8_t blob;
};

static const struct op_shape SHAPES[OP_END] = {
    [OP_JOIN_CGROUPS] = {false, 0, BLOB_FDS},
    [OP_JOIN_NAMESPACE] = {true, 0, BLOB_NONE},
    [OP_ATTACH_ROOT] = {true, 1, BLOB_NONE},
    [OP_MOUNT_FILESYSTEM] = {false, 7, BLOB_PAIRS},
    [OP_MOUNT_TREE] = {true, 1, BLOB_NONE},
    [OP_MAKE_DIRECTORY] = {false, 1, BLOB_NONE},
    [OP_MAKE_DEVICE] = {false, 1, BLOB_NONE},
    [OP_MAKE_SYMLINK] = {false, 3, BLOB_NONE},
    [OP_MASK] = {false, 1, BLOB_NONE},
    [OP_READ_ONLY_PATH] = {false, 1, BLOB_NONE},
    [OP_SET_HOSTNAME] = {false, 1, BLOB_NONE},
    [OP_SET_DOMAINNAME] = {false, 1, BLOB_NONE},
    [OP_SET_SYSCTL] = {false, 3, BLOB_NONE},
    [OP_NETLINK] = {false, 0, BLOB_BYTES},
    [OP_SET_CWD] = {false, 1, BLOB_NONE},
    [OP_NEW_SESSION_KEYRING] = {false, 1, BLOB_NONE},
    [OP_SET_USER] = {false, 0, BLOB_U32},
    [OP_LOAD_SECCOMP] = {false, 0, BLOB_BYTES},
    [OP_EXECUTE] = {false, 0, BLOB_VECTORS},
    [OP_SET_MOUNT_ATTRIBUTES] = {false, 1, BLOB_NONE},
    [OP_MOUNT_JOINED_PROC] = {false, 1, BLOB_FDS},
    [OP_AWAIT_START_SOCKET] = {true, 0, BLOB_NONE},
    [OP_KEEP_FDS] = {false, 0, BLOB_FDS},
    [OP_RUN_HOOK] = {false, 7, BLOB_VECTORS},
    [OP_NEW_TIME_NAMESPACE] = {false, 1, BLOB_NONE},
    [OP_SET_SCHEDULER] = {false, 0, BLOB_BYTES},
    [OP_SET_AFFINITY] = {false, 0, BLOB_BYTES},
    [OP_SET_MEMORY_POLICY] = {false, 0, BLOB_BYTES},
    [OP_SET_LABEL] = {false, 3, BLOB_NONE},
    [OP_LABEL_MOUNT] = {false, 3, BLOB_NONE},
    [OP_SET_PROPAGATION] = {false, 1, BLOB_NONE},
    [OP_HIDE_HOST] = {false, 1, BLOB_NONE},
};

static int refuse(struct failure *ret, uint32_t index, size_t where) {
    *ret = (struct failure){STEP_PLAN, EINVAL, index, (uint32_t)where};
    return -EINVAL;
}

static bool range_ok(const struct plan *plan, uint64_t offset, uint64_t length) {
    return offset >= sizeof(struct plan_header) && offset <= plan->mapped && length <= plan->mapped - offset;
}

/* A string that begins inside the block and ends there. */
static bool text_ok(const struct plan *plan, uint64_t offset) {
    return range_ok(plan, offset, 1) && memchr(plan->block + offset, '\0', plan->mapped - offset);
}

static bool optional_text_ok(const struct plan *plan, uint32_t offset) {
    return offset == PLAN_NONE || text_ok(plan, offset);
}

/* Not where the arrays are: those change after the rest was checked. */
static bool data_ok(const struct plan *plan, uint64_t offset, uint64_t length) {
    return offset % 8 == 0 && range_ok(plan, offset, length) &&
           (offset + length <= plan->vectors || offset >= plan->vectors_end);
}

/* `count` offsets and one zero at `offset` become `count` pointers and NULL. An array that lies over
 * another one holds pointers by now, which no offset check lets through: it is refused. */
static char **relocate(const struct plan *plan, uint32_t offset, uint64_t count) {
    uint64_t *slot;
    if (offset % 8 != 0 || count > plan->mapped / 8 || !range_ok(plan, offset, (count + 1) * 8))
        return NULL;
    if (offset < plan->vectors || offset + (count + 1) * 8 > plan->vectors_end)
        return NULL;
    slot = (uint64_t *)(void *)(plan->block + offset);
    if (slot[count] != 0)
        return NULL;
    for (uint64_t i = 0; i < count; i++)
        if (!text_ok(plan, slot[i]))
            return NULL;
    for (uint64_t i = 0; i < count; i++)
        slot[i] = (uint64_t)(uintptr_t)(plan->block + slot[i]);
    return (char **)(void *)slot;
}

static bool u32s_ok(const struct plan *plan, const struct plan_op *op, enum blob_kind kind) {
    const uint32_t *value = (const uint32_t *)(const void *)(plan->block + op->blob);
    uint64_t words = (uint64_t)op->count * (kind == BLOB_PAIRS ? 2 : 1);
    if (op->blob_len != words * 4)
        return false;
    for (uint64_t i = 0; i < words; i++) {
        if (kind == BLOB_FDS && value[i] >= plan->n_fds)
            return false;
        if (kind == BLOB_PAIRS && !(i % 2 ? optional_text_ok(plan, value[i]) : text_ok(plan, value[i])))
            return false;
    }
    return true;
}

/* Execute: two vectors one after the other, argv (num[0] strings) and env (num[1] strings). */
static bool vectors_ok(const struct plan *plan, const struct plan_op *op) {
    uint64_t argc = op->num[0], envc = op->num[1];
    if (argc == 0 || argc > plan->mapped / 8 || envc > plan->mapped / 8)
        return false;
    if (op->blob_len != (argc + envc + 2) * 8 || !range_ok(plan, op->blob, op->blob_len))
        return false;
    return relocate(plan, op->blob, argc) && relocate(plan, op->blob + (uint32_t)(argc + 1) * 8, envc);
}

static bool blob_ok(const struct plan *plan, const struct plan_op *op, enum blob_kind kind) {
    if (kind == BLOB_NONE)
        return op->blob == PLAN_NONE;
    if (kind != BLOB_VECTORS && !data_ok(plan, op->blob, op->blob_len))
        return false;
    switch (kind) {
    case BLOB_BYTES:
        return true;
    case BLOB_VECTORS:
        return vectors_ok(plan, op);
    default:
        return u32s_ok(plan, op, kind);
    }
}

/* Values that the child would use without another look. */
static bool numbers_ok(const struct plan_op *op) {
    switch (op->code) {
    case OP_LOAD_SECCOMP: /* struct sock_filter is 8 bytes, the kernel takes at most 4096 of them */
        return op->blob_len % 8 == 0 && op->blob_len > 0 && op->blob_len / 8 <= 4096;
    case OP_NETLINK:
        return op->blob_len % 4 == 0;
    case OP_SET_USER:
        return op->num[0] < UINT32_MAX && op->num[1] < UINT32_MAX && op->count <= 65536;
    case OP_MOUNT_JOINED_PROC:
        return op->count == 2;
    case OP_EXECUTE:
        return op->num[2] <= EXECUTE_NOTHING;
    case OP_KEEP_FDS:
        return op->count <= PLAN_MAX_FDS;
    case OP_SET_SCHEDULER: /* struct sched_attr, its first version or a later one */
        return op->blob_len >= 48 && op->blob_len <= 4096;
    case OP_SET_MEMORY_POLICY: /* a mask of nodes in whole words; may be empty */
        return op->blob_len % 8 == 0 && op->blob_len <= 4096;
    case OP_TERMINAL:
        return op->num[0] <= UINT16_MAX && op->num[1] <= UINT16_MAX;
    default:
        return true;
    }
}

static bool op_ok(const struct plan *plan, const struct plan_op *op) {
    const struct op_shape *shape;
    if (op->code == 0 || op->code >= OP_END)
        return false;
    shape = &SHAPES[op->code];
    if (shape->fd ? op->fd >= plan->n_fds : op->fd != PLAN_NONE)
        return false;
    for (int i = 0; i < 3; i++) {
        bool wanted = shape->texts & (1 << i);
        if (wanted ? !text_ok(plan, op->text[i]) : op->text[i] != PLAN_NONE)
            return false;
    }
    return numbers_ok(op) && blob_ok(plan, op, shape->blob);
}

static int parse_ops(struct plan *plan, const struct plan_header *head, struct failure *ret_failure) {
    if (head->n_ops == 0 || head->n_ops > PLAN_MAX_OPS ||
        !data_ok(plan, head->ops, (uint64_t)head->n_ops * sizeof(struct plan_op)))
        return refuse(ret_failure, PLAN_NONE, offsetof(struct plan_header, ops));
    plan->ops = (const struct plan_op *)(const void *)(plan->block + head->ops);
    plan->n_ops = head->n_ops;
    for (uint32_t i = 0; i < plan->n_ops; i++)
        if (!op_ok(plan, &plan->ops[i]))
            return refuse(ret_failure, i, head->ops + i * sizeof(struct plan_op));
    /* the child has nothing to return to: it must end in an execve */
    if (plan->ops[plan->n_ops - 1].code != OP_EXECUTE)
        return refuse(ret_failure, plan->n_ops - 1, head->ops);
    return 0;
}

static int parse_netlink(struct plan *plan, const struct plan_header *head, struct failure *ret_failure) {
    size_t where = offsetof(struct plan_header, host_netlink);
    if (head->host_netlink == PLAN_NONE)
        return head->n_pid_offsets == 0 ? 0 : refuse(ret_failure, PLAN_NONE, where);
    if (!data_ok(plan, head->host_netlink, head->host_netlink_len))
        return refuse(ret_failure, PLAN_NONE, where);
    plan->host_netlink = plan->block + head->host_netlink;
    plan->host_netlink_len = head->host_netlink_len;
    if (head->n_pid_offsets == 0)
        return 0;
    where = offsetof(struct plan_header, pid_offsets);
    if (!data_ok(plan, head->pid_offsets, (uint64_t)head->n_pid_offsets * 4))
        return refuse(ret_failure, PLAN_NONE, where);
    plan->pid_offsets = (const uint32_t *)(const void *)(plan->block + head->pid_offsets);
    plan->n_pid_offsets = head->n_pid_offsets;
    for (uint32_t i = 0; i < plan->n_pid_offsets; i++)
        if (plan->host_netlink_len < 4 || plan->pid_offsets[i] > plan->host_netlink_len - 4)
            return refuse(ret_failure, i, where);
    return 0;
}

static int parse_monitor(struct plan *plan, const struct plan_header *head, struct failure *ret_failure) {
    const uint32_t texts[] = {head->container_id, head->log_path,    head->socket_path, head->exit_path,
                              head->status_path,  head->uid_map,     head->gid_map};
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++)
        if (!optional_text_ok(plan, texts[i]))
            return refuse(ret_failure, PLAN_NONE, offsetof(struct plan_header, container_id));
    if (head->oom_fd != PLAN_NONE && head->oom_fd >= plan->n_fds)
        return refuse(ret_failure, PLAN_NONE, offsetof(struct plan_header, oom_fd));
    if (head->lock_fd != PLAN_NONE && head->lock_fd >= plan->n_fds)
        return refuse(ret_failure, PLAN_NONE, offsetof(struct plan_header, lock_fd));
    plan->uid_map = plan_text(plan, head->uid_map);
    plan->gid_map = plan_text(plan, head->gid_map);
    plan->container_id = plan_text(plan, head->container_id);
    plan->log_path = plan_text(plan, head->log_path);
    plan->socket_path = plan_text(plan, head->socket_path);
    plan->exit_path = plan_text(plan, head->exit_path);
    plan->status_path = plan_text(plan, head->status_path);
    plan->log_max_bytes = head->log_max_bytes;
    plan->log_max_files = head->log_max_files;
    plan->terminal = head->flags & PLAN_TERMINAL;
    plan->open_stdin = head->flags & PLAN_OPEN_STDIN;
    plan->stdin_once = head->flags & PLAN_STDIN_ONCE;
    plan->direct = head->flags & PLAN_DIRECT;
    plan->oom_fd = plan_fd(head->oom_fd);
    plan->lock_fd = plan_fd(head->lock_fd);
    plan->oom_baseline = head->oom_baseline;
    plan->time_limit_ms = head->time_limit_ms;
    plan->monitor_end = head->monitor_end;
    if (head->cleanup_argc == 0)
        return 0;
    plan->cleanup_argv = relocate(plan, head->cleanup_argv, head->cleanup_argc);
    plan->cleanup_env = relocate(plan, head->cleanup_env, head->cleanup_envc);
    if (!plan->cleanup_argv || !plan->cleanup_env)
        return refuse(ret_failure, PLAN_NONE, offsetof(struct plan_header, cleanup_argv));
    return 0;
}

int plan_parse(char *block, size_t size, struct plan *ret, struct failure *ret_failure) {
    struct plan plan = {.block = block, .mapped = size};
    struct plan_header head;
    int r;
    if (size < sizeof head || size > PLAN_MAX_BYTES || (uintptr_t)block % 8 != 0)
        return refuse(ret_failure, PLAN_NONE, 0);
    memcpy(&head, block, sizeof head);
    if (memcmp(head.magic, PLAN_MAGIC, sizeof head.magic) != 0 || head.size != size || head.mode > PLAN_EXEC)
        return refuse(ret_failure, PLAN_NONE, offsetof(struct plan_header, size));
    if (head.n_fds > PLAN_MAX_FDS || (head.cgroup_fd != PLAN_NONE && head.cgroup_fd >= head.n_fds))
        return refuse(ret_failure, PLAN_NONE, offsetof(struct plan_header, n_fds));
    if (head.monitor_end < sizeof head || head.monitor_end > size)
        return refuse(ret_failure, PLAN_NONE, offsetof(struct plan_header, monitor_end));
    if (head.vectors % 8 != 0 || head.vectors < sizeof head || head.vectors_end < head.vectors || head.vectors_end > size)
        return refuse(ret_failure, PLAN_NONE, offsetof(struct plan_header, vectors));
    plan.vectors = head.vectors;
    plan.vectors_end = head.vectors_end;
    plan.mode = (enum plan_mode)head.mode;
    plan.namespaces = head.namespaces;
    plan.n_fds = head.n_fds;
    plan.cgroup_fd = plan_fd(head.cgroup_fd);
    if ((r = parse_monitor(&plan, &head, ret_failure)) < 0 || (r = parse_netlink(&plan, &head, ret_failure)) < 0 ||
        (r = parse_ops(&plan, &head, ret_failure)) < 0)
        return r;
    *ret = plan;
    return 0;
}

bool plan_joins_user(const struct plan *plan) {
    for (uint32_t i = 0; plan->mode == PLAN_RUN && i < plan->n_ops; i++)
        if (plan->ops[i].code == OP_JOIN_NAMESPACE && plan->ops[i].num[0] & CLONE_NEWUSER)
            return true;
    return false;
}

static int check_descriptors(const struct plan *plan, struct failure *ret_failure) {
    for (uint32_t i = 0; i < plan->n_fds; i++) {
        if (fcntl(plan_fd(i), F_SETFD, FD_CLOEXEC) < 0) {
            *ret_failure = (struct failure){STEP_PLAN, errno, PLAN_NONE, i};
            return -errno;
        }
    }
    return 0;
}

int plan_load(int fd, struct plan *ret, struct failure *ret_failure) {
    struct stat st;
    size_t done = 0;
    *ret_failure = (struct failure){STEP_PLAN, EINVAL, PLAN_NONE, 0};
    if (fstat(fd, &st) < 0 || st.st_size <= 0 || st.st_size > PLAN_MAX_BYTES)
        return -EINVAL;
    /* Own memory, not a mapping of the file: what was checked cannot change after the check. */
    char *block = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) {
        ret_failure->error = errno;
        return -errno;
    }
    while (done < (size_t)st.st_size) {
        ssize_t n = pread(fd, block + done, (size_t)st.st_size - done, (off_t)done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return refuse(ret_failure, PLAN_NONE, done);
        done += (size_t)n;
    }
    close(fd);
    int r = plan_parse(block, (size_t)st.st_size, ret, ret_failure);
    return r < 0 ? r : check_descriptors(ret, ret_failure);
}

void plan_drop_ops(struct plan *plan) {
    size_t page = 4096, keep = (plan->monitor_end + page - 1) / page * page;
    size_t all = (plan->mapped + page - 1) / page * page;
    if (keep < all)
        munmap(plan->block + keep, all - keep);
    plan->mapped = keep < plan->mapped ? keep : plan->mapped;
    plan->ops = NULL;
    plan->n_ops = 0;
    plan->host_netlink = NULL;
    plan->pid_offsets = NULL;
    for (uint32_t i = 0; i < plan->n_fds; i++)
        if (plan_fd(i) != plan->oom_fd && plan_fd(i) != plan->lock_fd)
            close(plan_fd(i));
    plan->n_fds = 0;
    plan->cgroup_fd = -1;
}
