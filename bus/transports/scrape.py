"""`/metrics`: what all workers count, told by any of them; `/metrics/detailed`: figures about one client, queue or endpoint.

Each worker leaves a sample once a second (bus.metric_files). A scrape joins them with what is true of the server as a whole,
which is asked for at that moment, and writes it in the format that the caller accepts. With METRICS_PORT, one worker at a
time serves the same on a port of its own.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import gevent
import msgspec
from flask import Blueprint, Response, request
from gevent.lock import BoundedSemaphore
from gevent.pywsgi import WSGIServer

from bus.errors import Malformed, NotFound, Unauthenticated, Unavailable
from bus.events import BusStarted
from bus.exposition import OPENMETRICS, Exposition, quantile
from bus.families import ALIASES
from bus.identity.caller import Right
from bus.metric_files import MetricFiles
from bus.metrics import Block, Number
from bus.transports import parameters
from bus.transports.edge import json_answer
from bus.transports.measures import Measures
from bus.transports.openapi import Operation, Parameter, serve
from bus.transports.series import Series
from bus.worker import Worker

if TYPE_CHECKING:
    from flask import Flask

    from bus.bus import Bus

log = logging.getLogger("bus.metrics")

INTERVAL_SECONDS = 1.0
"""How often a worker leaves a sample: what a kill can lose."""

PATHS = ("/metrics", "/metrics/detailed")
MAX_DETAILED = 1000
"""Clients, queues or endpoints of one answer."""


class Duration(msgspec.Struct):
    """Of requests since the start, in milliseconds; None while there were none. Quantiles are interpolated in buckets."""

    count: int
    sum: float
    avg: float | None
    quantiles: dict[str, float | None]


class Figures(msgspec.Struct):
    """The summary in JSON: totals since the start (`messages_sent`: in the log's life), times in seconds.

    The times are of deliveries to connections that keep up. `cache_hit_rate_percent` is null: the bus has no such cache.
    """

    messages_sent: int
    messages_delivered: int
    messages_failed: int
    average_delivery_time: float | None
    p95_delivery_time: float | None
    p99_delivery_time: float | None
    cache_hit_rate_percent: float | None
    health_status: str
    active_connections: int
    total_requests: int
    total_errors: int
    request_duration_ms: Duration


class _Sampler(Worker):
    """Leaves a sample at its end, too: nothing that a worker counted is lost when it leaves in peace."""

    def __init__(self, tick: Callable[[], None], last: Callable[[], None]) -> None:
        super().__init__("metrics", tick, interval_seconds=INTERVAL_SECONDS)
        self._last = last

    def stop(self, timeout: float = 5.0) -> None:
        super().stop(timeout)
        self._last()


class Scrape:
    """The views, and the worker that samples. `collected()` gives the blocks of what extensions count by themselves."""

    def __init__(self, bus: Bus, collected: Callable[[], list[Block]]) -> None:
        self._bus = bus
        self._collected = collected
        self._files: MetricFiles | None = None
        self._failing: set[str] = set()  # families whose callable raised, and samples: said in the log once
        self._token = bus.settings.metrics_token
        self._own_server: Any = None
        self._writing = BoundedSemaphore()  # one sample is written at a time

    def register(self, app: Flask) -> None:
        """Serve, and sample once the bus has started."""
        bus = self._bus
        self._app = app
        self._measures = Measures(app, bus)
        self._series = Series(bus, self._measures)
        bus.on(BusStarted, self._begin)
        bus.add_worker(_Sampler(self._tick, self._end))
        if bus.settings.metrics_port is not None:
            bus.add_worker(Worker("metrics-port", self._serve_own_port, interval_seconds=1.0, per_node=True))
        serve(app, Blueprint("enhanced_metrics", __name__), self._operations())
        self._series.register(app)

    # ---- sampling

    def _begin(self, _: BusStarted) -> None:
        self._measures.begin()
        self._files = MetricFiles(self._bus.lock_folder, self._bus.backplane.slot, self._sample)
        self._files.on_sample = self._series.note
        self._files.sample()()

    def _sample(self) -> list[Block]:
        return self._bus.metrics.sample(self._failed) + self._collected()

    def _tick(self) -> None:
        if self._files is not None:  # the start may take longer than the first interval
            self._measures.look()
            self._leave_sample()

    def _end(self) -> None:
        self._measures.end()
        if self._own_server is not None:
            self._own_server.stop(timeout=1)
        self._leave_sample()

    def _leave_sample(self) -> MetricFiles:
        """Waits for the disk, on another thread. On a full one the last sample stays, and the log says so."""
        assert self._files is not None
        with self._writing:
            try:
                gevent.get_hub().threadpool.apply(self._files.sample())
            except OSError as error:
                self._failed("the sample of this worker", error)
        return self._files

    def _failed(self, family: str, error: Exception) -> None:
        if family not in self._failing:
            self._failing.add(family)
            log.error("A figure is left out: %s", family, exc_info=error, extra={"action": "metric_failed"})

    def _serve_own_port(self) -> None:
        """Listen, if this worker does not yet: the one that did may have died, or another program may have had the port."""
        port = self._bus.settings.metrics_port
        if self._own_server is None and self._files is not None and port is not None:
            address = (self._bus.settings.message_bus_host, port)
            server = WSGIServer(address, self._on_own_port, log=None, error_log=log)
            try:
                server.start()
            except OSError as error:
                raise Unavailable(
                    f"METRICS_PORT {port} can't be listened on ({error.strerror}); free it, or name another."
                ) from None
            self._own_server = server
            log.info("Metrics have a port of their own", extra={"action": "metrics_port", "port": port})

    def _on_own_port(self, environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] not in PATHS:
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"Here are /metrics and /metrics/detailed; all else is on the main port.\n"]
        return self._app.wsgi_app(environ, start_response)

    # ---- the views

    def metrics(self) -> Response:
        self._check_token()
        format_ = request.args.get("format", "text")
        if format_ not in ("text", "json"):
            raise Malformed("`format` must be text or json.", code="bad_field", field="format")
        blocks = self._all()
        if format_ == "json":
            return json_answer(self._figures({block.name: block for block in blocks}))
        return _shown([*blocks, *_aliases(blocks)])

    def detailed(self) -> Response:
        if not self._bus.auth.on:  # else only an administrator comes so far
            self._check_token()
        looks, limit = self._bus.metrics.looks, min(parameters.limit(100), MAX_DETAILED)
        family = parameters.required("family")
        if family not in looks:
            raise NotFound(
                f"There are no details of this family; there are: {', '.join(looks)}.", code="unknown_family"
            )
        blocks: dict[str, Block] = {}
        for detail in looks[family](request.args, limit):
            block = blocks.setdefault(detail.name, Block(detail.name, "gauge", detail.help, {}))
            block.series[tuple(detail.labels.items())] = [detail.value]
        return _shown(list(blocks.values()))

    def _check_token(self) -> None:
        if self._token is None:
            return
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self._token.encode()):
            raise Unauthenticated("METRICS_TOKEN is set; send it as Authorization: Bearer.", code="bad_credential")

    def _all(self) -> list[Block]:
        """The account of all workers, and what one says for all."""
        return self._leave_sample().all() + self._bus.metrics.sample(self._failed, once=True)

    def _figures(self, blocks: dict[str, Block]) -> Figures:
        times, bounds = _together(blocks["bus_end_to_end_seconds"])
        requests, request_bounds = _together(blocks["bus_http_request_duration_seconds"])
        count = int(sum(requests[:-1]))
        milliseconds = {
            str(q): None if (found := quantile(requests[:-1], request_bounds, q)) is None else found * 1000
            for q in (0.5, 0.9, 0.95, 0.99)
        }
        refused, dead = _total(blocks["bus_messages_refused_total"]), _total(blocks["bus_messages_dead_lettered_total"])
        return Figures(
            int(_total(blocks["bus_messages_published_total"])),
            int(_total(blocks["bus_messages_delivered_total"])),
            int(refused + dead),
            times[-1] / sum(times[:-1]) if sum(times[:-1]) else None,
            quantile(times[:-1], bounds, 0.95),
            quantile(times[:-1], bounds, 0.99),
            None,
            self._status(blocks["bus_health_check_up"]),
            int(_total(blocks["bus_connections"])),
            int(_total(blocks["bus_http_requests_total"])),
            int(_total(blocks["bus_errors_total"])),
            Duration(count, requests[-1] * 1000, requests[-1] * 1000 / count if count else None, milliseconds),
        )

    def _status(self, probes: Block) -> str:
        """What the probes say; without health_checks, only whether the bus is about to stop."""
        up = {probe: value[0] for ((_, probe),), value in probes.series.items()}
        if self._bus.draining:
            return "draining"
        return "unhealthy" if up["live"] and not up["ready"] else "healthy"

    def _operations(self) -> list[Operation]:
        format_ = Parameter("format", "json: a summary in JSON; text (default): the format that Accept asks for")
        family = Parameter("family", "client, queue, webhook, or what an extension has details of", required=True)
        limit = Parameter("limit", f"0 to {parameters.MAX_LIMIT}; 100 if not given", "integer")
        return [
            Operation(
                "GET",
                "/metrics",
                self.metrics,
                "What the bus counts.",
                str,
                None,
                (format_,),
                (400, 401),
                media="text/plain",
                right=Right.OPEN,
                more={OPENMETRICS: str, "application/json": Figures},
            ),
            Operation(
                "GET",
                "/metrics/detailed",
                self.detailed,
                "Figures about single clients, queues or endpoints.",
                str,
                None,
                (family, limit, Parameter("cursor", "only names behind this one")),
                (400, 404),
                media="text/plain",
            ),
        ]


def _shown(blocks: list[Block]) -> Response:
    text, content_type = Exposition(blocks).text(request.headers.get("Accept", ""))
    response = Response(text, content_type=content_type)
    response.headers["Vary"] = "Accept"
    return response


def _aliases(blocks: list[Block]) -> Iterator[Block]:
    """The names of version 1.2, without labels. A counter among them is untyped, since its name does not end in _total."""
    known = {block.name: block for block in blocks}
    for name, of in ALIASES.items():
        block = known[of]
        value, bounds = _together(block)
        if name.endswith("_ms"):
            bounds = tuple(bound * 1000 for bound in bounds)
            value = [*value[:-1], value[-1] * 1000]
        kind = "untyped" if block.kind == "counter" else block.kind
        yield Block(name, kind, f"The former name of {of}, until version 1.4.", {(): value}, bounds)


def _together(block: Block) -> tuple[list[Number], tuple[float, ...]]:
    """All series of a block added up."""
    return [sum(values) for values in zip(*block.series.values(), strict=True)], block.bounds


def _total(block: Block) -> Number:
    return sum(value[0] for value in block.series.values())
