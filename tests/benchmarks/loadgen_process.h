/*
 * The time, the processor time of processes, and the way to end with a line: parts that every load generator needs.
 *
 * `fail` is the including file's own.
 */
enum { MAX_WATCHED = 16 }; /* processes whose time is read twice in a run */

struct watched {
    const char *label;
    size_t label_bytes;
    int pid;
    double before_s, cpu_s;
};

static double own_before_s, own_cpu_s;
static struct watched watched[MAX_WATCHED];
static unsigned watched_count;

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...);

static inline void *room(size_t count, size_t size)
{
    void *found = calloc(count, size);
    if (!found)
        fail("out of memory");
    return found;
}

static inline int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static inline double own_cpu(void)
{
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

/* All threads of a process, user and system, in seconds; the kernel's ticks make it good to 10 ms. */
static inline double cpu_of(int pid)
{
    char path[64], line[1024];
    unsigned long user = 0, system = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "r");
    size_t bytes = file ? fread(line, 1, sizeof line - 1, file) : 0;
    if (file)
        fclose(file);
    line[bytes] = 0;
    const char *rest = strrchr(line, ')'); /* a process may call itself anything, brackets included */
    if (!rest || sscanf(rest + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system) != 2)
        fail("process %d is gone", pid);
    return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

static inline void begin_cpu(void)
{
    own_before_s = own_cpu();
    for (unsigned i = 0; i < watched_count; i++)
        watched[i].before_s = cpu_of(watched[i].pid);
}

static inline void end_cpu(void)
{
    own_cpu_s = own_cpu() - own_before_s;
    for (unsigned i = 0; i < watched_count; i++)
        watched[i].cpu_s = cpu_of(watched[i].pid) - watched[i].before_s;
}

static inline uint64_t number_argument(const char *given, const char *name, uint64_t least, uint64_t most)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(given, &end, 10);
    if (errno || *end || end == given || *given == '-' || value < least || value > most) {
        fprintf(stderr, "loadgen: %s must be between %llu and %llu, not %s\n", name, (unsigned long long)least,
                (unsigned long long)most, given);
        exit(2);
    }
    return value;
}

static inline void watch_arguments(int count, char **given)
{
    for (int i = 0; i < count; i++) {
        const char *equals = strchr(given[i], '=');
        size_t label_bytes = equals ? (size_t)(equals - given[i]) : 0;
        if (watched_count == MAX_WATCHED || !label_bytes ||
            strspn(given[i], "abcdefghijklmnopqrstuvwxyz0123456789-") != label_bytes) {
            fprintf(stderr, "loadgen: at most %d LABEL=PID are expected, not %s\n", MAX_WATCHED, given[i]);
            exit(2);
        }
        int pid = (int)number_argument(equals + 1, "PID", 1, INT32_MAX);
        watched[watched_count++] = (struct watched){.label = given[i], .label_bytes = label_bytes, .pid = pid};
    }
}

static inline bool same_label(unsigned i, unsigned j)
{
    return watched[i].label_bytes == watched[j].label_bytes &&
           !memcmp(watched[i].label, watched[j].label, watched[i].label_bytes);
}

/* Processes of one label are one figure, printed where the label comes first. */
static inline void print_watched(unsigned i)
{
    double cpu_s = 0;
    for (unsigned j = 0; j < watched_count; j++) {
        if (same_label(i, j) && j < i)
            return;
        cpu_s += same_label(i, j) ? watched[j].cpu_s : 0;
    }
    printf(",\"%.*s\":%.3f", (int)watched[i].label_bytes, watched[i].label, cpu_s);
}

static inline void print_cpu(void)
{
    printf("\"cpu_s\":{\"loadgen\":%.6f", own_cpu_s);
    for (unsigned i = 0; i < watched_count; i++)
        print_watched(i);
    putchar('}');
}

static inline int by_size(const void *one, const void *other)
{
    int64_t a = *(const int64_t *)one, b = *(const int64_t *)other;
    return (a > b) - (a < b);
}

/* The nearest rank of sorted times: the smallest that at least `share` of all did not exceed, in microseconds. */
static inline double rank_us(const int64_t *sorted_ns, uint64_t count, double share)
{
    double exact = share * (double)count;
    uint64_t rank = (uint64_t)exact;
    rank += (double)rank < exact;
    return count ? (double)sorted_ns[rank ? rank - 1 : 0] / 1e3 : 0;
}
