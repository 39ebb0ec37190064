"""A message carries its sender's trace to whoever receives it; with ENABLE_TRACING, its way into the log is a span of it."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry import propagate
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from bus.testing import Answer, BusServer, eventually
from tests.event_source import EventSource
from tests.follower import Follower
from tests.rawws import RawWebSocket

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{SPAN}-01"
UNSAMPLED = f"00-{TRACE}-{SPAN}-00"


def post(server: BusServer, path: str, body: object, **headers: str) -> Answer:
    return server.call("POST", path, body, headers=headers)


def headers_of(server: BusServer, message_id: str) -> dict[str, str] | None:
    found: dict[str, str] | None = server.call("GET", f"/api/messages/{message_id}").body["message"].get("headers")
    return found


# ---- carried


def test_the_trace_of_a_request_is_in_its_messages_headers(server: BusServer) -> None:
    body = {"from": "tracer", "to": "traced", "payload": 1}
    with Follower(server.port, "traced") as follower:
        sent = post(server, "/api/send", body, traceparent=SAMPLED, tracestate="a=1")
        assert sent.status == 200
        follower.wait_for(1)
        assert follower.messages[0]["headers"] == {"traceparent": SAMPLED, "tracestate": "a=1"}
    batch = post(
        server, "/api/send/batch", {"messages": [body, {**body, "headers": {"mine": "1"}}]}, traceparent=SAMPLED
    )
    ids = [result["message_id"] for result in batch.body["results"]]
    assert [headers_of(server, each) for each in ids] == [
        {"traceparent": SAMPLED},
        {"mine": "1", "traceparent": SAMPLED},
    ]
    asked = post(server, "/api/request", {**body, "wait": 0}, traceparent=SAMPLED)
    assert headers_of(server, asked.body["request_id"]) == {"traceparent": SAMPLED}


def test_a_message_that_names_a_trace_keeps_it(server: BusServer) -> None:
    other = SAMPLED.replace(TRACE, TRACE[::-1])
    body = {"from": "tracer", "to": "traced-2", "headers": {"traceparent": other}}
    sent = post(server, "/api/send", body, traceparent=SAMPLED, tracestate="a=1")
    assert headers_of(server, sent.body["message_id"]) == {"traceparent": other}


@pytest.mark.parametrize(
    "parent",
    [
        "garbage",
        SAMPLED.upper(),
        SAMPLED + "-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
    ],
)
def test_what_is_no_trace_is_left_out(server: BusServer, parent: str) -> None:
    sent = post(server, "/api/send", {"from": "tracer", "to": "traced-3"}, traceparent=parent, tracestate="a=1")
    assert headers_of(server, sent.body["message_id"]) is None


def test_a_repeat_of_another_trace_is_the_same_message(server: BusServer) -> None:
    body = {"from": "tracer", "to": "traced-4", "headers": {"mine": "1"}}
    first = post(server, "/api/send", body, **{"Idempotency-Key": "k"}, traceparent=SAMPLED)
    again = post(server, "/api/send", body, **{"Idempotency-Key": "k"}, traceparent=UNSAMPLED, tracestate="b=2")
    bare = post(server, "/api/send", body, **{"Idempotency-Key": "k"})
    assert again.body["message_id"] == bare.body["message_id"] == first.body["message_id"]
    assert (again.body["duplicate"], bare.body["duplicate"]) == (True, True)
    other = post(server, "/api/send", {**body, "headers": {"mine": "2"}}, **{"Idempotency-Key": "k"})
    assert other.status == 422


# ---- exported


class Collector:
    """An OTLP receiver. `spans` are those that came, with the service's name."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []

    def found(self) -> dict[str, Any]:
        """The spans by name; of several the last."""
        return {span.name: span for _, span in list(self.spans)}

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
            self.spans += [(service, span) for scope in resource.scope_spans for span in scope.spans]


@contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    """A collector, and its URL."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.take(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    receiver = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=receiver.serve_forever)
    thread.start()
    try:
        yield collector, f"http://127.0.0.1:{receiver.server_port}"
    finally:
        receiver.shutdown()
        thread.join()
        receiver.server_close()


@pytest.mark.parametrize("workers", [1, pytest.param(4, marks=pytest.mark.full)])
def test_the_way_of_a_traced_message_is_a_span_of_its_senders(
    fresh_server: Callable[..., BusServer], workers: int
) -> None:
    with collecting() as (collector, url):
        env = {"ENABLE_TRACING": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        server = fresh_server(workers=workers, env=env)
        body = {"from": "tracer", "to": "traced", "type": "job", "payload": [1, 2]}
        ids = [post(server, "/api/send", body, traceparent=SAMPLED).body["message_id"] for _ in range(10)]
        assert post(server, "/api/send", body, traceparent=UNSAMPLED).status == 200
        assert post(server, "/api/send", body).status == 200
        eventually(lambda: len(collector.spans) >= 10, what="the spans")
        last = post(server, "/api/send", body, traceparent=SAMPLED).body["message_id"]
        assert server.terminate() == 0
    assert {service for service, _ in collector.spans} == {"multi-agent-bridge"}
    spans = [span for _, span in collector.spans]
    assert {(span.name, span.trace_id.hex(), span.parent_span_id.hex()) for span in spans} == {
        ("send job", TRACE, SPAN)
    }
    told = [{each.key: each.value for each in span.attributes} for span in spans]
    assert {each["messaging.message.id"].string_value for each in told} == {*ids, last}
    assert len(spans) == 11
    assert {each["messaging.destination.name"].string_value for each in told} == {"traced"}
    assert {each["messaging.message.body.size"].int_value for each in told} == {5}
    assert all(0 < span.end_time_unix_nano - span.start_time_unix_nano < 10**10 for span in spans)


def by_rest(server: BusServer, body: dict[str, Any], headers: dict[str, str]) -> None:
    assert post(server, "/api/send", {"from": "tracer", **body}, **headers).status == 200


def by_websocket(server: BusServer, body: dict[str, Any], headers: dict[str, str]) -> None:
    with RawWebSocket(server.port, "/ws/tracer") as socket:
        socket.send_json({**body, "type": "send", "msg_type": body["type"], "headers": headers, "ref": 1})
        socket.read_until("sent")


@pytest.mark.parametrize("workers", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_receivers_on_every_transport_go_on_with_the_senders_trace(
    fresh_server: Callable[..., BusServer], workers: int
) -> None:
    """Sender and receivers use OpenTelemetry's own SDK, as docs/tracing.md shows it."""
    provider = TracerProvider()
    kept = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer = provider.get_tracer("a program")
    with collecting() as (collector, url):
        env = {"ENABLE_TRACING": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        server = fresh_server(workers=workers, env=env)
        for send in (by_rest, by_websocket):
            name = send.__name__
            body = {"to": [f"{name}-to-{way}" for way in ("socket", "stream", "poll")], "type": name, "payload": 1}
            with (
                Follower(server.port, body["to"][0]) as socket,
                EventSource(server, f"client_id={body['to'][1]}") as stream,
            ):
                stream.read_until("connected")
                with tracer.start_as_current_span("ask") as asked:
                    headers: dict[str, str] = {}
                    propagate.inject(headers)
                    send(server, body, headers)
                came = [
                    socket.wait_for(1)[0],
                    stream.read_until("message_received").json,
                    server.call("GET", f"/api/messages?to={body['to'][2]}&wait=5").body["messages"][0],
                ]
            for message in came:
                with tracer.start_as_current_span(name, context=propagate.extract(message["headers"])):
                    pass
            sent = asked.get_span_context()
            handled = [span for span in kept.get_finished_spans() if span.name == name]
            assert [
                (span.context.trace_id, span.parent.span_id) for span in handled if span.context and span.parent
            ] == [(sent.trace_id, sent.span_id)] * 3
            eventually(lambda name=name: f"send {name}" in collector.found(), what="the bus's span")
            own = collector.found()[f"send {name}"]
            assert (own.trace_id.hex(), own.parent_span_id.hex()) == (f"{sent.trace_id:032x}", f"{sent.span_id:016x}")


def test_a_collector_that_is_away_holds_nothing_up(fresh_server: Callable[..., BusServer]) -> None:
    env = {
        "ENABLE_TRACING": "true",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "OTEL_BSP_SCHEDULE_DELAY": "10",
    }
    server = fresh_server(env=env)
    for _ in range(50):
        assert post(server, "/api/send", {"from": "tracer", "to": "traced"}, traceparent=SAMPLED).status == 200
    assert server.terminate() == 0
