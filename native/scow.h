/* What every file of the C core shares: integer names, cleanup attributes, the failure record. */
#ifndef SCOW_H
#define SCOW_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

/* The descriptors that a monitor is born with (native/spawn.py puts them there). */
#define FD_PLAN 3
#define FD_CONTROL 4
#define FD_FIRST 5

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

static inline void close_fdp(int *fd) {
    if (*fd >= 0) {
        int saved = errno;
        close(*fd);
        errno = saved;
    }
}
#define cleanup_fd __attribute__((cleanup(close_fdp)))

static inline int steal_fd(int *fd) {
    int taken = *fd;
    *fd = -1;
    return taken;
}

/* The one fixed record of a step that failed. `step` is an op code of plan.h or one of enum step. */
struct failure {
    uint32_t step;
    int32_t error;   /* errno, positive */
    uint32_t index;  /* of the op in the plan; PLAN_NONE outside of the ops */
    uint32_t detail; /* which message of a batch, which byte of the plan; 0 where it says nothing */
};

#endif
