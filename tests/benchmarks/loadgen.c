/*
 * Load generator of the benchmark: C connections with D messages in flight each, one thread, epoll, no blocking.
 *
 * It speaks three protocols. `bester`: native frames to a handler that echoes; a round trip is over when the delivered
 * message has come back AND, behind it, its good report. `nats`: PUB with a reply inbox, over when the reply has come.
 * `bester-tls` is `bester` inside TLS, where the generator was compiled with it.
 * `amqp`: Basic.Publish to a queue, over when the answer has come by direct reply-to.
 * Either way the body that comes back is compared byte for byte with the one that went out, and each message must
 * come back exactly once, on the connection it left by: anything else ends the run with one line and status 1.
 *
 * A message's time runs from just before the write() that carries it to just after the read() that ends it.
 * The first `warm` round trips are made and checked, not measured. Processor time is taken over the measured span alone:
 * this process's by getrusage, that of every watched process from /proc, so that one sees who was the bottleneck.
 *
 * It must never retry, skip or forgive: a figure from a run with a wrong answer in it is not a figure.
 *
 * loadgen bester|bester-tls|nats|amqp PORT CONNECTIONS DEPTH MESSAGES WARM BODY_BYTES DEADLINE_S [LABEL=PID …]
 * One line of JSON on standard output.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "loadgen_process.h"

enum {
    SLOT_BITS = 12,             /* a message's number is its place in the run, then its slot in the connection */
    MAX_DEPTH = 1 << SLOT_BITS, /* so no more can be in flight on one connection */
    NUMBER_DIGITS = 12,         /* fixed width: a frame is a template in which only digits change */
    MAX_MESSAGES = 100000000,   /* what fits in those digits */
    MAX_CONNECTIONS = 1024,     /* one process's usual descriptor limit */
    MAX_BODY = 1 << 19,         /* half of the server's default frame limit */
    MIN_BODY = 40,              /* the number, the keys and a little padding */
    SLACK_BYTES = 4096,         /* headers around a body; PONGs of ours that wait to be written */
    IN_BYTES = 1 << 20,         /* what one read may bring; more than the largest frame and its headers */
    SETUP_S = 15,               /* one login may wait for a busy server */
    STALL_MS = 10000,           /* nothing at all for that long: the run is lost */
};

struct slot {
    uint64_t number;
    int64_t sent_ns;
    bool open, delivered;
};

struct connection {
    int fd;
    unsigned index;
    struct slot *slots;
    uint32_t *unused; /* a stack of slots */
    unsigned unused_count;
    char *template;
    size_t template_bytes, number_at[2];
    char *in, *out;
    size_t in_used, out_used, out_from, out_room;
    bool wants_write;
    void *tls; /* the session of TLS; NULL for plain bytes */
};

struct text {
    const char *at;
    size_t bytes;
};

struct protocol {
    const char *name;
    bool tls;
    void (*template)(struct connection *c);
    size_t (*hello)(struct connection *c, char *at);
    size_t (*greeted)(struct connection *c);
    size_t (*take)(struct connection *c, const char *at, size_t bytes, int64_t now);
};

static struct {
    const struct protocol *protocol;
    unsigned port, connections, depth;
    uint64_t messages, warm;
    size_t body_bytes;
    int64_t deadline_ns;
} wanted;

static char *body; /* what every message says, its number apart */
static size_t body_number_at;
static uint64_t sent, completed;
static int64_t *latency_ns;
static int64_t begun_ns, ended_ns;
static int poller;

static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("loadgen: ", stderr);
    vfprintf(stderr, format, arguments);
    fprintf(stderr, " (%llu of %llu round trips done)\n", (unsigned long long)completed,
            (unsigned long long)(wanted.warm + wanted.messages));
    va_end(arguments);
    exit(1);
}

static void begin_measuring(int64_t now)
{
    begun_ns = now;
    begin_cpu();
}

static void end_measuring(int64_t now)
{
    ended_ns = now;
    end_cpu();
}

/* ---- messages in flight --------------------------------------------------------------------------------------- */

static void write_number(char *at, uint64_t number)
{
    for (int i = NUMBER_DIGITS - 1; i >= 0; i--, number /= 10)
        at[i] = (char)('0' + number % 10);
}

static uint64_t read_number(const char *at)
{
    uint64_t number = 0;
    for (int i = 0; i < NUMBER_DIGITS; i++) {
        if (at[i] < '0' || at[i] > '9')
            fail("not a number of ours: %.*s", NUMBER_DIGITS, at);
        number = number * 10 + (uint64_t)(at[i] - '0');
    }
    return number;
}

static struct slot *slot_of(struct connection *c, uint64_t number)
{
    uint64_t index = number & (MAX_DEPTH - 1);
    if (index >= wanted.depth || !c->slots[index].open || c->slots[index].number != number)
        fail("connection %u got an answer about message %llu, which it does not wait for", c->index,
             (unsigned long long)number);
    return &c->slots[index];
}

/* The number in a body that came back, once all the rest of it is found to be what was sent. */
static uint64_t number_in(struct text came)
{
    size_t after = body_number_at + NUMBER_DIGITS;
    if (came.bytes != wanted.body_bytes || memcmp(came.at, body, body_number_at) ||
        memcmp(came.at + after, body + after, came.bytes - after))
        fail("a body came back changed: %.*s", (int)(came.bytes < 200 ? came.bytes : 200), came.at);
    return read_number(came.at + body_number_at);
}

static void complete(struct connection *c, struct slot *slot, int64_t now)
{
    slot->open = slot->delivered = false;
    c->unused[c->unused_count++] = (uint32_t)(slot - c->slots);
    if (completed >= wanted.warm)
        latency_ns[completed - wanted.warm] = now - slot->sent_ns;
    completed++;
    if (completed == wanted.warm)
        begin_measuring(now);
    if (completed == wanted.warm + wanted.messages)
        end_measuring(now);
}

#include "loadgen_json.h"
#include "loadgen_protocols.h"
#include "loadgen_amqp.h"
#include "loadgen_stream.h"

static const struct protocol protocols[] = {
    {"bester", false, bester_template, bester_hello, bester_greeted, bester_take},
    {"bester-tls", true, bester_template, bester_hello, bester_greeted, bester_take},
    {"nats", false, nats_template, nats_hello, nats_greeted, nats_take},
    {"amqp", false, amqp_template, amqp_hello, amqp_greeted, amqp_take},
};

static const struct protocol *protocol_named(const char *name)
{
    for (size_t i = 0; i < sizeof protocols / sizeof *protocols; i++)
        if (!strcmp(protocols[i].name, name))
            return &protocols[i];
    return NULL;
}

/* ---- connections ------------------------------------------------------------------------------------------------ */

static void send_all(struct connection *c, const char *at, size_t bytes)
{
    while (bytes) {
        ssize_t gone = give(c, at, bytes, 0);
        if (gone <= 0)
            fail("cannot write: %s", strerror(errno));
        at += gone;
        bytes -= (size_t)gone;
    }
}

/* Connect and say who we are, blocking but bounded: nothing is measured yet. */
static void greet(struct connection *c)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)wanted.port)};
    struct timeval patience = {.tv_sec = SETUP_S};
    int on = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address))
        fail("cannot connect to 127.0.0.1:%u: %s", wanted.port, strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (wanted.protocol->tls)
        secure(c);
    char hello[512];
    send_all(c, hello, wanted.protocol->hello(c, hello));
    size_t used;
    while (!(used = wanted.protocol->greeted(c))) {
        ssize_t came = take(c, c->in + c->in_used, IN_BYTES - c->in_used, 0);
        if (came <= 0)
            fail("no answer to the greeting: %s", came ? strerror(errno) : "connection closed");
        c->in_used += (size_t)came;
    }
    c->in_used -= used;
    memmove(c->in, c->in + used, c->in_used);
    stop_blocking(c);
    struct epoll_event wish = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &wish))
        fail("epoll: %s", strerror(errno));
}

static void open_connection(struct connection *c, unsigned index)
{
    c->index = index;
    c->slots = room(wanted.depth, sizeof *c->slots);
    c->unused = room(wanted.depth, sizeof *c->unused);
    c->unused_count = wanted.depth;
    for (unsigned i = 0; i < wanted.depth; i++)
        c->unused[i] = wanted.depth - 1 - i;
    c->template = room(1, wanted.body_bytes + SLACK_BYTES);
    wanted.protocol->template(c);
    c->in = room(1, IN_BYTES + 8); /* a comparison of a few bytes may look past what has come */
    /* Only messages in flight can be waiting here, so this holds them all. */
    c->out_room = wanted.depth * c->template_bytes + SLACK_BYTES;
    c->out = room(1, c->out_room);
    greet(c);
}

static void flush(struct connection *c)
{
    if (c->out_from == c->out_used)
        return;
    ssize_t gone = give(c, c->out + c->out_from, c->out_used - c->out_from, MSG_DONTWAIT);
    if (gone < 0 && errno != EAGAIN && errno != EINTR)
        fail("cannot write: %s", strerror(errno));
    c->out_from += gone > 0 ? (size_t)gone : 0;
    if (c->out_from == c->out_used) {
        c->out_from = c->out_used = 0;
    } else {
        c->out_used -= c->out_from;
        memmove(c->out, c->out + c->out_from, c->out_used);
        c->out_from = 0;
    }
    bool waits = c->out_used > 0;
    if (waits != c->wants_write) {
        struct epoll_event wish = {.events = waits ? EPOLLIN | EPOLLOUT : EPOLLIN, .data.ptr = c};
        epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &wish);
        c->wants_write = waits;
    }
}

/* Put as many new messages in flight as the depth allows, in one write. */
static void fill(struct connection *c)
{
    uint64_t total = wanted.warm + wanted.messages;
    int64_t now = now_ns();
    while (c->unused_count && sent < total) {
        uint32_t index = c->unused[--c->unused_count];
        uint64_t number = sent++ << SLOT_BITS | index;
        char *at = c->out + c->out_used;
        memcpy(at, c->template, c->template_bytes);
        write_number(at + c->number_at[0], number);
        write_number(at + c->number_at[1], number);
        c->out_used += c->template_bytes;
        c->slots[index] = (struct slot){.number = number, .sent_ns = now, .open = true};
    }
    flush(c);
}

/* Take what one read brings; false where nothing had come. */
static bool drain_once(struct connection *c)
{
    ssize_t came = take(c, c->in + c->in_used, IN_BYTES - c->in_used, MSG_DONTWAIT);
    if (came < 0 && (errno == EAGAIN || errno == EINTR))
        return false;
    if (came <= 0)
        fail("connection %u: %s", c->index, came ? strerror(errno) : "closed by the server");
    int64_t now = now_ns();
    size_t from = 0, used;
    c->in_used += (size_t)came;
    while (from < c->in_used && (used = wanted.protocol->take(c, c->in + from, c->in_used - from, now)))
        from += used;
    c->in_used -= from;
    memmove(c->in, c->in + from, c->in_used);
    return true;
}

static void drain(struct connection *c)
{
    /* A read of TLS brings one record; what OpenSSL has read beyond it would wake nobody. */
    while (drain_once(c) && c->tls)
        ;
}

static void run(struct connection *connections)
{
    struct epoll_event events[64];
    uint64_t total = wanted.warm + wanted.messages;
    if (!wanted.warm)
        begin_measuring(now_ns());
    for (unsigned i = 0; i < wanted.connections; i++)
        fill(&connections[i]);
    while (completed < total) {
        int count = epoll_wait(poller, events, 64, STALL_MS);
        if (count == 0)
            fail("nothing came for %d s", STALL_MS / 1000);
        if (count < 0 && errno != EINTR)
            fail("epoll: %s", strerror(errno));
        for (int i = 0; i < count; i++) {
            if (events[i].events & ~(uint32_t)EPOLLOUT)
                drain(events[i].data.ptr);
            fill(events[i].data.ptr);
        }
        if (now_ns() > wanted.deadline_ns)
            fail("the run's deadline has passed");
    }
}

/* ---- arguments and the result ------------------------------------------------------------------------------------- */

static void read_arguments(int count, char **given)
{
    wanted.protocol = count < 9 ? NULL : protocol_named(given[1]);
    if (!wanted.protocol) {
        fputs("usage: loadgen bester|bester-tls|nats|amqp PORT CONNECTIONS DEPTH MESSAGES WARM BODY_BYTES DEADLINE_S "
              "[LABEL=PID ...]\n",
              stderr);
        exit(2);
    }
    wanted.port = (unsigned)number_argument(given[2], "PORT", 1, 65535);
    wanted.connections = (unsigned)number_argument(given[3], "CONNECTIONS", 1, MAX_CONNECTIONS);
    wanted.depth = (unsigned)number_argument(given[4], "DEPTH", 1, MAX_DEPTH);
    wanted.messages = number_argument(given[5], "MESSAGES", 1, MAX_MESSAGES);
    wanted.warm = number_argument(given[6], "WARM", 0, MAX_MESSAGES);
    wanted.body_bytes = number_argument(given[7], "BODY_BYTES", MIN_BODY, MAX_BODY);
    wanted.deadline_ns = now_ns() + (int64_t)number_argument(given[8], "DEADLINE_S", 1, 3600) * 1000000000;
    watch_arguments(count - 9, given + 9);
}

/* A JSON object of exactly the size asked for. */
static void write_body(void)
{
    static const char before[] = "{\"n\":\"", between[] = "\",\"text\":\"", after[] = "\"}";
    body = room(1, wanted.body_bytes + 1);
    body_number_at = sizeof before - 1;
    size_t at = (size_t)sprintf(body, "%s%0*d%s", before, NUMBER_DIGITS, 0, between);
    for (unsigned letter = 0; at < wanted.body_bytes - (sizeof after - 1); letter++)
        body[at++] = (char)('a' + letter % 26);
    strcpy(body + at, after);
}

static void print_result(void)
{
    double seconds = (double)(ended_ns - begun_ns) / 1e9;
    qsort(latency_ns, wanted.messages, sizeof *latency_ns, by_size);
    printf("{\"protocol\":\"%s\",\"connections\":%u,\"depth\":%u,\"body_bytes\":%zu,\"messages\":%llu,"
           "\"seconds\":%.6f,\"p50_us\":%.3f,\"p99_us\":%.3f,\"max_us\":%.3f,",
           wanted.protocol->name, wanted.connections, wanted.depth, wanted.body_bytes,
           (unsigned long long)wanted.messages, seconds, rank_us(latency_ns, wanted.messages, 0.5),
           rank_us(latency_ns, wanted.messages, 0.99), rank_us(latency_ns, wanted.messages, 1.0));
    print_cpu();
    puts("}");
}

int main(int count, char **given)
{
    read_arguments(count, given);
    write_body();
    if (wanted.protocol->tls)
        prepare_tls();
    latency_ns = room(wanted.messages, sizeof *latency_ns);
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (poller < 0)
        fail("epoll: %s", strerror(errno));
    struct connection *connections = room(wanted.connections, sizeof *connections);
    for (unsigned i = 0; i < wanted.connections; i++)
        open_connection(&connections[i], i);
    run(connections);
    print_result();
    return 0;
}
