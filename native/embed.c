/* The static monitor inside the extension, and as a file to start it from; SCOW_MONITOR_BINARY comes from setup.py. */
#include <sys/mman.h>
#include <sys/stat.h>

#include "launch.h"
#include "sys.h"

#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC 0x0020
#endif

__asm__(".section .rodata\n"
        ".balign 16\n"
        "scow_monitor_begin:\n"
        ".incbin \"" SCOW_MONITOR_BINARY "\"\n"
        "scow_monitor_end:\n"
        ".byte 0\n"
        ".previous\n");
extern const char scow_monitor_begin[] __attribute__((visibility("hidden")));
extern const char scow_monitor_end[] __attribute__((visibility("hidden")));

size_t scow_monitor_size(void) {
    return (size_t)(scow_monitor_end - scow_monitor_begin);
}

int scow_monitor_memfd(void) {
    size_t size = scow_monitor_size(), done = 0;
    /* MFD_EXEC is refused before 6.3, and its absence is logged or refused by vm.memfd_noexec */
    cleanup_fd int fd = memfd_create("scow-monitor", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_EXEC);
    if (fd < 0 && errno == EINVAL)
        fd = memfd_create("scow-monitor", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -errno;
    if (fchmod(fd, 0500) < 0)
        return -errno;
    while (done < size) {
        ssize_t n = write(fd, scow_monitor_begin + done, size - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        done += (size_t)n;
    }
    int seals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
    /* the seal on the mode bits is of 6.3; before that nobody can chmod it without having it */
    if (fcntl(fd, F_ADD_SEALS, seals | F_SEAL_EXEC) < 0 && fcntl(fd, F_ADD_SEALS, seals) < 0)
        return -errno;
    return steal_fd(&fd);
}
