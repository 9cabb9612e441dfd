/* Drives log.c and exitrec.c under the sanitizers; test_monitor_log.py looks at the files.
 *
 *   log PATH MAX_BYTES MAX_FILES CHUNK [FSIZE]    stdin -> log, CHUNK bytes at a time; o/e in turns
 *                                                 if CHUNK is negative; prints "lost error"
 *   exit PATH STATUS OOM STEP                     exit record; STEP 0: no failure
 *   status PATH                                   status record of this process */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "exitrec.h"
#include "log.h"

static struct log the_log;

static int drive_log(int argc, char **argv) {
    long chunk = atol(argv[5]);
    bool turns = chunk < 0;
    if (turns) chunk = -chunk;
    char *data = malloc((size_t)chunk); /* exact size, so that ASan sees a read beyond it */
    signal(SIGXFSZ, SIG_IGN);
    if (argc > 6) {
        struct rlimit limit = {strtoul(argv[6], NULL, 10), RLIM_INFINITY};
        if (setrlimit(RLIMIT_FSIZE, &limit) < 0) return 3;
    }
    int r = log_open(&the_log, argv[2], strtoull(argv[3], NULL, 10), (uint32_t)atol(argv[4]));
    if (r < 0) {
        fprintf(stderr, "log_open: %s\n", strerror(-r));
        free(data);
        return 2;
    }
    ssize_t n;
    for (int i = 0; (n = read(0, data, (size_t)chunk)) > 0; i++)
        log_write(&the_log, turns && i % 2 ? LOG_STDERR : LOG_STDOUT, data, (size_t)n);
    log_flush(&the_log);
    printf("%llu %d %llu\n", (unsigned long long)the_log.lost_bytes, the_log.error,
           (unsigned long long)the_log.size);
    log_close(&the_log);
    free(data);
    return 0;
}

int main(int argc, char **argv) {
    if (argc >= 6 && !strcmp(argv[1], "log")) return drive_log(argc, argv);
    if (argc == 6 && !strcmp(argv[1], "exit")) {
        struct failure failure = {(uint32_t)atol(argv[5]), 2, UINT32_MAX, 7};
        struct exit_record record = {.pid = 4242,
                                     .status = atoi(argv[3]),
                                     .oom_killed = atoi(argv[4]),
                                     .started_ns = INT64_MAX,
                                     .finished_ns = INT64_MIN,
                                     .failure = failure.step ? &failure : NULL,
                                     .log_lost_bytes = 5,
                                     .log_error = 28};
        return exit_record_write(argv[2], &record) < 0;
    }
    if (argc == 3 && !strcmp(argv[1], "status")) {
        struct status_record record = {.container_id = "a\"b\\\n", .pid = getpid()};
        if (process_start_time(getpid(), &record.start_time) < 0) return 2;
        printf("%llu\n", (unsigned long long)record.start_time);
        return status_record_write(argv[2], &record) < 0;
    }
    return 64;
}
