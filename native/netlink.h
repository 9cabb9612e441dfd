/* Sending ready-made rtnetlink messages; their meaning is Python's (netns/). */
#ifndef SCOW_NETLINK_H
#define SCOW_NETLINK_H

#include "scow.h"

/* Sends the messages one by one in the netns of the caller, each acknowledged (NLM_F_ACK and the
 * sequence number are set here). 0, or -errno of the first that was refused: *ret_index says which. */
int netlink_send(char *messages, size_t length, uint32_t *ret_index);

#endif
