/* Text into a fixed buffer, without stdio: printf costs a static program more than all of these.
 * What does not fit is cut off and `full` is set. */
#ifndef SCOW_MONITOR_TEXT_H
#define SCOW_MONITOR_TEXT_H

#include "scow.h"

struct text {
    char *data;
    size_t len, cap;
    bool full;
};

static inline void text_bytes(struct text *text, const char *data, size_t len) {
    if (len > text->cap - text->len) {
        text->full = true;
        len = text->cap - text->len;
    }
    memcpy(text->data + text->len, data, len);
    text->len += len;
}

static inline void text_str(struct text *text, const char *str) {
    text_bytes(text, str, strlen(str));
}

/* At least `width` digits, zeros in front. */
static inline void text_u64(struct text *text, uint64_t value, int width) {
    char digits[20];
    int at = sizeof(digits);
    do {
        digits[--at] = (char)('0' + value % 10);
        value /= 10;
    } while (value || (int)sizeof(digits) - at < width);
    text_bytes(text, digits + at, sizeof(digits) - (size_t)at);
}

static inline void text_i64(struct text *text, int64_t value) {
    if (value < 0) {
        text_str(text, "-");
        text_u64(text, -(uint64_t)value, 1);
        return;
    }
    text_u64(text, (uint64_t)value, 1);
}

#endif
