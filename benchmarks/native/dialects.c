/* dialects.c - how servers answer: plain text, NATS' lines, HTTP, server-sent events, Redis' replies. */
#define _GNU_SOURCE
#include "client.h"

bool holds(const uint8_t *payload, size_t n, const char *text)
{
    return text && memmem(payload, n, text, strlen(text));
}

/* ---- nats: lines, of which "MSG <subject> <sid> [reply] <length>" is followed by that many bytes */

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

/* ---- http: answers with a Content-Length, as every server here sends them; each acknowledges one request */

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
        if (memcmp(head, "HTTP/1.1 2", 10) || holds(bytes + used, whole, option.failure))
            complain("refused", head, whole);
        else
            on_ack(c->group);
        used += whole;
    }
    return used;
}

/* ---- sse: a stream of text; what surrounds a marker does not matter, so it is only searched */

static void ask_for_events(struct connection *c)
{
    char *request = request_for(c, "Accept: text/event-stream\r\n");
    buffer_append(&c->out, request, strlen(request));
    free(request);
}

/* Waits for the head of the answer and, if the role has one, for the text that says that the stream has begun. */
static size_t read_begin(struct connection *c, const uint8_t *bytes, size_t n)
{
    const uint8_t *end = memmem(bytes, n, "\r\n\r\n", 4);
    if (!end)
        return 0;
    if (memcmp(bytes, "HTTP/1.1 200", 12)) {
        complain("no stream", bytes, n);
        close_connection(c);
        return n;
    }
    if (c->role->ready) {
        const uint8_t *text = memmem(end, n - (size_t)(end - bytes), c->role->ready, strlen(c->role->ready));
        if (!text)
            return 0;
        end = text;
    }
    become_ready(c);
    return (size_t)(end - bytes);
}

static size_t read_events(struct connection *c, uint8_t *bytes, size_t n)
{
    size_t used = 0;
    if (c->state == JOINING && !(used = read_begin(c, bytes, n)))
        return 0;
    for (uint8_t *at; (at = memchr(bytes + used, '@', n - used));) {
        size_t where = (size_t)(at - bytes);
        if (n - where < MARKER_BYTES)
            return where;
        bool found = is_marker(at);
        if (found)
            on_marker(c, at);
        used = where + (found ? MARKER_BYTES : 1);
    }
    return n;
}

/* ---- resp: Redis' replies, lines of which "$<length>" is followed by that many bytes */

static size_t read_replies(struct connection *c, uint8_t *bytes, size_t n)
{
    size_t used = 0;
    uint8_t *end;
    while (c->state != CLOSED && (end = memchr(bytes + used, '\n', n - used))) {
        uint8_t *line = bytes + used;
        size_t next = (size_t)(end + 1 - bytes);
        if (*line == '$') {
            size_t length = strtoul((char *)line + 1, NULL, 10);
            if (n - next < length + 2)
                break;
            on_message(c, bytes + next, length);
            next += length + 2;
        } else if (*line == '-') {
            complain("Redis", line, (size_t)(end - line));
        }
        used = next;
    }
    return used;
}

/* ---- */

static const struct dialect text = {.name = "text"}, nats = {.name = "nats", .read = read_nats},
                            resp = {.name = "resp", .read = read_replies},
                            http = {.name = "http", .never_in_websocket = true, .read = read_answers},
                            sse = {.name = "sse", .never_in_websocket = true, .read = read_events,
                                   .greet = ask_for_events};

const struct dialect *dialect_named(const char *name)
{
    static const struct dialect *const known[] = {&text, &nats, &http, &sse, &resp, &mqtt, &amqp, &stomp};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(known[i]->name, name))
            return known[i];
    fprintf(stderr, "load: there is no dialect %s\n", name);
    exit(2);
}
