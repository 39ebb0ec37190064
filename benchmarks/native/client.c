/* client.c - connections, WebSocket, and what is counted: every delivery and acknowledgement passes through here. */
#define _GNU_SOURCE
#include "client.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <unistd.h>

enum { EVENTS = 512, READ_BYTES = 256 * 1024 };

struct options option = {.groups = 1, .window = 1, .size = 200, .per_ack = 1, .warm_seconds = 0.5, .seconds = 2,
                         .websocket = true, .pids = "", .channel = "bench{g}"};
struct role subscriber_role = {.path = "/", .greeting = ""}, publisher_role = {.path = "/", .greeting = ""};
struct role idle_role = {.path = "/", .greeting = ""};
struct group *groups;
struct tally tally;
bool measuring;
int ready_count;
uint64_t epoch;

static int poller;
static uint64_t now; /* nanoseconds: when the bytes at hand were read */

void complain(const char *what, const void *text, size_t n)
{
    if (tally.errors++ < 3)
        fprintf(stderr, "load: %s: %.*s\n", what, (int)(n < 300 ? n : 300), (const char *)text);
}

/* ---- connections */

static inline bool in_websocket(const struct connection *c)
{
    return option.websocket && !c->role->dialect->never_in_websocket;
}

/* A frame is a message, not a piece of a stream. */
static inline bool is_text(const struct connection *c)
{
    return !c->role->dialect->read;
}

void close_connection(struct connection *c)
{
    close(c->fd);
    c->state = CLOSED;
}

static void hang_up(struct connection *c)
{
    if (c->state == CLOSED)
        return;
    if (c->state == READY)
        tally.disconnects++;
    else
        complain("closed before it was ready", c->role->path, strlen(c->role->path));
    close_connection(c);
}

void flush(struct connection *c)
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

void put(struct connection *c, const void *bytes, size_t n)
{
    if (in_websocket(c))
        put_frame(c, is_text(c) ? WS_TEXT : WS_BINARY, bytes, n);
    else
        buffer_append(&c->out, bytes, n);
}

void become_ready(struct connection *c)
{
    c->state = READY;
    ready_count++;
}

static void greet(struct connection *c)
{
    c->state = JOINING;
    if (c->role->dialect->greet) {
        c->role->dialect->greet(c);
        flush(c);
        return;
    }
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
    char lines[256];
    snprintf(lines, sizeof lines,
             "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: " SAMPLE_KEY "\r\n"
             "Sec-WebSocket-Version: 13\r\n%s%s%s", option.subprotocol ? "Sec-WebSocket-Protocol: " : "",
             option.subprotocol ? option.subprotocol : "", option.subprotocol ? "\r\n" : "");
    char *request = request_for(c, lines);
    buffer_append(&c->out, request, strlen(request));
    free(request);
    c->state = UPGRADING;
    flush(c);
}

void start_clients(void)
{
    epoch = clock_ns();
    poller = epoll_create1(0);
}

void open_connection(struct connection *c)
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

/* ---- what is counted */

static void count(uint64_t since, uint64_t messages)
{
    if (measuring) {
        tally.counted += messages;
        measure(now - since);
    }
    tally.progress++;
}

/* With --both a message counts once its receiver has it and its sender knows that it is kept. */
static void settle(struct group *group)
{
    for (; group->settled < group->acked && group->settled < group->delivered; group->settled++)
        count(group->sent_at[group->settled % (uint64_t)option.window], 1);
}

void on_marker(struct connection *c, const uint8_t *marker)
{
    const uint8_t *time = marker + MARKER_TIME;
    uint64_t sent_at = epoch + eight_digits(time) * 100000000ull + eight_digits(time + 8);
    uint32_t sequence = (uint32_t)eight_digits(marker + MARKER_SEQUENCE);
    if (!option.both)
        count(sent_at, 1);
    if (sequence <= c->last_sequence) {
        tally.duplicates++; /* or late: then it was counted as a gap before */
        return;
    }
    tally.gaps += sequence - c->last_sequence - 1;
    c->group->delivered += sequence - c->last_sequence; /* a lost one must not hold up the window */
    c->last_sequence = sequence;
    if (option.both)
        settle(c->group);
}

void on_ack(struct group *group)
{
    if (group->acked >= group->sent) {
        tally.duplicates++;
        return;
    }
    uint64_t sent_at = group->sent_at[group->acked++ % (uint64_t)option.window];
    if (option.both)
        settle(group);
    else
        count(sent_at, (uint64_t)option.per_ack);
}

void on_message(struct connection *c, const uint8_t *payload, size_t n)
{
    if (c->subscriber && c->state == READY) {
        const uint8_t *marker = find_marker(payload, n);
        if (marker)
            on_marker(c, marker);
        else if (holds(payload, n, option.failure))
            complain("refused", payload, n);
    } else if (holds(payload, n, option.failure)) {
        complain("refused", payload, n);
    } else if (c->state == JOINING && holds(payload, n, c->role->ready)) {
        become_ready(c);
    } else if (c->state == READY && holds(payload, n, option.ack)) {
        on_ack(c->group);
    }
}

/* ---- what a server sends */

/* A piece of a dialect's stream; what is incomplete waits for the next frame. */
static void on_piece(struct connection *c, uint8_t *bytes, size_t n)
{
    size_t used = 0;
    if (!buffer_length(&c->stream))
        used = c->role->dialect->read(c, bytes, n);
    if (used == n)
        return;
    bool waited = buffer_length(&c->stream) > 0;
    buffer_append(&c->stream, bytes + used, n - used);
    if (waited)
        buffer_consume(&c->stream, c->role->dialect->read(c, c->stream.data + c->stream.start, buffer_length(&c->stream)));
}

static void on_frame(struct connection *c, const struct ws_frame *frame)
{
    if (frame->opcode == WS_PING) {
        put_frame(c, WS_PONG, frame->payload, frame->length);
        flush(c);
    } else if (frame->opcode == WS_CLOSE) {
        hang_up(c);
    } else if (frame->opcode != WS_PONG && is_text(c)) {
        on_message(c, frame->payload, frame->length);
    } else if (frame->opcode != WS_PONG) {
        on_piece(c, frame->payload, frame->length);
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
    if (in_websocket(c))
        return used + read_frames(c, bytes + used, n - used);
    return c->role->dialect->read(c, bytes, n);
}

static void on_readable(struct connection *c)
{
    static uint8_t bytes[16 * READ_BYTES];
    size_t kept = buffer_length(&c->in);
    if (kept > sizeof bytes - READ_BYTES)
        die("load: a frame too large");
    if (kept)
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
    if (used < n && c->state != CLOSED)
        buffer_append(&c->in, bytes + used, n - used);
}

static void on_event(struct connection *c, uint32_t what)
{
    if (c->state == CONNECTING && what & EPOLLOUT && !(what & EPOLLERR)) {
        if (in_websocket(c))
            ask_for_upgrade(c);
        else
            greet(c);
    }
    if (c->awaits_write && what & EPOLLOUT)
        flush(c);
    if (c->state != CLOSED && what & (EPOLLIN | EPOLLHUP | EPOLLERR))
        on_readable(c);
}

void poll_for(int milliseconds)
{
    struct epoll_event events[EVENTS];
    int count = epoll_wait(poller, events, EVENTS, milliseconds);
    for (int i = 0; i < count; i++)
        on_event(events[i].data.ptr, events[i].events);
}
