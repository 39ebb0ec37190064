/* client.h - one client of the server under test: its connection, how it talks, what it counts. */
#ifndef CLIENT_H
#define CLIENT_H

#include "measure.h"
#include "wire.h"

enum state { CONNECTING, UPGRADING, JOINING, READY, CLOSED };

struct connection;
struct group;

/* How one side talks, inside WebSocket frames or, with --tcp, without; dialects.c, mqtt.c, amqp.c and stomp.c have them. */
struct dialect {
    const char *name;
    bool never_in_websocket;
    /* Take what is complete of n bytes; returns how many were taken. Not called for `text`: a frame is a message. */
    size_t (*read)(struct connection *c, uint8_t *bytes, size_t n);
    /* What is said first; NULL: the role's greeting as it stands. */
    void (*greet)(struct connection *c);
    /* Put a body of n bytes into what is sent for it; NULL: --envelope does. */
    void (*wrap)(struct buffer *to, const struct connection *c, const char *body, size_t n);
};

/* What a subscriber, a publisher or an idle client does first. */
struct role {
    const struct dialect *dialect;
    const char *path, *greeting, *ready; /* ready: the text it waits for, NULL when it waits for none */
};

struct connection {
    struct role *role;
    struct group *group;
    int fd, index;
    bool subscriber, awaits_write;
    enum state state;
    uint32_t last_sequence;
    struct buffer in, stream, out; /* in: an incomplete frame; stream: a dialect's bytes out of WebSocket frames */
};

struct group {
    struct connection *publisher;
    struct buffer message;         /* as it goes out, but for the frame; the marker is patched for each send */
    size_t marker_at;
    uint64_t sent, delivered;      /* delivered counts messages x subscribers */
    uint64_t acked, settled;       /* settled: both delivered and acknowledged, counted with --both */
    uint64_t *sent_at;             /* a ring of --window send times: acknowledgements come in the order of the sends */
    uint64_t next_at;              /* open loop: when the next message is due */
};

/* What is asked for on the command line; see load.c. */
struct options {
    int port, groups, subscribers, window, size, idle, beside, per_ack;
    double rate, warm_seconds, seconds;
    bool websocket, both, durable;
    const char *message, *envelope, *ack, *failure, *pids, *subprotocol, *channel, *probe, *header;
};

/* What counts is of the measured window, all else is of the whole run. */
struct tally {
    uint64_t counted, gaps, duplicates, errors, disconnects;
    uint64_t progress; /* anything completed */
};

extern struct options option;
extern struct role subscriber_role, publisher_role, idle_role;
extern struct group *groups;
extern struct tally tally;
extern bool measuring;
extern int ready_count;
extern uint64_t epoch; /* nanoseconds: the zero of the markers' clock */

/* ---- client.c: connections and what is counted */

void start_clients(void);
void open_connection(struct connection *c);
void close_connection(struct connection *c);
void flush(struct connection *c);
void put(struct connection *c, const void *bytes, size_t n);
void poll_for(int milliseconds);
void complain(const char *what, const void *text, size_t n);
void become_ready(struct connection *c);
void on_message(struct connection *c, const uint8_t *payload, size_t n);
void on_marker(struct connection *c, const uint8_t *marker);
void on_ack(struct group *group);

/* ---- message.c: what is sent */

/* The text with {g} and {i} filled in; the caller frees it. */
char *numbered(const char *text, const struct connection *c);
/* The request for a page or an upgrade, with these lines in its head; the caller frees it. */
char *request_for(const struct connection *c, const char *more_lines);
/* Write the group's message once, from --message, --envelope and --size. */
void write_message(struct group *group);
/* Put the group's next message on its publisher's way; flush() sends it. due: when it should have gone. */
void publish(struct group *group, uint64_t due);

/* ---- dialects.c, mqtt.c, amqp.c, stomp.c */

extern const struct dialect mqtt, amqp, stomp;
/* Ends the program with a sentence when there is no such dialect. */
const struct dialect *dialect_named(const char *name);
bool holds(const uint8_t *payload, size_t n, const char *text);

/* ---- probe.c: is the server still there for a stranger? */

extern struct probes {
    uint64_t count, failed, slowest; /* nanoseconds */
} probes;
/* Ask for --probe over a new connection, every PROBE_MILLISECONDS, one at a time. */
void probe_when_due(void);

#endif
