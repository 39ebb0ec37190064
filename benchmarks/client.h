/* client.h - one client of the server under test: its connection, its protocol, what it counts. */
#ifndef CLIENT_H
#define CLIENT_H

#include "wire.h"

enum state { CONNECTING, UPGRADING, JOINING, READY, CLOSED };

/* What a subscriber or a publisher does first: the path of its WebSocket, a greeting, the text it waits for. */
struct role {
    const char *path, *greeting, *ready;
};

struct connection {
    struct role *role;
    struct group *group;
    int fd, index;
    bool subscriber, posts, awaits_write;
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

/* What is asked for on the command line; see load.c. */
struct options {
    int port, groups, subscribers, window, size, idle;
    double rate, warm_seconds, seconds;
    bool websocket, nats, post;
    const char *message, *envelope, *ack, *failure, *pids;
};

/* Deliveries and acknowledgements are those of the measured window, all else is of the whole run. */
struct tally {
    uint64_t deliveries, acks, gaps, duplicates, errors, disconnects;
    uint64_t progress; /* anything completed */
};

extern struct options option;
extern struct role subscriber_role, publisher_role;
extern struct group *groups;
extern struct tally tally;
extern bool measuring;
extern int ready_count;
extern uint64_t epoch; /* nanoseconds: the zero of the markers' clock */

void start_clients(void);
void open_connection(struct connection *c);
void flush(struct connection *c);
void poll_for(int milliseconds);

/* Write the group's message once, from --message, --envelope and --size. */
void write_message(struct group *group);

/* Put the group's next message on its publisher's way; flush() sends it. due: when it should have gone. */
void publish(struct group *group, uint64_t due);

#endif
