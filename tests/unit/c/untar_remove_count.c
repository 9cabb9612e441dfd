/* Removes a directory of COUNT directories and tells how often it began to read one from its start: once for each
 * is work in proportion to the names, more is the square of them. Linked with --wrap=lseek.
 *
 *   untar_remove_count DIRECTORY COUNT */
#include "../../../native/untar.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

off_t __real_lseek(int fd, off_t offset, int whence);
off_t __wrap_lseek(int fd, off_t offset, int whence);

static long begun;

off_t __wrap_lseek(int fd, off_t offset, int whence)
{
    begun += offset == 0 && whence == SEEK_SET;
    return __real_lseek(fd, offset, whence);
}

int main(int argc, char **argv)
{
    struct untar *u = calloc(1, sizeof *u);
    char name[64];
    int here, dir;

    if (argc != 3 || !u || chdir(argv[1]) < 0 || mkdir("d", 0700) < 0)
        return 9;
    here = open(".", O_RDONLY | O_DIRECTORY);
    dir = openat(here, "d", O_RDONLY | O_DIRECTORY);
    for (int i = 0; i < atoi(argv[2]); i++) {
        (void)snprintf(name, sizeof name, "%d", i);
        if (mkdirat(dir, name, 0700) < 0)
            return 9;
        (void)snprintf(name, sizeof name, "%d/f", i);
        if (mkdirat(dir, name, 0700) < 0)
            return 9;
    }
    if (untar_remove(u, here, "d") < 0 || access("d", F_OK) == 0)
        return 1;
    printf("%ld\n", begun);
    free(u);
    return 0;
}
