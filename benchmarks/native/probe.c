/* probe.c - a health probe such as a kubelet's: a new connection each, one request, the time until it is answered. */
#define _GNU_SOURCE
#include "client.h"

enum { PROBE_MILLISECONDS = 50, PATIENCE_SECONDS = 10 };

struct probes probes;
static uint64_t began; /* nanoseconds: when the probe that is under way, or was last, began */

static void ask(struct connection *c)
{
    char *request = request_for(c, "Connection: close\r\n");
    buffer_append(&c->out, request, strlen(request));
    free(request);
}

static size_t read_health(struct connection *c, uint8_t *bytes, size_t n)
{
    if (n < 12)
        return 0;
    uint64_t took = clock_ns() - began;
    if (took > probes.slowest)
        probes.slowest = took;
    probes.failed += memcmp(bytes, "HTTP/1.1 200", 12) != 0;
    close_connection(c);
    return n;
}

static const struct dialect health = {.never_in_websocket = true, .read = read_health, .greet = ask};

void probe_when_due(void)
{
    static struct role role = {.dialect = &health};
    static struct connection prober = {.role = &role, .state = CLOSED};
    uint64_t t = clock_ns();
    if (!option.probe)
        return;
    if (prober.state == CLOSED && t - began >= PROBE_MILLISECONDS * 1000000ull) {
        role.path = option.probe;
        began = t;
        probes.count++;
        buffer_free(&prober.in);
        open_connection(&prober);
    } else if (prober.state != CLOSED && t - began > PATIENCE_SECONDS * NANO) {
        probes.failed++;
        probes.slowest = t - began;
        close_connection(&prober);
    }
}
