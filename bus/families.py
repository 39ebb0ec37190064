"""The metrics of the bus: each family by name, sort, labels, and what it means. docs/metrics.md is the same list.

Names carry base units (seconds, bytes); counters end in `_total`. No label is ever a client, a message, a URL or an error's
text. Where `filled_by` names another module than the core, that module counts, and without it the series stay 0.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["counter", "gauge", "histogram"]
Across = Literal["sum", "max", "worker", "once"]
"""How one figure is made of the workers': their sum, the largest, one series for each worker, or said by one for all."""

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""The field's buckets for times inside a bus."""

WEBHOOK_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
LAG_SECONDS = (0.1, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 43200.0, 86400.0)
BYTES = (100.0, 1000.0, 10000.0, 100000.0, 1000000.0)
QUEUE_BYTES = (1024.0, 16384.0, 65536.0, 262144.0, 1048576.0)
BATCH = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0)

PUSH = ("websocket", "sse")
SENDERS = ("websocket", "http")
WEBHOOK_KINDS = ("standard", "slack", "discord", "other")


class Family(msgspec.Struct, frozen=True):
    """One metric. `labels` holds, for each, all values that it may have."""

    name: str
    kind: Kind
    help: str
    labels: dict[str, tuple[str, ...]] = {}
    buckets: tuple[float, ...] = ()
    across: Across = "sum"
    filled_by: str = "core"

    @property
    def unit(self) -> str:
        """The unit that the name carries; empty: a number of things."""
        stem = self.name.removesuffix("_total")
        return next((unit for unit in ("seconds", "bytes") if stem.endswith("_" + unit)), "")


def counter(name: str, text: str, *, across: Across = "sum", by: str = "core", **labels: tuple[str, ...]) -> Family:
    """A figure that only rises."""
    return Family(name, "counter", text, _named(labels), across=across, filled_by=by)


def gauge(name: str, text: str, *, across: Across = "sum", by: str = "core", **labels: tuple[str, ...]) -> Family:
    """A figure that rises and falls."""
    return Family(name, "gauge", text, _named(labels), across=across, filled_by=by)


def histogram(
    name: str, text: str, buckets: tuple[float, ...] = SECONDS, *, by: str = "core", **labels: tuple[str, ...]
) -> Family:
    """How values are spread."""
    return Family(name, "histogram", text, _named(labels), buckets, filled_by=by)


def _named(labels: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """The labels without the _ that keeps a word of Python's apart."""
    return {name.rstrip("_"): values for name, values in labels.items()}


MESSAGES = (
    counter(
        "bus_messages_published_total",
        "Messages that the log has taken in its life, counted in the transactions that stored them.",
        across="once",
    ),
    counter(
        "bus_sends_total", "Messages that senders handed over in good form, ephemeral ones too.", transport=SENDERS
    ),
    counter(
        "bus_messages_refused_total",
        "Messages in good form that were not stored, by the code that the sender got.",
        reason=(
            "inbox_full",
            "queue_full",
            "idempotency_key_reused",
            "batch_refused",
            "unavailable",
            "disk_full",
            "disk_low",
            "other",
        ),
    ),
    counter("bus_messages_ephemeral_total", "Messages that skipped the log."),
    counter(
        "bus_messages_delivered_total",
        "Messages written to connections, or held for slow ones; http: read from an inbox or claimed.",
        transport=(*PUSH, "http"),
    ),
    counter("bus_messages_redelivered_total", "Messages that needed an ack and were handed out once more."),
    counter(
        "bus_messages_dead_lettered_total",
        "Deliveries that became dead letters.",
        reason=("rejected", "expired", "max_attempts", "overflow", "no_recipient", "invalid", "other"),
    ),
    histogram("bus_message_size_bytes", "Bytes of a payload: of one message in each commit.", BYTES),
    histogram(
        "bus_publish_duration_seconds",
        "From a send's arrival to its answer, commit included: of at most one send in 5 ms a worker.",
        transport=SENDERS,
    ),
    histogram(
        "bus_end_to_end_seconds",
        "From a message's arrival to its write to a connection that keeps up: of at most one write in 5 ms a worker.",
        transport=PUSH,
    ),
    gauge("bus_uncommitted_messages", "Writes that wait for the disk."),
    gauge(
        "bus_deliveries_waiting",
        "Messages that need an ack and wait for a recipient.",
        across="once",
        owner=("inbox", "queue"),
    ),
    gauge(
        "bus_deliveries_leased",
        "Messages that a recipient has and has not settled.",
        across="once",
        owner=("inbox", "queue"),
    ),
    gauge("bus_dead_letters", "Dead letters that are kept.", across="once"),
)

CONNECTIONS = (
    gauge("bus_connections", "Open WebSockets and event streams.", transport=PUSH),
    counter("bus_connections_opened_total", "WebSockets and event streams that were opened.", transport=PUSH),
    counter(
        "bus_connections_refused_total",
        "WebSockets and event streams that were refused, by the status of the answer.",
        transport=PUSH,
        status=("400", "401", "403", "429", "503", "other"),
    ),
    counter(
        "bus_disconnects_total",
        "Connections that ended, by close code; 1006: without a goodbye.",
        transport=PUSH,
        code=(
            *("1000", "1001", "1002", "1003", "1005", "1006", "1007", "1008", "1009", "1011", "1012", "1013"),
            *("4401", "4403", "other"),
        ),
    ),
    counter(
        "bus_resume_total",
        "Connections that began: at the place they asked for, behind a gap, or refused for a cursor that is none.",
        result=("ok", "gap", "denied"),
    ),
    counter("bus_slow_consumers_total", "Times that a connection fell behind, to be fed from the store."),
    histogram(
        "bus_send_queue_bytes",
        "Bytes held for a connection that does not take them: of each such connection once a second.",
        QUEUE_BYTES,
    ),
)

HTTP = (
    histogram("bus_http_request_duration_seconds", "Requests that Flask served, without long polls and streams."),
    counter("bus_errors_total", "Refusals that callers were told, over HTTP and WebSocket.", across="once"),
    counter(
        "bus_auth_failures_total",
        "Callers turned away for their credential, Host or Origin.",
        reason=(
            "unauthenticated",
            "bad_credential",
            "forbidden",
            "host_not_allowed",
            "origin_not_allowed",
            "other",
        ),
    ),
    counter(
        "bus_rate_limited_total",
        "Callers told to come back later.",
        scope=("address", "key", "connections", "other"),
    ),
)

STORE = (
    histogram("bus_commit_duration_seconds", "One transaction of the log, its sync included."),
    histogram("bus_commit_batch_size", "Writes in one transaction: group commit at work.", BATCH),
    counter(
        "bus_db_errors_total",
        "Work that the store could not do; the commits among it were answered with a refusal.",
        op=("commit", "read"),
        class_=("full", "io", "busy", "corrupt", "readonly", "other"),
    ),
    gauge("bus_log_bytes", "Bytes of payload in the log.", across="once"),
    gauge("bus_database_bytes", "Size of the files of the store.", across="once", file=("main", "wal")),
    gauge("bus_disk_free_bytes", "Room on the disk of the store, for this user.", across="once"),
    gauge("bus_disk_size_bytes", "Size of the disk of the store.", across="once"),
    gauge("bus_durability_info", "1 for the durability in force.", across="once", mode=("full", "relaxed")),
    counter("bus_log_evicted_total", "Messages that a size cap took out of the log.", by="extensions.log_cap"),
    counter(
        "bus_retention_deleted_total",
        "Messages that left the log by their policy.",
        by="message_ttl",
        policy=("immediate", "short", "medium", "long", "custom", "other"),
    ),
    counter("bus_retention_archived_total", "Messages archived before they left the log.", by="message_ttl"),
    counter("bus_search_indexed_total", "Messages that the search was given to index.", by="extensions.search"),
)

PROCESS = (
    gauge("bus_workers", "Worker processes of this machine that serve.", across="once"),
    histogram("bus_event_loop_lag_seconds", "How late a timer of 0.1 s came, on each worker."),
    counter("bus_process_cpu_seconds_total", "Processor time of a worker slot.", across="worker"),
    gauge("bus_process_resident_memory_bytes", "Resident memory of a worker.", across="worker"),
    gauge("bus_process_open_fds", "Open file descriptors of a worker.", across="worker"),
    gauge("bus_process_max_fds", "File descriptors that a worker may have.", across="worker"),
    gauge("bus_process_start_time_seconds", "When a worker began to serve, in seconds since 1970.", across="worker"),
    counter("bus_background_failures_total", "Ticks of background work that failed."),
    counter("bus_clock_jumps_total", "Steps of the wall clock by more than a second.", across="max"),
)

WEBHOOKS = (
    counter(
        "bus_webhook_attempts_total",
        "Attempts to deliver to an endpoint, by what came of them.",
        by="webhooks",
        kind=WEBHOOK_KINDS,
        class_=(
            *("2xx", "3xx", "4xx", "5xx", "429", "timeout", "connect", "dns", "tls", "blocked"),
            *("too_large", "config_error", "other"),
        ),
    ),
    histogram(
        "bus_webhook_attempt_duration_seconds",
        "One attempt, from the first look-up to the last byte.",
        WEBHOOK_SECONDS,
        by="webhooks",
        kind=WEBHOOK_KINDS,
    ),
    histogram(
        "bus_webhook_delivery_lag_seconds",
        "From an event to its delivery, retries included.",
        LAG_SECONDS,
        by="webhooks",
        kind=WEBHOOK_KINDS,
    ),
    gauge("bus_webhook_pending", "Deliveries that wait.", across="once", by="webhooks"),
    gauge(
        "bus_webhook_oldest_pending_seconds",
        "How long the one that is due longest, to an endpoint that is well, has waited for its turn.",
        across="once",
        by="webhooks",
    ),
    gauge("bus_webhook_breaker_open", "Endpoints whose breaker is open.", across="once", by="webhooks"),
    gauge(
        "bus_webhook_endpoints",
        "Registered endpoints; flagged: those of the enabled ones that somebody has to look at.",
        across="once",
        by="webhooks",
        state=("enabled", "paused", "disabled", "flagged"),
    ),
    counter(
        "bus_webhook_blocked_targets_total",
        "Targets that were refused, when they were named or called.",
        by="webhooks",
        reason=("loopback", "private", "link_local", "reserved", "scheme", "port", "url", "other"),
    ),
    counter(
        "bus_ingress_webhooks_total",
        "Webhooks that came in, by what came of them.",
        by="inbound_webhooks",
        outcome=(
            *(
                "accepted",
                "duplicate",
                "ping",
                "challenge",
                "replayed",
                "bad_signature",
                "stale",
                "no_secret",
                "unknown",
            ),
            *("address_not_allowed", "rate_limited", "paused", "other"),
        ),
    ),
)

HEALTH = (
    gauge(
        "bus_health_check_up",
        "1 when the probe would pass, 0 when it would not.",
        across="once",
        by="health_checks",
        probe=("live", "ready", "startup"),
    ),
    gauge(
        "bus_canary_latency_seconds",
        "How long a worker's own trial took, the last time.",
        across="worker",
        by="health_checks",
        path=("store",),
    ),
    gauge(
        "bus_canary_last_success_timestamp_seconds",
        "When a worker's own trial last succeeded, in seconds since 1970.",
        across="worker",
        by="health_checks",
        path=("store",),
    ),
)

NODES = (
    gauge(
        "bus_backplane_up",
        "1 while a worker hears what the nodes say to one another; 0 without other nodes.",
        across="worker",
    ),
    gauge("bus_backplane_members", "Workers of other nodes that are known.", across="max"),
    counter(
        "bus_backplane_loads_total", "What was said to other nodes, and heard of them.", direction=("sent", "heard")
    ),
    counter("bus_backplane_lost_total", "Gaps in what other nodes said; all was asked for again."),
    counter(
        "bus_backplane_left_out_total",
        "Commits that went as hints, and ephemeral messages that did not go, for want of room.",
    ),
    counter("bus_backplane_connects_total", "Connections made to the channel between nodes."),
    gauge("bus_limits_shared", "1 while a worker counts requests over all nodes.", across="worker"),
    counter("bus_leases_taken_over_total", "Leases taken from processes that had not renewed them."),
)

FAMILIES = (*MESSAGES, *CONNECTIONS, *HTTP, *STORE, *PROCESS, *WEBHOOKS, *HEALTH, *NODES)

ALIASES = {
    "messages_sent": "bus_messages_published_total",
    "active_connections": "bus_connections",
    "message_size_bytes": "bus_message_size_bytes",
    "request_duration_ms": "bus_http_request_duration_seconds",
}
"""Names of version 1.2, kept for one release, and what they show: without labels, the last in milliseconds."""

BUILD_INFO = "bus_build_info"
HTTP_REQUESTS = "bus_http_requests_total"
STATUS_CLASSES = ("2xx", "3xx", "4xx", "5xx")
UNMATCHED = "unmatched"


def build_info(version: str, python: str) -> Family:
    """What runs: known when the process is."""
    text = "1, with the version of the bus and of Python."
    return gauge(BUILD_INFO, text, across="once", version=(version,), python=(python,))


def http_requests(routes: tuple[str, ...]) -> Family:
    """Answers by route: which there are is known when every module has registered its own."""
    text = "Answers over HTTP, by route (as it is declared, never as it was called) and class of status."
    return counter(HTTP_REQUESTS, text, route=(*routes, UNMATCHED), status=STATUS_CLASSES)
