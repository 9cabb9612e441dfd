/* The in-root path library under libFuzzer: whatever a path and its links say, nothing outside is reached
 * or made. Input: lines; "name=target" makes a link first, the last line is the path that is used. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "paths.h"
#include "untar.h"

static char root_path[512], outside[600];

static void check_inside(int fd) {
    char link[64], target[4096];
    if (fd < 0)
        return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, target, sizeof target - 1);
    target[n < 0 ? 0 : n] = '\0';
    if (strncmp(target, root_path, strlen(root_path)) != 0)
        abort();
    close(fd);
}

static void make_link(int root, char *line) {
    char *equals = strchr(line, '=');
    if (!equals || strchr(line, '/'))
        return;
    *equals = '\0';
    (void)!symlinkat(equals + 1, root, line);
}

static void clear(void) {
    struct untar *u = calloc(1, sizeof *u);
    for (int i = 0; i < UNTAR_DIRS; i++)
        u->dirs[i].fd = -1;
    u->privileged_fd = u->spill_fd = -1;
    int place = open(getenv("SCOW_FUZZ_DIR"), O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (untar_remove(u, place, "root") < 0 && errno != ENOENT)
        abort();
    close(place);
    untar_forget_dirs(u);
    free(u);
    mkdir(root_path, 0755);
}

static void use(int root, int how, const char *path) {
    const char *name = "";
    int parent = -1;
    bool created;
    if (how % 4 == 0)
        check_inside(path_make_directories(root, path, 0755, &created));
    else if (how % 4 == 1)
        check_inside(path_make_file(root, path, 0644));
    else if (how % 4 == 2)
        check_inside(path_open(root, path, O_PATH, 0));
    else if (path_open_parent(root, path, true, &parent, &name) == 0) {
        if (strchr(name, '/') || !*name || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
            abort();
        check_inside(parent);
    }
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);
int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size) {
    struct stat st;
    char *text, *line, *rest;
    if (size < 2 || size > 16384)
        return -1;
    snprintf(root_path, sizeof root_path, "%s/root", getenv("SCOW_FUZZ_DIR"));
    snprintf(outside, sizeof outside, "%s/evil", getenv("SCOW_FUZZ_DIR"));
    clear();
    int root = open(root_path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    text = calloc(1, size);
    memcpy(text, data + 1, size - 1);
    for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        make_link(root, line);
        use(root, data[0], line);
    }
    free(text);
    close(root);
    if (stat(outside, &st) == 0)
        abort();
    return 0;
}
