/* reference.c - the physical limit: a WebSocket fan-out server that does nothing but move bytes.
 *
 *     reference PORT [LOG_FILE]
 *
 * One thread, epoll. A client on /ws/<id> gets `connection_confirmed`; a text frame with "to":"X" goes unread and
 * unchanged to every connection of /ws/X. All frames that arrive in one turn of the loop leave in one send() per
 * receiver: nothing that speaks WebSocket over one kernel socket per client can do much better.
 *
 * With LOG_FILE it is also the limit of durable ingest: a turn's frames that carry a "ref" are appended to the file,
 * one fdatasync() makes them last, and only then each is answered {"type":"sent"}. No index, no query, no recovery.
 *
 * It trusts its clients and knows only load.c's handshake key. Never expose it. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <unistd.h>

#include "wire.h"

enum { ROOM_TABLE = 4096, EVENTS = 256, READ_BYTES = 1280 * 1024 };

static const char CONFIRMED[] = "{\"type\":\"connection_confirmed\",\"server\":\"reference\"}";
static const char SENT[] = "{\"type\":\"sent\",\"ref\":\"r\"}";

struct connection {
    int fd;                     /* -1 once closed; freed at the end of the turn, events may still name it */
    bool upgraded, awaits_write, touched;
    struct room *room;
    size_t unanswered;          /* frames with a ref whose log entry is not synced yet */
    struct buffer in, out;      /* in: an incomplete frame; out: what the kernel did not take */
    struct connection *next_touched, *next_closed;
};

/* Everyone on one id, and the frames of this turn for them. */
struct room {
    char *id;
    struct connection **members;
    size_t count, capacity;
    struct buffer batch;
    struct room *next, *next_dirty;
    bool dirty;
};

static int poller, log_file = -1;
static struct room *rooms[ROOM_TABLE], *dirty_rooms;
static struct connection *touched_producers, *closed_connections;
static struct buffer log_batch;

/* ---- rooms */

static struct room *room_of(const char *id, size_t length)
{
    uint32_t hash = 5381;
    for (size_t i = 0; i < length; i++)
        hash = hash * 33 + (uint8_t)id[i];
    struct room **slot = &rooms[hash % ROOM_TABLE];
    for (struct room *room = *slot; room; room = room->next)
        if (!strncmp(room->id, id, length) && !room->id[length])
            return room;
    struct room *room = calloc(1, sizeof *room);
    room->id = strndup(id, length);
    room->next = *slot;
    return *slot = room;
}

static void join(struct connection *c, struct room *room)
{
    if (room->count == room->capacity) {
        room->capacity = room->capacity ? room->capacity * 2 : 1;
        room->members = realloc(room->members, room->capacity * sizeof *room->members);
    }
    room->members[room->count++] = c;
    c->room = room;
}

static void leave(struct connection *c)
{
    struct room *room = c->room;
    for (size_t i = 0; room && i < room->count; i++)
        if (room->members[i] == c) {
            room->members[i] = room->members[--room->count];
            return;
        }
}

/* ---- connections */

static void hang_up(struct connection *c)
{
    if (c->fd < 0)
        return;
    leave(c);
    close(c->fd);
    c->fd = -1;
    buffer_free(&c->in);
    buffer_free(&c->out);
    c->next_closed = closed_connections;
    closed_connections = c;
}

static void await_write(struct connection *c, bool wanted)
{
    if (c->awaits_write == wanted)
        return;
    c->awaits_write = wanted;
    watch(poller, EPOLL_CTL_MOD, c->fd, c, wanted);
}

static void flush(struct connection *c)
{
    if (!buffer_send(&c->out, c->fd)) {
        hang_up(c);
        return;
    }
    if (!buffer_length(&c->out))
        buffer_free(&c->out);
    await_write(c, buffer_length(&c->out) > 0);
}

/* Send now when nothing waits; only what the kernel refuses is copied. */
static void deliver(struct connection *c, const uint8_t *bytes, size_t n)
{
    ssize_t sent = 0;
    if (!buffer_length(&c->out)) {
        sent = send(c->fd, bytes, n, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) {
            hang_up(c);
            return;
        }
        if (sent < 0)
            sent = 0;
    }
    if ((size_t)sent < n) {
        buffer_append(&c->out, bytes + sent, n - (size_t)sent);
        await_write(c, true);
    }
}

static void put_frame(struct buffer *out, const void *payload, size_t n)
{
    uint8_t *at = buffer_reserve(out, n + WS_MAX_HEADER);
    size_t header = ws_header(at, WS_TEXT, n, NULL);
    memcpy(at + header, payload, n);
    out->end += header + n;
}

/* ---- what a client sends */

static void record(struct connection *c, const struct ws_frame *frame)
{
    buffer_append(&log_batch, frame->payload, frame->length);
    buffer_append(&log_batch, "\n", 1);
    c->unanswered++;
    if (c->touched)
        return;
    c->touched = true;
    c->next_touched = touched_producers;
    touched_producers = c;
}

static void route(struct connection *c, const struct ws_frame *frame)
{
    static const char TO[] = "\"to\":\"";
    char *payload = (char *)frame->payload, *end = payload + frame->length;
    char *to = memmem(payload, frame->length, TO, sizeof TO - 1);
    if (!to)
        return;
    to += sizeof TO - 1;
    char *quote = memchr(to, '"', (size_t)(end - to));
    if (!quote)
        return;
    if (log_file >= 0 && memmem(payload, frame->length, "\"ref\":", 6))
        record(c, frame);
    struct room *room = room_of(to, (size_t)(quote - to));
    if (!room->count)
        return;
    put_frame(&room->batch, frame->payload, frame->length);
    if (!room->dirty) {
        room->dirty = true;
        room->next_dirty = dirty_rooms;
        dirty_rooms = room;
    }
}

/* Answer the upgrade. Returns the bytes it took, 0 while it is incomplete or after a refusal. */
static size_t upgrade(struct connection *c, uint8_t *bytes, size_t n)
{
    static const char RESPONSE[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                                   "Connection: Upgrade\r\nSec-WebSocket-Accept: " SAMPLE_ACCEPT "\r\n\r\n";
    static const char PREFIX[] = "GET /ws/";
    uint8_t *end = memmem(bytes, n, "\r\n\r\n", 4);
    if (!end)
        return 0;
    char *id = (char *)bytes + sizeof PREFIX - 1;
    bool known_key = memmem(bytes, (size_t)(end - bytes), SAMPLE_KEY, sizeof SAMPLE_KEY - 1);
    if (memcmp(bytes, PREFIX, sizeof PREFIX - 1) || !known_key) {
        hang_up(c);
        return 0;
    }
    join(c, room_of(id, strcspn(id, " ?")));
    c->upgraded = true;
    buffer_append(&c->out, RESPONSE, sizeof RESPONSE - 1);
    put_frame(&c->out, CONFIRMED, sizeof CONFIRMED - 1);
    flush(c);
    return (size_t)(end - bytes) + 4;
}

static size_t consume(struct connection *c, uint8_t *bytes, size_t n)
{
    size_t used = 0, step;
    struct ws_frame frame;
    if (!c->upgraded && !(used = upgrade(c, bytes, n)))
        return 0;
    while (c->fd >= 0 && (step = ws_read(&frame, bytes + used, n - used))) {
        used += step;
        if (frame.opcode == WS_CLOSE || !frame.masked) {
            hang_up(c);
        } else if (frame.opcode == WS_TEXT) {
            ws_mask(frame.payload, frame.payload, frame.length, frame.key);
            route(c, &frame);
        }
    }
    return used;
}

static void on_readable(struct connection *c)
{
    static uint8_t bytes[2 * READ_BYTES];
    size_t kept = buffer_length(&c->in);
    if (kept > READ_BYTES) {
        hang_up(c); /* a frame larger than any this benchmark sends */
        return;
    }
    if (kept)
        memcpy(bytes, c->in.data + c->in.start, kept);
    ssize_t got = recv(c->fd, bytes + kept, READ_BYTES, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) {
        hang_up(c);
        return;
    }
    c->in.start = c->in.end = 0;
    size_t n = kept + (size_t)got, used = consume(c, bytes, n);
    if (c->fd >= 0 && used < n)
        buffer_append(&c->in, bytes + used, n - used);
}

/* ---- the end of a turn */

static void sync_log(void)
{
    if (!buffer_length(&log_batch))
        return;
    while (buffer_length(&log_batch)) {
        ssize_t written = write(log_file, log_batch.data + log_batch.start, buffer_length(&log_batch));
        if (written < 0)
            die("log write");
        buffer_consume(&log_batch, (size_t)written);
    }
    if (fdatasync(log_file) < 0)
        die("log fdatasync");
}

static void answer_producers(void)
{
    static struct buffer answers;
    for (struct connection *c = touched_producers; c; c = c->next_touched) {
        answers.start = answers.end = 0;
        for (; c->unanswered; c->unanswered--)
            put_frame(&answers, SENT, sizeof SENT - 1);
        c->touched = false;
        if (c->fd >= 0)
            deliver(c, answers.data, answers.end);
    }
    touched_producers = NULL;
}

static void deliver_batches(void)
{
    for (struct room *room = dirty_rooms; room; room = room->next_dirty) {
        for (size_t i = room->count; i-- > 0;) /* backwards: hang_up() moves the last member into the gap */
            deliver(room->members[i], room->batch.data, room->batch.end);
        room->batch.start = room->batch.end = 0;
        room->dirty = false;
    }
    dirty_rooms = NULL;
}

static void free_closed(void)
{
    while (closed_connections) {
        struct connection *c = closed_connections;
        closed_connections = c->next_closed;
        free(c);
    }
}

/* ---- the loop */

static int listen_on(int port)
{
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 4096) < 0)
        die("listen");
    return fd;
}

static void accept_all(int listener)
{
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct connection *c = calloc(1, sizeof *c);
        c->fd = fd;
        watch(poller, EPOLL_CTL_ADD, fd, c, false);
    }
}

static void turn(int listener)
{
    struct epoll_event events[EVENTS];
    int count = epoll_wait(poller, events, EVENTS, -1);
    for (int i = 0; i < count; i++) {
        struct connection *c = events[i].data.ptr;
        if (!c) {
            accept_all(listener);
            continue;
        }
        if (c->fd >= 0 && events[i].events & EPOLLOUT)
            flush(c);
        if (c->fd >= 0 && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
            on_readable(c);
    }
    sync_log();
    deliver_batches();
    answer_producers();
    free_closed();
}

int main(int count, char **arguments)
{
    if (count < 2) {
        fprintf(stderr, "usage: %s PORT [LOG_FILE]\n", arguments[0]);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    raise_descriptor_limit();
    if (count > 2 && (log_file = open(arguments[2], O_WRONLY | O_CREAT | O_APPEND, 0600)) < 0)
        die(arguments[2]);
    int listener = listen_on(atoi(arguments[1]));
    poller = epoll_create1(0);
    watch(poller, EPOLL_CTL_ADD, listener, NULL, false);
    for (;;)
        turn(listener);
}
