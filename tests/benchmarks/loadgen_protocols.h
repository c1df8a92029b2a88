/*
 * Two of the protocols that the load generator speaks. Part of loadgen.c, which has the connections and the slots. Of each:
 * NAME_template writes a message once, so that later ones only change digits; NAME_hello is the first thing said;
 * NAME_greeted and NAME_take read what came and return how many bytes they used, 0 until the whole of it is there.
 */
/* ---- bester: native frames -------------------------------------------------------------------------------------- */

static void put_length(char *at, size_t bytes)
{
    for (int i = 0; i < 4; i++)
        at[i] = (char)(bytes >> 8 * i & 0xff);
}

static void bester_template(struct connection *c)
{
    static const char before[] = "{\"header\":{},\"payload\":{\"type\":\"echo\",\"data\":", between[] = ",\"id\":\"";
    size_t data_at = 4 + sizeof before - 1, id_at = data_at + wanted.body_bytes + sizeof between - 1;
    int bytes = sprintf(c->template + 4, "%s%s%s%0*d\"}}", before, body, between, NUMBER_DIGITS, 0);
    put_length(c->template, (size_t)bytes);
    c->template_bytes = (size_t)bytes + 4;
    c->number_at[0] = data_at + body_number_at;
    c->number_at[1] = id_at;
}

/* Of several generators at one server each has users of its own: what is echoed goes to every connection of a user. */
#ifndef USER
#define USER "load"
#endif

static size_t bester_hello(struct connection *c, char *at)
{
    int bytes = sprintf(at + 4,
                        "{\"header\":{\"scope\":\"client\",\"authentication\":{\"username\":\"" USER "%u\",\"password\":"
                        "\"load\"}},\"payload\":{\"data\":null,\"type\":\"dummy\"}}",
                        c->index);
    put_length(at, (size_t)bytes);
    return (size_t)bytes + 4;
}

/* The body of the first whole frame at `at`, and its size with the length before it; 0 when it is not all there. */
static size_t bester_frame(const char *at, size_t bytes, struct text *found)
{
    const unsigned char *head = (const unsigned char *)at;
    if (bytes < 4)
        return 0;
    size_t length = head[0] | (size_t)head[1] << 8 | (size_t)head[2] << 16 | (size_t)head[3] << 24;
    if (!length || length > IN_BYTES - 4)
        fail("a frame of %zu bytes", length);
    if (bytes < 4 + length)
        return 0;
    *found = (struct text){at + 4, length};
    return 4 + length;
}

static size_t bester_greeted(struct connection *c)
{
    struct text frame;
    size_t bytes = bester_frame(c->in, c->in_used, &frame);
    if (bytes && !is(member(member(frame, "header"), "status"), "\"good\""))
        fail("login refused: %.*s", (int)frame.bytes, frame.at);
    return bytes;
}

static size_t bester_take(struct connection *c, const char *at, size_t bytes, int64_t now)
{
    struct text frame, header, payload;
    size_t used = bester_frame(at, bytes, &frame);
    if (!used)
        return 0;
    header = member(frame, "header");
    payload = member(frame, "payload");
    struct text kind = member(header, "messageType");
    if (is(kind, "\"receivedMessage\"")) {
        struct slot *slot = slot_of(c, number_in(member(payload, "data")));
        if (slot->delivered)
            fail("message %llu was delivered twice", (unsigned long long)slot->number);
        slot->delivered = true;
    } else if (is(kind, "\"statusReport\"") && is(member(header, "status"), "\"good\"")) {
        struct text id = member(payload, "id");
        if (id.bytes != NUMBER_DIGITS + 2)
            fail("a report about something else: %.*s", (int)frame.bytes, frame.at);
        struct slot *slot = slot_of(c, read_number(id.at + 1));
        if (!slot->delivered)
            fail("message %llu was reported good before it was delivered", (unsigned long long)slot->number);
        complete(c, slot, now);
    } else {
        fail("the server says: %.*s", (int)(frame.bytes < 300 ? frame.bytes : 300), frame.at);
    }
    return used;
}

/* ---- nats: its text protocol ------------------------------------------------------------------------------------ */

static void nats_template(struct connection *c)
{
    int head = sprintf(c->template, "PUB bench.echo _INBOX.load%u.", c->index);
    c->number_at[0] = (size_t)head;
    head += sprintf(c->template + head, "%0*d %zu\r\n", NUMBER_DIGITS, 0, wanted.body_bytes);
    c->number_at[1] = (size_t)head + body_number_at;
    head += sprintf(c->template + head, "%s\r\n", body);
    c->template_bytes = (size_t)head;
}

static size_t nats_hello(struct connection *c, char *at)
{
    return (size_t)sprintf(at,
                           "CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"c\",\"version\":\"1\","
                           "\"protocol\":0}\r\nSUB _INBOX.load%u.* 1\r\nPING\r\n",
                           c->index);
}

static size_t nats_greeted(struct connection *c)
{
    const char *pong = memmem(c->in, c->in_used, "\r\nPONG\r\n", 8);
    if (memmem(c->in, c->in_used, "-ERR", 4))
        fail("nats-server says: %.*s", (int)c->in_used, c->in);
    return pong ? (size_t)(pong + 8 - c->in) : 0;
}

static size_t nats_take(struct connection *c, const char *at, size_t bytes, int64_t now)
{
    const char *newline = memchr(at, '\n', bytes);
    if (!newline)
        return 0;
    size_t line = (size_t)(newline + 1 - at);
    if (!memcmp(at, "MSG ", 4)) {
        const char *size_at = memrchr(at, ' ', line), *number_end = memchr(at + 4, ' ', line - 4);
        size_t size = strtoul(size_at + 1, NULL, 10);
        if (!size_at || !number_end || size > wanted.body_bytes || number_end - at < 4 + NUMBER_DIGITS)
            fail("not an answer of ours: %.*s", (int)line, at);
        if (bytes < line + size + 2)
            return 0;
        uint64_t number = number_in((struct text){at + line, size});
        if (number != read_number(number_end - NUMBER_DIGITS))
            fail("an answer came to another message's inbox: %.*s", (int)line, at);
        complete(c, slot_of(c, number), now);
        return line + size + 2;
    }
    if (!memcmp(at, "PING", 4)) {
        if (c->out_used + 6 > c->out_room)
            fail("nats-server asks and does not read");
        memcpy(c->out + c->out_used, "PONG\r\n", 6);
        c->out_used += 6;
    } else if (memcmp(at, "PONG", 4) && memcmp(at, "INFO", 4)) {
        fail("nats-server says: %.*s", (int)line, at);
    }
    return line;
}
