/* Numbers of tar: octal fields, base-256 fields (GNU, star), decimals of extended headers. */
#include "untar.h"

#include <errno.h>

/* Base-256: the first bit marks it, the second is the sign; two's complement, big endian. */
static int parse_base256(const unsigned char *field, size_t size, int64_t *ret)
{
    bool negative = field[0] & 0x40;
    uint64_t value = negative ? UINT64_MAX : 0;

    for (size_t i = 0; i < size; i++) {
        unsigned char byte = field[i];
        if (i == 0)
            byte = negative ? (unsigned char)(byte | 0x80) : (unsigned char)(byte & 0x7f);
        /* What is shifted out must be nothing but the sign. */
        if (value >> 55 != (negative ? UINT64_MAX >> 55 : 0))
            return -ERANGE;
        value = (value << 8) | byte;
    }
    *ret = (int64_t)value;
    return 0;
}

/* A header field: spaces and NULs may lead and must follow the digits. An empty field is 0. */
int untar_field(const unsigned char *field, size_t size, int64_t *ret)
{
    uint64_t value = 0;
    size_t i = 0;

    if (field[0] & 0x80)
        return parse_base256(field, size, ret);
    while (i < size && (field[i] == ' ' || field[i] == '\0'))
        i++;
    for (; i < size && field[i] >= '0' && field[i] <= '7'; i++)
        value = (value << 3) | (uint64_t)(field[i] - '0'); /* at most 12 digits: 36 bits */
    for (; i < size; i++)
        if (field[i] != ' ' && field[i] != '\0')
            return -EINVAL;
    *ret = (int64_t)value;
    return 0;
}

int untar_decimal(const char *text, size_t size, uint64_t *ret)
{
    uint64_t value = 0;

    if (size == 0)
        return -EINVAL;
    for (size_t i = 0; i < size; i++) {
        if (text[i] < '0' || text[i] > '9')
            return -EINVAL;
        if (value > (UINT64_MAX - 9) / 10)
            return -ERANGE;
        value = value * 10 + (uint64_t)(text[i] - '0');
    }
    *ret = value;
    return 0;
}

/* "[-]seconds[.fraction]"; what no clock can hold is clamped (the file system clamps further). */
int untar_time(const char *text, size_t size, struct timespec *ret)
{
    const int64_t most = INT64_C(1) << 48;
    bool negative = size > 0 && text[0] == '-';
    int64_t seconds = 0;
    long nanos = 0, unit = 100000000;
    size_t i = negative;

    if (i == size)
        return -EINVAL;
    for (; i < size && text[i] != '.'; i++) {
        if (text[i] < '0' || text[i] > '9')
            return -EINVAL;
        if (seconds < most)
            seconds = seconds * 10 + (text[i] - '0');
    }
    for (i++; i < size; i++) {
        if (text[i] < '0' || text[i] > '9')
            return -EINVAL;
        nanos += unit * (text[i] - '0');
        unit /= 10;
    }
    if (seconds > most)
        seconds = most;
    if (negative) {
        seconds = -seconds;
        if (nanos > 0) {
            seconds--;
            nanos = 1000000000 - nanos;
        }
    }
    *ret = (struct timespec){ .tv_sec = (time_t)seconds, .tv_nsec = nanos };
    return 0;
}
