/* paths.c under the sanitizers: ROOT dir|file|parent|open PATH. Prints the errno or "ok". */
#include <stdio.h>

#include "paths.h"

int main(int argc, char **argv) {
    if (argc != 4)
        return 2;
    const char *name = "";
    int fd = -1, r = 0, root = open(argv[1], O_PATH | O_DIRECTORY | O_CLOEXEC);
    bool created = false;
    if (strcmp(argv[2], "dir") == 0)
        r = fd = path_make_directories(root, argv[3], 0755, &created);
    else if (strcmp(argv[2], "file") == 0)
        r = fd = path_make_file(root, argv[3], 0644);
    else if (strcmp(argv[2], "parent") == 0)
        r = path_open_parent(root, argv[3], true, &fd, &name);
    else
        r = fd = path_open(root, argv[3], O_PATH, 0);
    if (r < 0) {
        printf("%d\n", -r);
        return 0;
    }
    char link[64], target[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, target, sizeof target - 1);
    target[n < 0 ? 0 : n] = '\0';
    printf("ok %d %s %s\n", created, target, name);
    close(fd);
    close(root);
    return 0;
}
