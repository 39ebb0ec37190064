"""Writes dashboards/*.json, which Grafana loads, from the panels here, in messages.py and in machine.py.

    python deploy/grafana/make_dashboards.py

A test compares the files with what this would write, and asks a Prometheus every query.
"""

from __future__ import annotations

from pathlib import Path

from machine import PROCESS, STORE
from messages import DELIVERY, WEBHOOKS
from panels import BUS, Dashboard, Panel, Row, quantile, quantiles, rate, series, stat, total

FOLDER = Path(__file__).resolve().parent / "dashboards"

FAILED_SENDS = 'reason=~"unavailable|disk_full|disk_low"'
"""Refusals that are the bus's fault; all others are the sender's, or a full inbox's."""

READY = 'probe="ready"'
PROBED = total("bus_health_check_up", how="max")
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
                    f"{total('bus_health_check_up', where=READY, how='min')} and {PROBED} > 0",
                    words=UP_OR_DOWN,
                    about="What /health/ready answers; of several buses the worst. Empty without health_checks.",
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
                    about="The bus sends itself a message now and then. Empty before the first, and without health_checks.",
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

DASHBOARDS = (OVERVIEW, DELIVERY, WEBHOOKS, STORE, PROCESS)


def files() -> dict[Path, str]:
    """The files and their text."""
    return {FOLDER / f"{dashboard.name}.json": dashboard.json() for dashboard in DASHBOARDS}


if __name__ == "__main__":
    for file, text in files().items():
        file.write_text(text)
