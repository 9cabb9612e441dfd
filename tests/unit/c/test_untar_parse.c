/* Unit tests of scow-untar's parsers; built with sanitizers by test_layers_untar_c.py. */
#include "../../../native/untar.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failed;

#define CHECK(condition)                                                      \
    do {                                                                      \
        if (!(condition)) {                                                   \
            printf("%s:%d: %s\n", __func__, __LINE__, #condition);            \
            failed = 1;                                                       \
        }                                                                     \
    } while (0)

static void test_fields(void)
{
    static const struct {
        char text[13];
        size_t size;
        int result;
        int64_t value;
    } cases[] = {
        { "0000644", 8, 0, 0644 },
        { "   644 ", 8, 0, 0644 },
        { "", 8, 0, 0 },
        { "77777777", 8, 0, 077777777 },
        { "777777777777", 12, 0, 0777777777777 },
        { "12a", 8, -EINVAL, 0 },
        { "-1", 8, -EINVAL, 0 },
        { "1 2", 8, -EINVAL, 0 },
        { "8", 8, -EINVAL, 0 },
        { "\x80\0\0\0\0\0\0\x01", 8, 0, 1 },
        { "\xff\xff\xff\xff\xff\xff\xff\xfe", 8, 0, -2 },
        { "\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", 12, 0, INT64_MAX },
        { "\x80\0\0\0\x80\0\0\0\0\0\0\0", 12, -ERANGE, 0 },
        { "\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", 12, 0, INT64_MIN },
        { "\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff", 12, -ERANGE, 0 },
        { "\x81\0\0\0\0\0\0\0\0\0\0\0", 12, -ERANGE, 0 },
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        unsigned char field[12] = { 0 };
        int64_t value = 0;
        int r;
        memcpy(field, cases[i].text, cases[i].size);
        r = untar_field(field, cases[i].size, &value);
        if (r != cases[i].result || (r == 0 && value != cases[i].value)) {
            printf("field %zu: %d %lld\n", i, r, (long long)value);
            failed = 1;
        }
    }
}

static void test_decimals(void)
{
    uint64_t value;

    CHECK(untar_decimal("18446744073709551615", 20, &value) == -ERANGE || value == UINT64_MAX);
    CHECK(untar_decimal("18446744073709551616", 20, &value) == -ERANGE);
    CHECK(untar_decimal("9223372036854775807", 19, &value) == 0 && value == INT64_MAX);
    CHECK(untar_decimal("", 0, &value) == -EINVAL);
    CHECK(untar_decimal("-1", 2, &value) == -EINVAL);
    CHECK(untar_decimal(" 1", 2, &value) == -EINVAL);
    CHECK(untar_decimal("1_0", 3, &value) == -EINVAL);
}

static void check_time(const char *text, int result, int64_t seconds, long nanos)
{
    struct timespec t = { 0 };
    int r = untar_time(text, strlen(text), &t);

    if (r != result || (r == 0 && (t.tv_sec != seconds || t.tv_nsec != nanos))) {
        printf("time '%s': %d %lld %ld\n", text, r, (long long)t.tv_sec, t.tv_nsec);
        failed = 1;
    }
}

static void test_times(void)
{
    check_time("0", 0, 0, 0);
    check_time("12.5", 0, 12, 500000000);
    check_time("12.", 0, 12, 0);
    check_time(".25", 0, 0, 250000000);
    check_time("1.9999999999999", 0, 1, 999999999);
    check_time("-1.25", 0, -2, 750000000);
    check_time("-0.1", 0, -1, 900000000);
    check_time("999999999999999999999999999", 0, INT64_C(1) << 48, 0);
    check_time("", -EINVAL, 0, 0);
    check_time("-", -EINVAL, 0, 0);
    check_time("1e3", -EINVAL, 0, 0);
    check_time("1.2.3", -EINVAL, 0, 0);
}

static void check_path(const char *path, int result, const char *clean)
{
    char out[UNTAR_PATH];
    int r = untar_clean_path(path, out);

    if (r != result || (r == 0 && strcmp(out, clean))) {
        printf("path '%.60s': %d\n", path, r);
        failed = 1;
    }
}

static void test_paths(void)
{
    char longest[2 * UNTAR_PATH];

    check_path("", 0, "");
    check_path("/", 0, "");
    check_path("./.", 0, "");
    check_path("a", 0, "a");
    check_path("//a//./b/", 0, "a/b");
    check_path("..", -EINVAL, "");
    check_path("a/..", -EINVAL, "");
    check_path("a/../b", -EINVAL, "");
    check_path("...", 0, "...");
    check_path("..a/a..", 0, "..a/a..");
    memset(longest, 'a', sizeof(longest));
    longest[UNTAR_PATH - 2] = '\0';
    check_path(longest, 0, longest);
    longest[UNTAR_PATH - 2] = 'a';
    longest[sizeof(longest) - 1] = '\0';
    check_path(longest, -ENAMETOOLONG, "");
    for (size_t i = 0; i + 1 < sizeof(longest); i += 2)
        memcpy(longest + i, "d/", 2);
    check_path(longest, -ELOOP, "");
}

static void test_whiteout_names(void)
{
    static const struct {
        const char *name;
        int kind;
    } cases[] = {
        { "a", WHITEOUT_NONE },          { "a/b.wh.c", WHITEOUT_NONE },     { ".wh", WHITEOUT_NONE },
        { ".wh.a", WHITEOUT_REMOVE },    { "d/.wh.a", WHITEOUT_REMOVE },    { ".wh..a", WHITEOUT_REMOVE },
        { ".wh....", WHITEOUT_REMOVE },  { ".wh..wh..opq", WHITEOUT_OPAQUE }, { "d/.wh..wh..opq", WHITEOUT_OPAQUE },
        { ".wh..wh.plnk", WHITEOUT_SKIP }, { ".wh..wh.plnk/x", WHITEOUT_SKIP }, { ".wh.", -EINVAL },
        { ".wh..", -EINVAL },            { ".wh...", -EINVAL },             { ".wh.a/b", -EINVAL },
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        if (untar_whiteout_kind(cases[i].name) != cases[i].kind) {
            printf("whiteout '%s': %d\n", cases[i].name, untar_whiteout_kind(cases[i].name));
            failed = 1;
        }
}

/* The buffer is exactly as long as untar.c's contract says, so that ASan sees one byte too many. */
static int parse(struct untar *u, const char *text, size_t size)
{
    unsigned char *data = malloc(size + 1);
    int r;

    untar_reset_overrides(u);
    u->failure.error = 0;
    memcpy(data, text, size);
    data[size] = 0;
    r = untar_parse_pax(u, data, size);
    free(data);
    return r;
}

#define PARSE(u, text) parse(u, text, sizeof(text) - 1)

static void test_pax(struct untar *u)
{
    CHECK(PARSE(u, "12 path=a/b\n") == 0 && u->over.has_path && !strcmp(u->over.path, "a/b"));
    CHECK(PARSE(u, "11 path=a\n\n") == 0 && !strcmp(u->over.path, "a\n"));
    CHECK(PARSE(u, "8 path=\n") == 0 && !u->over.has_path);
    CHECK(PARSE(u, "9 size=7\n8 uid=3\n8 gid=4\n") == 0 && u->over.size == 7 && u->over.uid == 3);
    CHECK(PARSE(u, "") == 0);
    CHECK(PARSE(u, "8 uid=3\n\0\0\0") == 0);
    CHECK(PARSE(u, "8 uid=3") == -EBADMSG);
    CHECK(PARSE(u, "9 uid=3\n") == -EBADMSG);
    CHECK(PARSE(u, "7 uid=3\n") == -EBADMSG);
    CHECK(PARSE(u, "1 a=b\n") == -EBADMSG);
    CHECK(PARSE(u, "-8 uid=3\n") == -EBADMSG);
    CHECK(PARSE(u, " 8 uid=3\n") == -EBADMSG);
    CHECK(PARSE(u, "7 uid 3\n") == -EBADMSG);
    CHECK(PARSE(u, "10 uid=3x\n") == -EBADMSG);
    CHECK(PARSE(u, "8 uid=\n\n") == -EBADMSG);
    CHECK(PARSE(u, "30 LIBARCHIVE.xattr.user.a=QUI\n") == -EBADMSG);
    CHECK(PARSE(u, "31 LIBARCHIVE.xattr.user.a=QUI\n") == 0 && u->over.n_xattrs == 1 && u->over.xattrs[0].size == 2);
    CHECK(PARSE(u, "31 LIBARCHIVE.xattr.user.a=Q!I\n") == -EBADMSG);
    CHECK(PARSE(u, "22 GNU.sparse.map=1,2\n") == 0 && u->over.is_sparse && u->n_segments == 1);
    CHECK(PARSE(u, "20 GNU.sparse.map=1\n") == -EBADMSG);
}

int main(void)
{
    struct untar *u = calloc(1, sizeof(*u));

    test_fields();
    test_decimals();
    test_times();
    test_paths();
    test_whiteout_names();
    test_pax(u);
    free(u);
    return failed;
}
