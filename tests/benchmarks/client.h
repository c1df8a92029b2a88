/*
 * A client of the native protocol: connect, log in, hop over the frames that come. Part of flood.c and honest.c.
 *
 * Frames are told apart by their first bytes alone, so that counting costs next to nothing beside the server's work.
 */
enum {
    SETUP_S = 15,       /* one login may wait for a busy server */
    HEAD_BYTES = 256,   /* of a frame, to tell what it is: a report's status, id and reason stand before its end */
    FIRST_FRAME = 1024, /* the answer to a login is far shorter */
};

/* A stream of frames, of which only the head is kept. */
struct frames {
    char head[4 + HEAD_BYTES];
    size_t head_used; /* bytes of the length and the head that have come */
    size_t to_skip;   /* bytes of the frame behind its head that are still to come */
};

static inline void put_length(char *at, size_t bytes)
{
    for (int i = 0; i < 4; i++)
        at[i] = (char)(bytes >> 8 * i & 0xff);
}

static inline size_t length_at(const char *at)
{
    const unsigned char *head = (const unsigned char *)at;
    return head[0] | (size_t)head[1] << 8 | (size_t)head[2] << 16 | (size_t)head[3] << 24;
}

static inline bool holds(const char *head, size_t bytes, const char *text)
{
    return memmem(head, bytes, text, strlen(text)) != NULL;
}

/* Call `each` with the head of every frame whose head is complete by these bytes. */
static inline void hop(struct frames *frames, const char *at, size_t bytes, void (*each)(void *, const char *, size_t), void *it)
{
    while (bytes) {
        if (frames->to_skip) {
            size_t step = bytes < frames->to_skip ? bytes : frames->to_skip;
            frames->to_skip -= step;
            at += step;
            bytes -= step;
            continue;
        }
        size_t length = frames->head_used >= 4 ? length_at(frames->head) : 0;
        size_t wanted = frames->head_used < 4 ? 4 : 4 + (length < HEAD_BYTES ? length : HEAD_BYTES);
        size_t step = wanted - frames->head_used;
        step = bytes < step ? bytes : step;
        memcpy(frames->head + frames->head_used, at, step);
        frames->head_used += step;
        at += step;
        bytes -= step;
        if (frames->head_used < 4 || frames->head_used < wanted)
            continue;
        length = length_at(frames->head);
        wanted = 4 + (length < HEAD_BYTES ? length : HEAD_BYTES);
        if (frames->head_used < wanted)
            continue;
        each(it, frames->head + 4, wanted - 4);
        frames->to_skip = length - (wanted - 4);
        frames->head_used = 0;
    }
}

/* As many descriptors as the system allows, as the server itself takes. */
static inline void raise_descriptors(void)
{
    struct rlimit limit;
    if (!getrlimit(RLIMIT_NOFILE, &limit)) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static inline void receive_all(int fd, char *at, size_t bytes)
{
    while (bytes) {
        ssize_t came = recv(fd, at, bytes, 0);
        if (came <= 0)
            fail("no answer to a login: %s", came ? strerror(errno) : "connection closed");
        at += came;
        bytes -= (size_t)came;
    }
}

/* Connect and log in, blocking but bounded; return the descriptor, which does not block any more. */
static inline int log_in(unsigned port, const char *user)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    struct timeval patience = {.tv_sec = SETUP_S}, none = {0};
    char frame[FIRST_FRAME];
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address))
        fail("cannot connect to 127.0.0.1:%u: %s", port, strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    int bytes = snprintf(frame + 4, sizeof frame - 4,
                         "{\"header\":{\"scope\":\"client\",\"authentication\":{\"username\":\"%s\",\"password\":"
                         "\"load\"}},\"payload\":{\"data\":null,\"type\":\"dummy\"}}",
                         user);
    put_length(frame, (size_t)bytes);
    if (send(fd, frame, (size_t)bytes + 4, MSG_NOSIGNAL) != bytes + 4)
        fail("cannot write a login: %s", strerror(errno));
    receive_all(fd, frame, 4);
    size_t length = length_at(frame);
    if (length > sizeof frame)
        fail("the answer to a login has %zu bytes", length);
    receive_all(fd, frame, length);
    if (!holds(frame, length, "\"status\":\"good\""))
        fail("login refused: %.*s", (int)length, frame);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &none, sizeof none);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

/* Print that every login is done, and wait for the line that starts all generators together. */
static inline void wait_for_start(void)
{
    char line[16];
    puts("ready");
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin))
        exit(0); /* the benchmark has given up */
}
