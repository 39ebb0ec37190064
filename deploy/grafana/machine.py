"""The dashboards of what the bus stands on: its store, its processes, its requests."""

from __future__ import annotations

from panels import Dashboard, Panel, Row, mean, quantile, quantiles, rate, series, total

STORE = Dashboard(
    "store",
    "store",
    "The log and the disk below it.",
    (
        Row(
            "Commits",
            (
                Panel(
                    "One commit",
                    quantiles("bus_commit_duration_seconds"),
                    "s",
                    red_from=0.5,
                    about="Its sync included.",
                ),
                Panel(
                    "Commits and writes a second",
                    {
                        "commits": rate("bus_commit_duration_seconds_count"),
                        "writes": rate("bus_commit_batch_size_sum"),
                    },
                    "ops",
                ),
                Panel(
                    "Writes in a commit",
                    {
                        "mean": mean("bus_commit_batch_size"),
                        "99th percentile": quantile(0.99, "bus_commit_batch_size"),
                    },
                    about="Group commit at work: the more comes in, the more go together.",
                ),
                Panel("Writes that wait for the disk", {"waiting": total("bus_uncommitted_messages")}, width=12),
                Panel(
                    "Work that failed, a second",
                    {"{{op}} {{class}}": f"{rate('bus_db_errors_total', by='op, class')} > 0"},
                    "ops",
                    width=12,
                    about="Empty while none fails.",
                ),
            ),
        ),
        Row(
            "What is kept",
            (
                Panel("Payload in the log", {"payload": total("bus_log_bytes")}, "bytes"),
                Panel("Files", {"{{file}}": total("bus_database_bytes", by="file")}, "bytes", stacked=True),
                Panel("Stored a second", {"messages": rate("bus_messages_published_total")}, "ops"),
                Panel(
                    "Left the log a second",
                    {
                        "policy {{policy}}": rate("bus_retention_deleted_total", by="policy"),
                        "size cap": rate("bus_log_evicted_total"),
                    },
                    "ops",
                    width=12,
                ),
                Panel("Archived a second", {"archived": rate("bus_retention_archived_total")}, "ops", width=12),
            ),
        ),
        Row(
            "Disk",
            (
                Panel(
                    "Free, of its size",
                    {"{{instance}}": f"{series('bus_disk_free_bytes')} / {series('bus_disk_size_bytes')}"},
                    "percentunit",
                    width=12,
                    red_below=0.1,
                ),
                Panel("Free", {"{{instance}}": series("bus_disk_free_bytes")}, "bytes", width=12),
            ),
        ),
    ),
)

PROCESS = Dashboard(
    "process",
    "process",
    "Worker processes, and the requests that they serve.",
    (
        Row(
            "Workers",
            (
                Panel("Workers that serve", {"{{instance}}": series("bus_workers")}),
                Panel(
                    "Time since the start",
                    {"{{instance}} {{worker}}": f"time() - {series('bus_process_start_time_seconds')}"},
                    "s",
                ),
                Panel(
                    "Processor, of one core",
                    {"{{instance}} {{worker}}": rate("bus_process_cpu_seconds_total", by="instance, worker")},
                    "percentunit",
                ),
                Panel(
                    "Resident memory",
                    {"{{instance}} {{worker}}": series("bus_process_resident_memory_bytes")},
                    "bytes",
                    stacked=True,
                ),
                Panel(
                    "Open files, of what is allowed",
                    {
                        "{{instance}} {{worker}}": (
                            f"{series('bus_process_open_fds')} / {series('bus_process_max_fds')}"
                        )
                    },
                    "percentunit",
                    red_from=0.9,
                ),
                Panel("Event loop, how late", quantiles("bus_event_loop_lag_seconds"), "s", red_from=1),
                Panel(
                    "Background work that failed, a second",
                    {"ticks": rate("bus_background_failures_total")},
                    "ops",
                    width=12,
                ),
                Panel(
                    "Steps of the wall clock, a second",
                    {"{{instance}}": rate("bus_clock_jumps_total", by="instance")},
                    "ops",
                    width=12,
                ),
            ),
        ),
        Row(
            "Requests",
            (
                Panel(
                    "Answers a second, by class", {"{{status}}": rate("bus_http_requests_total", by="status")}, "ops"
                ),
                Panel(
                    "Answers a second, by route",
                    {"{{route}}": f"topk(10, {rate('bus_http_requests_total', by='route')} > 0)"},
                    "ops",
                    about="The ten that are asked most.",
                ),
                Panel(
                    "One request",
                    quantiles("bus_http_request_duration_seconds"),
                    "s",
                    about="Those that Flask serves, without long polls and streams; sends have a lane of their own.",
                ),
                Panel("Refusals that were told, a second", {"errors": rate("bus_errors_total")}, "ops"),
                Panel(
                    "Turned away a second",
                    {"{{reason}}": rate("bus_auth_failures_total", by="reason")},
                    "ops",
                ),
                Panel("Told to slow down, a second", {"{{scope}}": rate("bus_rate_limited_total", by="scope")}, "ops"),
            ),
        ),
        Row(
            "The scrape itself",
            (
                Panel("Its time", {"{{instance}}": series("scrape_duration_seconds")}, "s", width=12, red_from=0.5),
                Panel("Its series", {"{{instance}}": series("scrape_samples_scraped")}, width=12, red_from=2000),
            ),
        ),
    ),
)
