/* load.c - the load generator: one thread, epoll, millions of deliveries a second; one JSON line of results.
 *
 * Groups of one publisher and N subscribers. Every message carries the marker @@<nanoseconds>,<sequence>@@; what
 * comes back is counted, timed and checked by it, so loss, repeats and disorder cannot hide behind a good rate.
 *
 *   closed loop  --window W: a group has W messages under way, a new one goes when one is complete: received by all
 *                its subscribers, or, without subscribers, acknowledged to the publisher (--ack TEXT).
 *   open loop    --rate R: R messages a second and group, whatever comes back. Latency counts from the moment a
 *                message was due, so that a slow server cannot slow its own clock.
 *   idle         --idle N: open N connections, hold them, report what each costs the server's memory.
 *
 * Speaks WebSocket; --tcp leaves it out, --nats puts NATS' line protocol inside either, --post sends by HTTP POST.
 * Templates know {g} (group), {i} (subscriber), {marker}, {pad} (fills up to --size), {length} and {body}. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include "wire.h"

#define NANO 1000000000ull
enum { MARKER_BYTES = 29, EVENTS = 512, READ_BYTES = 256 * 1024, OPENING_AT_ONCE = 64, IDLE_WARM_UP = 50 };
enum { CONNECT_SECONDS = 40, STALL_SECONDS = 2, DRAIN_SECONDS = 5, MAX_BACKLOG = 1 << 20 };

enum state { CONNECTING, UPGRADING, JOINING, READY, CLOSED };

/* What a subscriber or a publisher says first: the path of its WebSocket, a greeting, and the text it waits for. */
struct role {
    const char *path, *greeting, *ready;
    bool websocket, nats, http;
};

struct connection {
    struct role *role;
    struct group *group;
    int fd, index;
    bool subscriber, awaits_write;
    enum state state;
    uint32_t last_sequence;
    struct buffer in, lines, out; /* in: an incomplete frame; lines: NATS text taken out of WebSocket frames */
};

struct group {
    struct connection *publisher;
    uint8_t *message;         /* as it goes out, but for the frame; the marker is patched for each send */
    size_t length, marker_at;
    uint64_t sent, completed; /* completed counts deliveries (sent x subscribers of them) or acknowledgements */
    uint64_t *sent_at;        /* a ring of --window send times: acknowledgements come in the order of the sends */
    uint64_t next_at;         /* open loop: when the next message is due */
};

static struct {
    int port, groups, subscribers, window, size, idle;
    double rate, warm_seconds, seconds;
    const char *message, *envelope, *ack, *failure, *pids;
} option = {.groups = 1, .window = 1, .size = 200, .warm_seconds = 0.5, .seconds = 2};

static struct role subscriber_role = {.path = "/", .greeting = "", .websocket = true};
static struct role publisher_role = {.path = "/", .greeting = "", .websocket = true};

static struct connection *connections;
static struct group *groups;
static int connection_count, ready_count, poller;
static uint64_t now, epoch; /* nanoseconds: when the bytes at hand were read; when this program started */
static bool measuring;
static uint64_t deliveries, acks, gaps, duplicates, errors, disconnects; /* all but the first two: of the whole run */
static uint64_t progress; /* anything completed, ever */

static uint64_t clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NANO + (uint64_t)t.tv_nsec;
}

static void complain(const char *what, const void *text, size_t n)
{
    if (errors++ < 3)
        fprintf(stderr, "load: %s: %.*s\n", what, (int)(n < 300 ? n : 300), (const char *)text);
}

/* ---- latencies: a log-linear histogram, 128 buckets an octave, so a quantile is less than 1 % off */

enum { SUB_BUCKETS = 128, SUB_BITS = 7 };
static uint64_t histogram[64 * SUB_BUCKETS], measured, slowest;

static inline void measure(uint64_t nanoseconds)
{
    size_t bucket = nanoseconds;
    if (nanoseconds >= SUB_BUCKETS) {
        int shift = 63 - __builtin_clzll(nanoseconds) - SUB_BITS;
        bucket = (size_t)shift * SUB_BUCKETS + (nanoseconds >> shift);
    }
    histogram[bucket]++;
    measured++;
    if (nanoseconds > slowest)
        slowest = nanoseconds;
}

static double quantile_us(double q)
{
    uint64_t seen = 0, wanted = (uint64_t)(q * (double)measured);
    for (size_t bucket = 0; bucket < 64 * SUB_BUCKETS; bucket++) {
        seen += histogram[bucket];
        if (seen <= wanted)
            continue;
        if (bucket < 2 * SUB_BUCKETS)
            return (double)bucket / 1e3;
        size_t shift = bucket / SUB_BUCKETS - 1;
        return (double)((bucket - shift * SUB_BUCKETS) << shift) / 1e3;
    }
    return (double)slowest / 1e3;
}

/* ---- markers */

/* Eight decimal digits at once, by three multiplications within one word (after D. Lemire, "Quickly parsing eight
 * digits", 2018): at millions of deliveries a second a loop over 24 digits would be the largest cost here. */
static inline uint64_t eight_digits(const uint8_t *text)
{
    uint64_t word;
    memcpy(&word, text, 8);
    word -= 0x3030303030303030ull;
    word = word * 10 + (word >> 8);
    return ((word & 0x000000FF000000FFull) * 0x000F424000000064ull +
            (word >> 16 & 0x000000FF000000FFull) * 0x0000271000000001ull) >> 32;
}

static void write_digits(uint8_t *to, uint64_t value, int width)
{
    while (width--) {
        to[width] = (uint8_t)('0' + value % 10);
        value /= 10;
    }
}

static inline bool is_marker(const uint8_t *p)
{
    return p[0] == '@' && p[1] == '@' && p[18] == ',' && p[27] == '@' && p[28] == '@';
}

/* Messages of one run look alike, so the marker is nearly always where it was last time. */
static inline const uint8_t *find_marker(const uint8_t *payload, size_t n)
{
    static size_t usual;
    if (n < MARKER_BYTES)
        return NULL;
    if (usual + MARKER_BYTES <= n && is_marker(payload + usual))
        return payload + usual;
    const uint8_t *at = memmem(payload, n, "@@", 2);
    if (!at || (size_t)(at - payload) + MARKER_BYTES > n || !is_marker(at))
        return NULL;
    usual = (size_t)(at - payload);
    return at;
}

/* ---- connections */

static void hang_up(struct connection *c)
{
    if (c->state == CLOSED)
        return;
    if (c->state == READY)
        disconnects++;
    else
        complain("closed before it was ready", c->role->path, strlen(c->role->path));
    close(c->fd);
    c->state = CLOSED;
}

static void flush(struct connection *c)
{
    if (c->state == CLOSED)
        return;
    if (!buffer_send(&c->out, c->fd)) {
        hang_up(c);
        return;
    }
    bool wanted = buffer_length(&c->out) > 0;
    if (c->awaits_write != wanted)
        watch(poller, EPOLL_CTL_MOD, c->fd, c, wanted);
    c->awaits_write = wanted;
}

static void put_frame(struct connection *c, int opcode, const uint8_t *payload, size_t n)
{
    static uint32_t random = 0x9e3779b9; /* xorshift: masks need not be secret here, only different */
    random ^= random << 13, random ^= random >> 17, random ^= random << 5;
    uint8_t key[4], *to = buffer_reserve(&c->out, n + WS_MAX_HEADER);
    memcpy(key, &random, 4);
    size_t header = ws_header(to, opcode, n, key);
    ws_mask(to + header, payload, n, key);
    c->out.end += header + n;
}

static void put(struct connection *c, const void *bytes, size_t n)
{
    if (c->role->websocket)
        put_frame(c, c->role->nats ? WS_BINARY : WS_TEXT, bytes, n);
    else
        buffer_append(&c->out, bytes, n);
}

/* text with every token replaced; the caller frees it. */
static char *replaced(const char *text, const char *token, const char *value)
{
    size_t count = 0, length = strlen(token);
    for (const char *at = text; (at = strstr(at, token)); at += length)
        count++;
    char *result = malloc(strlen(text) + count * strlen(value) + 1), *to = result;
    for (const char *at; (at = strstr(text, token)); text = at + length)
        to += sprintf(to, "%.*s%s", (int)(at - text), text, value);
    strcpy(to, text);
    return result;
}

static char *numbered(const char *text, const struct connection *c)
{
    char group[16], index[16];
    sprintf(group, "%d", (int)(c->group - groups));
    sprintf(index, "%d", c->index);
    char *half = replaced(text, "{g}", group), *whole = replaced(half, "{i}", index);
    free(half);
    return whole;
}

static void become_ready(struct connection *c)
{
    c->state = READY;
    ready_count++;
}

static void greet(struct connection *c)
{
    c->state = JOINING;
    if (*c->role->greeting) {
        char *greeting = numbered(c->role->greeting, c);
        put(c, greeting, strlen(greeting));
        free(greeting);
        flush(c);
    }
    if (!c->role->ready && c->state == JOINING)
        become_ready(c);
}

static void ask_for_upgrade(struct connection *c)
{
    char *path = numbered(c->role->path, c), *request;
    int n = asprintf(&request,
                     "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     "Sec-WebSocket-Key: " SAMPLE_KEY "\r\nSec-WebSocket-Version: 13\r\n\r\n", path, option.port);
    buffer_append(&c->out, request, (size_t)n);
    free(request);
    free(path);
    c->state = UPGRADING;
    flush(c);
}

static void open_connection(struct connection *c)
{
    int one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)option.port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0)
        die("load: socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS)
        die("load: connect");
    c->state = CONNECTING;
    c->awaits_write = true;
    watch(poller, EPOLL_CTL_ADD, c->fd, c, true);
}

/* ---- what a server sends */

static inline void on_delivery(struct connection *c, const uint8_t *payload, size_t n)
{
    const uint8_t *marker = find_marker(payload, n);
    if (!marker) {
        if (option.failure && memmem(payload, n, option.failure, strlen(option.failure)))
            complain("refused", payload, n);
        return;
    }
    uint64_t sent_at = epoch + eight_digits(marker + 2) * 100000000ull + eight_digits(marker + 10);
    uint32_t sequence = (uint32_t)eight_digits(marker + 19);
    if (measuring) {
        deliveries++;
        measure(now - sent_at);
    }
    if (sequence <= c->last_sequence) {
        duplicates++; /* or late: then it was counted as a gap before */
        return;
    }
    gaps += sequence - c->last_sequence - 1;
    c->group->completed += sequence - c->last_sequence; /* a lost one must not hold up the window */
    c->last_sequence = sequence;
    progress++;
}

static void on_ack(struct group *group)
{
    if (group->completed >= group->sent) {
        duplicates++;
        return;
    }
    if (measuring) {
        acks++;
        measure(now - group->sent_at[group->completed % (uint64_t)option.window]);
    }
    group->completed++;
    progress++;
}

static inline void on_message(struct connection *c, const uint8_t *payload, size_t n)
{
    if (c->state == JOINING) {
        if (memmem(payload, n, c->role->ready, strlen(c->role->ready)))
            become_ready(c);
        else if (option.failure && memmem(payload, n, option.failure, strlen(option.failure)))
            complain("refused", payload, n);
    } else if (c->subscriber) {
        on_delivery(c, payload, n);
    } else if (option.ack && memmem(payload, n, option.ack, strlen(option.ack))) {
        on_ack(c->group);
    } else if (option.failure && memmem(payload, n, option.failure, strlen(option.failure))) {
        complain("refused", payload, n);
    }
}

/* NATS: lines, of which "MSG <subject> <sid> [reply] <length>" is followed by that many bytes. */
static size_t read_nats(struct connection *c, uint8_t *bytes, size_t n)
{
    size_t used = 0;
    uint8_t *end;
    while (c->state != CLOSED && (end = memchr(bytes + used, '\n', n - used))) {
        uint8_t *line = bytes + used;
        size_t next = (size_t)(end + 1 - bytes);
        if (!memcmp(line, "MSG ", 4)) {
            size_t length = strtoul((char *)memrchr(line, ' ', (size_t)(end - line)) + 1, NULL, 10);
            if (n - next < length + 2)
                break;
            on_message(c, bytes + next, length);
            next += length + 2;
        } else if (!memcmp(line, "PING", 4)) {
            put(c, "PONG\r\n", 6);
            flush(c);
        } else if (!memcmp(line, "PONG", 4)) {
            on_message(c, line, 4);
        } else if (*line == '-') {
            complain("NATS", line, (size_t)(end - line));
        }
        used = next;
    }
    return used;
}

static void on_frame(struct connection *c, const struct ws_frame *frame)
{
    if (frame->opcode == WS_PING) {
        put_frame(c, WS_PONG, frame->payload, frame->length);
        flush(c);
    } else if (frame->opcode == WS_CLOSE) {
        hang_up(c);
    } else if (frame->opcode != WS_PONG && c->role->nats) {
        buffer_append(&c->lines, frame->payload, frame->length);
    } else if (frame->opcode != WS_PONG) {
        on_message(c, frame->payload, frame->length);
    }
}

static size_t read_frames(struct connection *c, uint8_t *bytes, size_t n)
{
    struct ws_frame frame;
    size_t used = 0, step;
    while (c->state != CLOSED && (step = ws_read(&frame, bytes + used, n - used))) {
        on_frame(c, &frame);
        used += step;
    }
    if (buffer_length(&c->lines))
        buffer_consume(&c->lines, read_nats(c, c->lines.data + c->lines.start, buffer_length(&c->lines)));
    return used;
}

/* HTTP answers with a Content-Length, as every server here sends them. */
static size_t read_answers(struct connection *c, uint8_t *bytes, size_t n)
{
    size_t used = 0;
    uint8_t *end;
    while ((end = memmem(bytes + used, n - used, "\r\n\r\n", 4))) {
        char *head = (char *)bytes + used;
        size_t whole = (size_t)(end + 4 - bytes) - used;
        *end = 0;
        const char *length = strcasestr(head, "\r\nContent-Length:");
        if (length)
            whole += strtoul(length + 17, NULL, 10);
        *end = '\r';
        if (n - used < whole)
            break;
        if (memcmp(head, "HTTP/1.1 2", 10))
            complain("refused", head, whole);
        else
            on_ack(c->group);
        used += whole;
    }
    return used;
}

static size_t read_upgrade(struct connection *c, const uint8_t *bytes, size_t n)
{
    const uint8_t *end = memmem(bytes, n, "\r\n\r\n", 4);
    if (!end)
        return 0;
    size_t head = (size_t)(end + 4 - bytes);
    if (memcmp(bytes, "HTTP/1.1 101", 12) || !memmem(bytes, head, SAMPLE_ACCEPT, strlen(SAMPLE_ACCEPT))) {
        complain("no upgrade", bytes, n);
        hang_up(c);
    } else {
        greet(c);
    }
    return head;
}

static size_t consume(struct connection *c, uint8_t *bytes, size_t n)
{
    size_t used = 0;
    if (c->state == UPGRADING && !(used = read_upgrade(c, bytes, n)))
        return 0;
    if (c->role->http)
        return read_answers(c, bytes, n);
    if (c->role->websocket)
        return used + read_frames(c, bytes + used, n - used);
    return read_nats(c, bytes, n);
}

static void on_readable(struct connection *c)
{
    static uint8_t bytes[16 * READ_BYTES];
    size_t kept = buffer_length(&c->in);
    if (kept > sizeof bytes - READ_BYTES)
        die("load: a frame too large");
    memcpy(bytes, c->in.data + c->in.start, kept);
    ssize_t got = recv(c->fd, bytes + kept, READ_BYTES, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) {
        hang_up(c);
        return;
    }
    now = clock_ns();
    c->in.start = c->in.end = 0;
    size_t n = kept + (size_t)got, used = consume(c, bytes, n);
    if (used < n)
        buffer_append(&c->in, bytes + used, n - used);
}

static void on_event(struct connection *c, uint32_t what)
{
    if (c->state == CONNECTING && what & EPOLLOUT && !(what & EPOLLERR)) {
        if (c->role->websocket)
            ask_for_upgrade(c);
        else
            greet(c);
    }
    if (c->awaits_write && what & EPOLLOUT)
        flush(c);
    if (c->state != CLOSED && what & (EPOLLIN | EPOLLHUP | EPOLLERR))
        on_readable(c);
}

static void poll_for(int milliseconds)
{
    struct epoll_event events[EVENTS];
    int count = epoll_wait(poller, events, EVENTS, milliseconds);
    for (int i = 0; i < count; i++)
        on_event(events[i].data.ptr, events[i].events);
}

/* ---- sending */

/* How many completions make one message complete. */
static uint64_t completions(void)
{
    return option.subscribers ? (uint64_t)option.subscribers : 1;
}

static uint64_t outstanding(const struct group *group)
{
    return group->sent * completions() - group->completed;
}

static void publish(struct group *group, uint64_t due)
{
    write_digits(group->message + group->marker_at + 2, due - epoch, 16);
    write_digits(group->message + group->marker_at + 19, ++group->sent, 8);
    if (group->sent_at)
        group->sent_at[(group->sent - 1) % (uint64_t)option.window] = due;
    put(group->publisher, group->message, group->length);
}

static void fill_window(struct group *group)
{
    uint64_t capacity = (uint64_t)option.window * completions(), under_way = outstanding(group);
    if (under_way + completions() > capacity)
        return;
    uint64_t due = clock_ns();
    for (uint64_t room = (capacity - under_way) / completions(); room; room--)
        publish(group, due);
}

static void keep_rate(struct group *group)
{
    for (uint64_t t = clock_ns(); group->next_at <= t; group->next_at += (uint64_t)(1e9 / option.rate))
        publish(group, group->next_at);
}

static void pump(void)
{
    for (int g = 0; g < option.groups; g++) {
        struct connection *c = groups[g].publisher;
        if (c->state != READY || buffer_length(&c->out) > MAX_BACKLOG)
            continue;
        if (option.rate > 0)
            keep_rate(&groups[g]);
        else
            fill_window(&groups[g]);
        if (buffer_length(&c->out) && !c->awaits_write)
            flush(c);
    }
}

/* ---- building the cast */

static char *padded(char *text)
{
    int missing = option.size - (int)(strlen(text) - strlen("{pad}"));
    char *pad = malloc(missing > 0 ? (size_t)missing + 1 : 1);
    memset(pad, 'x', missing > 0 ? (size_t)missing : 0);
    pad[missing > 0 ? missing : 0] = 0;
    char *result = replaced(text, "{pad}", pad);
    free(pad);
    return result;
}

static void write_message(struct group *group)
{
    static const char MARKER[] = "@@0000000000000000,00000000@@";
    char *body = padded(replaced(numbered(option.message, group->publisher), "{marker}", MARKER)), *whole = body;
    if (option.envelope) {
        char length[16];
        sprintf(length, "%zu", strlen(body));
        whole = replaced(replaced(numbered(option.envelope, group->publisher), "{length}", length), "{body}", body);
    }
    const char *marker = strstr(whole, MARKER);
    if (!marker)
        die("load: --message without {marker}");
    group->message = (uint8_t *)whole;
    group->length = strlen(whole);
    group->marker_at = (size_t)(marker - whole);
}

static void build_cast(void)
{
    int publishers = option.idle ? 0 : option.groups, subscribers = option.idle ? option.idle : option.subscribers;
    connection_count = (option.idle ? 1 : option.groups) * subscribers + publishers;
    connections = calloc((size_t)connection_count, sizeof *connections);
    groups = calloc((size_t)option.groups, sizeof *groups);
    struct connection *c = connections;
    for (int g = 0; g < (option.idle ? 1 : option.groups); g++)
        for (int i = 0; i < subscribers; i++, c++)
            *c = (struct connection){.role = &subscriber_role, .group = &groups[g], .index = i, .subscriber = true};
    for (int g = 0; g < publishers; g++, c++) {
        *c = (struct connection){.role = &publisher_role, .group = &groups[g]};
        groups[g].publisher = c;
        write_message(&groups[g]);
        if (!option.subscribers)
            groups[g].sent_at = calloc((size_t)option.window, sizeof(uint64_t));
    }
}

/* Open connections [from, until) a few at a time and wait until all are ready. Returns the seconds it took. */
static double open_all(int from, int until)
{
    uint64_t begin = clock_ns(), limit = begin + CONNECT_SECONDS * NANO;
    for (int next = from; ready_count < until; poll_for(20)) {
        while (next < until && next - ready_count < OPENING_AT_ONCE)
            open_connection(&connections[next++]);
        if (errors || clock_ns() > limit) {
            fprintf(stderr, "load: only %d of %d connections are ready\n", ready_count, until);
            exit(3);
        }
    }
    return (double)(clock_ns() - begin) / 1e9;
}

static void idle_for(double seconds)
{
    for (uint64_t end = clock_ns() + (uint64_t)(seconds * 1e9); clock_ns() < end;)
        poll_for(20);
}

/* ---- the server's processes, by --pids */

/* The sum over --pids of what read() finds in /proc/<pid>/<file>. */
static uint64_t sum_over_pids(const char *file, uint64_t (*read_one)(FILE *))
{
    uint64_t sum = 0;
    char *list = strdup(option.pids ? option.pids : ""), *rest = list, *pid, path[64];
    while ((pid = strsep(&rest, ","))) {
        snprintf(path, sizeof path, "/proc/%s/%s", pid, file);
        FILE *stream = *pid ? fopen(path, "r") : NULL;
        if (!stream)
            continue;
        sum += read_one(stream);
        fclose(stream);
    }
    free(list);
    return sum;
}

/* User and system time in clock ticks: fields 14 and 15, counted behind the name, which may hold blanks. */
static uint64_t read_cpu_ticks(FILE *stream)
{
    char text[1024];
    unsigned long user = 0, system = 0;
    text[fread(text, 1, sizeof text - 1, stream)] = 0;
    const char *behind_name = strrchr(text, ')');
    if (behind_name)
        sscanf(behind_name + 2, "%*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %lu %lu", &user, &system);
    return user + system;
}

static uint64_t read_pss_kib(FILE *stream)
{
    char line[256];
    unsigned long kib = 0;
    while (fgets(line, sizeof line, stream))
        if (sscanf(line, "Pss: %lu", &kib) == 1)
            break;
    return kib;
}

static double server_cpu_seconds(void)
{
    return (double)sum_over_pids("stat", read_cpu_ticks) / (double)sysconf(_SC_CLK_TCK);
}

static double own_cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* ---- the runs */

struct window { /* the part of a run that counts */
    uint64_t begin, end;
    double server_cpu, own_cpu; /* at its begin, then what was used within it */
    bool stalled;
};

static void open_window(struct window *w)
{
    *w = (struct window){.begin = clock_ns(), .server_cpu = server_cpu_seconds(), .own_cpu = own_cpu_seconds()};
    measuring = true;
}

static void close_window(struct window *w)
{
    measuring = false;
    w->end = clock_ns();
    w->server_cpu = server_cpu_seconds() - w->server_cpu;
    w->own_cpu = own_cpu_seconds() - w->own_cpu;
}

static uint64_t all_outstanding(void)
{
    uint64_t sum = 0;
    for (int g = 0; g < option.groups; g++)
        sum += outstanding(&groups[g]);
    return sum;
}

/* True when nothing has been completed for as long as only a broken server needs. */
static bool has_stalled(uint64_t t)
{
    static uint64_t seen, changed_at;
    if (seen != progress || !changed_at) {
        seen = progress;
        changed_at = t;
    }
    return t - changed_at > STALL_SECONDS * NANO;
}

static struct window drive(void)
{
    struct window window = {0};
    uint64_t begin = clock_ns(), counts_from = begin + (uint64_t)(option.warm_seconds * 1e9);
    uint64_t end = counts_from + (uint64_t)(option.seconds * 1e9);
    for (int g = 0; g < option.groups; g++) /* staggered, so that groups are not due all at once */
        groups[g].next_at = begin + (option.rate > 0 ? (uint64_t)(1e9 / option.rate * g / option.groups) : 0);
    for (uint64_t t = begin; t < end && !window.stalled; t = clock_ns()) {
        if (!measuring && t >= counts_from)
            open_window(&window);
        pump();
        poll_for(option.rate > 0 ? 0 : 1);
        window.stalled = has_stalled(t);
    }
    if (!measuring)
        open_window(&window), window.stalled = true;
    close_window(&window);
    for (uint64_t limit = clock_ns() + DRAIN_SECONDS * NANO, t; all_outstanding(); poll_for(10))
        if ((t = clock_ns()) > limit || has_stalled(t))
            break;
    return window;
}

static void print_result(const struct window *w, double connect_seconds)
{
    double seconds = (double)(w->end - w->begin) / 1e9;
    uint64_t count = option.subscribers ? deliveries : acks;
    printf("{\"per_second\": %.0f, \"p50_us\": %.0f, \"p99_us\": %.0f, \"max_us\": %.0f, ", (double)count / seconds,
           quantile_us(0.5), quantile_us(0.99), (double)slowest / 1e3);
    printf("\"gaps\": %" PRIu64 ", \"duplicates\": %" PRIu64 ", \"undelivered\": %" PRIu64 ", ", gaps, duplicates,
           all_outstanding());
    printf("\"errors\": %" PRIu64 ", \"disconnects\": %" PRIu64 ", \"stalled\": %s, ", errors, disconnects,
           w->stalled ? "true" : "false");
    printf("\"server_us_per_message\": %.3f, \"server_cpu\": %.2f, \"load_cpu\": %.2f, ",
           count ? w->server_cpu * 1e6 / (double)count : 0, w->server_cpu / seconds, w->own_cpu / seconds);
    printf("\"seconds\": %.2f, \"connect_seconds\": %.2f}\n", seconds, connect_seconds);
}

/* The first few connections are not counted: they make the server load what it loads once. */
static void run_idle(void)
{
    int warm_up = option.idle < 2 * IDLE_WARM_UP ? 0 : IDLE_WARM_UP;
    open_all(0, warm_up);
    idle_for(option.warm_seconds);
    uint64_t before = sum_over_pids("smaps_rollup", read_pss_kib);
    double connect_seconds = open_all(warm_up, option.idle);
    idle_for(option.seconds);
    uint64_t after = sum_over_pids("smaps_rollup", read_pss_kib);
    printf("{\"kib_per_connection\": %.2f, \"pss_before_kib\": %" PRIu64 ", \"pss_after_kib\": %" PRIu64
           ", \"errors\": %" PRIu64 ", \"disconnects\": %" PRIu64 ", \"connect_seconds\": %.2f}\n",
           ((double)after - (double)before) / (option.idle - warm_up), before, after, errors, disconnects,
           connect_seconds);
}

/* ---- options */

enum { PORT = 1, GROUPS, SUBSCRIBERS, WINDOW, SIZE, IDLE, RATE, WARM_SECONDS, SECONDS, MESSAGE, ENVELOPE, ACK, FAILURE,
       PIDS, SUBSCRIBER_PATH, SUBSCRIBER_GREETING, SUBSCRIBER_READY, PUBLISHER_PATH, PUBLISHER_GREETING,
       PUBLISHER_READY, TCP, NATS, POST };

static const struct option known_options[] = {
    {"port", 1, 0, PORT}, {"groups", 1, 0, GROUPS}, {"subscribers", 1, 0, SUBSCRIBERS}, {"window", 1, 0, WINDOW},
    {"size", 1, 0, SIZE}, {"idle", 1, 0, IDLE}, {"rate", 1, 0, RATE}, {"warm-seconds", 1, 0, WARM_SECONDS},
    {"seconds", 1, 0, SECONDS}, {"message", 1, 0, MESSAGE}, {"envelope", 1, 0, ENVELOPE}, {"ack", 1, 0, ACK},
    {"failure", 1, 0, FAILURE}, {"pids", 1, 0, PIDS}, {"subscriber-path", 1, 0, SUBSCRIBER_PATH},
    {"subscriber-greeting", 1, 0, SUBSCRIBER_GREETING}, {"subscriber-ready", 1, 0, SUBSCRIBER_READY},
    {"publisher-path", 1, 0, PUBLISHER_PATH}, {"publisher-greeting", 1, 0, PUBLISHER_GREETING},
    {"publisher-ready", 1, 0, PUBLISHER_READY}, {"tcp", 0, 0, TCP}, {"nats", 0, 0, NATS}, {"post", 0, 0, POST},
    {0, 0, 0, 0}};

static void take_option(int which)
{
    switch (which) {
    case PORT: option.port = atoi(optarg); break;
    case GROUPS: option.groups = atoi(optarg); break;
    case SUBSCRIBERS: option.subscribers = atoi(optarg); break;
    case WINDOW: option.window = atoi(optarg); break;
    case SIZE: option.size = atoi(optarg); break;
    case IDLE: option.idle = atoi(optarg); break;
    case RATE: option.rate = atof(optarg); break;
    case WARM_SECONDS: option.warm_seconds = atof(optarg); break;
    case SECONDS: option.seconds = atof(optarg); break;
    case MESSAGE: option.message = optarg; break;
    case ENVELOPE: option.envelope = optarg; break;
    case ACK: option.ack = optarg; break;
    case FAILURE: option.failure = optarg; break;
    case PIDS: option.pids = optarg; break;
    case SUBSCRIBER_PATH: subscriber_role.path = optarg; break;
    case SUBSCRIBER_GREETING: subscriber_role.greeting = optarg; break;
    case SUBSCRIBER_READY: subscriber_role.ready = optarg; break;
    case PUBLISHER_PATH: publisher_role.path = optarg; break;
    case PUBLISHER_GREETING: publisher_role.greeting = optarg; break;
    case PUBLISHER_READY: publisher_role.ready = optarg; break;
    case TCP: subscriber_role.websocket = publisher_role.websocket = false; break;
    case NATS: subscriber_role.nats = publisher_role.nats = true; break;
    case POST: publisher_role.http = true; publisher_role.websocket = false; break;
    default: exit(2);
    }
}

static void check_options(void)
{
    errno = 0;
    if (!option.port || option.groups < 1 || option.window < 1)
        die("load: --port, --groups and --window must be positive: options");
    if (!option.idle && !option.message)
        die("load: --message is needed: options");
    if (option.rate > 0 && !option.subscribers)
        die("load: --rate needs --subscribers: options");
}

int main(int count, char **arguments)
{
    for (int which; (which = getopt_long(count, arguments, "", known_options, NULL)) >= 0;)
        take_option(which);
    check_options();
    signal(SIGPIPE, SIG_IGN);
    raise_descriptor_limit();
    epoch = clock_ns();
    poller = epoll_create1(0);
    build_cast();
    if (option.idle) {
        run_idle();
        return 0;
    }
    double connect_seconds = open_all(0, connection_count);
    idle_for(0.2);
    struct window window = drive();
    print_result(&window, connect_seconds);
    return 0;
}
