/* client.c - what a client says and hears: WebSocket, NATS' line protocol, HTTP; markers checked, acks counted. */
#define _GNU_SOURCE
#include "client.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <unistd.h>

#include "measure.h"

enum { EVENTS = 512, READ_BYTES = 256 * 1024 };

struct options option = {.groups = 1, .window = 1, .size = 200, .warm_seconds = 0.5, .seconds = 2, .websocket = true,
                         .pids = ""};
struct role subscriber_role = {.path = "/", .greeting = ""}, publisher_role = {.path = "/", .greeting = ""};
struct group *groups;
struct tally tally;
bool measuring;
int ready_count;
uint64_t epoch;

static int poller;
static uint64_t now; /* nanoseconds: when the bytes at hand were read */

static void complain(const char *what, const void *text, size_t n)
{
    if (tally.errors++ < 3)
        fprintf(stderr, "load: %s: %.*s\n", what, (int)(n < 300 ? n : 300), (const char *)text);
}

/* ---- templates */

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

/* ---- connections */

static inline bool speaks_websocket(const struct connection *c)
{
    return option.websocket && !c->posts;
}

static void hang_up(struct connection *c)
{
    if (c->state == CLOSED)
        return;
    if (c->state == READY)
        tally.disconnects++;
    else
        complain("closed before it was ready", c->role->path, strlen(c->role->path));
    close(c->fd);
    c->state = CLOSED;
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

static void put(struct connection *c, const void *bytes, size_t n)
{
    if (speaks_websocket(c))
        put_frame(c, option.nats ? WS_BINARY : WS_TEXT, bytes, n);
    else
        buffer_append(&c->out, bytes, n);
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

/* ---- what a server sends */

static bool holds(const uint8_t *payload, size_t n, const char *text)
{
    return text && memmem(payload, n, text, strlen(text));
}

static inline void on_delivery(struct connection *c, const uint8_t *payload, size_t n)
{
    const uint8_t *marker = find_marker(payload, n);
    if (!marker) {
        if (holds(payload, n, option.failure))
            complain("refused", payload, n);
        return;
    }
    const uint8_t *time = marker + MARKER_TIME;
    uint64_t sent_at = epoch + eight_digits(time) * 100000000ull + eight_digits(time + 8);
    uint32_t sequence = (uint32_t)eight_digits(marker + MARKER_SEQUENCE);
    if (measuring) {
        tally.deliveries++;
        measure(now - sent_at);
    }
    if (sequence <= c->last_sequence) {
        tally.duplicates++; /* or late: then it was counted as a gap before */
        return;
    }
    tally.gaps += sequence - c->last_sequence - 1;
    c->group->completed += sequence - c->last_sequence; /* a lost one must not hold up the window */
    c->last_sequence = sequence;
    tally.progress++;
}

static void on_ack(struct group *group)
{
    if (group->completed >= group->sent) {
        tally.duplicates++;
        return;
    }
    if (measuring) {
        tally.acks++;
        measure(now - group->sent_at[group->completed % (uint64_t)option.window]);
    }
    group->completed++;
    tally.progress++;
}

static inline void on_message(struct connection *c, const uint8_t *payload, size_t n)
{
    if (c->subscriber && c->state == READY)
        on_delivery(c, payload, n);
    else if (holds(payload, n, option.failure))
        complain("refused", payload, n);
    else if (c->state == JOINING && holds(payload, n, c->role->ready))
        become_ready(c);
    else if (c->state == READY && holds(payload, n, option.ack))
        on_ack(c->group);
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
    } else if (frame->opcode != WS_PONG && option.nats) {
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
    if (c->posts)
        return read_answers(c, bytes, n);
    if (speaks_websocket(c))
        return used + read_frames(c, bytes + used, n - used);
    return read_nats(c, bytes, n);
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
    if (used < n)
        buffer_append(&c->in, bytes + used, n - used);
}

static void on_event(struct connection *c, uint32_t what)
{
    if (c->state == CONNECTING && what & EPOLLOUT && !(what & EPOLLERR)) {
        if (speaks_websocket(c))
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

/* ---- sending */

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

void write_message(struct group *group)
{
    char *body = padded(replaced(numbered(option.message, group->publisher), "{marker}", BLANK_MARKER)), *whole = body;
    if (option.envelope) {
        char length[24];
        sprintf(length, "%zu", strlen(body));
        whole = replaced(replaced(numbered(option.envelope, group->publisher), "{length}", length), "{body}", body);
    }
    const char *marker = strstr(whole, BLANK_MARKER);
    if (!marker)
        die("load: --message without {marker}");
    group->message = (uint8_t *)whole;
    group->length = strlen(whole);
    group->marker_at = (size_t)(marker - whole);
}

void publish(struct group *group, uint64_t due)
{
    write_digits(group->message + group->marker_at + MARKER_TIME, due - epoch, 16);
    write_digits(group->message + group->marker_at + MARKER_SEQUENCE, ++group->sent, 8);
    if (group->sent_at)
        group->sent_at[(group->sent - 1) % (uint64_t)option.window] = due;
    put(group->publisher, group->message, group->length);
}

