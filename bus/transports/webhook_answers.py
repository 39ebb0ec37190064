"""The bodies and answers of bus.transports.webhooks as structs: what is sent, and what `/openapi.json` says is sent."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

Count = Annotated[int, msgspec.Meta(ge=1)]


class RateBody(msgspec.Struct):
    """At most `count` requests in any `seconds`."""

    count: Count
    seconds: float = 1.0


class Filters(msgspec.Struct, kw_only=True):
    """What an endpoint gets, and how. `events`: names, `message.*` or `*`. `clients`: senders, recipients or who connected.
    `topics`: patterns; `types`: of messages. `ordered`: strictly one after another, for the whole endpoint, or for each
    recipient or sender. `schedule_seconds`: the pause before each attempt."""

    events: list[str] | UnsetType = UNSET
    description: str | UnsetType = UNSET
    clients: list[str] | UnsetType = UNSET
    topics: list[str] | UnsetType = UNSET
    types: list[str] | UnsetType = UNSET
    max_retries: int | UnsetType | None = UNSET
    timeout_seconds: float | UnsetType = UNSET
    schedule_seconds: list[float] | UnsetType | None = UNSET
    rate: RateBody | UnsetType | None = UNSET
    ordered: Literal["endpoint", "to", "from"] | UnsetType | None = UNSET
    headers: dict[str, str] | UnsetType = UNSET


class CreateBody(Filters, kw_only=True):
    """`kind`: left out, it goes by the URL. `secret`: 24 to 64 bytes as whsec_ and base64, or a text; left out, one is
    made, or WEBHOOK_SECRET signs. `ed25519`: a key pair signs beside it."""

    url: str
    events: list[str]
    kind: Literal["http", "slack", "discord"] | None = None
    secret: str | None = None
    ed25519: bool = False
    enabled: bool = True


class ChangeBody(Filters, kw_only=True):
    """What is left out stays as it is."""

    url: str | UnsetType = UNSET


class RotateBody(msgspec.Struct):
    """`secret`: the new one, else one is made. What was valid stays valid for `grace_seconds`."""

    secret: str | None = None
    grace_seconds: float = 86400.0


class ResumeBody(msgspec.Struct):
    """What becomes of that which is held: delivered, or set aside as dead, for replays. dry_run: only count."""

    held: Literal["deliver", "set_aside"] = "deliver"
    dry_run: bool = False


class Lane(msgspec.Struct):
    """closed: it is sent to; paused: it asked for a rest; open, half_open: it fails, and is tried now and then."""

    state: str
    rests_until: str | None
    flagged: bool


class Endpoint(msgspec.Struct):
    """An endpoint. Secrets are masked; a chat's URL is shown as its host. `secret` is there once, when it was made.
    `public_keys`: of the key pairs that sign; of an old one, until when."""

    id: str
    url: str
    kind: str
    state: str
    reason: str | None
    since: str
    created: str
    events: list[str]
    description: str
    clients: list[str]
    topics: list[str]
    types: list[str]
    max_retries: int | None
    timeout_seconds: float
    schedule_seconds: list[float]
    rate: list[RateBody]
    ordered: str | None
    headers: list[str]
    secrets: list[str]
    public_keys: list[str]
    secret: str | UnsetType = UNSET


class Endpoints(msgspec.Struct):
    webhooks: list[Endpoint]
    cursor: str
    more: bool


class Deleted(msgspec.Struct):
    status: str
    id: str


class Resumed(msgspec.Struct):
    """How many deliveries are held, or were."""

    status: str
    held: int


class Timings(msgspec.Struct):
    """Milliseconds of each stage; None where it was not finished."""

    dns_ms: float | None
    connect_ms: float | None
    tls_ms: float | None
    ttfb_ms: float | None
    total_ms: float | None


class Tested(Timings):
    """What came of a test event: the class (ok, timeout, http_4xx, …), the status, and why."""

    ok: bool
    outcome: str
    status: int | None
    detail: str
    address: str | None
    response: str


class Stats(msgspec.Struct):
    """How an endpoint fares; attempts, successes and times are of the last 24 hours."""

    id: str
    state: str
    pending: int
    oldest_pending_seconds: float | None
    dead: int
    attempts: int
    successes: int
    success_rate: float | None
    p50_ms: float | None
    p95_ms: float | None
    lane: Lane


class Delivery(msgspec.Struct):
    """One event to one endpoint. state: waiting, leased, behind (another of its key), held, done, dead."""

    id: str
    webhook: str | None
    event_id: str
    event: str
    state: str
    attempts: int
    created: str
    due: str | None
    ended: str | None
    cause: str | None
    sequence: int | None
    replayed: bool


class Deliveries(msgspec.Struct):
    """The youngest first. `cursor` is for the next page, if there is `more`."""

    deliveries: list[Delivery]
    cursor: str
    more: bool


class Attempt(Timings):
    """One request, and the first 4 KB of what was answered. `folded`: how many deliveries went with it, to a chat."""

    attempt: int
    due: str
    began: str
    ended: str
    outcome: str
    status: int | None
    detail: str
    address: str | None
    bytes: int
    folded: int
    replay: bool
    process: str
    response: str


class OneDelivery(msgspec.Struct):
    """A delivery with its data and every attempt."""

    delivery: Delivery
    data: Any
    attempts: list[Attempt]


class ReplayBody(msgspec.Struct, kw_only=True):
    """Which deliveries that ended are sent again: dead ones, unless `state` says done. dry_run: only count them."""

    webhook: str | None = None
    state: Literal["dead", "done"] = "dead"
    event: str | None = None
    since: str | None = None
    until: str | None = None
    dry_run: bool = False


class Replay(msgspec.Struct):
    """status: counted (a dry run), running, done, cancelled."""

    id: str | None
    status: str
    matched: int
    replayed: int


class Replays(msgspec.Struct):
    replays: list[Replay]


class ReplayedOne(msgspec.Struct):
    """1, or 0 if it waits already or was replayed within the last minute."""

    replayed: int
