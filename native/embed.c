/* The bytes of the static monitor inside the extension; SCOW_MONITOR_BINARY comes from setup.py. */
#include <stddef.h>

__asm__(".section .rodata\n"
        ".balign 16\n"
        "scow_monitor_begin:\n"
        ".incbin \"" SCOW_MONITOR_BINARY "\"\n"
        "scow_monitor_end:\n"
        ".byte 0\n"
        ".previous\n");
extern const char scow_monitor_begin[] __attribute__((visibility("hidden")));
extern const char scow_monitor_end[] __attribute__((visibility("hidden")));

const char *scow_monitor_bytes(size_t *ret_size);
const char *scow_monitor_bytes(size_t *ret_size) {
    *ret_size = (size_t)(scow_monitor_end - scow_monitor_begin);
    return scow_monitor_begin;
}
