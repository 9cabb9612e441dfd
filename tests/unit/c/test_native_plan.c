/* plan_parse under the sanitizers, and with -DFUZZER under libFuzzer (tests/fuzz/run.py). As a program:
 * "parse FILE" says what it is; "fuzz FILE COUNT SEED" changes the block at random and touches everything
 * that the child and the monitor would touch. */
#include <stdio.h>
#include <stdlib.h>

#include "plan.h"

static volatile size_t sink;

static void touch_vector(char **vector) {
    for (; vector && *vector; vector++)
        sink += strlen(*vector);
}

static void touch_bytes(const void *bytes, size_t n) {
    for (size_t i = 0; i < n; i++)
        sink += ((const unsigned char *)bytes)[i];
}

static void touch_op(const struct plan *plan, const struct plan_op *op) {
    for (int i = 0; i < 3; i++)
        sink += strlen(plan_text(plan, op->text[i]));
    if (op->code == OP_EXECUTE) {
        char **argv = (char **)(void *)(plan->block + op->blob);
        touch_vector(argv);
        touch_vector(argv + op->num[0] + 1);
    } else if (op->blob != PLAN_NONE) {
        touch_bytes(plan->block + op->blob, op->blob_len);
    }
    if (op->code == OP_MOUNT_FILESYSTEM) {
        const uint32_t *pair = (const uint32_t *)(const void *)(plan->block + op->blob);
        for (uint32_t i = 0; i < 2 * op->count; i++)
            sink += strlen(plan_text(plan, pair[i]));
    }
    if (op->code == OP_SET_USER || op->code == OP_JOIN_CGROUPS)
        touch_bytes(plan->block + op->blob, op->count * 4u);
    if (op->fd != PLAN_NONE && op->fd >= plan->n_fds)
        abort();
}

static void touch(const struct plan *plan) {
    const char *texts[] = {plan->container_id, plan->log_path, plan->socket_path, plan->exit_path,
                           plan->status_path,  plan->uid_map,  plan->gid_map};
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++)
        sink += strlen(texts[i]);
    touch_vector(plan->cleanup_argv);
    touch_vector(plan->cleanup_env);
    touch_bytes(plan->host_netlink, plan->host_netlink_len);
    for (uint32_t i = 0; i < plan->n_pid_offsets; i++)
        touch_bytes(plan->host_netlink + plan->pid_offsets[i], 4);
    for (uint32_t i = 0; i < plan->n_ops; i++)
        touch_op(plan, &plan->ops[i]);
}

#ifdef FUZZER
int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);
int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size) {
    struct plan plan;
    struct failure failure;
    struct plan_header head;
    char *block = malloc(size ? size : 1); /* exactly: one byte beyond is a report */
    memcpy(block, data, size);
    if (size >= sizeof head) { /* what a change of the length would only hide behind */
        memcpy(&head, block, sizeof head);
        memcpy(head.magic, PLAN_MAGIC, sizeof head.magic);
        head.size = (uint32_t)size;
        memcpy(block, &head, sizeof head);
    }
    if (plan_parse(block, size, &plan, &failure) == 0)
        touch(&plan);
    free(block);
    return 0;
}
#else
static uint32_t next(uint32_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}

static void change(char *block, size_t size, uint32_t *state) {
    static const uint32_t odd[] = {0, 1, 7, 8, 143, 144, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff};
    for (uint32_t n = next(state) % 4 + 1; n; n--) {
        size_t at = next(state) % 3 ? next(state) % size : next(state) % 144;
        uint32_t value = next(state) % 2 ? odd[next(state) % ARRAY_SIZE(odd)] : next(state) % (uint32_t)(size + 16);
        if (next(state) % 4 == 0)
            block[at] = (char)next(state);
        else if (at / 4 * 4 + 4 <= size)
            memcpy(block + at / 4 * 4, &value, 4);
    }
}

int main(int argc, char **argv) {
    struct plan plan;
    struct failure failure = {0, 0, 0, 0};
    static char original[1 << 20];
    FILE *file = argc > 2 ? fopen(argv[2], "rb") : NULL;
    if (!file)
        return 2;
    size_t size = fread(original, 1, sizeof original, file);
    fclose(file);
    bool fuzz = strcmp(argv[1], "fuzz") == 0;
    uint32_t state = fuzz ? (uint32_t)atoi(argv[4]) | 1 : 1;
    int good = 0, count = fuzz ? atoi(argv[3]) : 1;
    for (int i = 0; i < count; i++) {
        char *block = malloc(size); /* exactly: one byte beyond is a report */
        memcpy(block, original, size);
        if (fuzz)
            change(block, size, &state);
        if (plan_parse(block, size, &plan, &failure) == 0) {
            touch(&plan);
            good++;
        }
        if (!fuzz)
            printf("%d %u %d %u %u %s\n", good, failure.step, failure.error, failure.index, failure.detail,
                   good ? plan.container_id : "");
        free(block);
    }
    if (fuzz)
        printf("%d\n", good);
    return 0;
}
#endif
