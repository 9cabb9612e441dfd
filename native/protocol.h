/* What a monitor and its clients say to each other, over SOCK_SEQPACKET: one message is one packet,
 * one type byte and then the payload, little endian, packed. runtime/monitor.py is the other half.
 *
 * A client is the starter (FD_CONTROL) or whoever connected to the monitor's path socket; both may
 * say the same things. After a failure the monitor says MSG_FAILED; when the process has ended, its
 * last output is out and the exit record is on the disk, MSG_EXIT; then it closes. */
#ifndef SCOW_PROTOCOL_H
#define SCOW_PROTOCOL_H

#include "scow.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "messages are sent as they lie in memory");

#define MESSAGE_MAX 65536u /* the type byte included */

/* monitor -> client */
#define MSG_READY 'R'   /* struct msg_ready: created and waiting; also told to who connects later */
#define MSG_STARTED 'S' /* the program runs; also told to who connects later */
#define MSG_FAILED 'F'  /* struct msg_failed, and then words (may be none) */
#define MSG_WARNING 'N' /* struct msg_failed: a step that may fail did */
#define MSG_STDOUT 'o'
#define MSG_STDERR 'e'
#define MSG_EXIT 'X'    /* struct msg_exit */
#define MSG_REOPENED 'L' /* struct msg_reopened: the answer to MSG_REOPEN_LOG */
#define MSG_DROPPED 'D' /* struct msg_dropped: nothing more comes */

/* client -> monitor */
#define MSG_START 's'
#define MSG_STDIN 'i'
#define MSG_STDIN_END 'c'
#define MSG_WINSIZE 'w' /* struct msg_winsize */
#define MSG_ATTACH 'a'  /* one byte of ATTACH_*: what to send from now on */
#define MSG_WATCH 'W'   /* "I clean up when it has ended", for as long as the connection lives */
#define MSG_REOPEN_LOG 'l'

#define ATTACH_STDOUT 1u
#define ATTACH_STDERR 2u
#define ATTACH_STDIN 4u
#define ATTACH_LOSSLESS 8u /* wait for me rather than drop me: the container feels my slowness */
#define ATTACH_NO_REPLAY 16u /* accepted; nothing is ever replayed */

#define DROPPED_SLOW 1u
#define DROPPED_FULL 2u /* as many clients as a monitor takes */

struct __attribute__((packed)) msg_ready {
    char type;
    uint32_t pid;
};

struct __attribute__((packed)) msg_failed {
    char type;
    struct failure failure;
};

struct __attribute__((packed)) msg_exit {
    char type;
    int32_t status; /* as wait(2) gives it */
    uint8_t oom_killed;
    int64_t started_ns, finished_ns; /* CLOCK_REALTIME; started_ns 0: never started */
    uint8_t timed_out; /* killed because its time was over */
};

struct __attribute__((packed)) msg_reopened {
    char type;
    int32_t error; /* errno; then the old file goes on */
};

struct __attribute__((packed)) msg_dropped {
    char type;
    uint8_t reason;
};

struct __attribute__((packed)) msg_winsize {
    char type;
    uint16_t rows, columns;
};

/* Steps of the monitor itself in a struct failure; spawn.h's enum step has the others. */
enum monitor_step {
    STEP_MONITOR_LOG = 1100, /* opening the log */
    STEP_MONITOR_SOCKET,     /* the path socket */
    STEP_MONITOR_STATUS,     /* the status record */
    STEP_MONITOR_SIGNALS,    /* signalfd */
    STEP_MONITOR_EXIT,       /* room for the exit record */
};

#endif
