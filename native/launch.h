/* Starting the static monitor: from the extension, in Python's process, or from the front of scow-oci. */
#ifndef SCOW_LAUNCH_H
#define SCOW_LAUNCH_H

#include <stddef.h>

/* embed.c: a sealed memfd with the monitor's bytes, or -errno. */
int scow_monitor_memfd(void);

/* embed.c: the size of the embedded monitor. */
size_t scow_monitor_size(void);

/* Starts exe_fd in a session of its own, cwd "/", with `fds` at 3, 4, ... and stdio[0..2] (-1:
 * /dev/null) at 0..2, everything else closed. The pid or -errno. */
int scow_launch(int exe_fd, char *const *argv, char *const *envp, const int *stdio, const int *fds, int n_fds);

#endif
