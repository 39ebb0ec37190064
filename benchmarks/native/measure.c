/* measure.c - quantiles, and the processor time and memory of processes from /proc. */
#define _GNU_SOURCE
#include "measure.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct latencies latencies;

double quantile_us(double q)
{
    uint64_t seen = 0, wanted = (uint64_t)(q * (double)latencies.count);
    for (size_t bucket = 0; bucket < 64 * SUB_BUCKETS; bucket++) {
        seen += latencies.buckets[bucket];
        if (seen <= wanted)
            continue;
        if (bucket < 2 * SUB_BUCKETS)
            return (double)bucket / 1e3;
        size_t shift = bucket / SUB_BUCKETS - 1;
        return (double)((bucket - shift * SUB_BUCKETS) << shift) / 1e3;
    }
    return (double)latencies.slowest / 1e3;
}

/* The sum of what read_one() finds in /proc/<pid>/<file>, over a comma-separated list of process ids. */
static uint64_t sum_over(const char *pids, const char *file, uint64_t (*read_one)(FILE *))
{
    uint64_t sum = 0;
    char *list = strdup(pids), *rest = list, *pid, path[64];
    while ((pid = strsep(&rest, ","))) {
        snprintf(path, sizeof path, "/proc/%s/%s", pid, file);
        FILE *stream = *pid ? fopen(path, "r") : NULL;
        if (!stream)
            continue;
        sum += read_one(stream);
        fclose(stream);
    }
    free(list);
    return sum;
}

/* User and system time in clock ticks: fields 14 and 15, counted behind the name, which may hold blanks. */
static uint64_t read_cpu_ticks(FILE *stream)
{
    char text[1024];
    unsigned long user = 0, system = 0;
    text[fread(text, 1, sizeof text - 1, stream)] = 0;
    const char *behind_name = strrchr(text, ')');
    if (behind_name)
        sscanf(behind_name + 2, "%*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %lu %lu", &user, &system);
    return user + system;
}

static uint64_t read_pss_kib(FILE *stream)
{
    char line[256];
    unsigned long kib = 0;
    while (fgets(line, sizeof line, stream))
        if (sscanf(line, "Pss: %lu", &kib) == 1)
            break;
    return kib;
}

double cpu_seconds_of(const char *pids)
{
    return (double)sum_over(pids, "stat", read_cpu_ticks) / (double)sysconf(_SC_CLK_TCK);
}

uint64_t memory_kib_of(const char *pids)
{
    return sum_over(pids, "smaps_rollup", read_pss_kib);
}

double own_cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}
