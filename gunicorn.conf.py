"""gunicorn's configuration; both commands read it. Options on the command line win, and everything still holds.

Hooks start the bus after the fork, drain it at SIGTERM, and refuse an unsafe bind.
"""

import math
import mmap
import os
import signal
import sys
import time
from contextlib import contextmanager, suppress

from gunicorn.errors import HaltServer
from gunicorn.glogging import Logger

from bus import logs
from bus.errors import BusError, StartRefused, StoreAway
from bus.settings import check_bind, doubts, load

try:
    _settings = load()
except StartRefused as refusal:
    sys.exit(f"The server does not start: {refusal}")

bind = f"{_settings.message_bus_host}:{_settings.message_bus_port}"
workers = _settings.web_concurrency
worker_class = "gevent"
worker_connections = 10_000  # requests under way; open sockets do not count, since they leave gunicorn's pool
backlog = 4096  # a thousand agents that come back at once after a restart
keepalive = 15  # seconds of idling, and for the header of a request: gunicorn has one number for both
timeout = 60
graceful_timeout = max(30, math.ceil(_settings.drain_notice_seconds + _settings.drain_spread_seconds) + 20)
control_socket_disable = True  # one in the user's home would be shared by every server of the user
# In memory: a busy disk must not look like a hung worker.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # nosec B108
max_requests = 0
preload_app = False
_believed = os.environ.get("FORWARDED_ALLOW_IPS") or "127.0.0.1,::1"
forwarded_allow_ips = ",".join([_believed, *map(str, _settings.proxies())])  # whose X-Forwarded-Proto is believed
accesslog = None
loglevel = _settings.log_level.lower()

SPARE_SECONDS = 5
"""Before the master's patience ends, so that a worker's last words are heard."""

RETRY_SECONDS = 1.0
"""Between two attempts to replace a worker whose store is away."""


class logger_class(Logger):
    """gunicorn's own lines, the master's included, in the one form of the bus."""

    def setup(self, cfg):
        super().setup(cfg)
        logs.set_up(level=_settings.log_level, json_lines=_settings.json_logs)


def on_starting(server):
    """Refuse, before anything is forked, what would not be safe or could not work; write for this user alone."""
    os.umask(0o077)
    addresses = [str(address[0]) if isinstance(address, tuple) else "unix:" for address in server.cfg.address]
    try:
        check_bind(_settings, addresses)
        if server.cfg.is_ssl:
            raise StartRefused("TLS ends at a proxy in front of the bus; remove certfile and keyfile.")
        if server.cfg.worker_class_str != "gevent":
            raise StartRefused("The bus needs gunicorn's gevent worker; start it with --worker-class gevent.")
        if server.cfg.preload_app:
            raise StartRefused("--preload would load the app before the fork, where it can't work; leave it out.")
    except StartRefused as refusal:
        sys.exit(f"The server does not start: {refusal}")
    for sentence in doubts():
        server.log.warning("%s", sentence)
    _halt_once(server)
    server.has_served = mmap.mmap(-1, 1)  # shared: not 0 as soon as any worker of this master has started


def _halt_once(server):
    """Several workers may refuse to start: the second one's end would cut gunicorn's halt short, with a traceback."""
    stop, reap = server.stop, server.reap_workers

    def reap_quietly():
        with suppress(HaltServer):
            reap()

    def stop_quietly(graceful=True):
        server.reap_workers = reap_quietly
        stop(graceful)

    server.stop = stop_quietly


def post_fork(server, worker):
    """Let a SIGTERM end a worker that is still booting: until gunicorn sets its own, the master's handler would eat it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    worker.has_served = server.has_served


def post_worker_init(worker):
    """Start the bus in the worker, and see that it ends well."""
    from gevent import get_hub  # not before the worker has patched

    from bus.transports.patience import PatientSocket

    logs.log_what_nobody_catches(get_hub())
    bus = worker.wsgi.extensions["bus"]
    handle = worker.handle
    worker.handle = lambda listener, client, address: handle(listener, PatientSocket.of(client), address)
    try:
        bus.start()
    except (StartRefused, BusError) as refusal:
        if worker.has_served[0] and isinstance(refusal, (StoreAway, BusError)):  # others may still serve
            worker.log.warning("A worker can't start for now, and is tried again: %s", refusal)
            time.sleep(RETRY_SECONDS)
            os._exit(1)
        print(f"The server does not start: {refusal}", file=sys.stderr, flush=True)
        os._exit(3)  # gunicorn's code for a worker that can't boot: the master stops, too
    worker.has_served[0] = 1
    lane = worker.wsgi.extensions.get("lane")
    _end_well(worker, bus, lane)


def _end_well(worker, bus, lane):
    """At SIGTERM: give notice and go on; then close the door, and stop the bus when gunicorn's own run has returned."""
    run, handle_exit = worker.run, worker.handle_exit
    cut_idle = _watch_idle(worker, bus)
    told = []  # when SIGTERM came
    if lane is not None:
        lane.open(worker)

    def give_notice():
        if bus.leaving:  # told twice: at once
            leave()
            return
        bus.give_notice()
        bus.hub.later(_settings.drain_notice_seconds, leave)

    def leave():
        bus.begin_drain()
        cut_idle()
        if lane is not None:
            lane.leave()
        handle_exit(signal.SIGTERM, None)

    def handle_term(number, frame):
        told.append(time.monotonic())
        bus.hub.later(0, give_notice)

    def run_then_stop():
        try:
            run()
        finally:
            # SIGINT and SIGQUIT raise SystemExit out of `run`: they are the hurry-up.
            hurried = sys.exc_info()[0] is not None
            ends = (told or [time.monotonic()])[0] + worker.cfg.graceful_timeout - SPARE_SECONDS
            bus.stop(timeout=1.0 if hurried else max(ends - time.monotonic(), 1.0), notify=worker.notify)
            if lane is not None:
                lane.close()

    worker.run = run_then_stop
    signal.signal(signal.SIGTERM, handle_term)


def _watch_idle(worker, bus):
    """Know the connections that are between two requests; the function returned ends them.

    Each would keep gunicorn's `run` from returning for as long as `keepalive`.
    """
    import gevent  # not before the worker has patched

    waiting = {}

    @contextmanager
    def timeout_ctx():
        with gevent.Timeout(1 if bus.draining else worker.cfg.keepalive, False) as timeout:
            waiting[timeout] = gevent.getcurrent()
            try:
                yield
            finally:
                del waiting[timeout]

    def cut():
        for timeout, greenlet in tuple(waiting.items()):
            gevent.kill(greenlet, timeout)

    worker.timeout_ctx = timeout_ctx
    return cut
