/* wire.h - what load.c and reference.c share: a growable buffer, epoll registration, WebSocket framing (RFC 6455).
 *
 * No permessage-deflate, no fragments: neither program sends them, and the servers under test answer without. */
#ifndef WIRE_H
#define WIRE_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>

/* The sample handshake of RFC 6455 section 1.3: one fixed key spares both programs a SHA-1. */
#define SAMPLE_KEY "dGhlIHNhbXBsZSBub25jZQ=="
#define SAMPLE_ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

enum { WS_CONTINUATION = 0, WS_TEXT = 1, WS_BINARY = 2, WS_CLOSE = 8, WS_PING = 9, WS_PONG = 10 };
enum { WS_MAX_HEADER = 14 };

static inline void die(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, errno ? strerror(errno) : "failed");
    exit(2);
}

/* Bytes [start, end) of data are waiting; what is before start has been consumed. */
struct buffer {
    uint8_t *data;
    size_t start, end, capacity;
};

static inline size_t buffer_length(const struct buffer *b)
{
    return b->end - b->start;
}

/* Room for n more bytes; returns where they go. The caller adds what it wrote to end. */
static inline uint8_t *buffer_reserve(struct buffer *b, size_t n)
{
    if (b->end + n > b->capacity && b->start) {
        memmove(b->data, b->data + b->start, buffer_length(b));
        b->end -= b->start;
        b->start = 0;
    }
    if (b->end + n > b->capacity) {
        b->capacity = (b->end + n) * 2;
        b->data = realloc(b->data, b->capacity);
        if (!b->data)
            die("memory");
    }
    return b->data + b->end;
}

static inline void buffer_append(struct buffer *b, const void *bytes, size_t n)
{
    memcpy(buffer_reserve(b, n), bytes, n);
    b->end += n;
}

static inline void buffer_consume(struct buffer *b, size_t n)
{
    b->start += n;
    if (b->start == b->end)
        b->start = b->end = 0;
}

static inline void buffer_free(struct buffer *b)
{
    free(b->data);
    memset(b, 0, sizeof *b);
}

/* Send what waits. False when the peer is gone; bytes the kernel did not take stay in the buffer. */
static inline bool buffer_send(struct buffer *b, int fd)
{
    while (buffer_length(b)) {
        ssize_t sent = send(fd, b->data + b->start, buffer_length(b), MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return errno == EAGAIN;
        buffer_consume(b, (size_t)sent);
    }
    return true;
}

/* Register (EPOLL_CTL_ADD) or change (EPOLL_CTL_MOD) what is awaited of a socket; who comes back with each event. */
static inline void watch(int poller, int operation, int fd, void *who, bool writable_too)
{
    struct epoll_event event = {.events = EPOLLIN | (writable_too ? EPOLLOUT : 0), .data.ptr = who};
    if (epoll_ctl(poller, operation, fd, &event) < 0)
        die("epoll_ctl");
}

static inline void raise_descriptor_limit(void)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

struct ws_frame {
    int opcode;
    bool masked;
    uint8_t key[4];
    uint8_t *payload;
    size_t length;
};

/* Read one frame from n bytes. Returns the bytes it occupies, 0 when it is not all there. Does not unmask. */
static inline size_t ws_read(struct ws_frame *frame, uint8_t *bytes, size_t n)
{
    size_t header = 2;
    if (n < header)
        return 0;
    frame->opcode = bytes[0] & 15;
    frame->masked = bytes[1] & 128;
    frame->length = bytes[1] & 127;
    if (frame->length >= 126) {
        size_t width = frame->length == 126 ? 2 : 8;
        header += width;
        if (n < header)
            return 0;
        frame->length = 0;
        for (size_t i = 0; i < width; i++)
            frame->length = frame->length << 8 | bytes[2 + i];
    }
    if (frame->masked)
        header += 4;
    if (n < header || n - header < frame->length)
        return 0;
    if (frame->masked)
        memcpy(frame->key, bytes + header - 4, 4);
    frame->payload = bytes + header;
    return header + frame->length;
}

/* Write a header for a payload of n bytes, key NULL for an unmasked frame. Returns its length. */
static inline size_t ws_header(uint8_t *out, int opcode, size_t n, const uint8_t *key)
{
    size_t at = 2, width = n < 126 ? 0 : n < 65536 ? 2 : 8;
    out[0] = (uint8_t)(0x80 | opcode);
    out[1] = (uint8_t)((key ? 0x80 : 0) | (width == 0 ? n : width == 2 ? 126 : 127));
    for (size_t i = width; i-- > 0;)
        out[at++] = (uint8_t)(n >> (8 * i));
    if (key) {
        memcpy(out + at, key, 4);
        at += 4;
    }
    return at;
}

/* Mask or unmask n bytes, eight at a time; to and from may be the same. */
static inline void ws_mask(uint8_t *to, const uint8_t *from, size_t n, const uint8_t key[4])
{
    uint8_t twice[8] = {key[0], key[1], key[2], key[3], key[0], key[1], key[2], key[3]};
    uint64_t wide, word;
    size_t i = 0;
    memcpy(&wide, twice, 8);
    for (; i + 8 <= n; i += 8) {
        memcpy(&word, from + i, 8);
        word ^= wide;
        memcpy(to + i, &word, 8);
    }
    for (; i < n; i++)
        to[i] = from[i] ^ key[i & 3];
}

#endif
