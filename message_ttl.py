"""Message TTL: how long messages live, by type; what has expired is archived if wanted, removed, and told.

Alone, `MessageTTLManager()` keeps messages in the memory of this process, and its archive on disk. Registered on the bus,
the same policies govern its log (bus.retention), in all workers: the manager is `app.extensions["message_ttl"]`.
"""

from __future__ import annotations

import contextlib
import enum
import os
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from bus.delivery import whereabouts
from bus.errors import BusError, Conflict, NotFound
from bus.events import BusStarted, MessageExpired
from bus.message import text_of
from bus.retention import policies
from bus.retention.archive import Folder
from bus.retention.host import Host
from bus.retention.local_messages import Clock, LocalMessages, Rule
from bus.retention.policies import NAMED_SECONDS, Policy
from bus.retention.retention import Retention, Wanted
from bus.retention.sweep import INTERVAL_SECONDS, Sweeper
from bus.storage.lifetimes import DEFAULT
from bus.transports.retention import serve_retention
from bus.worker import Worker

if TYPE_CHECKING:
    from flask import Flask

    from bus.bus import Bus

MIGRATIONS = Path(policies.__file__).parent / "migrations"
ARCHIVE_FOLDER = "archive"


class RetentionPolicy(enum.Enum):
    """How long a message is kept: IMMEDIATE until it is delivered, PERMANENT for ever."""

    IMMEDIATE = "immediate"
    SHORT = "short"
    MEDIUM = "medium"
    LONG = "long"
    PERMANENT = "permanent"

    @property
    def seconds(self) -> float | None:
        """3600, 86400, 604800; None where no time is said."""
        return NAMED_SECONDS[self.value]


class TTLConfig:
    """The policy of a type, by `policy` or by `ttl_seconds`; MEDIUM if neither is said, ValueError if they contradict.

    `on_expire(message)` is called after a message has gone, outside all locks; what it raises is logged.
    `archive_before_delete`: a message goes only when its archive is on the disk.
    """

    def __init__(
        self,
        message_type: str,
        ttl_seconds: float | None = None,
        policy: RetentionPolicy | None = None,
        on_expire: Callable[[dict[str, Any]], object] | None = None,
        archive_before_delete: bool = False,  # noqa: FBT001, FBT002, RUF100  # the documented signature
    ) -> None:
        if ttl_seconds is not None and ttl_seconds < 0:
            raise ValueError("ttl_seconds must not be negative")
        if ttl_seconds == 0 and policy in (None, RetentionPolicy.IMMEDIATE):
            ttl_seconds, policy = None, RetentionPolicy.IMMEDIATE
        if policy is not None and ttl_seconds is not None and ttl_seconds != policy.seconds:
            raise ValueError(f"ttl_seconds={ttl_seconds} contradicts {policy}; give one of them")
        if policy is None and ttl_seconds is None:
            policy = RetentionPolicy.MEDIUM
        self.message_type = message_type
        self.policy = policy
        self.ttl_seconds = ttl_seconds if policy is None else policy.seconds
        self.on_expire = on_expire
        self.archive_before_delete = archive_before_delete

    def __repr__(self) -> str:
        ttl = self.policy.name if self.policy is not None else f"{self.ttl_seconds} s"
        return f"TTLConfig({self.message_type!r}, {ttl}, archive_before_delete={self.archive_before_delete})"


class StandardPolicies:
    """The policies that a bus begins with."""

    @staticmethod
    def get_error_policy() -> TTLConfig:
        """`error`: an hour, then archived."""
        return TTLConfig("error", policy=RetentionPolicy.SHORT, archive_before_delete=True)

    @staticmethod
    def get_log_policy() -> TTLConfig:
        """`log`: a day."""
        return TTLConfig("log", policy=RetentionPolicy.MEDIUM)

    @staticmethod
    def get_command_policy() -> TTLConfig:
        """`command`: a week, then archived."""
        return TTLConfig("command", policy=RetentionPolicy.LONG, archive_before_delete=True)

    @staticmethod
    def get_notification_policy() -> TTLConfig:
        """`notification`: until it is delivered."""
        return TTLConfig("notification", policy=RetentionPolicy.IMMEDIATE)

    @staticmethod
    def get_audit_policy() -> TTLConfig:
        """`audit`: for ever."""
        return TTLConfig("audit", policy=RetentionPolicy.PERMANENT)


class MessageTTLManager:
    """Keeps messages for as long as their type's policy says. Thread-safe.

    Only the time at which a message came in counts, by this machine's clock at the start and monotonic from then; the
    message's own timestamp must be one, and decides nothing. What has expired can't be read, cleaned up or not.
    """

    def __init__(
        self,
        default_ttl: float = 86400,
        *,
        archive_dir: str | Path | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """`default_ttl` in seconds, for types without a policy. `archive_dir`: `archive/alone` in DATA_DIR (`data`) if not
        given. `clock()` in seconds, for tests."""
        if default_ttl <= 0:
            raise ValueError("default_ttl must be above 0")
        self.default_ttl = default_ttl
        self.archive_dir = Path(archive_dir or Path(os.environ.get("DATA_DIR") or "data") / ARCHIVE_FOLDER / "alone")
        self._local = LocalMessages(Rule(default_ttl), clock or Clock(), Folder(self.archive_dir))
        self._governed: Governed | None = None
        self._worker: threading.Thread | None = None
        self._stopping = threading.Event()
        self._starting = threading.Lock()

    # ---- policies

    def register_policy(self, config: TTLConfig) -> None:
        """Set a type's policy, for messages that are kept, too, unless they were extended.

        On a bus, what an administrator has set over REST stays; and with `on_expire`, do it before the bus starts.
        """
        if self._governed is not None:
            self._governed.register(config)
            return
        rule = Rule(
            config.ttl_seconds,
            config.policy is RetentionPolicy.IMMEDIATE,
            config.archive_before_delete,
            config.on_expire,
        )
        self._local.set_rule(config.message_type, rule)

    # ---- messages

    def add_message(self, message: Mapping[str, Any]) -> str:
        """Keep a message (`id`, `type`, `timestamp`); its id again replaces it. Returns the id. Raises Malformed.

        On a bus, messages come by being sent: Conflict. Both are BusErrors.
        """
        self._need_alone("send it")
        return self._local.add(message)

    def remove_message(self, message_id: str) -> bool:
        """Forget a message, without archive and callback. False: there is none. Not on a bus: Conflict."""
        self._need_alone("give its type a policy")
        return self._local.remove(message_id)

    def get_message(self, message_id: str) -> dict[str, Any] | None:
        """A message that has not expired; a copy. None: there is none."""
        return self._local.get(message_id) if self._governed is None else self._governed.message(message_id)

    def mark_delivered(self, message_id: str) -> bool:
        """Say that a message has reached its recipient: an IMMEDIATE one goes by that. A bus knows by itself: Conflict."""
        self._need_alone("acks and cursors say so")
        return self._local.deliver(message_id)

    def extend_ttl(self, message_id: str, additional_seconds: float) -> bool:
        """Add to what is left of a message's life; what never expires stays so. False: there is no such message any more."""
        if additional_seconds <= 0:
            raise ValueError("additional_seconds must be above 0")
        if self._governed is not None:
            return self._governed.extend(message_id, additional_seconds)
        return self._local.extend(message_id, additional_seconds)

    # ---- cleaning up

    def cleanup_expired(self) -> int:
        """Archive, remove and call back for what has expired; how many that were. On a bus the sweep is asked to: 0."""
        if self._governed is not None:
            self._governed.retention.ask_for_sweep()
            return 0
        return self._local.sweep()

    def start_cleanup_worker(self, interval: float = 60) -> None:
        """Clean up every `interval` seconds, in a thread; a second start changes nothing. A bus sweeps by itself."""
        if interval <= 0:
            raise ValueError("interval must be above 0")
        with self._starting:
            if self._governed is not None or (self._worker is not None and self._worker.is_alive()):
                return
            self._stopping = threading.Event()
            self._worker = threading.Thread(target=self._work, args=(interval, self._stopping), daemon=True)
            self._worker.start()

    def stop_cleanup_worker(self) -> None:
        """End the worker after what it is doing, and wait for it, at most 10 s. Idempotent."""
        with self._starting:
            worker, self._worker = self._worker, None
            self._stopping.set()
        if worker is not None and worker is not threading.current_thread():
            worker.join(10.0)

    def _work(self, interval: float, stopping: threading.Event) -> None:
        while not stopping.wait(interval):
            self._local.sweep()

    # ---- looking

    def get_stats(self) -> dict[str, Any]:
        """Counts; a copy. On a bus, those of `GET /api/ttl/stats`."""
        if self._governed is not None:
            return self._governed.retention.figures()
        return {"storage": "memory", "default_ttl": self.default_ttl, **self._local.stats()}

    def get_expired_messages(self, limit: int = 100) -> list[dict[str, Any]]:
        """The messages that were archived, at most `limit`: alone the last ones, on a bus the first."""
        return self._local.archived(limit) if self._governed is None else self._governed.archived(limit)

    def get_expiring_soon(self, seconds: float = 3600) -> list[dict[str, Any]]:
        """All messages that expire within so many seconds, the next first."""
        return self._local.expiring(seconds) if self._governed is None else self._governed.expiring(seconds)

    def _need_alone(self, cure: str) -> None:
        if self._governed is not None:
            raise Conflict(f"On a bus, messages come by being sent and go by their policies: {cure}.", code="on_a_bus")

    def govern(self, bus: Bus, retention: Retention) -> None:
        """Have the policies hold for a bus. Before it starts."""
        self._governed = Governed(bus, retention)


class Governed:
    """A manager's ways to the bus; each call waits in its greenlet."""

    def __init__(self, bus: Bus, retention: Retention) -> None:
        self._bus = bus
        self.retention = retention
        self._suggested: list[Policy] = []
        self._callbacks: dict[str, Callable[[dict[str, Any]], object]] = {}
        bus.on(BusStarted, self._started, wait=True)
        bus.add_worker(Worker("policies", self._suggest, interval_seconds=INTERVAL_SECONDS))

    def register(self, config: TTLConfig) -> None:
        """Suggest a policy; an administrator's stays."""
        if config.on_expire is not None:
            if self._bus.running:
                raise ValueError("on_expire must be registered before the bus starts")
            if not self._callbacks:
                self._bus.on(MessageExpired, self._call_back, wait=True)
            self._callbacks[config.message_type] = config.on_expire
        name = config.policy.value if config.policy is not None else None
        seconds = config.ttl_seconds if name is None else None
        made = policies.policy_of(config.message_type, name, seconds, archive=config.archive_before_delete)
        suggested = msgspec.structs.replace(made, origin="code")
        if self._bus.running:
            self.retention.suggest(suggested)
        else:
            self._suggested.append(suggested)

    def _started(self, _: BusStarted) -> None:
        default = policies.policy_of(DEFAULT, None, self._bus.settings.default_ttl, archive=False)
        self._suggested.insert(0, msgspec.structs.replace(default, origin="setting"))
        with contextlib.suppress(BusError):  # the store is away, or its disk full: the worker tries again, and says so
            self._suggest()

    def _suggest(self) -> None:
        """Store what was suggested before the start, unless it is stored. Raises Unavailable, DiskFull."""
        for policy in list(self._suggested):
            self.retention.suggest(policy)
            if policy in self._suggested:
                self._suggested.remove(policy)

    def _call_back(self, event: MessageExpired) -> None:
        if callback := self._callbacks.get(event.message.type):
            callback(msgspec.json.decode(text_of(event.message, self._bus.epochs)))

    def message(self, message_id: str) -> dict[str, Any] | None:
        found = self._bus.read(lambda reader: whereabouts.find(reader, self._bus.epochs, message_id))
        return None if found is None else msgspec.json.decode(text_of(found.message, self._bus.epochs))

    def extend(self, message_id: str, seconds: float) -> bool:
        try:
            self.retention.extend(message_id, seconds)
        except NotFound:
            return False
        return True

    def archived(self, limit: int) -> list[dict[str, Any]]:
        place, more = (0, 0), True
        found: list[dict[str, Any]] = []
        while more and len(found) < limit:
            page = self.retention.search(Wanted(), place, limit - len(found))
            place, more = page.cursor, page.more
            found += [msgspec.json.decode(line.message) for line in page.lines]
        return found

    def expiring(self, seconds: float) -> list[dict[str, Any]]:
        place, more = 0, True
        found: list[tuple[int, dict[str, Any]]] = []
        while more:
            page, place, more = self.retention.expiring(round(seconds * policies.SECOND_US), place, 1000)
            found += [(moment, msgspec.json.decode(self.retention.text_of(message))) for message, moment in page]
        return [message for _, message in sorted(found, key=lambda entry: entry[0])]


def example() -> None:
    """The documented example, with a message that lives for a moment, and one that is given more time."""
    ttl_mgr = MessageTTLManager(default_ttl=86400)
    for policy in (
        StandardPolicies.get_error_policy(),
        StandardPolicies.get_log_policy(),
        StandardPolicies.get_command_policy(),
        StandardPolicies.get_audit_policy(),
    ):
        ttl_mgr.register_policy(policy)
    gone = threading.Event()

    def on_expire(message: dict[str, Any]) -> None:
        print(f"Message {message['id']} expired")
        gone.set()

    ttl_mgr.register_policy(TTLConfig("analytics", ttl_seconds=0.2, on_expire=on_expire))
    ttl_mgr.start_cleanup_worker(interval=0.05)
    now = datetime.now(UTC).isoformat()
    for message_id, type_ in (("msg-123", "error"), ("msg-124", "analytics"), ("msg-125", "audit")):
        ttl_mgr.add_message({"id": message_id, "type": type_, "payload": {"n": 1}, "timestamp": now})
    ttl_mgr.extend_ttl("msg-123", additional_seconds=3600)
    within_the_hour = [message["id"] for message in ttl_mgr.get_expiring_soon(3600)]
    print(f"Expiring within an hour: {within_the_hour}")
    gone.wait(10)
    ttl_mgr.stop_cleanup_worker()
    print(f"Left: {[i for i in ('msg-123', 'msg-124', 'msg-125') if ttl_mgr.get_message(i)]}")
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(ttl_mgr.get_stats())) + b"\n")


def register(app: Flask, bus: Bus) -> None:
    """Have the policies govern the bus's log, serve them over REST, and sweep."""
    host = Host(
        bus.read,
        bus.write,
        bus.clock.now_us,
        lambda: bus.epochs,
        bus.settings.data_path / ARCHIVE_FOLDER,
        lambda swept: bus.courier.tell_swept(swept),  # noqa: PLW0108  # it is there after the start
        bus.emit,
        bus.is_heard,
        lambda: bus.writer.waiting > 0,
        bus.metrics,
        pause=bus.pause,
    )
    retention = Retention(host)
    manager = MessageTTLManager(default_ttl=bus.settings.default_ttl, archive_dir=host.folder)
    manager.govern(bus, retention)
    bus.use_tables("retention", MIGRATIONS)
    sweeper = Sweeper(host, bus.settings.ttl_sweep_interval)
    bus.add_worker(Worker("retention", sweeper.tick, interval_seconds=INTERVAL_SECONDS, exclusive=True))
    serve_retention(app, retention)
    app.extensions["retention"], app.extensions["message_ttl"] = sweeper, manager


if __name__ == "__main__":
    example()
