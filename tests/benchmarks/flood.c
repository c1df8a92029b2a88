/*
 * Load generator of the overload benchmark: it asks for more than the server can do, and counts the answers.
 *
 * C connections of U users, one thread, epoll. With a WINDOW each connection keeps so many messages unanswered. Without
 * one (0) messages are due at RATE a second, over all connections, whatever comes back: a connection writes what is due
 * as far as the socket takes it; what has been due for longer than DEBT_MS is given up, as by a user who turns away.
 * RATE 0 holds the connections and sends nothing.
 *
 * MIX names the messages, e.g. `echo:100*3,dummy:0*1`: three of type echo with 100 bytes of data for one ping. All
 * frames are made beforehand and written from one buffer; answers are counted by hopping over the frames: the server
 * and its handler need the cores more than this process does.
 *
 * The first LEAD_MS count for nothing. One line of JSON on standard output. With SETTLE_MS it goes on
 * to read, after the measured time, until nothing is without an answer on the connections that live, or no answer has
 * come for so long: what then is without one counts as lost.
 *
 * flood PORT CONNECTIONS USERS WINDOW RATE LEAD_MS MEASURED_MS SETTLE_MS MIX [LABEL=PID …]
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
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
#include "client.h"

enum {
    MAX_CONNECTIONS = 60000, /* a machine's usual descriptors and ports */
    MAX_KINDS = 8,
    MAX_CYCLE = 100,         /* messages until the mix begins again */
    BUFFER_BYTES = 1 << 18,  /* frames ready to be written at once; at least one cycle */
    IN_BYTES = 1 << 18,      /* what one read may bring */
    TICK_MS = 5,             /* messages become due that often */
    DEBT_MS = 100,
};

struct connection {
    int fd;
    struct frames in;
    size_t frame, byte;  /* where in the buffer the next byte to write stands */
    uint64_t unanswered;
    double due;          /* messages that may be written now, without a window */
    bool wants_write, closed;
};

static struct {
    unsigned port, connections, users, window;
    double rate;
    int64_t lead_ns, measured_ns, settle_ns;
} wanted;

static char *buffer;
static size_t *ends; /* of each frame in the buffer */
static size_t frames_in_buffer;
static int poller;
static struct counts {
    uint64_t sent, good, bad, overloaded, unknown, pongs, delivered, closed;
} counts, before;

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("flood: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

/* ---- frames to write --------------------------------------------------------------------------------------------- */

struct kind {
    char type[64];
    size_t bytes, count, done;
};

static size_t write_frame(char *at, const struct kind *kind)
{
    size_t used = 4 + (size_t)sprintf(at + 4, "{\"header\":{},\"payload\":{\"type\":\"%s\",\"data\":\"", kind->type);
    memset(at + used, 'x', kind->bytes);
    used += kind->bytes;
    used += (size_t)sprintf(at + used, "\",\"id\":\"f\"}}");
    put_length(at, used - 4);
    return used;
}

/* Fill the buffer with whole cycles, in each of which the kinds are spread evenly. */
static void write_buffer(char *mix)
{
    struct kind kinds[MAX_KINDS];
    size_t count = 0, cycle = 0, cycle_bytes = 0;
    for (char *part = strtok(mix, ","); part; part = strtok(NULL, ",")) {
        struct kind *kind = &kinds[count];
        if (count++ == MAX_KINDS || sscanf(part, "%63[^:]:%zu*%zu", kind->type, &kind->bytes, &kind->count) != 3 ||
            !kind->count || kind->bytes > 1 << 20)
            fail("a mix is TYPE:BYTES*COUNT[,…], not %s", part);
        kind->done = 0;
        cycle += kind->count;
        cycle_bytes += kind->count * (kind->bytes + 256);
    }
    if (!cycle || cycle > MAX_CYCLE)
        fail("a mix has 1 to %d messages", MAX_CYCLE);
    size_t cycles = 1 + BUFFER_BYTES / cycle_bytes;
    buffer = room(cycles, cycle_bytes);
    ends = room(cycles * cycle, sizeof *ends);
    size_t used = 0;
    for (size_t i = 0; i < cycles * cycle; i++) {
        struct kind *next = kinds; /* the kind that is furthest behind its share */
        for (struct kind *kind = kinds; kind < kinds + count; kind++)
            if ((kind->done + 1) * next->count < (next->done + 1) * kind->count)
                next = kind;
        next->done++;
        used += write_frame(buffer + used, next);
        ends[frames_in_buffer++] = used;
    }
}

/* ---- connections -------------------------------------------------------------------------------------------------- */

static void close_connection(struct connection *c)
{
    c->closed = true;
    counts.closed++;
    close(c->fd);
}

static void wish(struct connection *c, bool write)
{
    if (write == c->wants_write)
        return;
    struct epoll_event event = {.events = write ? EPOLLIN | EPOLLOUT : EPOLLIN, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event);
    c->wants_write = write;
}

/* Write what may be written now, and ask to be woken where the socket is full. */
static void push(struct connection *c)
{
    for (;;) {
        bool begun = c->byte && c->byte != (c->frame ? ends[c->frame - 1] : 0);
        double free = wanted.window ? (double)wanted.window - (double)c->unanswered : c->due;
        size_t allowed = free >= 1 ? (size_t)free : 0, left = frames_in_buffer - c->frame;
        if (begun)
            allowed++; /* a frame that was counted when it began */
        if (!allowed)
            break;
        size_t last = c->frame + (allowed < left ? allowed : left);
        ssize_t gone = send(c->fd, buffer + c->byte, ends[last - 1] - c->byte, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (gone < 0 && errno != EAGAIN && errno != EINTR) {
            close_connection(c);
            return;
        }
        if (gone > 0) {
            size_t from = c->frame + begun;
            c->byte += (size_t)gone;
            while (c->frame < last && ends[c->frame] <= c->byte)
                c->frame++;
            size_t start = c->frame ? ends[c->frame - 1] : 0;
            size_t reached = c->frame + (c->byte > start);
            size_t begun_now = reached > from ? reached - from : 0;
            counts.sent += begun_now;
            c->unanswered += begun_now;
            c->due -= wanted.window ? 0 : (double)begun_now;
        }
        bool full = c->byte < ends[last - 1];
        if (c->frame == frames_in_buffer)
            c->frame = c->byte = 0;
        if (full) {
            wish(c, true);
            return;
        }
    }
    wish(c, false);
}

static void count_frame(void *it, const char *head, size_t bytes)
{
    struct connection *c = it;
    if (holds(head, bytes, "\"statusReport\"")) {
        if (holds(head, bytes, "\"status\":\"good\"")) {
            counts.good++;
        } else {
            counts.bad++;
            counts.overloaded += holds(head, bytes, "\"reason\":\"overloaded\"");
            counts.unknown += holds(head, bytes, "\"reason\":\"unknown-type\"");
        }
    } else if (holds(head, bytes, "\"status\":\"0\"")) {
        counts.pongs++;
    } else {
        counts.delivered++;
        return;
    }
    c->unanswered -= c->unanswered > 0;
}

static void pull(struct connection *c)
{
    static char in[IN_BYTES];
    ssize_t came = recv(c->fd, in, sizeof in, MSG_DONTWAIT);
    if (came < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (came <= 0) {
        close_connection(c);
        return;
    }
    hop(&c->in, in, (size_t)came, count_frame, c);
}

static void let_due(struct connection *connections, double seconds)
{
    double more = wanted.rate * seconds / wanted.connections, most = wanted.rate * DEBT_MS / 1e3 / wanted.connections;
    for (unsigned i = 0; i < wanted.connections; i++) {
        struct connection *c = &connections[i];
        if (c->closed)
            continue;
        c->due = c->due + more < most + 1 ? c->due + more : most + 1;
        if (!c->wants_write)
            push(c);
    }
}

static double run(struct connection *connections)
{
    struct epoll_event events[256];
    int64_t start = now_ns(), begin = start + wanted.lead_ns, end = begin + wanted.measured_ns, last = start, began = 0;
    for (unsigned i = 0; wanted.window && i < wanted.connections; i++)
        push(&connections[i]);
    for (;;) {
        int64_t now = now_ns();
        if (!began && now >= begin) {
            began = now;
            before = counts;
            begin_cpu();
        }
        if (now >= end) {
            end_cpu();
            return (double)(now - began) / 1e9;
        }
        if (!wanted.window && wanted.rate > 0 && now - last >= TICK_MS * 1000000ll) {
            let_due(connections, (double)(now - last) / 1e9);
            last = now;
        }
        int count = epoll_wait(poller, events, 256, TICK_MS);
        if (count < 0 && errno != EINTR)
            fail("epoll: %s", strerror(errno));
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            if (events[i].events & ~(uint32_t)EPOLLOUT)
                pull(c);
            if (!c->closed && (wanted.window || events[i].events & EPOLLOUT))
                push(c);
        }
    }
}

/* Finish the frames that are begun, begin no others, and return the number of messages that get no answer. */
static uint64_t settle(struct connection *connections)
{
    struct epoll_event events[256];
    int64_t until = now_ns() + wanted.settle_ns;
    uint64_t last = 0;
    wanted.window = 0;
    for (;;) {
        uint64_t unanswered = 0;
        for (unsigned i = 0; i < wanted.connections; i++) {
            connections[i].due = 0;
            unanswered += connections[i].closed ? 0 : connections[i].unanswered;
        }
        if (unanswered != last)
            until = now_ns() + wanted.settle_ns;
        last = unanswered;
        if (!unanswered || now_ns() >= until)
            return unanswered;
        int count = epoll_wait(poller, events, 256, TICK_MS);
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            if (events[i].events & ~(uint32_t)EPOLLOUT)
                pull(c);
            if (!c->closed && events[i].events & EPOLLOUT)
                push(c);
        }
    }
}

int main(int count, char **given)
{
    if (count < 10) {
        fputs("usage: flood PORT CONNECTIONS USERS WINDOW RATE LEAD_MS MEASURED_MS SETTLE_MS MIX [LABEL=PID ...]\n", stderr);
        return 2;
    }
    wanted.port = (unsigned)number_argument(given[1], "PORT", 1, 65535);
    wanted.connections = (unsigned)number_argument(given[2], "CONNECTIONS", 1, MAX_CONNECTIONS);
    wanted.users = (unsigned)number_argument(given[3], "USERS", 1, MAX_CONNECTIONS);
    wanted.window = (unsigned)number_argument(given[4], "WINDOW", 0, 1000000);
    wanted.rate = (double)number_argument(given[5], "RATE", 0, 1000000000);
    wanted.lead_ns = (int64_t)number_argument(given[6], "LEAD_MS", 0, 3600000) * 1000000;
    wanted.measured_ns = (int64_t)number_argument(given[7], "MEASURED_MS", 1, 3600000) * 1000000;
    wanted.settle_ns = (int64_t)number_argument(given[8], "SETTLE_MS", 0, 3600000) * 1000000;
    write_buffer(given[9]);
    watch_arguments(count - 10, given + 10);
    raise_descriptors();
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (poller < 0)
        fail("epoll: %s", strerror(errno));
    struct connection *connections = room(wanted.connections, sizeof *connections);
    for (unsigned i = 0; i < wanted.connections; i++) {
        char user[32];
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &connections[i]};
        snprintf(user, sizeof user, "flood%u", i % wanted.users);
        connections[i].fd = log_in(wanted.port, user);
        if (epoll_ctl(poller, EPOLL_CTL_ADD, connections[i].fd, &event))
            fail("epoll: %s", strerror(errno));
    }
    wait_for_start();
    double seconds = run(connections);
    struct counts after = counts;
    uint64_t lost = wanted.settle_ns ? settle(connections) : 0;
    printf("{\"seconds\":%.6f,\"sent\":%llu,\"good\":%llu,\"bad\":%llu,\"overloaded\":%llu,\"unknown\":%llu,"
           "\"pongs\":%llu,\"delivered\":%llu,\"closed\":%llu,\"lost\":%llu,",
           seconds, (unsigned long long)(after.sent - before.sent), (unsigned long long)(after.good - before.good),
           (unsigned long long)(after.bad - before.bad), (unsigned long long)(after.overloaded - before.overloaded),
           (unsigned long long)(after.unknown - before.unknown), (unsigned long long)(after.pongs - before.pongs),
           (unsigned long long)(after.delivered - before.delivered), (unsigned long long)counts.closed,
           (unsigned long long)lost);
    print_cpu();
    puts("}");
    return 0;
}
