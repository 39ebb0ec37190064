"""The dashboards of what becomes of messages: to connections and inboxes, and to webhooks."""

from __future__ import annotations

from panels import Dashboard, Panel, Row, quantiles, rate, series, stat, total

DELIVERED = 'class="2xx"'

DELIVERY = Dashboard(
    "delivery",
    "delivery",
    "Messages from their senders to their recipients.",
    (
        Row(
            "In",
            (
                Panel(
                    "Sends a second", {"{{transport}}": rate("bus_sends_total", by="transport")}, "ops", stacked=True
                ),
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
