"""The composition root: which extensions there are, and the app that hosts them. No logic.

`python server_ws.py` replaces itself by gunicorn with the project's gunicorn.conf.py, so there is one way to run;
`gunicorn --workers 4 --worker-class gevent server_ws:app` is the same product. Importing this module starts nothing.
"""

from __future__ import annotations

if __name__ == "__main__":  # before any other import: gevent has to patch first
    from bus.launch import main

    main()

from importlib import import_module

from flask import Flask

from bus import logs
from bus.bus import Bus
from bus.errors import StartRefused
from bus.settings import Settings, load, split

EXTENSIONS = (
    "bus.transports.edge",
    "bus.transports.rest",
    "bus.transports.delivery",
    "bus.transports.keys",
    "bus.transports.sessions",
    "bus.transports.ws",
    "bus.transports.log_streams",
    "bus.transports.in_force",
    "bus.transports.openapi",
    "bus.transports.llms",
    "bus.transports.site",
    "bus.transports.lane",
    "bus.transports.profile",
    "streaming",
    "webhooks",
    "health_checks",
    "enhanced_metrics",
    "message_ttl",
    "extensions.log_cap",
    "extensions.tracing",
    "extensions.inbound_webhooks",
    "extensions.audit",
    "extensions.search",
    "bus.console",
)
"""What ships, in order of registration. Each module's last function is `register(app, bus)`."""


def create_app(settings: Settings | None = None) -> Flask:
    """Build the app and register every extension. Nothing is opened or started: `app.extensions["bus"].start()` does."""
    settings = settings or load()
    logs.set_up(level=settings.log_level, json_lines=settings.json_logs)
    app = Flask("server_ws", static_folder=None)
    bus = Bus(settings)
    app.extensions["bus"] = bus
    for name in enabled(settings):
        import_module(name).register(app, bus)
    return app


def enabled(settings: Settings) -> list[str]:
    """The extensions to register: what ships less DISABLED_EXTENSIONS, then BUS_EXTENSIONS. Raises StartRefused."""
    disabled = set(split(settings.disabled_extensions))
    short = {name.rpartition(".")[2]: name for name in EXTENSIONS}
    if unknown := disabled - set(short) - set(EXTENSIONS):
        raise StartRefused(f"DISABLED_EXTENSIONS names {min(unknown)}, which is none of {', '.join(short)}.")
    if "edge" in disabled or "bus.transports.edge" in disabled:
        raise StartRefused("DISABLED_EXTENSIONS can't name edge: it is what checks every request.")
    shipped = [name for key, name in short.items() if key not in disabled and name not in disabled]
    return shipped + split(settings.bus_extensions)


app = create_app()
