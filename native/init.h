/* A tiny pid 1. */
#ifndef SCOW_INIT_H
#define SCOW_INIT_H

/* Splits the process: the caller becomes the container's init and never returns, a new child returns 0
 * and goes on to execve. -errno when there can be no child. */
int init_become(void);

/* Pid 1 of a namespace that several containers share: has no program, reaps what they orphan. */
_Noreturn void init_hold(void);

#endif
