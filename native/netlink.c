#include "netlink.h"

#include <linux/netlink.h>
#include <sys/socket.h>

/* The kernel's answer to one message: 0 or -errno. */
static int read_ack(int sock, uint32_t sequence) {
    char buffer[8192] __attribute__((aligned(8)));
    for (;;) {
        ssize_t n = recv(sock, buffer, sizeof buffer, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        const struct nlmsghdr *head = (const struct nlmsghdr *)(const void *)buffer;
        size_t left = (size_t)n;
        while (left >= sizeof *head && head->nlmsg_len >= sizeof *head && head->nlmsg_len <= left) {
            if (head->nlmsg_seq == sequence && head->nlmsg_type == NLMSG_ERROR &&
                head->nlmsg_len >= sizeof *head + sizeof(int))
                return *(const int *)(const void *)(head + 1);
            size_t step = NLMSG_ALIGN(head->nlmsg_len);
            if (step >= left)
                break;
            left -= step;
            head = (const struct nlmsghdr *)(const void *)((const char *)head + step);
        }
    }
}

int netlink_send(char *messages, size_t length, uint32_t *ret_index) {
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
    const int one = 1;
    *ret_index = 0;
    cleanup_fd int sock = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (sock < 0)
        return -errno;
    /* without it the kernel sends the whole message back with an error */
    setsockopt(sock, SOL_NETLINK, NETLINK_CAP_ACK, &one, sizeof one);
    for (size_t at = 0; at < length; ++*ret_index) {
        struct nlmsghdr *head = (struct nlmsghdr *)(void *)(messages + at);
        if (length - at < sizeof *head || head->nlmsg_len < sizeof *head || head->nlmsg_len > length - at)
            return -EBADMSG;
        head->nlmsg_flags |= NLM_F_REQUEST | NLM_F_ACK;
        head->nlmsg_seq = *ret_index + 1;
        if (sendto(sock, head, head->nlmsg_len, 0, (struct sockaddr *)&kernel, sizeof kernel) < 0)
            return -errno;
        int r = read_ack(sock, head->nlmsg_seq);
        if (r < 0)
            return r;
        at += NLMSG_ALIGN(head->nlmsg_len);
    }
    return 0;
}
