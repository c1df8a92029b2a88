/*
 * Just enough JSON to read a server's frame, its keys in whatever order. Part of loadgen.c, which has `struct text`
 * and `fail`. It checks no more than it needs to find a member: what matters in one is compared by its reader.
 */
static const char *after_string(const char *at, const char *end)
{
    const char *begin = at++;
    while ((at = memchr(at, '"', (size_t)(end - at)))) {
        const char *slash = at;
        while (slash - 1 > begin && slash[-1] == '\\')
            slash--;
        at++;
        if ((at - 1 - slash) % 2 == 0)
            return at;
    }
    fail("a frame with an unfinished string");
}

static const char *after_space(const char *at, const char *end)
{
    while (at < end && (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t'))
        at++;
    if (at == end)
        fail("a frame that is not JSON");
    return at;
}

static const char *after_value(const char *at, const char *end)
{
    unsigned depth = 0;
    for (; at < end; at++) {
        if (*at == '"') {
            at = after_string(at, end);
            if (!depth)
                return at;
            at--;
        } else if (*at == '{' || *at == '[') {
            depth++;
        } else if (*at == '}' || *at == ']') {
            if (!depth)
                return at;
            if (!--depth)
                return at + 1;
        } else if (!depth && (*at == ',' || *at == ' ')) {
            return at;
        }
    }
    return at;
}

/* The member `key` of an object's text, empty if there is none. */
static struct text member(struct text object, const char *key)
{
    const char *at = object.at, *end = at + object.bytes;
    size_t key_bytes = strlen(key);
    if (!object.bytes || *at != '{')
        return (struct text){NULL, 0};
    for (at = after_space(at + 1, end); *at == '"'; at = after_space(at + 1, end)) {
        const char *name = at + 1, *name_end = after_string(at, end) - 1;
        at = after_space(name_end + 1, end);
        if (*at != ':')
            break;
        const char *value = after_space(at + 1, end);
        at = after_value(value, end);
        if ((size_t)(name_end - name) == key_bytes && !memcmp(name, key, key_bytes))
            return (struct text){value, (size_t)(at - value)};
        at = after_space(at, end);
        if (*at != ',')
            break;
    }
    return (struct text){NULL, 0};
}

static bool is(struct text found, const char *json)
{
    return found.bytes == strlen(json) && !memcmp(found.at, json, found.bytes);
}
