/* What the front of scow-oci and a warm process say to each other, over SOCK_SEQPACKET: one message is one
 * packet. runtime/oci_warm_peer.py is the other half. */
#ifndef SCOW_FRONT_H
#define SCOW_FRONT_H

#include <sys/types.h>

#include "scow.h"

#define FRONT_VERSION 1u
#define FRONT_TEXT_MAX (128 * 1024) /* a packet has to fit into a socket's buffer, which is 208 KiB */
#define FRONT_FDS_MAX 250           /* unix(7): SCM_MAX_FD is 253 */
#define FRONT_FD_END 512            /* from here on are the descriptors of the warm process itself */
#define FRONT_PLAN_FDS_MAX 600

/* front -> warm, the first packet: this, then n_fds numbers (i32) of the descriptors that come along, in
 * ascending order, then the strings of argv and of the environment, each with its NUL. */
struct front_request {
    uint32_t version;
    uint32_t argc;
    uint32_t n_fds;
    uint32_t securebits;
};

/* warm -> front: a type byte and what follows it. Descriptors may come with every packet; they are
 * collected until a WARM_LAUNCH uses them: the executable, the plan, the control socket, the plan's own. */
#define WARM_COLD 'C'   /* a reason: nothing has been done, start an interpreter */
#define WARM_TAKEN 'T'  /* it is being worked on */
#define WARM_HOLD 'H'   /* let signals wait until there is a process to pass them on to */
#define WARM_FDS 'F'    /* nothing but descriptors */
#define WARM_LAUNCH 'L' /* i32 stdio[3], numbers of ours or -1; answered by an i32, the pid or -errno */
#define WARM_BURY 'R'   /* i32 pid; answered by an i32 when it is reaped */
#define WARM_WAIT 'W'   /* i32 pid; answered by an i32, its wait status; signals are passed on until then */
#define WARM_EXIT 'X'   /* i32 exit code: the end */

#define FRONT_TIMEOUT_S 2 /* for being taken */

/* front_serve.c: does what the warm process asks for, until it is over. The exit code, or -1: cold, for
 * the reason that *ret_reason is then. */
int front_serve(int sock, char *ret_reason, size_t size);

/* front_request.c: asks the warm process that listens in `directory` under `name`. A socket, or -errno. */
int front_connect(const char *directory, const char *name);
int front_send(int sock, int argc, char **argv, char **envp);

#endif
