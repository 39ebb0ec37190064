"""The settings: environment (and `.env`) to one typed, frozen object, with a sentence for every wrong value.

Each field's description carries its unit, its default and the reason; `docs/settings.md` is made from this file.
Imports the standard library, msgspec and dotenv only: gunicorn.conf.py reads it before the worker is patched.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, get_args, get_type_hints

import msgspec
from dotenv import dotenv_values
from msgspec import Meta

from bus.contradictions import check_database, check_jwt, check_pages, check_proxies, check_webhooks, is_postgresql
from bus.errors import StartRefused

ROOT = Path(__file__).resolve().parent.parent

SHORTEST_SECRET = 16
"""Characters of a key, token or secret among the settings."""

Port = Annotated[int, Meta(ge=1, le=65535)]
Networks = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]


class Settings(msgspec.Struct, frozen=True, kw_only=True, rename="upper"):
    """Every setting of the server, in the order of the manual. Durations in seconds, sizes in bytes."""

    message_bus_host: Annotated[
        str, Meta(description="Address to listen on. 127.0.0.1: reached from this machine only, until auth is set up.")
    ] = "127.0.0.1"
    message_bus_port: Annotated[Port, Meta(description="TCP port of everything: WebSocket, REST, SSE, probes.")] = 5001
    web_concurrency: Annotated[
        int, Meta(ge=1, le=64, description="Worker processes. One is enough until one core is full.")
    ] = 1
    data_dir: Annotated[str, Meta(description="Folder for what lasts, relative to the project.")] = "data"
    database_url: Annotated[
        str,
        Meta(
            description="Where the log lives: sqlite:///path (relative to the project), or postgresql://user:password@host/db."
            " Unset: POSTGRES_URL, or bus.db in DATA_DIR."
        ),
    ] = ""
    postgres_url: Annotated[str, Meta(description="Another name of DATABASE_URL, for PostgreSQL.")] = ""
    db_pool_size: Annotated[
        int, Meta(ge=1, le=100, description="Connections to PostgreSQL that a worker reads by; it writes by one more.")
    ] = 10
    db_max_overflow: Annotated[
        int, Meta(ge=0, le=100, description="Further ones while reads wait; each is closed half a minute after.")
    ] = 20
    db_statement_timeout: Annotated[
        float,
        Meta(ge=0.1, le=600, description="Seconds that PostgreSQL gives a statement; beyond, it is refused with 503."),
    ] = 5.0
    db_connect_timeout: Annotated[
        float, Meta(ge=2, le=60, description="Seconds for a connection to PostgreSQL; libpq counts whole ones.")
    ] = 3.0
    redis_url: Annotated[
        str,
        Meta(
            description="Wakes the nodes of a bus on PostgreSQL, and counts limits over all of them. redis://, rediss://,"
            " unix://, redis+sentinel:// or redis+cluster://. Unset: LISTEN and NOTIFY, and limits a node."
        ),
    ] = ""
    durability: Annotated[
        Literal["full", "relaxed"],
        Meta(
            description="full: an acknowledged send survives power loss. relaxed: the last second may go with the power."
        ),
    ] = "full"
    max_message_size: Annotated[
        int,
        Meta(ge=1024, le=256 * 1024 * 1024, description="Bytes of one message's JSON object as sent, inflated. 1 MiB."),
    ] = 1024 * 1024
    max_connections: Annotated[
        int, Meta(ge=1, description="Open WebSockets and streams a process; beyond, 503. Guards file descriptors.")
    ] = 10_000
    inbox_limit: Annotated[
        int,
        Meta(
            ge=1,
            description="Messages an inbox holds that its client has neither been pushed nor fetched; beyond, 429.",
        ),
    ] = 10_000
    queue_limit: Annotated[
        int,
        Meta(ge=1, description="Items that wait in one queue; beyond, 429. A queue can be given a limit of its own."),
    ] = 100_000
    max_log_bytes: Annotated[
        Annotated[int, Meta(ge=1024 * 1024)] | None,
        Meta(description="Bytes of payload kept; beyond, the oldest messages go and readers are told. Unset: no cap."),
    ] = None
    disk_alarm_bytes: Annotated[
        int,
        Meta(
            ge=0,
            description="Below so many free bytes (or DISK_ALARM_PERCENT, if that is more) sends get 507; 0 and 0: never.",
        ),
    ] = 1_000_000_000
    disk_alarm_percent: Annotated[
        float, Meta(ge=0, le=50, description="Of the log's disk. Acks, reads and deletes go on, so room can be made.")
    ] = 5.0
    default_ttl: Annotated[
        int,
        Meta(
            ge=1, le=316_224_000, description="Seconds that messages live whose type has no policy of its own. A day."
        ),
    ] = 86_400
    ttl_sweep_interval: Annotated[
        float,
        Meta(
            ge=1, le=86_400, description="Seconds between two sweeps. What has expired can't be read before its sweep."
        ),
    ] = 60.0
    enable_auth: Annotated[
        bool | None,
        Meta(
            description="Ask for a credential. Unset: on if API_KEY is set; off on loopback; else the start is refused."
        ),
    ] = None
    api_key: Annotated[str | None, Meta(description="One admin key for the small case; turns auth on.")] = None
    jwt_secret: Annotated[
        str | None,
        Meta(description="The secret that JWTs are signed with (HS256, …), at least 32 bytes; turns auth on."),
    ] = None
    jwt_jwks_url: Annotated[
        str | None,
        Meta(
            description="The issuer's JSON Web Key Set: an https URL, or a file. In the place of JWT_SECRET; turns auth on."
        ),
    ] = None
    jwt_algorithms: Annotated[
        str,
        Meta(
            description="Algorithms, comma-separated, that JWTs may be signed with. Unset: HS256 with JWT_SECRET, else"
            " RS256,ES256."
        ),
    ] = ""
    jwt_issuer: Annotated[str | None, Meta(description="What a JWT's `iss` must be. Needed for JWTs.")] = None
    jwt_audience: Annotated[
        str | None, Meta(description="What must be among a JWT's `aud`: the name of this bus. Needed for JWTs.")
    ] = None
    jwt_allow_admin: Annotated[
        bool, Meta(description="Let JWTs whose claim `bus` names the scope admin administer. Else they are refused.")
    ] = False
    allowed_origins: Annotated[
        str,
        Meta(
            description="Further origins (https://app.example), comma-separated, whose pages may call and open sockets."
            " The bus's own scheme, host and port always may."
        ),
    ] = ""
    allowed_hosts: Annotated[
        str,
        Meta(description="Further Host names, comma-separated, that are answered while auth is off (DNS rebinding)."),
    ] = ""
    rate_limit_requests_per_minute: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000_000)] | None,
        Meta(
            description="Requests of one caller in any minute, over all workers; beyond, 429. A frame is a request, and a"
            " batch as many as its messages. A caller is a credential, or an address while auth is off. Unset: no limit."
        ),
    ] = None
    rate_limit_requests_per_hour: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000_000)] | None,
        Meta(description="The same in any hour. Both may be set. A key with a rate of its own has that instead."),
    ] = None
    rate_limit_unauthenticated_per_minute: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000_000,
            description="With auth on: requests without a valid credential from one address in any minute; beyond, 429.",
        ),
    ] = 60
    max_connections_per_address: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(
            description="Open WebSockets and streams of one address, over all workers; beyond, 429. Unset: 1,000 with auth"
            " on, no cap with auth off."
        ),
    ] = None
    max_connections_per_key: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="The same of one credential. Unset: no cap."),
    ] = None
    trusted_proxies: Annotated[
        str,
        Meta(
            description="Networks (CIDR), comma-separated, of proxies whose X-Forwarded-For tells who calls. Unset: the"
            " socket's peer is who calls, whatever a header says."
        ),
    ] = ""
    secret_key: Annotated[
        str | None,
        Meta(
            description="What the secrets and URLs of webhooks are encrypted with, at rest. Unset: a key file is made in"
            " DATA_DIR, readable by its owner only."
        ),
    ] = None
    secret_key_previous: Annotated[
        str | None,
        Meta(
            description="The SECRET_KEY before this one: what it encrypted is encrypted anew at the start; remove it then."
        ),
    ] = None
    webhook_secret: Annotated[
        str | None,
        Meta(description="Signs webhooks of endpoints that have no secret of their own; else each is given one."),
    ] = None
    webhook_signature_secret: Annotated[
        str | None,
        Meta(description="Checks webhooks that come in for integrations that have no secret of their own."),
    ] = None
    allowed_webhook_ips: Annotated[
        str,
        Meta(
            description="Addresses and networks (CIDR), comma-separated, that may send webhooks to integrations that do not"
            " say so themselves. Unset: any; the signature counts. Example: 192.168.1.0/24,10.0.0.1."
        ),
    ] = ""
    webhook_allowed_targets: Annotated[
        str,
        Meta(
            description="Networks (CIDR), comma-separated, that outgoing calls may reach although they are loopback,"
            " private or otherwise special; on any port. Example: 127.0.0.0/8,10.1.0.0/16."
        ),
    ] = ""
    webhook_allowed_ports: Annotated[
        str, Meta(description="Ports, comma-separated, of outgoing calls beside 80, 443, 8080 and 8443.")
    ] = ""
    webhook_https_only: Annotated[bool, Meta(description="Refuse outgoing calls over http://, to any target.")] = False
    bus_extensions: Annotated[str, Meta(description="Dotted names of further extensions, comma-separated.")] = ""
    disabled_extensions: Annotated[
        str, Meta(description="Names of shipped extensions to leave out, comma-separated.")
    ] = ""
    drain_notice_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=60,
            description="Between SIGTERM and the closed door: /health/ready says 503, all else goes on. Balancers: 10.",
        ),
    ] = 1.0
    drain_spread_seconds: Annotated[
        float,
        Meta(
            ge=0, le=120, description="Over which closes are spread at a stop, so that clients do not return at once."
        ),
    ] = 5.0
    enable_metrics: Annotated[
        bool,
        Meta(description="Count what the bus does, and show it at /metrics. false: neither, and it costs nothing."),
    ] = True
    metrics_port: Annotated[
        Port | None,
        Meta(description="A port of its own for /metrics, beside the main one. Unset: served on the main port only."),
    ] = None
    metrics_token: Annotated[
        str | None,
        Meta(
            description="What a scraper must bring as `Authorization: Bearer`. Unset: /metrics is open, as probes are."
        ),
    ] = None
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"], Meta(description="The least severe level that is logged.")
    ] = "INFO"
    enable_structured_logging: Annotated[
        bool | None, Meta(description="JSON lines instead of readable ones. Unset: on if ENVIRONMENT is production.")
    ] = None
    enable_tracing: Annotated[
        bool,
        Meta(
            description="OpenTelemetry spans for messages that carry a sampled traceparent, exported as OTEL_… says."
            " Needs requirements-tracing.txt. Off: it costs."
        ),
    ] = False
    environment: Annotated[
        Literal["development", "staging", "production"], Meta(description="Chooses the default form of the logs.")
    ] = "development"

    @property
    def database_path(self) -> Path:
        """The SQLite file. On PostgreSQL there is none; the node's side files lie beside where it would be."""
        if self.is_on_postgresql:
            return self.data_path / "postgresql"
        if not self.database_url:
            return self.data_path / "bus.db"
        path = Path(self.database_url.removeprefix("sqlite:///"))
        return path if path.is_absolute() else ROOT / path

    @property
    def store_url(self) -> str:
        """DATABASE_URL, or its other name."""
        return self.database_url or self.postgres_url

    @property
    def is_on_postgresql(self) -> bool:
        """True when the log lives in PostgreSQL."""
        return is_postgresql(self.store_url)

    @property
    def store_name(self) -> str:
        """What status pages call the store."""
        return "postgresql" if self.is_on_postgresql else "sqlite"

    @property
    def lock_folder(self) -> Path:
        """Where the processes that share the log meet: their locks and side files, beside it."""
        return self.database_path.with_name(self.database_path.name + ".workers")

    @property
    def data_path(self) -> Path:
        """DATA_DIR as an absolute path."""
        path = Path(self.data_dir)
        return path if path.is_absolute() else ROOT / path

    @property
    def auth_on(self) -> bool:
        """True when callers need a credential."""
        return self.enable_auth if self.enable_auth is not None else self.api_key is not None or self.jwt_on

    @property
    def jwt_on(self) -> bool:
        """True when JWTs are accepted."""
        return self.jwt_secret is not None or self.jwt_jwks_url is not None

    def jwt_algorithm_names(self) -> tuple[str, ...]:
        """JWT_ALGORITHMS, or what goes with where the keys come from."""
        usual = ("HS256",) if self.jwt_secret is not None else ("RS256", "ES256")
        return tuple(split(self.jwt_algorithms)) or usual

    @property
    def json_logs(self) -> bool:
        """True when logs are JSON lines."""
        if self.enable_structured_logging is not None:
            return self.enable_structured_logging
        return self.environment == "production"

    def origins(self) -> frozenset[str]:
        """ALLOWED_ORIGINS, lower-cased, without trailing slashes."""
        return frozenset(o.rstrip("/").lower() for o in split(self.allowed_origins))

    def hosts(self) -> frozenset[str]:
        """ALLOWED_HOSTS, lower-cased."""
        return frozenset(h.lower() for h in split(self.allowed_hosts))

    def targets(self) -> Networks:
        """WEBHOOK_ALLOWED_TARGETS as networks. Raises ValueError for what is none."""
        return _networks(self.webhook_allowed_targets)

    def proxies(self) -> Networks:
        """TRUSTED_PROXIES as networks. Raises ValueError for what is none."""
        return _networks(self.trusted_proxies)

    def webhook_callers(self) -> Networks:
        """ALLOWED_WEBHOOK_IPS as networks. Raises ValueError for what is none."""
        return _networks(self.allowed_webhook_ips)

    def target_ports(self) -> frozenset[int]:
        """WEBHOOK_ALLOWED_PORTS as numbers. Raises ValueError for what is none."""
        return frozenset(msgspec.convert(split(self.webhook_allowed_ports), list[Port], strict=False))


def is_loopback(host: str) -> bool:
    """True for a name or an address of this machine only; `127.example.com` is neither."""
    if host.lower() == "localhost":
        return True
    address = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def split(commas: str) -> list[str]:
    """The non-empty items of a comma-separated list."""
    return [item.strip() for item in commas.split(",") if item.strip()]


def _networks(commas: str) -> Networks:
    return tuple(map(ipaddress.ip_network, split(commas)))


def load(environ: Mapping[str, str] | None = None, env_file: Path | None = ROOT / ".env") -> Settings:
    """Read the settings: the environment wins over `.env`. Raises StartRefused with one sentence."""
    given = (
        {name: value or "" for name, value in dotenv_values(env_file, interpolate=False).items()} if env_file else {}
    )
    given.update(os.environ if environ is None else environ)
    known = {name.upper() for name in Settings.__struct_fields__}
    values = {name: value.strip() for name, value in given.items() if name in known and value.strip()}
    for name in ("LOG_LEVEL", "DURABILITY", "ENVIRONMENT"):
        if name in values:
            values[name] = values[name].upper() if name == "LOG_LEVEL" else values[name].lower()
    try:
        settings = msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise _explain(error, values) from None
    _check(settings)
    return settings


def doubts(env_file: Path = ROOT / ".env") -> list[str]:
    """What is unsafe, and does not stop a start; a sentence each."""
    try:
        mode = env_file.stat().st_mode
    except OSError:
        return []
    secrets = [name for name, value in dotenv_values(env_file, interpolate=False).items() if value and is_secret(name)]
    if not secrets or not mode & 0o004:
        return []
    return [f"Other users of this machine can read {', '.join(secrets)} in {env_file}; say chmod 600 {env_file}."]


def is_secret(name: str) -> bool:
    """True for the name of a setting whose value nobody is shown."""
    return any(word in name for word in ("KEY", "SECRET", "TOKEN", "DATABASE_URL", "POSTGRES_URL"))


def _explain(error: msgspec.ValidationError, values: Mapping[str, str]) -> StartRefused:
    problem, _, path = str(error).partition(" - at `$.")
    name = path.rstrip("`")
    shown = "(hidden)" if is_secret(name) else repr(values.get(name))
    problem = problem.replace("`", "").replace(" | null", "").removesuffix(", got str")
    if problem.startswith("Invalid enum value"):
        problem = f"it must be one of {', '.join(get_args(get_type_hints(Settings)[name.lower()]))}"
    for kind, words in (("bool", "true or false"), ("int", "a whole number"), ("float", "a number")):
        problem = problem.replace(f"Expected {kind}", f"it must be {words}")
    problem = problem.replace("Expected", "it must be")
    return StartRefused(f"The setting {name}={shown} is wrong: {problem}. Mend it in the environment or in .env.")


def _check(settings: Settings) -> None:
    check_database(settings)
    if settings.enable_auth is False and settings.api_key:
        raise StartRefused("ENABLE_AUTH=false and API_KEY contradict one another; remove one of them.")
    check_jwt(settings)
    for name in (
        "api_key",
        "secret_key",
        "secret_key_previous",
        "webhook_secret",
        "webhook_signature_secret",
        "metrics_token",
    ):
        if len(getattr(settings, name) or "x" * SHORTEST_SECRET) < SHORTEST_SECRET:
            raise StartRefused(
                f"{name.upper()} is shorter than {SHORTEST_SECRET} characters and could be guessed; use a longer one."
            )
    if settings.metrics_port == settings.message_bus_port:
        raise StartRefused(
            "METRICS_PORT is the main port, where /metrics is in any case; name another one, or leave it unset."
        )
    check_pages(settings)
    check_webhooks(settings)
    check_proxies(settings)
    check_bind(settings, [settings.message_bus_host])


def check_bind(settings: Settings, addresses: list[str]) -> None:
    """Refuse to listen beyond this machine unless auth is on, or was turned off in so many words."""
    if settings.auth_on or settings.enable_auth is False:
        return
    for address in addresses:
        if not (address.startswith("unix:") or is_loopback(address)):
            raise StartRefused(
                f"Listening on {address} would let the network in without a key: set ENABLE_AUTH=true (or API_KEY),"
                " or ENABLE_AUTH=false if that is what you want."
            )
