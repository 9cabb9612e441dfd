/* The static binary: which applet it is depends on argv[0]. */
#include <signal.h>
#include <sys/prctl.h>

#include "spawn.h"
#include "sys.h"

int untar_main(int argc, char **argv) __attribute__((weak));

/* The starter left every signal blocked over the exec (launch.c), and Python ignores SIGPIPE. */
static void reset_signals(void) {
    sigset_t none;
    sys_default_signals();
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static int run_monitor(void) {
    struct plan plan;
    struct failure failure = {.step = STEP_PLAN, .index = PLAN_NONE};
    prctl(PR_SET_NAME, "scow-monitor");
    /* No process of a container may trace or read us; children inherit it until they exec. */
    if (prctl(PR_SET_DUMPABLE, 0) < 0) {
        failure.error = errno;
        return monitor_main(NULL, &failure);
    }
    if (plan_load(FD_PLAN, &plan, &failure) < 0)
        return monitor_main(NULL, &failure);
    return monitor_main(&plan, NULL);
}

static int run_direct(void) {
    struct plan plan;
    struct failure failure = {.step = STEP_PLAN, .index = PLAN_NONE};
    prctl(PR_SET_NAME, "scow-init");
    if (prctl(PR_SET_DUMPABLE, 0) < 0) {
        failure.error = errno;
        return direct_main(NULL, &failure);
    }
    if (plan_load(FD_PLAN, &plan, &failure) < 0)
        return direct_main(NULL, &failure);
    return direct_main(&plan, NULL);
}

int main(int argc, char **argv) {
    const char *slash, *name = argc > 0 ? argv[0] : "";
    reset_signals();
    slash = strrchr(name, '/');
    name = slash ? slash + 1 : name;
    if (strcmp(name, "scow-monitor") == 0)
        return run_monitor();
    if (strcmp(name, "scow-init") == 0)
        return run_direct();
    if (strcmp(name, "scow-untar") == 0 && untar_main) {
        prctl(PR_SET_NAME, "scow-untar");
        return untar_main(argc, argv);
    }
    return 127;
}
