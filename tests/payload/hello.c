/* The program of the image scow/hello: from inside a container it tells what isolates it.
 *
 * Static, and needs nothing but the kernel: it reads its own /proc, /sys/fs/cgroup and interfaces.
 * What it cannot know from inside are the host's namespaces; they may be given to it in
 * SCOW_HOST_NS, as `readlink /proc/self/ns/...` on the host prints them. Without that it knows the
 * numbers of the kernel's first namespaces, which are fixed (include/linux/proc_ns.h).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <inttypes.h>
#include <net/if.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define LINE 4096
#define UTS_INIT_INO 0xEFFFFFFE /* include/linux/proc_ns.h */

static const char *bold = "", *dim = "", *plain = "";

/* The first line of a file without its newline; false if it cannot be read. */
static bool first_line(const char *path, char *ret, int size) {
    FILE *stream = fopen(path, "re");
    if (!stream)
        return false;
    bool found = fgets(ret, size, stream) != NULL;
    fclose(stream);
    if (found)
        ret[strcspn(ret, "\n")] = '\0';
    return found;
}

/* The value of "key:\tvalue" in /proc/self/status. */
static bool status_field(const char *key, char *ret, int size) {
    FILE *stream = fopen("/proc/self/status", "re");
    char line[LINE];
    bool found = false;
    if (!stream)
        return false;
    while (!found && fgets(line, sizeof(line), stream)) {
        size_t length = strlen(key);
        if (strncmp(line, key, length) || line[length] != ':')
            continue;
        line[strcspn(line, "\n")] = '\0';
        snprintf(ret, size, "%s", line + length + 1 + strspn(line + length + 1, " \t"));
        found = true;
    }
    fclose(stream);
    return found;
}

static void heading(const char *text) {
    printf("\n%s%s%s\n", bold, text, plain);
}

static void fact(const char *name, const char *value, const char *meaning) {
    printf("  %-12s %-22s %s%s%s\n", name, value, dim, meaning, plain);
}

static uint32_t inode_in(const char *text, const char *name) {
    char key[32];
    snprintf(key, sizeof(key), "%s:[", name);
    const char *found = text ? strstr(text, key) : NULL;
    return found ? (uint32_t)strtoul(found + strlen(key), NULL, 10) : 0;
}

/* The number of one of my namespaces, 0 where the kernel does not have it. */
static uint32_t namespace_inode(const char *name) {
    char path[64], link[64] = "";
    snprintf(path, sizeof(path), "/proc/self/ns/%s", name);
    return readlink(path, link, sizeof(link) - 1) < 0 ? 0 : inode_in(link, name);
}

static void show_process(void) {
    char value[LINE];
    heading("Who I am");
    snprintf(value, sizeof(value), "%d", getpid());
    fact("pid", value,
         getpid() == 1 ? "first process of my own PID namespace" : "PID namespace shared with others");
    if (gethostname(value, sizeof(value)) == 0)
        fact("hostname", value,
             namespace_inode("uts") == UTS_INIT_INO ? "the host's, for I share its UTS namespace"
                                                    : "my own name, in my own UTS namespace");
    snprintf(value, sizeof(value), "uid %u, gid %u", getuid(), getgid());
    fact("user", value, getuid() == 0 ? "root, but see what is left of it below" : "not root");
}

static const struct {
    const char *name;
    uint32_t first; /* inode number of the kernel's first one; 0: not fixed on every kernel */
    const char *separates;
} namespaces[] = {
    {"pid", 0xEFFFFFFC, "process numbers"},
    {"mnt", 0, "mounts: the files that I see"},
    {"net", 0, "interfaces, addresses, ports"},
    {"uts", UTS_INIT_INO, "hostname"},
    {"ipc", 0xEFFFFFFF, "shared memory, message queues"},
    {"cgroup", 0xEFFFFFFB, "view of the limits' tree"},
    {"user", 0xEFFFFFFD, "user numbers"},
    {"time", 0xEFFFFFFA, "boot and monotonic clocks"},
};

static void show_namespaces(void) {
    const char *given = getenv("SCOW_HOST_NS");
    heading("Namespaces: what I see is my own");
    printf("  %s%-12s %-12s %s%s\n", dim, "", "here", "on the host", plain);
    for (size_t i = 0; i < COUNT(namespaces); i++) {
        char host_text[16] = "?";
        uint32_t here = namespace_inode(namespaces[i].name);
        if (!here)
            continue;
        uint32_t host = inode_in(given, namespaces[i].name);
        if (!host)
            host = namespaces[i].first;
        if (host)
            snprintf(host_text, sizeof(host_text), "%" PRIu32, host);
        printf("  %-12s %-12" PRIu32 " %-12s %-7s %s%s%s\n", namespaces[i].name, here, host_text,
               !host ? "" : here == host ? "shared" : "own", dim, namespaces[i].separates, plain);
    }
    if (!given)
        printf("  %scompare with `readlink /proc/self/ns/*` on the host%s\n", dim, plain);
}

static const char *mount_meaning(const char *point) {
    static const struct {
        const char *point, *meaning;
    } known[] = {
        {"/", "the image's layers, and a layer of mine on top for what I write"},
        {"/proc", "processes of my PID namespace only"},
        {"/sys", "the kernel's devices, not to be changed from here"},
        {"/sys/fs/cgroup", "my limits"},
        {"/dev", "a handful of harmless devices"},
        {"/dev/pts", "terminals of my own"},
        {"/dev/shm", "shared memory of my own"},
        {"/dev/mqueue", "message queues of my own"},
        {"/dev/console", "the terminal that I was started with"},
        {"/etc/hosts", "written by scow"},
        {"/etc/hostname", "written by scow"},
        {"/etc/resolv.conf", "written by scow"},
    };
    for (size_t i = 0; i < COUNT(known); i++)
        if (!strcmp(point, known[i].point))
            return known[i].meaning;
    return "";
}

static void show_mounts(void) {
    FILE *stream = fopen("/proc/self/mountinfo", "re");
    char line[LINE];
    int covered = 0, controllers = 0;
    if (!stream)
        return;
    heading("Mounts: my own tree of files");
    while (fgets(line, sizeof(line), stream)) {
        char point[1024], options[1024], type[64];
        const char *dash = strstr(line, " - ");
        if (!dash || sscanf(line, "%*s %*s %*s %*s %1023s %1023s", point, options) != 2 ||
            sscanf(dash, " - %63s", type) != 1)
            continue;
        const char *meaning = mount_meaning(point);
        bool inside_proc = !strncmp(point, "/proc/", 6) || !strncmp(point, "/sys/", 5);
        if (!strncmp(point, "/sys/fs/cgroup/", 15))
            controllers++;
        else if (inside_proc && !*meaning)
            covered++;
        else
            printf("  %-17s %-8s %s  %s%s%s\n", point, type, strncmp(options, "ro", 2) ? "rw" : "ro",
                   dim, meaning, plain);
    }
    fclose(stream);
    if (controllers)
        printf("  %sand %d controllers below /sys/fs/cgroup%s\n", dim, controllers, plain);
    if (covered)
        printf("  %sand %d places of /proc and /sys that are covered or read-only%s\n", dim, covered,
               plain);
}

/* linux/capability.h, in the order of their numbers. */
static const char *const capabilities[] = {
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid",
    "setpcap", "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw",
    "ipc_lock", "ipc_owner", "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct",
    "sys_admin", "sys_boot", "sys_nice", "sys_resource", "sys_time", "sys_tty_config", "mknod",
    "lease", "audit_write", "audit_control", "setfcap", "mac_override", "mac_admin", "syslog",
    "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf", "checkpoint_restore",
};

static void show_powers(void) {
    char value[LINE];
    heading("Powers: what is left of root");
    if (status_field("CapEff", value, sizeof(value))) {
        uint64_t mask = strtoull(value, NULL, 16);
        int count = __builtin_popcountll(mask), column = 0;
        printf("  %d of %zu capabilities:", count, COUNT(capabilities));
        for (size_t i = 0; i < COUNT(capabilities); i++) {
            if (!(mask >> i & 1))
                continue;
            printf("%s%s", column++ % 6 ? " " : "\n    ", capabilities[i]);
        }
        printf("\n");
    }
    if (status_field("NoNewPrivs", value, sizeof(value)))
        fact("no_new_privs", value[0] == '1' ? "on" : "off",
             value[0] == '1' ? "no set-uid program can give me more"
                             : "set-uid programs work; --security-opt no-new-privileges stops them");
    if (status_field("Seccomp", value, sizeof(value)))
        fact("seccomp", value[0] == '2' ? "filter" : value[0] == '1' ? "strict" : "off",
             value[0] == '2' ? "system calls that are not on a list are refused"
                             : "every system call may be tried");
}

/* The first of several files (v2's name, then v1's) that can be read. */
static bool limit_file(const char *const *paths, char *ret, int size) {
    for (; *paths; paths++)
        if (first_line(*paths, ret, size))
            return true;
    return false;
}

static void human_bytes(const char *text, char *ret, int size) {
    char *end;
    double value = (double)strtoull(text, &end, 10);
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    size_t unit = 0;
    /* v1 says "no limit" by the largest multiple of a page. */
    if (end == text || value > 9e18) {
        snprintf(ret, size, "no limit");
        return;
    }
    for (; value >= 1024 && unit + 1 < COUNT(units); unit++)
        value /= 1024;
    snprintf(ret, size, "%.4g %s", value, units[unit]);
}

static void show_memory(void) {
    static const char *const limit[] = {"/sys/fs/cgroup/memory.max",
                                        "/sys/fs/cgroup/memory/memory.limit_in_bytes", NULL};
    static const char *const usage[] = {"/sys/fs/cgroup/memory.current",
                                        "/sys/fs/cgroup/memory/memory.usage_in_bytes", NULL};
    char text[256], value[64], now[64], meaning[160] = "more than that and the kernel kills me";
    if (!limit_file(limit, text, sizeof(text)))
        return;
    human_bytes(text, value, sizeof(value));
    if (limit_file(usage, text, sizeof(text))) {
        human_bytes(text, now, sizeof(now));
        if (strcmp(value, "no limit"))
            snprintf(meaning, sizeof(meaning), "%s used now; past the limit the kernel kills me", now);
        else
            snprintf(meaning, sizeof(meaning), "%s used now; limit it with -m 64m", now);
    }
    fact("memory", value, meaning);
}

static void show_cpu(void) {
    char text[256], value[64] = "no limit";
    long long quota = -1, period = 0;
    static const char *const v1_quota[] = {"/sys/fs/cgroup/cpu/cpu.cfs_quota_us",
                                           "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", NULL};
    static const char *const v1_period[] = {"/sys/fs/cgroup/cpu/cpu.cfs_period_us",
                                            "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", NULL};
    if (first_line("/sys/fs/cgroup/cpu.max", text, sizeof(text))) {
        if (sscanf(text, "%lld %lld", &quota, &period) != 2)
            quota = -1;
    } else if (limit_file(v1_quota, text, sizeof(text))) {
        quota = atoll(text);
        period = limit_file(v1_period, text, sizeof(text)) ? atoll(text) : 0;
    } else {
        return;
    }
    if (quota > 0 && period > 0)
        snprintf(value, sizeof(value), "%.3g of a processor", (double)quota / (double)period);
    fact("cpu", value, quota > 0 ? "then I wait for the next period" : "limit it with --cpus 0.5");
}

static void show_limits(void) {
    static const char *const pids[] = {"/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max", NULL};
    char text[256];
    heading("Limits: read from my own control group");
    if (access("/sys/fs/cgroup", R_OK) != 0) {
        printf("  %s/sys/fs/cgroup is not mounted here%s\n", dim, plain);
        return;
    }
    show_memory();
    show_cpu();
    if (limit_file(pids, text, sizeof(text)))
        fact("processes", strcmp(text, "max") ? text : "no limit",
             strcmp(text, "max") ? "a fork bomb ends there" : "limit them with --pids-limit 64");
}

static void show_network(void) {
    struct ifaddrs *all;
    int others = 0;
    heading("Network");
    if (getifaddrs(&all) != 0)
        return;
    for (struct ifaddrs *one = all; one; one = one->ifa_next) {
        char text[INET6_ADDRSTRLEN], mask[INET6_ADDRSTRLEN];
        if (!one->ifa_addr || one->ifa_addr->sa_family != AF_INET || !one->ifa_netmask)
            continue;
        const struct sockaddr_in *address = (const struct sockaddr_in *)one->ifa_addr;
        const struct sockaddr_in *netmask = (const struct sockaddr_in *)one->ifa_netmask;
        bool loopback = one->ifa_flags & IFF_LOOPBACK;
        inet_ntop(AF_INET, &address->sin_addr, text, sizeof(text));
        snprintf(mask, sizeof(mask), "/%d", __builtin_popcount(netmask->sin_addr.s_addr));
        strncat(text, mask, sizeof(text) - strlen(text) - 1);
        others += !loopback;
        fact(one->ifa_name, text,
             loopback ? "only I am here" : "one end of a cable whose other end is on the host");
    }
    freeifaddrs(all);
    if (!others)
        printf("  %sno way out: --network none, or nothing else set up%s\n", dim, plain);
}

static void show_next(void) {
    static const char *const lines[][2] = {
        {"scow run --explain --dry-run scow/hello", "each step that makes a container, and why"},
        {"scow run --rm -it debian bash", "a shell in a real image"},
        {"scow run -d --name web -p 8080:80 nginx", "a server; then: curl 127.0.0.1:8080"},
        {"scow ps; scow logs -f web; scow rm -f web", "look at it, end it"},
        {"scow --help", "the rest"},
    };
    heading("What to type next (as root)");
    for (size_t i = 0; i < COUNT(lines); i++)
        printf("  %-43s %s%s%s\n", lines[i][0], dim, lines[i][1], plain);
}

int main(void) {
    if (isatty(STDOUT_FILENO) && !getenv("NO_COLOR")) {
        bold = "\033[1m";
        dim = "\033[2m";
        plain = "\033[0m";
    }
    printf("%sHello from inside a container.%s\n", bold, plain);
    printf("I am an ordinary process of this host. This is what the kernel keeps apart for me:\n");
    show_process();
    show_namespaces();
    show_mounts();
    show_powers();
    show_limits();
    show_network();
    show_next();
    return fflush(stdout) == 0 ? 0 : 1;
}
