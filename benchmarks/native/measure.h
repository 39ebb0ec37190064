/* measure.h - how the load generator measures: clock, latencies, markers, and what the server's processes cost. */
#ifndef MEASURE_H
#define MEASURE_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#define NANO 1000000000ull

static inline uint64_t clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NANO + (uint64_t)t.tv_nsec;
}

/* Both over a comma-separated list of process ids. Memory is the proportional set size: shared pages count in part,
 * kernel socket buffers do not. */
double cpu_seconds_of(const char *pids);
uint64_t memory_kib_of(const char *pids);

double own_cpu_seconds(void);

/* ---- latencies: a log-linear histogram, 128 buckets an octave, so a quantile is less than 1 % off */

enum { SUB_BUCKETS = 128, SUB_BITS = 7 };
struct latencies {
    uint64_t buckets[64 * SUB_BUCKETS], count, slowest; /* nanoseconds */
};
extern struct latencies latencies;

double quantile_us(double q);

static inline void measure(uint64_t nanoseconds)
{
    size_t bucket = nanoseconds;
    if (nanoseconds >= SUB_BUCKETS) {
        int shift = 63 - __builtin_clzll(nanoseconds) - SUB_BITS;
        bucket = (size_t)shift * SUB_BUCKETS + (nanoseconds >> shift);
    }
    latencies.buckets[bucket]++;
    latencies.count++;
    if (nanoseconds > latencies.slowest)
        latencies.slowest = nanoseconds;
}

/* ---- markers: @@<16 digits of nanoseconds>,<8 digits of sequence>@@ */

#define BLANK_MARKER "@@0000000000000000,00000000@@"
enum { MARKER_BYTES = 29, MARKER_TIME = 2, MARKER_SEQUENCE = 19 };

/* Eight decimal digits at once, by three multiplications within one word (after D. Lemire, "Quickly parsing eight
 * digits", 2018): at millions of deliveries a second a loop over 24 digits would be the largest cost here. */
static inline uint64_t eight_digits(const uint8_t *text)
{
    uint64_t word;
    memcpy(&word, text, 8);
    word -= 0x3030303030303030ull;
    word = word * 10 + (word >> 8);
    return ((word & 0x000000FF000000FFull) * 0x000F424000000064ull +
            (word >> 16 & 0x000000FF000000FFull) * 0x0000271000000001ull) >> 32;
}

static inline void write_digits(uint8_t *to, uint64_t value, int width)
{
    while (width--) {
        to[width] = (uint8_t)('0' + value % 10);
        value /= 10;
    }
}

static inline bool is_marker(const uint8_t *p)
{
    return p[0] == '@' && p[1] == '@' && p[18] == ',' && p[27] == '@' && p[28] == '@';
}

/* Messages of one run look alike, so the marker is nearly always where it was last time. */
static inline const uint8_t *find_marker(const uint8_t *payload, size_t n)
{
    static size_t usual;
    if (n < MARKER_BYTES)
        return NULL;
    if (usual + MARKER_BYTES <= n && is_marker(payload + usual))
        return payload + usual;
    const uint8_t *at = memmem(payload, n, "@@", 2);
    if (!at || (size_t)(at - payload) + MARKER_BYTES > n || !is_marker(at))
        return NULL;
    usual = (size_t)(at - payload);
    return at;
}

#endif
