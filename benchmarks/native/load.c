/* load.c - the load generator: one thread, epoll, millions of deliveries a second; one JSON line of results.
 *
 * Groups of one publisher and N subscribers. Every message carries the marker @@<nanoseconds>,<sequence>@@; what
 * comes back is counted, timed and checked by it, so loss, repeats and disorder cannot hide behind a good rate.
 *
 *   closed loop  --window W: a group has W messages under way, a new one goes when one is complete: received by all
 *                its subscribers, or, without subscribers, acknowledged to the publisher (--ack TEXT).
 *   open loop    --rate R: R messages a second and group, whatever comes back. Latency counts from the moment a
 *                message was due, so that a slow server cannot slow its own clock.
 *   both         --both: of one subscriber and --ack; a message is complete when it is received and acknowledged.
 *   idle         --idle N: open N connections, hold them, report what each costs the server's memory, and with
 *                --probe PATH how long a stranger's GET took meanwhile. --beside N holds N of them beside a load.
 *
 * --header LINE goes with every GET and handshake.
 *
 * Speaks WebSocket, or with --tcp without. What is said inside is a dialect of each role: text (a message a frame),
 * nats, resp, mqtt, amqp, stomp; http and sse are never inside. --durable and --channel are for mqtt, amqp and stomp.
 * Templates know {g} (group), {i} (subscriber), {marker}, {pad} (fills up to --size), {length} and {body}.
 * An acknowledgement counts --per-ack messages. */
#define _GNU_SOURCE
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>

#include "client.h"

enum { OPENING_AT_ONCE = 64, IDLE_WARM_UP = 50 };
enum { CONNECT_SECONDS = 40, STALL_SECONDS = 5, DRAIN_SECONDS = 8, MAX_BACKLOG = 1 << 20 };

static struct connection *connections;
static int connection_count, idle_count;

/* ---- sending */

/* How many completions make one message complete. */
static uint64_t completions(void)
{
    return option.subscribers ? (uint64_t)option.subscribers : 1;
}

static uint64_t outstanding(const struct group *group)
{
    if (option.both)
        return group->sent - group->settled;
    return group->sent * completions() - (option.subscribers ? group->delivered : group->acked);
}

static void fill_window(struct group *group)
{
    uint64_t capacity = (uint64_t)option.window * completions(), under_way = outstanding(group);
    if (under_way + completions() > capacity)
        return;
    uint64_t due = clock_ns();
    for (uint64_t room = (capacity - under_way) / completions(); room; room--)
        publish(group, due);
}

static void keep_rate(struct group *group)
{
    for (uint64_t t = clock_ns(); group->next_at <= t; group->next_at += (uint64_t)(1e9 / option.rate))
        publish(group, group->next_at);
}

static void pump(void)
{
    for (int g = 0; g < option.groups; g++) {
        struct connection *c = groups[g].publisher;
        if (c->state != READY || buffer_length(&c->out) > MAX_BACKLOG)
            continue;
        if (option.rate > 0)
            keep_rate(&groups[g]);
        else
            fill_window(&groups[g]);
        if (buffer_length(&c->out) && !c->awaits_write)
            flush(c);
    }
}

/* ---- the cast */

/* Idle ones first, then subscribers, then publishers: the order in which they are opened. */
static void build_cast(void)
{
    idle_count = option.idle ? option.idle : option.beside;
    int playing = option.idle ? 0 : option.groups;
    connection_count = idle_count + playing * (option.subscribers + 1);
    connections = calloc((size_t)connection_count, sizeof *connections);
    groups = calloc((size_t)option.groups, sizeof *groups);
    struct connection *c = connections;
    for (int i = 0; i < idle_count; i++, c++)
        *c = (struct connection){.role = &idle_role, .index = i, .subscriber = true};
    for (int g = 0; g < playing; g++)
        for (int i = 0; i < option.subscribers; i++, c++)
            *c = (struct connection){.role = &subscriber_role, .group = &groups[g], .index = i, .subscriber = true};
    for (int g = 0; g < playing; g++, c++) {
        *c = (struct connection){.role = &publisher_role, .group = &groups[g]};
        groups[g].publisher = c;
        write_message(&groups[g]);
        if (!option.subscribers || option.both)
            groups[g].sent_at = calloc((size_t)option.window, sizeof(uint64_t));
    }
}

/* Open connections [from, until) a few at a time and wait until all are ready. Returns the seconds it took. */
static double open_all(int from, int until)
{
    uint64_t begin = clock_ns(), limit = begin + CONNECT_SECONDS * NANO;
    for (int next = from; ready_count < until; poll_for(20)) {
        probe_when_due();
        while (next < until && next - ready_count < OPENING_AT_ONCE)
            open_connection(&connections[next++]);
        if (tally.errors || clock_ns() > limit) {
            fprintf(stderr, "load: only %d of %d connections are ready\n", ready_count, until);
            exit(3);
        }
    }
    return (double)(clock_ns() - begin) / 1e9;
}

static void idle_for(double seconds)
{
    for (uint64_t end = clock_ns() + (uint64_t)(seconds * 1e9); clock_ns() < end;) {
        probe_when_due();
        poll_for(20);
    }
}

/* ---- the runs */

struct window { /* the part of a run that counts */
    uint64_t begin, end;
    double server_cpu, own_cpu; /* at its begin, then what was used within it */
    bool stalled;
};

static void open_window(struct window *w)
{
    *w = (struct window){.begin = clock_ns(), .server_cpu = cpu_seconds_of(option.pids), .own_cpu = own_cpu_seconds()};
    measuring = true;
}

static void close_window(struct window *w)
{
    measuring = false;
    w->end = clock_ns();
    w->server_cpu = cpu_seconds_of(option.pids) - w->server_cpu;
    w->own_cpu = own_cpu_seconds() - w->own_cpu;
}

static uint64_t all_outstanding(void)
{
    uint64_t sum = 0;
    for (int g = 0; g < option.groups; g++)
        sum += outstanding(&groups[g]);
    return sum;
}

/* True when nothing has been completed for as long as only a broken server needs. */
static bool has_stalled(uint64_t t)
{
    static uint64_t seen, changed_at;
    if (seen != tally.progress || !changed_at) {
        seen = tally.progress;
        changed_at = t;
    }
    return t - changed_at > STALL_SECONDS * NANO;
}

/* Load for --seconds, or until the first message counts: some servers acknowledge thousands at once. */
static struct window drive(void)
{
    struct window window = {0};
    uint64_t begin = clock_ns(), counts_from = begin + (uint64_t)(option.warm_seconds * 1e9);
    uint64_t end = counts_from + (uint64_t)(option.seconds * 1e9);
    for (int g = 0; g < option.groups; g++) /* staggered, so that groups are not due all at once */
        groups[g].next_at = begin + (option.rate > 0 ? (uint64_t)(1e9 / option.rate * g / option.groups) : 0);
    for (uint64_t t = begin; (t < end || !tally.counted) && !window.stalled; t = clock_ns()) {
        if (!measuring && t >= counts_from)
            open_window(&window);
        pump();
        poll_for(option.rate > 0 ? 0 : 1);
        window.stalled = has_stalled(t);
    }
    if (!measuring) { /* stalled before anything counted */
        open_window(&window);
        window.stalled = true;
    }
    close_window(&window);
    for (uint64_t limit = clock_ns() + DRAIN_SECONDS * NANO, t; all_outstanding(); poll_for(10))
        if ((t = clock_ns()) > limit || has_stalled(t))
            break;
    return window;
}

static void print_result(const struct window *w, double connect_seconds)
{
    double seconds = (double)(w->end - w->begin) / 1e9;
    uint64_t count = tally.counted;
    printf("{\"per_second\": %.0f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.0f, ", (double)count / seconds,
           quantile_us(0.5), quantile_us(0.99), (double)latencies.slowest / 1e3);
    printf("\"gaps\": %" PRIu64 ", \"duplicates\": %" PRIu64 ", \"undelivered\": %" PRIu64 ", ", tally.gaps,
           tally.duplicates, all_outstanding());
    printf("\"errors\": %" PRIu64 ", \"disconnects\": %" PRIu64 ", \"stalled\": %s, ", tally.errors,
           tally.disconnects, w->stalled ? "true" : "false");
    printf("\"server_us_per_message\": %.3f, \"server_cpu\": %.2f, \"load_cpu\": %.2f, ",
           count ? w->server_cpu * 1e6 / (double)count : 0, w->server_cpu / seconds, w->own_cpu / seconds);
    printf("\"seconds\": %.2f, \"connect_seconds\": %.2f}\n", seconds, connect_seconds);
}

/* Open the idle ones and report. The first few are not counted: they make the server load what it loads once. */
static void run_idle(void)
{
    int warm_up = option.idle < 2 * IDLE_WARM_UP ? 0 : IDLE_WARM_UP;
    open_all(0, warm_up);
    idle_for(option.warm_seconds);
    uint64_t before = memory_kib_of(option.pids);
    double connect_seconds = open_all(warm_up, option.idle);
    idle_for(option.seconds);
    uint64_t after = memory_kib_of(option.pids);
    printf("{\"kib_per_connection\": %.2f, \"pss_before_kib\": %" PRIu64 ", \"pss_after_kib\": %" PRIu64
           ", \"errors\": %" PRIu64 ", \"disconnects\": %" PRIu64 ", \"connect_seconds\": %.2f, ",
           ((double)after - (double)before) / (option.idle - warm_up), before, after, tally.errors, tally.disconnects,
           connect_seconds);
    printf("\"handshakes_per_second\": %.0f, \"probes\": %" PRIu64 ", \"probes_failed\": %" PRIu64
           ", \"slowest_probe_ms\": %.2f}\n", (option.idle - warm_up) / connect_seconds, probes.count, probes.failed,
           (double)probes.slowest / 1e6);
}

/* ---- options */

enum kind { NUMBER, REAL, TEXT, DIALECT, ON, OFF };

static const struct {
    const char *name;
    enum kind kind;
    void *value;
} known_options[] = {
    {"port", NUMBER, &option.port},
    {"groups", NUMBER, &option.groups},
    {"subscribers", NUMBER, &option.subscribers},
    {"window", NUMBER, &option.window},
    {"size", NUMBER, &option.size},
    {"idle", NUMBER, &option.idle},
    {"beside", NUMBER, &option.beside},
    {"per-ack", NUMBER, &option.per_ack},
    {"rate", REAL, &option.rate},
    {"warm-seconds", REAL, &option.warm_seconds},
    {"seconds", REAL, &option.seconds},
    {"message", TEXT, &option.message},
    {"envelope", TEXT, &option.envelope},
    {"ack", TEXT, &option.ack},
    {"failure", TEXT, &option.failure},
    {"pids", TEXT, &option.pids},
    {"subprotocol", TEXT, &option.subprotocol},
    {"channel", TEXT, &option.channel},
    {"probe", TEXT, &option.probe},
    {"header", TEXT, &option.header},
    {"subscriber-speaks", DIALECT, &subscriber_role.dialect},
    {"publisher-speaks", DIALECT, &publisher_role.dialect},
    {"idle-speaks", DIALECT, &idle_role.dialect},
    {"idle-path", TEXT, &idle_role.path},
    {"idle-greeting", TEXT, &idle_role.greeting},
    {"idle-ready", TEXT, &idle_role.ready},
    {"subscriber-path", TEXT, &subscriber_role.path},
    {"subscriber-greeting", TEXT, &subscriber_role.greeting},
    {"subscriber-ready", TEXT, &subscriber_role.ready},
    {"publisher-path", TEXT, &publisher_role.path},
    {"publisher-greeting", TEXT, &publisher_role.greeting},
    {"publisher-ready", TEXT, &publisher_role.ready},
    {"tcp", OFF, &option.websocket},
    {"both", ON, &option.both},
    {"durable", ON, &option.durable},
};
enum { KNOWN_OPTIONS = sizeof known_options / sizeof *known_options };

static void take_option(int which, const char *text)
{
    void *value = known_options[which].value;
    switch (known_options[which].kind) {
    case NUMBER: *(int *)value = atoi(text); break;
    case REAL: *(double *)value = atof(text); break;
    case TEXT: *(const char **)value = text; break;
    case DIALECT: *(const struct dialect **)value = dialect_named(text); break;
    case ON: *(bool *)value = true; break;
    case OFF: *(bool *)value = false; break;
    }
}

static void read_options(int count, char **arguments)
{
    struct option names[KNOWN_OPTIONS + 1] = {0};
    for (int i = 0; i < KNOWN_OPTIONS; i++)
        names[i] = (struct option){known_options[i].name, known_options[i].kind < ON, NULL, i};
    for (int which; (which = getopt_long(count, arguments, "", names, NULL)) != -1;) {
        if (which == '?')
            exit(2);
        take_option(which, optarg);
    }
}

static void check_options(void)
{
    const char *problem = NULL;
    if (!option.port || option.groups < 1 || option.window < 1)
        problem = "--port, --groups and --window must be positive";
    else if (!option.idle && !option.message)
        problem = "--message or --idle is needed";
    else if (option.rate > 0 && !option.subscribers)
        problem = "--rate needs --subscribers";
    else if (option.both && (option.subscribers != 1 || !option.ack))
        problem = "--both needs one subscriber and --ack";
    for (struct role **role = (struct role *[]){&subscriber_role, &publisher_role, &idle_role, NULL}; *role; role++)
        if (!(*role)->dialect)
            (*role)->dialect = dialect_named("text");
        else if (!(*role)->dialect->read && !option.websocket)
            problem = "a dialect is needed with --tcp";
    if (!problem)
        return;
    fprintf(stderr, "load: %s\n", problem);
    exit(2);
}

int main(int count, char **arguments)
{
    read_options(count, arguments);
    check_options();
    signal(SIGPIPE, SIG_IGN);
    raise_descriptor_limit();
    start_clients();
    build_cast();
    if (option.idle) {
        run_idle();
        return 0;
    }
    double connect_seconds = open_all(0, connection_count);
    idle_for(0.2);
    struct window window = drive();
    print_result(&window, connect_seconds);
    return 0;
}
