/* mqtt.c - MQTT 3.1.1 at quality of service 0: connect, subscribe, publish, receive. */
#define _GNU_SOURCE
#include "client.h"

enum { CONNACK = 2, PUBLISH = 3, SUBACK = 9 };

static void put_text(struct buffer *to, const char *text)
{
    size_t n = strlen(text);
    buffer_append(to, (uint8_t[]){(uint8_t)(n >> 8), (uint8_t)n}, 2);
    buffer_append(to, text, n);
}

static void put_packet(struct buffer *to, uint8_t first, const struct buffer *rest)
{
    size_t n = rest->end;
    buffer_append(to, &first, 1);
    do {
        uint8_t digit = (uint8_t)(n & 127);
        n >>= 7;
        digit |= n ? 128 : 0;
        buffer_append(to, &digit, 1);
    } while (n);
    buffer_append(to, rest->data, rest->end);
}

static void connect_and_subscribe(struct connection *c)
{
    struct buffer rest = {0}, packets = {0};
    static const uint8_t level_clean_no_keep_alive[] = {4, 2, 0, 0};
    put_text(&rest, "MQTT");
    buffer_append(&rest, level_clean_no_keep_alive, sizeof level_clean_no_keep_alive);
    put_text(&rest, "");
    put_packet(&packets, 0x10, &rest);
    if (c->subscriber) {
        char *topic = numbered(option.channel, c);
        rest.end = 0;
        buffer_append(&rest, "\0\1", 2);
        put_text(&rest, topic);
        buffer_append(&rest, "\0", 1);
        put_packet(&packets, 0x82, &rest);
        free(topic);
    }
    put(c, packets.data, packets.end);
    buffer_free(&rest);
    buffer_free(&packets);
}

static void on_packet(struct connection *c, int kind, const uint8_t *rest, size_t n)
{
    if (kind == PUBLISH && n >= 2) {
        size_t topic = 2 + (size_t)(rest[0] << 8 | rest[1]);
        if (topic <= n)
            on_message(c, rest + topic, n - topic);
    } else if (kind == CONNACK && (n < 2 || rest[1])) {
        complain("MQTT refused the connection", "", 0);
    } else if (c->state == JOINING && kind == (c->subscriber ? SUBACK : CONNACK)) {
        become_ready(c);
    }
}

static size_t read_packets(struct connection *c, uint8_t *bytes, size_t n)
{
    size_t used = 0;
    while (c->state != CLOSED && n - used >= 2) {
        size_t at = used + 1, length = 0;
        for (int shift = 0; at < n; shift += 7) {
            length |= (size_t)(bytes[at] & 127) << shift;
            if (!(bytes[at++] & 128))
                break;
        }
        if (bytes[at - 1] & 128 || n - at < length)
            break;
        on_packet(c, bytes[used] >> 4, bytes + at, length);
        used = at + length;
    }
    return used;
}

static void wrap(struct buffer *to, const struct connection *c, const char *body, size_t n)
{
    struct buffer rest = {0};
    char *topic = numbered(option.channel, c);
    put_text(&rest, topic);
    buffer_append(&rest, body, n);
    put_packet(to, 0x30, &rest);
    buffer_free(&rest);
    free(topic);
}

const struct dialect mqtt = {.name = "mqtt", .read = read_packets, .greet = connect_and_subscribe, .wrap = wrap};
