/*
 * AMQP 0-9-1 as the load generator speaks it, to RabbitMQ: direct reply-to, so that no queue is made for answers. Part
 * of loadgen.c; see loadgen_protocols.h for the functions of a protocol.
 */
enum {
    AMQP_METHOD = 1,
    AMQP_HEADER = 2,
    AMQP_BODY = 3,
    AMQP_END = 0xce,
    AMQP_AROUND = 8, /* bytes of a frame around its payload */
    AMQP_CHANNEL = 1,
    AMQP_FRAME_MAX = 131072, /* RabbitMQ's own limit */
};
#define AMQP_REPLY_TO "amq.rabbitmq.reply-to"
#define METHOD(class, method) ((unsigned)(class) << 16 | (method))

struct amqp_frame {
    unsigned type;
    const unsigned char *at; /* the payload */
    size_t bytes;
};

static char *put_number(char *at, uint64_t value, int bytes)
{
    while (bytes--)
        *at++ = (char)(value >> 8 * bytes & 0xff);
    return at;
}

static char *put_short_text(char *at, const char *text)
{
    *at = (char)strlen(text);
    return stpcpy(at + 1, text);
}

static uint64_t get_number(const unsigned char *at, int bytes)
{
    uint64_t value = 0;
    while (bytes--)
        value = value << 8 | *at++;
    return value;
}

/* Begin a frame; `amqp_end` writes its length. */
static char *amqp_begin(char *at, unsigned type, unsigned channel)
{
    *at = (char)type;
    return put_number(put_number(at + 1, channel, 2), 0, 4);
}

static char *amqp_end(char *begun, char *at)
{
    put_number(begun + 3, (uint64_t)(at - begun - 7), 4);
    *at = (char)AMQP_END;
    return at + 1;
}

static char *amqp_method(char *at, unsigned channel, unsigned method)
{
    return put_number(amqp_begin(at, AMQP_METHOD, channel), method, 4);
}

static void amqp_template(struct connection *c)
{
    if (wanted.body_bytes > AMQP_FRAME_MAX - AMQP_AROUND)
        fail("bodies of more than one AMQP frame are not written");
    char *begun = c->template, *at = amqp_method(begun, AMQP_CHANNEL, METHOD(60, 40)); /* Basic.Publish */
    at = put_number(at, 0, 2);
    at = put_short_text(at, ""); /* the default exchange */
    at = put_short_text(at, "bench.echo");
    at = amqp_end(begun, put_number(at, 0, 1));

    begun = at;
    at = put_number(amqp_begin(at, AMQP_HEADER, AMQP_CHANNEL), METHOD(60, 0), 4);
    at = put_number(at, wanted.body_bytes, 8);
    at = put_number(at, 0x0600, 2); /* correlation-id and reply-to */
    *at++ = NUMBER_DIGITS;
    c->number_at[0] = (size_t)(at - c->template);
    at += NUMBER_DIGITS;
    at = amqp_end(begun, put_short_text(at, AMQP_REPLY_TO));

    begun = at;
    at = amqp_begin(at, AMQP_BODY, AMQP_CHANNEL);
    c->number_at[1] = (size_t)(at - c->template) + body_number_at;
    memcpy(at, body, wanted.body_bytes);
    c->template_bytes = (size_t)(amqp_end(begun, at + wanted.body_bytes) - c->template);
}

/* The whole greeting at once: RabbitMQ reads each frame when it is ready for it. */
static size_t amqp_hello(struct connection *c, char *at)
{
    char *first = at, *begun;
    (void)c;
    memcpy(at, "AMQP\0\0\11\1", 8);
    at += 8;
    at = amqp_method(begun = at, 0, METHOD(10, 11)); /* Connection.StartOk */
    at = put_number(at, 0, 4);
    at = put_short_text(at, "PLAIN");
    at = put_number(at, 12, 4);
    memcpy(at, "\0guest\0guest", 12);
    at = put_short_text(at + 12, "en_US");
    at = amqp_end(begun, at);
    at = amqp_method(begun = at, 0, METHOD(10, 31)); /* Connection.TuneOk: one channel, no heartbeats */
    at = put_number(put_number(put_number(at, AMQP_CHANNEL, 2), AMQP_FRAME_MAX, 4), 0, 2);
    at = amqp_end(begun, at);
    at = amqp_method(begun = at, 0, METHOD(10, 40)); /* Connection.Open */
    at = put_number(put_short_text(at, "/"), 0, 2);
    at = amqp_end(begun, at);
    at = amqp_method(begun = at, AMQP_CHANNEL, METHOD(20, 10)); /* Channel.Open */
    at = amqp_end(begun, put_number(at, 0, 1));
    at = amqp_method(begun = at, AMQP_CHANNEL, METHOD(60, 20)); /* Basic.Consume */
    at = put_short_text(put_number(at, 0, 2), AMQP_REPLY_TO);
    at = put_number(put_short_text(at, ""), 2, 1); /* no acks */
    at = amqp_end(begun, put_number(at, 0, 4));
    return (size_t)(at - first);
}

/* The frame at `at`, and its size with what is around it; 0 when it is not all there. */
static size_t amqp_frame(const char *at, size_t bytes, struct amqp_frame *found)
{
    const unsigned char *head = (const unsigned char *)at;
    if (bytes < 7)
        return 0;
    *found = (struct amqp_frame){head[0], head + 7, (size_t)get_number(head + 3, 4)};
    if (found->bytes > AMQP_FRAME_MAX)
        fail("an AMQP frame of %zu bytes", found->bytes);
    if (bytes < found->bytes + AMQP_AROUND)
        return 0;
    if (found->at[found->bytes] != AMQP_END)
        fail("an AMQP frame without its end");
    return found->bytes + AMQP_AROUND;
}

static unsigned amqp_method_of(struct amqp_frame frame)
{
    unsigned method = frame.type == AMQP_METHOD && frame.bytes >= 4 ? (unsigned)get_number(frame.at, 4) : 0;
    if ((method == METHOD(10, 50) || method == METHOD(20, 40)) && frame.bytes >= 7) /* Connection.Close, Channel.Close */
        fail("RabbitMQ says: %.*s", (int)frame.at[6], (const char *)frame.at + 7);
    return method;
}

static size_t amqp_greeted(struct connection *c)
{
    struct amqp_frame frame;
    size_t from = 0, used;
    while ((used = amqp_frame(c->in + from, c->in_used - from, &frame))) {
        from += used;
        if (amqp_method_of(frame) == METHOD(60, 21)) /* Basic.ConsumeOk */
            return from;
    }
    return 0;
}

/* The correlation-id in a content header. */
static struct text amqp_correlation(struct amqp_frame header)
{
    const unsigned char *at = header.at + 14, *end = header.at + header.bytes;
    unsigned flags = header.bytes >= 14 ? (unsigned)get_number(header.at + 12, 2) : 0;
    for (int bit = 15; bit > 10 && at < end; bit--) {
        if (!(flags >> bit & 1))
            continue;
        if (bit >= 14) /* content-type and -encoding */
            at += 1 + *at;
        else if (bit == 13 && at + 4 <= end) /* headers */
            at += 4 + get_number(at, 4);
        else /* delivery-mode and priority */
            at++;
    }
    if (!(flags >> 10 & 1) || at >= end || at + 1 + *at > end)
        fail("an answer without a correlation-id");
    return (struct text){(const char *)at + 1, *at};
}

static size_t amqp_take(struct connection *c, const char *at, size_t bytes, int64_t now)
{
    struct amqp_frame method, header, content;
    size_t first, second, third;
    if (!(first = amqp_frame(at, bytes, &method)))
        return 0;
    if (amqp_method_of(method) != METHOD(60, 60)) /* Basic.Deliver */
        fail("RabbitMQ sends a frame of type %u that is no answer", method.type);
    if (!(second = amqp_frame(at + first, bytes - first, &header)) ||
        !(third = amqp_frame(at + first + second, bytes - first - second, &content)))
        return 0;
    if (header.type != AMQP_HEADER || content.type != AMQP_BODY)
        fail("an answer is not in three frames");
    struct text correlation = amqp_correlation(header);
    uint64_t number = number_in((struct text){(const char *)content.at, content.bytes});
    if (correlation.bytes != NUMBER_DIGITS || number != read_number(correlation.at))
        fail("an answer has another message's correlation-id: %.*s", (int)correlation.bytes, correlation.at);
    complete(c, slot_of(c, number), now);
    return first + second + third;
}
