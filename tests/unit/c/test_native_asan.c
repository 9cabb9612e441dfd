/* Leaks are looked for by ptrace, which a process that is not dumpable does not allow. */
const char *__asan_default_options(void);
const char *__asan_default_options(void) {
    return "detect_leaks=0";
}
