/* Inside the child, between clone3 and execve: no malloc, no stdio, no locale, no lookups. */
#ifndef SCOW_CHILD_H
#define SCOW_CHILD_H

#include "spawn.h"

/* The child's ends of what the monitor holds. */
struct child_ends {
    int sock;
    int io[3]; /* -1: none */
};

struct child {
    const struct plan *plan;
    struct child_ends ends;
    int root;       /* O_PATH of the container's root, -1 until it is known */
    int proc;       /* private procfs, -1 until somebody needs it */
    int cover;      /* private tmpfs with an empty directory and file, for masks */
    bool covers_root; /* the cover lies on the old root, and stays on top of it */
    int master;     /* of the pty, until it is sent */
    bool told_ready;
    bool sealed; /* nothing of ours survives the execve any more */
    unsigned kept; /* descriptors from 3 on that the program gets */
    bool must_move; /* joined a pid namespace that only a new process enters: EnterPidNamespace */
    uint32_t detail;
};

/* Carries the plan out. Never returns. */
_Noreturn void child_main(const struct plan *plan, const struct child_ends *ends);

/* A name of an op's operands, which plan.c checked. */
static inline const char *op_text(const struct child *child, const struct plan_op *op, int i) {
    return child->plan->block + op->text[i];
}
static inline const void *op_blob(const struct child *child, const struct plan_op *op) {
    return child->plan->block + op->blob;
}

/* child.c */
int child_root(struct child *child);
/* direct.c: before the clone, what the plan's first process joins */
int child_join_first(const struct plan *plan, uint32_t *ret_index);
int child_proc(struct child *child);
int child_tell(struct child *child, const struct child_msg *msg, int fd);
int child_tell_ready(struct child *child);
int child_await(struct child *child, char wanted);
void child_warn(struct child *child, const struct plan_op *op, int error);

/* Operations: 0 or -errno. child_mount.c */
int op_mount_propagation(struct child *child, const struct plan_op *op);
int op_attach_root(struct child *child, const struct plan_op *op);
int op_mount_filesystem(struct child *child, const struct plan_op *op);
int op_mount_tree(struct child *child, const struct plan_op *op);
int child_check_destination(int fd, const char *dest);
int op_mask(struct child *child, const struct plan_op *op);
int op_read_only_path(struct child *child, const struct plan_op *op);
int op_mount_joined_proc(struct child *child, const struct plan_op *op);
int op_change_mount(struct child *child, const struct plan_op *op);
int op_hide_host(struct child *child, const struct plan_op *op);
int op_pivot_root(struct child *child, const struct plan_op *op);
int op_remount_root_read_only(struct child *child, const struct plan_op *op);
/* child_files.c */
int op_make_directory(struct child *child, const struct plan_op *op);
int op_make_device(struct child *child, const struct plan_op *op);
int op_make_symlink(struct child *child, const struct plan_op *op);
int op_set_sysctl(struct child *child, const struct plan_op *op);
int op_set_oom_score_adj(struct child *child, const struct plan_op *op);
int op_set_cwd(struct child *child, const struct plan_op *op);
/* child_tty.c */
int op_terminal(struct child *child, const struct plan_op *op);
int op_stdio_from_monitor(struct child *child, const struct plan_op *op);
/* child_cred.c */
int child_keep_capabilities(uint64_t mask);
int op_set_rlimit(struct child *child, const struct plan_op *op);
int op_new_session_keyring(struct child *child, const struct plan_op *op);
int op_reset_affinity(struct child *child, const struct plan_op *op);
int op_drop_bounding(struct child *child, const struct plan_op *op);
int op_set_user(struct child *child, const struct plan_op *op);
int op_set_capabilities(struct child *child, const struct plan_op *op);
int op_no_new_privileges(struct child *child, const struct plan_op *op);
int op_load_seccomp(struct child *child, const struct plan_op *op);
int op_execute(struct child *child, const struct plan_op *op);
/* child_direct.c */
int op_await_start_socket(struct child *child, const struct plan_op *op);
int child_own_null(struct child *child);
int op_stdio_inherit(struct child *child, const struct plan_op *op);
int op_keep_fds(struct child *child, const struct plan_op *op);
int op_probe_command(struct child *child, const struct plan_op *op);
int op_run_hook(struct child *child, const struct plan_op *op);
int op_become_root(struct child *child, const struct plan_op *op);
/* child_sched.c */
int op_set_personality(struct child *child, const struct plan_op *op);
int op_set_scheduler(struct child *child, const struct plan_op *op);
int op_set_io_priority(struct child *child, const struct plan_op *op);
int op_set_affinity(struct child *child, const struct plan_op *op);
int op_set_memory_policy(struct child *child, const struct plan_op *op);
int op_set_label(struct child *child, const struct plan_op *op);
int op_label_mount(struct child *child, const struct plan_op *op);

#define CHILD_DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
const char *child_find_variable(char **env, const char *name);
/* Below a private procfs; `path` has no links. */
int child_write_proc(struct child *child, const char *path, const char *value);

#endif
