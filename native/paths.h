/* The one place in C that reaches below a hostile root.
 *
 * Everything goes through openat2(RESOLVE_IN_ROOT|RESOLVE_NO_MAGICLINKS) on a descriptor of the
 * root, so that no link, no "..", and no rename by somebody who shares the tree leads out of it. */
#ifndef SCOW_PATHS_H
#define SCOW_PATHS_H

#include <sys/types.h>

#include "scow.h"

/* Opens below root; `resolve` adds RESOLVE_* flags. A descriptor or -errno. */
int path_open(int root, const char *path, uint64_t flags, uint64_t resolve);

/* Like mkdir -p: `mode` is of the last one, those above get 0755; links are followed inside the root,
 * also dangling ones. An O_PATH descriptor of the directory or -errno. *ret_created (may be NULL) says whether the last component is new. */
int path_make_directories(int root, const char *path, mode_t mode, bool *ret_created);

/* An empty regular file at path, parents made with 0755; one that exists stays. O_PATH descriptor. */
int path_make_file(int root, const char *path, mode_t mode);

/* Opens the directory that holds the last component (made with 0755 when `create`), and points
 * *ret_name into `path`. The name is never "", "." or ".." (-EINVAL). 0 or -errno. */
int path_open_parent(int root, const char *path, bool create, int *ret_fd, const char **ret_name);

#endif
