"""Writes dashboards/*.json, which Grafana loads, from the panels below.

    python deploy/grafana/make_dashboards.py

A test compares the files with what this would write, and asks a Prometheus every query.
"""

from __future__ import annotations

from pathlib import Path

from panels import BUS, Dashboard, Panel, Row, mean, quantile, quantiles, rate, series, stat, total

FOLDER = Path(__file__).resolve().parent / "dashboards"

FAILED_SENDS = 'reason=~"unavailable|disk_full|disk_low"'
"""Refusals that are the bus's fault; all others are the sender's, or a full inbox's."""

DELIVERED = 'class="2xx"'
UP_OR_DOWN = {"0": ("no", "red"), "1": ("yes", "green")}

OVERVIEW = Dashboard(
    "overview",
    "overview",
    "Whether the bus is well, at one look. The other dashboards say why not.",
    (
        Row(
            "Now",
            (
                stat(
                    "Ready",
                    total("bus_health_check_up", where='probe="ready"', how="min"),
                    words=UP_OR_DOWN,
                    about="What /health/ready answers; of several buses the worst.",
                ),
                stat("Workers", total("bus_workers"), red_below=1),
                stat("Connections", total("bus_connections")),
                stat("Sends a second", rate("bus_sends_total"), "ops"),
                stat("Send, 99th percentile", quantile(0.99, "bus_publish_duration_seconds"), "s", red_from=0.5),
                stat(
                    "Sends that failed",
                    f"{rate('bus_messages_refused_total', where=FAILED_SENDS)} / {rate('bus_sends_total')}",
                    "percentunit",
                    red_from=0.01,
                    about="For the bus's own reasons. Empty while nobody sends.",
                ),
                stat("Dead letters kept", total("bus_dead_letters")),
                stat(
                    "Disk free",
                    f"min({series('bus_disk_free_bytes')} / {series('bus_disk_size_bytes')})",
                    "percentunit",
                    red_below=0.1,
                ),
                stat(
                    "Since the canary arrived",
                    f"time() - min({series('bus_canary_last_success_timestamp_seconds')} > 0)",
                    "s",
                    red_from=60,
                    about="The bus sends itself a message from time to time. Empty before the first, and without health_checks.",
                ),
                stat(
                    "Since a worker started",
                    f"time() - {total('bus_process_start_time_seconds', how='max')}",
                    "s",
                    about="Short, again and again: something kills workers.",
                ),
                stat(
                    "Durability",
                    f"{total('bus_durability_info', by='mode', how='max')} == 1",
                    legend="{{mode}}",
                    shows="name",
                    about="full: what is acknowledged survives a power loss. relaxed: all but the last second or so.",
                ),
                stat("Version", total("bus_build_info", by="version"), legend="{{version}}", shows="name"),
                Panel(
                    "Alerts",
                    {"": f'ALERTS{{alertname=~"Bus.+",alertstate="firing",{BUS}}}'},
                    kind="table",
                    width=24,
                    about="Empty while no alert fires. docs/runbooks.md has a section for each.",
                ),
            ),
        ),
        Row(
            "Work",
            (
                Panel(
                    "Messages a second",
                    {
                        "sent": rate("bus_sends_total"),
                        "stored": rate("bus_messages_published_total"),
                        "delivered": rate("bus_messages_delivered_total"),
                    },
                    "ops",
                ),
                Panel(
                    "How long it takes",
                    {
                        "send, median": quantile(0.5, "bus_publish_duration_seconds"),
                        "send, 99th percentile": quantile(0.99, "bus_publish_duration_seconds"),
                        "to its receipt, median": quantile(0.5, "bus_end_to_end_seconds"),
                        "to its receipt, 99th percentile": quantile(0.99, "bus_end_to_end_seconds"),
                    },
                    "s",
                ),
                Panel("Connections", {"{{transport}}": total("bus_connections", by="transport")}, stacked=True),
                Panel(
                    "What went wrong",
                    {
                        "refused: {{reason}}": f"{rate('bus_messages_refused_total', by='reason')} > 0",
                        "dead letters: {{reason}}": f"{rate('bus_messages_dead_lettered_total', by='reason')} > 0",
                        "the store: {{op}} {{class}}": f"{rate('bus_db_errors_total', by='op, class')} > 0",
                    },
                    "ops",
                    about="Empty while nothing is refused, set aside or lost.",
                ),
                Panel(
                    "Waiting to be acked",
                    {
                        "{{owner}}: waiting": total("bus_deliveries_waiting", by="owner"),
                        "{{owner}}: leased": total("bus_deliveries_leased", by="owner"),
                    },
                ),
                Panel("HTTP answers a second", {"{{status}}": rate("bus_http_requests_total", by="status")}, "ops"),
            ),
        ),
        Row(
            "Means",
            (
                Panel(
                    "Processor, of one core",
                    {"{{worker}}": rate("bus_process_cpu_seconds_total", by="worker")},
                    "percentunit",
                    stacked=True,
                ),
                Panel(
                    "Event loop, how late",
                    quantiles("bus_event_loop_lag_seconds"),
                    "s",
                    red_from=1,
                ),
                Panel("Webhook deliveries that wait", {"pending": total("bus_webhook_pending")}),
            ),
        ),
    ),
)

DELIVERY = Dashboard(
    "delivery",
    "delivery",
    "Messages from their senders to their recipients.",
    (
        Row(
            "In",
            (
                Panel("Sends a second", {"{{transport}}": rate("bus_sends_total", by="transport")}, "ops", stacked=True),
                Panel(
                    "Stored and ephemeral a second",
                    {
                        "stored": rate("bus_messages_published_total"),
                        "ephemeral": rate("bus_messages_ephemeral_total"),
                    },
                    "ops",
                ),
                Panel(
                    "Refused a second",
                    {"{{reason}}": rate("bus_messages_refused_total", by="reason")},
                    "ops",
                    stacked=True,
                ),
                Panel(
                    "Send, arrival to answer",
                    quantiles("bus_publish_duration_seconds", "transport"),
                    "s",
                    red_from=0.5,
                    width=12,
                    about="The commit included. Empty for a transport that nobody sends by.",
                ),
                Panel("Payload", quantiles("bus_message_size_bytes"), "bytes", width=12),
            ),
        ),
        Row(
            "Out",
            (
                Panel(
                    "Deliveries a second",
                    {"{{transport}}": rate("bus_messages_delivered_total", by="transport")},
                    "ops",
                    stacked=True,
                ),
                Panel(
                    "Deliveries of one message",
                    {"fan-out": f"{rate('bus_messages_delivered_total')} / {rate('bus_sends_total')}"},
                ),
                Panel(
                    "Arrival to receipt",
                    quantiles("bus_end_to_end_seconds", "transport"),
                    "s",
                    red_from=1,
                    about="To the write to a connection that keeps up.",
                ),
                Panel(
                    "Arrival to receipt, spread",
                    {"{{le}}": f"sum by (le) (increase({series('bus_end_to_end_seconds_bucket')}[$__rate_interval]))"},
                    "s",
                    kind="heatmap",
                    width=24,
                ),
            ),
        ),
        Row(
            "What must be acked",
            (
                Panel("Waiting", {"{{owner}}": total("bus_deliveries_waiting", by="owner")}),
                Panel("With a recipient", {"{{owner}}": total("bus_deliveries_leased", by="owner")}),
                Panel("Handed out again, a second", {"redelivered": rate("bus_messages_redelivered_total")}, "ops"),
                Panel(
                    "Dead letters a second",
                    {"{{reason}}": rate("bus_messages_dead_lettered_total", by="reason")},
                    "ops",
                    width=12,
                    stacked=True,
                ),
                Panel("Dead letters kept", {"kept": total("bus_dead_letters")}, width=12),
            ),
        ),
        Row(
            "Connections",
            (
                Panel("Open", {"{{transport}}": total("bus_connections", by="transport")}, stacked=True),
                Panel(
                    "Opened and refused a second",
                    {
                        "opened: {{transport}}": rate("bus_connections_opened_total", by="transport"),
                        "refused: {{transport}} {{status}}": (
                            f"{rate('bus_connections_refused_total', by='transport, status')} > 0"
                        ),
                    },
                    "ops",
                ),
                Panel(
                    "Closed a second, by code",
                    {"{{code}}": f"{rate('bus_disconnects_total', by='code')} > 0"},
                    "ops",
                    about="1012: told to come back. 1006: gone without a goodbye. Empty while none closes.",
                ),
                Panel("Resumed a second", {"{{result}}": rate("bus_resume_total", by="result")}, "ops"),
                Panel("Fell behind, a second", {"connections": rate("bus_slow_consumers_total")}, "ops"),
                Panel(
                    "Held for slow connections",
                    quantiles("bus_send_queue_bytes"),
                    "bytes",
                    about="Bytes of each such connection. Empty while all keep up.",
                ),
            ),
        ),
    ),
)

WEBHOOKS = Dashboard(
    "webhooks",
    "webhooks",
    "Events that are delivered to endpoints. One endpoint's figures: /metrics/detailed.",
    (
        Row(
            "Now",
            (
                stat("Endpoints", total("bus_webhook_endpoints", where='state="enabled"')),
                stat("Disabled", total("bus_webhook_endpoints", where='state="disabled"'), red_from=1),
                stat("Flagged", total("bus_webhook_endpoints", where='state="flagged"'), red_from=1),
                stat("Breakers open", total("bus_webhook_breaker_open"), red_from=1),
                stat("Deliveries that wait", total("bus_webhook_pending")),
                stat(
                    "Oldest that waits",
                    total("bus_webhook_oldest_pending_seconds", how="max"),
                    "s",
                    red_from=300,
                    about="For an endpoint that is well: those that fail wait for their schedule.",
                ),
            ),
        ),
        Row(
            "Attempts",
            (
                Panel(
                    "Attempts a second, by outcome",
                    {"{{class}}": rate("bus_webhook_attempts_total", by="class")},
                    "ops",
                    stacked=True,
                    width=12,
                ),
                Panel(
                    "Share that failed",
                    {
                        "{{kind}}": (
                            f"1 - {rate('bus_webhook_attempts_total', by='kind', where=DELIVERED)}"
                            f" / {rate('bus_webhook_attempts_total', by='kind')}"
                        )
                    },
                    "percentunit",
                    width=12,
                    red_from=0.5,
                    about="Empty while nothing is tried.",
                ),
                Panel(
                    "One attempt",
                    quantiles("bus_webhook_attempt_duration_seconds", "kind"),
                    "s",
                    width=12,
                    about="Empty while nothing is tried.",
                ),
                Panel(
                    "Event to delivery",
                    quantiles("bus_webhook_delivery_lag_seconds", "kind"),
                    "s",
                    width=12,
                    about="Retries included. Empty while nothing is delivered.",
                ),
            ),
        ),
        Row(
            "Backlog",
            (
                Panel("Deliveries that wait", {"pending": total("bus_webhook_pending")}),
                Panel(
                    "Oldest that waits",
                    {"age": total("bus_webhook_oldest_pending_seconds", how="max")},
                    "s",
                    red_from=300,
                ),
                Panel(
                    "Targets that are not allowed, a second",
                    {"{{reason}}": rate("bus_webhook_blocked_targets_total", by="reason")},
                    "ops",
                ),
            ),
        ),
    ),
)

STORE = Dashboard(
    "store",
    "store",
    "The log and the disk below it.",
    (
        Row(
            "Commits",
            (
                Panel("One commit", quantiles("bus_commit_duration_seconds"), "s", red_from=0.5, about="Its sync included."),
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
                    {"mean": mean("bus_commit_batch_size"), **quantiles("bus_commit_batch_size")},
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
                    red_below=0.1,
                ),
                Panel("Free", {"{{instance}}": series("bus_disk_free_bytes")}, "bytes"),
                Panel(
                    "Free in 24 hours, at the last hour's pace",
                    {"{{instance}}": f"predict_linear({series('bus_disk_free_bytes')}[1h], 86400)"},
                    "bytes",
                    red_below=0,
                ),
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
                Panel("Answers a second, by class", {"{{status}}": rate("bus_http_requests_total", by="status")}, "ops"),
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

DASHBOARDS = (OVERVIEW, DELIVERY, WEBHOOKS, STORE, PROCESS)


def files() -> dict[Path, str]:
    """The files and their text."""
    return {FOLDER / f"{dashboard.name}.json": dashboard.json() for dashboard in DASHBOARDS}


if __name__ == "__main__":
    for file, text in files().items():
        file.write_text(text)
