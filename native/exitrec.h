/* The monitor's two records, small JSON files: the status (who runs) and the exit. */
#ifndef SCOW_EXITREC_H
#define SCOW_EXITREC_H

#include "scow.h" /* first: it asks for _GNU_SOURCE */

#include <sys/types.h>

struct exit_record {
    pid_t pid; /* 0: there never was a process */
    int status;
    bool oom_killed;
    int64_t started_ns, finished_ns;
    const struct failure *failure; /* NULL: set-up went well */
    uint64_t log_lost_bytes;
    int log_error;
};

struct status_record {
    const char *container_id;
    pid_t pid, monitor_pid;
    uint64_t start_time, monitor_start_time; /* field 22 of /proc/PID/stat */
    int64_t created_ns;
};

/* Replaces the file at `path`: temporary file beside it, rename; durable: with fsync of the file
 * before and of the directory after. 0 or -errno; on error the old file is as it was. */
int record_replace(const char *path, const char *data, size_t len, bool durable);

/* Takes the room on the disk that the exit record will need, so that a disk which is full by then
 * still holds the truth. An empty path takes nothing. 0 or -errno. */
int exit_record_reserve(const char *path);

/* Both: an empty path writes nothing. 0 or -errno. */
int exit_record_write(const char *path, const struct exit_record *record);
int status_record_write(const char *path, const struct status_record *record);

/* The start time of a process in clock ticks since boot: with the pid it names one process for as
 * long as the system is up. 0 or -errno. */
int process_start_time(pid_t pid, uint64_t *ret_ticks);

#endif
