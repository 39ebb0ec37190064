/* stomp.c - STOMP 1.2 as far as RabbitMQ needs it to keep: durable queues, persistent messages, a receipt for each.
 *
 * Consumers ack late, as in amqp.c and for its reason. */
#define _GNU_SOURCE
#include "client.h"

enum { ACK_EVERY = 128, ACK_ID_AT_MOST = 128 };

static void say(struct connection *c, const char *frame)
{
    put(c, frame, strlen(frame) + 1); /* the NUL ends the frame */
    flush(c);
}

static void connect_to(struct connection *c)
{
    say(c, "CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\nheart-beat:0,0\n\n");
}

static void subscribe(struct connection *c)
{
    char head[256], *queue = numbered(option.channel, c);
    snprintf(head, sizeof head, "SUBSCRIBE\nid:0\ndestination:/queue/%s\nack:client\nreceipt:s\n\n", queue);
    say(c, head);
    free(queue);
}

/* The ack id of the message half way is remembered; with `ack:client` it stands for all before it. */
static void ack_late(struct connection *c, const char *head, const char *end)
{
    static struct late { unsigned seen; char id[ACK_ID_AT_MOST]; } *of_group;
    if (!of_group)
        of_group = calloc((size_t)option.groups, sizeof *of_group);
    struct late *late = &of_group[c->group - groups];
    if (++late->seen % ACK_EVERY == ACK_EVERY / 2) {
        const char *id = memmem(head, (size_t)(end - head), "\nack:", 5);
        size_t n = id ? strcspn(id + 5, "\n") : 0;
        snprintf(late->id, sizeof late->id, "%.*s", (int)n, id ? id + 5 : "");
    } else if (late->seen % ACK_EVERY == 0) {
        char head_of_ack[ACK_ID_AT_MOST + 16];
        snprintf(head_of_ack, sizeof head_of_ack, "ACK\nid:%s\n\n", late->id);
        say(c, head_of_ack);
    }
}

static void on_stomp(struct connection *c, const uint8_t *frame, size_t n)
{
    if (!strncmp((const char *)frame, "MESSAGE", 7)) {
        const uint8_t *body = memmem(frame, n, "\n\n", 2);
        if (!body)
            return;
        ack_late(c, (const char *)frame, (const char *)body);
        on_message(c, body + 2, n - (size_t)(body + 2 - frame));
    } else if (!strncmp((const char *)frame, "RECEIPT", 7)) {
        if (c->subscriber)
            become_ready(c);
        else
            on_ack(c->group);
    } else if (!strncmp((const char *)frame, "CONNECTED", 9)) {
        if (c->subscriber)
            subscribe(c);
        else
            become_ready(c);
    } else {
        complain("STOMP", frame, n);
    }
}

static size_t read_stomp(struct connection *c, uint8_t *bytes, size_t n)
{
    size_t used = 0;
    while (c->state != CLOSED) {
        while (used < n && bytes[used] == '\n') /* heart-beats, and what follows a frame */
            used++;
        uint8_t *end = memchr(bytes + used, 0, n - used);
        if (!end)
            break;
        on_stomp(c, bytes + used, (size_t)(end - bytes) - used);
        used = (size_t)(end + 1 - bytes);
    }
    return used;
}

static void wrap_stomp(struct buffer *to, const struct connection *c, const char *body, size_t n)
{
    char *queue = numbered(option.channel, c), *head = NULL;
    int length = asprintf(&head, "SEND\ndestination:/queue/%s\npersistent:true\nreceipt:r\ncontent-length:%zu\n\n", queue, n);
    buffer_append(to, head, (size_t)length);
    buffer_append(to, body, n);
    buffer_append(to, "", 1);
    free(queue);
    free(head);
}

const struct dialect stomp = {.name = "stomp", .never_in_websocket = true, .read = read_stomp, .greet = connect_to,
                              .wrap = wrap_stomp};
