/*
 * The honest user of the overload benchmark: one connection, one question to echo every EVERY_MS, whatever comes back.
 *
 * A question's time runs from the moment when it was due to the moment when its report has come, so that a server that
 * stands still is measured by every question that it kept waiting, not by the first alone. Questions without a report
 * GRACE_MS after the last one count with the time that they have waited by then.
 *
 * honest PORT EVERY_MS LEAD_MS MEASURED_MS
 * One line of JSON on standard output.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "loadgen_process.h"
#include "client.h"

enum {
    GRACE_MS = 3000,        /* three times what an honest user should have to wait at most */
    MAX_QUESTIONS = 999999, /* as many as there are ids of six digits */
    IN_BYTES = 1 << 16,
};

static int64_t *due_ns, *took_ns;
static uint64_t asked, first, answered, good, bad, overloaded;

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("honest: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

static void hear(void *it, const char *head, size_t bytes)
{
    static const char key[] = "\"id\":\"q";
    (void)it;
    if (!holds(head, bytes, "\"statusReport\""))
        return;
    const char *id = memmem(head, bytes, key, sizeof key - 1);
    uint64_t number = id ? strtoull(id + sizeof key - 1, NULL, 10) : UINT64_MAX;
    if (number >= asked || took_ns[number])
        fail("a report on nothing that was asked: %.*s", (int)bytes, head);
    took_ns[number] = now_ns() - due_ns[number];
    if (number < first)
        return;
    answered++;
    if (holds(head, bytes, "\"status\":\"good\"")) {
        good++;
    } else {
        bad++;
        overloaded += holds(head, bytes, "\"reason\":\"overloaded\"");
    }
}

/* Write a question; false where the socket is full, and the question must be tried again. */
static bool ask(int fd, int64_t due)
{
    static char frame[256];
    static size_t from, used;
    if (from == used) {
        int bytes = sprintf(frame + 4, "{\"header\":{},\"payload\":{\"type\":\"echo\",\"data\":\"honest\",\"id\":\"q%06llu\"}}",
                            (unsigned long long)asked);
        put_length(frame, (size_t)bytes);
        from = 0;
        used = (size_t)bytes + 4;
    }
    ssize_t gone = send(fd, frame + from, used - from, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (gone < 0 && errno != EAGAIN && errno != EINTR)
        fail("cannot write: %s", strerror(errno));
    from += gone > 0 ? (size_t)gone : 0;
    if (from < used)
        return false;
    due_ns[asked++] = due;
    return true;
}

static void listen_for(int fd, struct frames *frames, int64_t until)
{
    static char in[IN_BYTES];
    struct pollfd wish = {.fd = fd, .events = POLLIN};
    int64_t left = until - now_ns();
    struct timespec wait = {.tv_sec = left / 1000000000, .tv_nsec = left % 1000000000};
    if (left <= 0 || ppoll(&wish, 1, &wait, NULL) <= 0)
        return;
    ssize_t came = recv(fd, in, sizeof in, MSG_DONTWAIT);
    if (came == 0 || (came < 0 && errno != EAGAIN && errno != EINTR))
        fail("the server has ended the connection: %s", came ? strerror(errno) : "closed");
    if (came > 0)
        hop(frames, in, (size_t)came, hear, NULL);
}

int main(int count, char **given)
{
    if (count < 5) {
        fputs("usage: honest PORT EVERY_MS LEAD_MS MEASURED_MS\n", stderr);
        return 2;
    }
    unsigned port = (unsigned)number_argument(given[1], "PORT", 1, 65535);
    int64_t every = (int64_t)number_argument(given[2], "EVERY_MS", 1, 60000) * 1000000;
    int64_t lead = (int64_t)number_argument(given[3], "LEAD_MS", 0, 3600000) * 1000000;
    int64_t measured = (int64_t)number_argument(given[4], "MEASURED_MS", 1, 3600000) * 1000000;
    uint64_t most = (uint64_t)((lead + measured) / every) + 1;
    if (most > MAX_QUESTIONS)
        fail("at most %d questions can be asked", MAX_QUESTIONS);
    due_ns = room(most, sizeof *due_ns);
    took_ns = room(most, sizeof *took_ns);
    struct frames frames = {0};
    int fd = log_in(port, "honest");
    wait_for_start();
    int64_t start = now_ns(), end = start + lead + measured, next = start;
    first = (uint64_t)((lead + every - 1) / every);
    while (now_ns() < end) {
        if (now_ns() >= next && ask(fd, next)) {
            next += every;
            continue;
        }
        int64_t soon = now_ns() + 1000000; /* a full socket is tried again after so long */
        listen_for(fd, &frames, next > soon ? next : soon);
    }
    int64_t latest = now_ns() + GRACE_MS * 1000000ll;
    while (answered < (asked > first ? asked - first : 0) && now_ns() < latest)
        listen_for(fd, &frames, latest);
    /* What could not even be written was due all the same. */
    for (; asked < most && next < end; next += every)
        due_ns[asked++] = next;
    uint64_t questions = asked > first ? asked - first : 0;
    int64_t now = now_ns();
    for (uint64_t i = first; i < asked; i++)
        if (!took_ns[i])
            took_ns[i] = now - due_ns[i];
    qsort(took_ns + (questions ? first : 0), questions, sizeof *took_ns, by_size);
    const int64_t *sorted = took_ns + (questions ? first : 0);
    printf("{\"asked\":%llu,\"good\":%llu,\"bad\":%llu,\"overloaded\":%llu,\"unanswered\":%llu,\"p50_us\":%.3f,"
           "\"p99_us\":%.3f,\"worst_us\":%.3f}\n",
           (unsigned long long)questions, (unsigned long long)good, (unsigned long long)bad,
           (unsigned long long)overloaded, (unsigned long long)(questions - answered), rank_us(sorted, questions, 0.5),
           rank_us(sorted, questions, 0.99), rank_us(sorted, questions, 1.0));
    return 0;
}
