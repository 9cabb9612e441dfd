/* What changes names as fast as it can while a runtime uses them.
 *
 *   swap names A B [C D ...]         exchanges each pair by renameat2(RENAME_EXCHANGE)
 *   swap mounts SOURCE TARGET ...    binds SOURCE over each TARGET and takes it away again
 *   swap directories DIR ...         makes and removes each directory */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc < 3)
        return 64;
    puts("swapping");
    fflush(stdout);
    for (;;) {
        if (strcmp(argv[1], "names") == 0) {
            for (int i = 2; i + 1 < argc; i += 2)
                syscall(SYS_renameat2, AT_FDCWD, argv[i], AT_FDCWD, argv[i + 1], 2 /* RENAME_EXCHANGE */);
        } else if (strcmp(argv[1], "mounts") == 0) {
            for (int i = 3; i < argc; i++)
                if (mount(argv[2], argv[i], NULL, MS_BIND, NULL) == 0)
                    umount2(argv[i], MNT_DETACH);
        } else {
            for (int i = 2; i < argc; i++)
                if (mkdir(argv[i], 0755) == 0)
                    rmdir(argv[i]);
        }
    }
}
