/* Corpus driver for scow-untar: each file named is unpacked below the directory of the first argument, in
 * this process, so that a sanitizer sees it. With -DFUZZER it is a target of libFuzzer (tests/fuzz/run.py). */
#include "../../../native/untar.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int unpack(const char *dir, int stream_fd)
{
    struct untar *u = calloc(1, sizeof(*u));
    int r;

    u->stream.fd = stream_fd;
    u->stream.limit = 64 << 20;
    u->max_entries = 1000;
    u->report_fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
    u->privileged_fd = u->spill_fd = -1;
    for (int i = 0; i < UNTAR_DIRS; i++)
        u->dirs[i].fd = -1;
    (void)untar_remove(u, AT_FDCWD, dir);
    (void)mkdir(dir, 0700);
    u->root_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    r = u->root_fd < 0 ? -1 : untar_extract(u);
    untar_report_end(u, r);
    untar_forget_dirs(u);
    if (u->spill_fd >= 0)
        (void)close(u->spill_fd);
    (void)close(u->root_fd);
    (void)close(u->report_fd);
    free(u);
    return r;
}

#ifdef FUZZER
/* Headers need a right checksum: give it to every block that looks like one. */
static void mend(unsigned char *data, size_t size)
{
    for (; size >= UNTAR_BLOCK; data += UNTAR_BLOCK, size -= UNTAR_BLOCK) {
        unsigned sum = 0;
        if (memcmp(data + 257, "ustar", 5))
            continue;
        memset(data + 148, ' ', 8);
        for (int i = 0; i < UNTAR_BLOCK; i++)
            sum += data[i];
        (void)snprintf((char *)data + 148, 8, "%06o", sum);
    }
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);
int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size)
{
    unsigned char *copy = malloc(size + 1);
    int fd = memfd_create("fuzz", MFD_CLOEXEC);

    (void)umask(0);
    memcpy(copy, data, size);
    mend(copy, size);
    if (write(fd, copy, size) == (ssize_t)size && lseek(fd, 0, SEEK_SET) == 0)
        (void)unpack(getenv("SCOW_FUZZ_DIR"), fd);
    (void)close(fd);
    free(copy);
    return 0;
}
#else
int main(int argc, char **argv)
{
    (void)umask(0);
    for (int i = 2; i < argc; i++) {
        int fd = open(argv[i], O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            return 2;
        printf("%s: %s\n", argv[i], unpack(argv[1], fd) < 0 ? "refused" : "unpacked");
        (void)close(fd);
    }
    return 0;
}
#endif
