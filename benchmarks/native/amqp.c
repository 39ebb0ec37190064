/* amqp.c - AMQP 0-9-1 as far as RabbitMQ needs it to publish with confirms and to consume.
 *
 * Plain: a queue of its own for each subscriber, bound to amq.direct. With --durable: one durable queue a group,
 * persistent messages, publisher confirms; consumers ack late, so that a confirm means a disk and not a quick reader. */
#define _GNU_SOURCE
#include <endian.h>

#include "client.h"

enum { FRAME_METHOD = 1, FRAME_HEADER = 2, FRAME_BODY = 3, FRAME_END = 0xCE, FRAME_OVERHEAD = 8, HEAD = 7 };
enum { FRAME_MAX = 131072, ACK_EVERY = 128, UNCONFIRMED_AT_MOST = 4096 };

#define METHOD(class, method) ((uint32_t)(class) << 16 | (method))
enum {
    CONNECTION_START = METHOD(10, 10), CONNECTION_START_OK = METHOD(10, 11), CONNECTION_TUNE = METHOD(10, 30),
    CONNECTION_TUNE_OK = METHOD(10, 31), CONNECTION_OPEN = METHOD(10, 40), CONNECTION_OPEN_OK = METHOD(10, 41),
    CONNECTION_CLOSE = METHOD(10, 50), CHANNEL_OPEN = METHOD(20, 10), CHANNEL_OPEN_OK = METHOD(20, 11),
    CHANNEL_CLOSE = METHOD(20, 40), QUEUE_DECLARE = METHOD(50, 10), QUEUE_DECLARE_OK = METHOD(50, 11),
    QUEUE_BIND = METHOD(50, 20), QUEUE_BIND_OK = METHOD(50, 21), BASIC_CONSUME = METHOD(60, 20),
    BASIC_CONSUME_OK = METHOD(60, 21), BASIC_PUBLISH = METHOD(60, 40), BASIC_DELIVER = METHOD(60, 60),
    BASIC_ACK = METHOD(60, 80), CONFIRM_SELECT = METHOD(85, 10), CONFIRM_SELECT_OK = METHOD(85, 11)
};

/* ---- writing */

static void put_number(struct buffer *to, uint64_t value, size_t width)
{
    uint64_t big = htobe64(value);
    buffer_append(to, (uint8_t *)&big + 8 - width, width);
}

static void put_short(struct buffer *to, const char *text)
{
    put_number(to, strlen(text), 1);
    buffer_append(to, text, strlen(text));
}

static void put_frame_of(struct buffer *to, int type, int channel, const void *bytes, size_t n)
{
    put_number(to, (uint64_t)type, 1);
    put_number(to, (uint64_t)channel, 2);
    put_number(to, n, 4);
    buffer_append(to, bytes, n);
    put_number(to, FRAME_END, 1);
}

static struct buffer method(uint32_t which)
{
    struct buffer m = {0};
    put_number(&m, which, 4);
    return m;
}

static void send_method(struct connection *c, struct buffer *m)
{
    put_frame_of(&c->out, FRAME_METHOD, be32toh(*(uint32_t *)m->data) < METHOD(20, 0) ? 0 : 1, m->data, m->end);
    buffer_free(m);
    flush(c);
}

/* ---- the handshake: one request after another, each sent when the one before is answered */

static void start_ok(struct connection *c)
{
    struct buffer m = method(CONNECTION_START_OK);
    put_number(&m, 0, 4); /* no properties */
    put_short(&m, "PLAIN");
    put_number(&m, 12, 4);
    buffer_append(&m, "\0guest\0guest", 12);
    put_short(&m, "en_US");
    send_method(c, &m);
}

static void tune_and_open(struct connection *c)
{
    struct buffer tune = method(CONNECTION_TUNE_OK), open = method(CONNECTION_OPEN);
    put_number(&tune, 1, 2);
    put_number(&tune, FRAME_MAX, 4);
    put_number(&tune, 0, 2);
    put_short(&open, "/");
    put_number(&open, 0, 2);
    send_method(c, &tune);
    send_method(c, &open);
}

static void declare(struct connection *c)
{
    enum { DURABLE = 2, EXCLUSIVE_AND_AUTO_DELETED = 4 + 8 };
    struct buffer m = method(QUEUE_DECLARE);
    char *queue = numbered(option.channel, c);
    put_number(&m, 0, 2);
    put_short(&m, option.durable ? queue : "");
    put_number(&m, option.durable ? DURABLE : EXCLUSIVE_AND_AUTO_DELETED, 1);
    put_number(&m, 0, 4);
    send_method(c, &m);
    free(queue);
}

/* The channel remembers the queue that was declared last: an empty name is that one. */
static void bind_queue(struct connection *c)
{
    struct buffer m = method(QUEUE_BIND);
    char *key = numbered(option.channel, c);
    put_number(&m, 0, 2);
    put_short(&m, "");
    put_short(&m, "amq.direct");
    put_short(&m, key);
    put_number(&m, 0, 1);
    put_number(&m, 0, 4);
    send_method(c, &m);
    free(key);
}

static void consume(struct connection *c)
{
    enum { NO_ACK = 2 };
    struct buffer m = method(BASIC_CONSUME);
    put_number(&m, 0, 2);
    put_short(&m, "");
    put_short(&m, "");
    put_number(&m, option.durable ? 0 : NO_ACK, 1);
    put_number(&m, 0, 4);
    send_method(c, &m);
}

static void ask_for_confirms(struct connection *c)
{
    struct buffer m = method(CONFIRM_SELECT);
    put_number(&m, 0, 1);
    send_method(c, &m);
}

static void after_channel_open(struct connection *c)
{
    if (c->subscriber || option.durable)
        declare(c);
    else
        become_ready(c);
}

static void after_declare(struct connection *c)
{
    if (!c->subscriber)
        ask_for_confirms(c);
    else if (option.durable)
        consume(c);
    else
        bind_queue(c);
}

/* ---- what is running */

/* Confirms may overtake one another, and one may stand for all before it. */
static void on_confirm(struct connection *c, uint64_t tag, bool all_before)
{
    struct confirmed { uint64_t up_to; bool ahead[UNCONFIRMED_AT_MOST]; };
    static struct confirmed *of_group;
    if (!of_group)
        of_group = calloc((size_t)option.groups, sizeof *of_group);
    struct confirmed *done = &of_group[c->group - groups];
    for (uint64_t t = all_before ? done->up_to + 1 : tag; t <= tag; t++) {
        bool *seen = &done->ahead[t % UNCONFIRMED_AT_MOST];
        if (!*seen)
            on_ack(c->group);
        *seen = true;
    }
    for (bool *next; *(next = &done->ahead[(done->up_to + 1) % UNCONFIRMED_AT_MOST]); done->up_to++)
        *next = false;
}

static void ack_late(struct connection *c, uint64_t tag)
{
    if (!option.durable || tag % ACK_EVERY)
        return;
    struct buffer m = method(BASIC_ACK);
    put_number(&m, tag - ACK_EVERY / 2, 8);
    put_number(&m, 1, 1);
    send_method(c, &m);
}

static void on_method(struct connection *c, const uint8_t *bytes, size_t n)
{
    const uint8_t *rest = bytes + 4;
    switch (be32toh(*(const uint32_t *)bytes)) {
    case CONNECTION_START: start_ok(c); break;
    case CONNECTION_TUNE: tune_and_open(c); break;
    case CONNECTION_OPEN_OK: {
        struct buffer m = method(CHANNEL_OPEN);
        put_short(&m, "");
        send_method(c, &m);
        break;
    }
    case CHANNEL_OPEN_OK: after_channel_open(c); break;
    case QUEUE_DECLARE_OK: after_declare(c); break;
    case QUEUE_BIND_OK: consume(c); break;
    case BASIC_CONSUME_OK:
    case CONFIRM_SELECT_OK: become_ready(c); break;
    case BASIC_DELIVER: ack_late(c, be64toh(*(const uint64_t *)(rest + 1 + rest[0]))); break;
    case BASIC_ACK: on_confirm(c, be64toh(*(const uint64_t *)rest), rest[8] & 1); break;
    case CONNECTION_CLOSE:
    case CHANNEL_CLOSE: complain("AMQP", rest + 3, n - 7); break;
    default: break;
    }
}

static size_t read_amqp(struct connection *c, uint8_t *bytes, size_t n)
{
    size_t used = 0;
    while (c->state != CLOSED && n - used >= FRAME_OVERHEAD) {
        uint8_t *frame = bytes + used;
        size_t length = be32toh(*(uint32_t *)(frame + 3));
        if (n - used < length + FRAME_OVERHEAD)
            break;
        if (frame[0] == FRAME_METHOD)
            on_method(c, frame + HEAD, length);
        else if (frame[0] == FRAME_BODY)
            on_message(c, frame + HEAD, length);
        used += length + FRAME_OVERHEAD;
    }
    return used;
}

static void greet_amqp(struct connection *c)
{
    buffer_append(&c->out, "AMQP\0\0\x09\x01", 8);
}

static void wrap_amqp(struct buffer *to, const struct connection *c, const char *body, size_t n)
{
    enum { HAS_DELIVERY_MODE = 0x1000, TRANSIENT = 1, PERSISTENT = 2 };
    struct buffer m = method(BASIC_PUBLISH), header = {0};
    char *key = numbered(option.channel, c);
    put_number(&m, 0, 2);
    put_short(&m, option.durable ? "" : "amq.direct");
    put_short(&m, key);
    put_number(&m, 0, 1);
    put_number(&header, 60, 2);
    put_number(&header, 0, 2);
    put_number(&header, n, 8);
    put_number(&header, HAS_DELIVERY_MODE, 2);
    put_number(&header, option.durable ? PERSISTENT : TRANSIENT, 1);
    put_frame_of(to, FRAME_METHOD, 1, m.data, m.end);
    put_frame_of(to, FRAME_HEADER, 1, header.data, header.end);
    put_frame_of(to, FRAME_BODY, 1, body, n);
    buffer_free(&m);
    buffer_free(&header);
    free(key);
}

const struct dialect amqp = {.name = "amqp", .never_in_websocket = true, .read = read_amqp, .greet = greet_amqp,
                             .wrap = wrap_amqp};
