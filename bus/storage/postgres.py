"""The store on PostgreSQL, for several nodes: opened, checked and migrated here. See docs/postgresql.md.

Every process has a connection for its writer and one for each of its reading threads. Indexes were made for every question,
as for SQLite, so plans go by them and by nested loops, whatever the statistics say of a table that was just filled.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
from gevent.monkey import get_original
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from bus.clock import Clock
from bus.companions import Companions
from bus.errors import StartRefused, StoreAway
from bus.message import Epochs, new_epoch, now_us
from bus.storage import Upkeep
from bus.storage.dialect import script_of
from bus.storage.postgres_connection import ConnectionLost, PostgresConnection, PostgresError
from bus.storage.postgres_reader import PostgresReader
from bus.storage.postgres_writer import PostgresWriter

OLDEST_SERVER = 140000
OWN = ("postgresql", Path(__file__).parent / "postgresql")
"""Migrations of the store itself; they come behind the core's."""

LOCK = 0x6D61622D62757321
"""The advisory lock of who migrates, one at a time in a database."""

START_SECONDS = 10.0
"""How long a start waits for a database that is starting, too."""

_SETTINGS = """
SELECT set_config('statement_timeout', ?, false), set_config('idle_in_transaction_session_timeout', ?, false),
 set_config('lock_timeout', '0', false), set_config('default_transaction_isolation', 'read committed', false),
 set_config('synchronous_commit', ?, false), set_config('jit', 'off', false),
 set_config('enable_seqscan', 'off', false), set_config('enable_bitmapscan', 'off', false),
 set_config('enable_hashjoin', 'off', false), set_config('enable_mergejoin', 'off', false),
 set_config('extra_float_digits', '1', false)"""
_IDENTITY = """
SELECT (SELECT CAST(system_identifier AS text) FROM pg_control_system()) || '/'
 || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) || '/'
 || (SELECT CAST(oid AS text) FROM pg_database WHERE datname = current_database()) || '/'
 || CAST(CAST(CAST('log_head' AS regclass) AS oid) AS text)"""

_MIGRATIONS = (
    "CREATE TABLE IF NOT EXISTS migrations (owner TEXT, number BIGINT, checksum TEXT NOT NULL, applied_at BIGINT NOT NULL,"
    " PRIMARY KEY (owner, number))"
)

_SENTENCES = (
    ("password authentication failed", "refuses the password of user {user}; mend it in DATABASE_URL"),
    ("no password supplied", "wants a password for user {user}; DATABASE_URL has none"),
    ("pg_hba.conf", "has no rule in pg_hba.conf that lets user {user} in from here; add one"),
    ("authentication failed", "does not let user {user} in; see its log, and DATABASE_URL"),
    ('role "', "knows no user {user}; create it, or mend DATABASE_URL"),
    ('database "', "has no database {dbname}; create it (createdb {dbname}), or mend DATABASE_URL"),
    ("too many clients", "has no connection left; raise its max_connections, or lower DB_POOL_SIZE or WEB_CONCURRENCY"),
    ("connection slots", "has no connection left; raise its max_connections, or lower DB_POOL_SIZE or WEB_CONCURRENCY"),
    ("translate host name", "can't be found: its host name has no address; mend DATABASE_URL"),
    ("does not support SSL", "speaks no TLS, and sslmode in DATABASE_URL asks for it; set up TLS there, or mend it"),
    ("certificate", "has a certificate that can't be trusted here; see sslmode and sslrootcert in DATABASE_URL"),
    ("not read-write", "is a standby that can't be written to; name the primary, or all hosts, in DATABASE_URL"),
    ("read-only", "is a standby that can't be written to; name the primary, or all hosts, in DATABASE_URL"),
)
_LATER = ("starting up", "shutting down", "Connection refused", "No such file", "recovery")

_sleep = get_original("time", "sleep")


class Pool(msgspec.Struct, frozen=True):
    """How long PostgreSQL gives a statement, how long a connection may take, and how many of them this node opens."""

    statement_seconds: float = 5.0
    connect_seconds: float = 3.0
    connections: int = 1


class PostgresStore:
    """A log in one database. `url` is libpq's, with all of its parameters; secrets of it are in no sentence.

    `conninfo` is what connections are made of, the password included.
    """

    name = "postgresql"
    writer_type = PostgresWriter

    def __init__(
        self,
        url: str,
        clock: Clock,
        *,
        durability: str,
        inbox_limit: int,
        queue_limit: int,
        pool: Pool = Pool(),  # noqa: B008  # it is frozen
        companions: Companions | None = None,
    ) -> None:
        """`clock` is the bus's; it follows the database's.

        Raises StartRefused for a URL that can't be read.
        """
        self.clock = clock
        self.durability = durability
        self.inbox_limit = inbox_limit
        self.queue_limit = queue_limit
        self.companions = companions or Companions()
        self._pool = pool
        scheme, _, rest = url.partition("://")
        try:
            given = {
                name: str(value) for name, value in conninfo_to_dict(f"{scheme.partition('+')[0]}://{rest}").items()
            }
        except ProgrammingError:
            raise StartRefused(
                "DATABASE_URL can't be read; it must look like postgresql://user:password@host:5432/database, with % codes"
                " for special characters of the password."
            ) from None
        self.conninfo = make_conninfo(**{**_usual(pool.connect_seconds), **given})
        self._where = {"user": given.get("user", "of the system"), "dbname": given.get("dbname", given.get("user", ""))}
        self._place = f"{given.get('host', 'the local socket')}:{given.get('port', '5432')}"
        self._epochs: Epochs | None = None
        self._identity = ""

    @property
    def epochs(self) -> Epochs:
        assert self._epochs is not None, "the store is not open"
        return self._epochs

    @property
    def survives(self) -> str:
        if self.durability == "full":
            return "process kill; crash and power loss of the PostgreSQL primary"
        return "process kill; the last second may go in a crash of PostgreSQL"

    # ---- connections

    def connect(self, statement_seconds: float | None) -> PostgresConnection:
        """A new connection with the bus's settings. Raises ConnectionLost, PostgresError."""
        connection = PostgresConnection(self.conninfo, statement_seconds=statement_seconds)
        bound = "0" if statement_seconds is None else f"{statement_seconds * 1000:.0f}"
        committing = "on" if self.durability == "full" else "off"
        try:
            connection.execute(_SETTINGS, (bound, "0" if statement_seconds is None else "10000", committing)).load()
        except BaseException:
            connection.close()
            raise
        return connection

    def writer(self) -> PostgresWriter:
        return PostgresWriter(
            self._connect_to_log,
            self.epochs,
            self.clock,
            inbox_limit=self.inbox_limit,
            queue_limit=self.queue_limit,
            companions=self.companions,
        )

    def reader(self) -> PostgresReader:
        return PostgresReader(self._connect_to_log, self.clock.now_us, inbox_limit=self.inbox_limit)

    def upkeep(self) -> Upkeep:
        return _NoUpkeep()

    def _connect_to_log(self) -> PostgresConnection:
        """A connection to the log that was opened. A promoted standby may lack the end of it: this process begins anew."""
        connection = self.connect(self._pool.statement_seconds)
        try:
            same = connection.execute(_IDENTITY).get == self._identity
        except BaseException:
            connection.close()
            raise
        if not same:
            connection.close()
            os.kill(os.getpid(), signal.SIGTERM)  # it drains, and its successor opens the store with a new epoch
            raise ConnectionLost("another database, or a promoted standby, answers: this process starts again")
        return connection

    # ---- checking

    def check(self) -> None:
        """Refuse what can't serve: a wrong password, an old server, too few connections. A damaged log is PostgreSQL's."""
        with closing(self._connect_patiently()) as connection:
            if connection.version < OLDEST_SERVER:
                raise StartRefused(
                    f"PostgreSQL at {self._place} is version {connection.version // 10000}; the bus needs"
                    f" {OLDEST_SERVER // 10000} or newer."
                )
            encoding, free = connection.execute(
                "SELECT pg_encoding_to_char(encoding), CAST(current_setting('max_connections') AS bigint)"
                " - CAST(current_setting('superuser_reserved_connections') AS bigint)"
                " - (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')"
                " FROM pg_database WHERE datname = current_database()"
            ).get
        if encoding != "UTF8":
            raise StartRefused(
                f"The database {self._where['dbname']} is encoded in {encoding}; create it anew with ENCODING 'UTF8'."
            )
        if free < self._pool.connections - 1:
            raise StartRefused(
                f"PostgreSQL at {self._place} has {free} connections left, and this node needs"
                f" {self._pool.connections}; raise its max_connections, or lower DB_POOL_SIZE or WEB_CONCURRENCY."
            )

    def _connect_patiently(self) -> PostgresConnection:
        """For the start: no bound on statements, and a while for a database that starts, too. Raises StoreAway."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return self.connect(None)
            except PostgresError as error:
                text = str(error)
                if not any(word in text for word in _LATER) or time.monotonic() > deadline:
                    raise StoreAway(self._sentence(text)) from None
            _sleep(0.2)

    def _sentence(self, text: str) -> str:
        for word, sentence in _SENTENCES:
            if word in text:
                return f"PostgreSQL at {self._place} {sentence.format(**self._where)}."
        return f"PostgreSQL at {self._place} does not answer ({text.splitlines()[-1][-200:]}); see DATABASE_URL and its log."

    # ---- opening

    def open(self, migrations: Sequence[tuple[str, Path]]) -> None:
        """Migrate, one process of all nodes at a time, and begin a new epoch if this is another log than it was."""
        with closing(self._connect_patiently()) as connection:
            try:
                self._open(connection, migrations)
            except ConnectionLost as error:
                raise StoreAway(self._sentence(str(error))) from None
            except PostgresError as error:
                cure = "see its log"
                if error.state == "42501":
                    cure = "the user of DATABASE_URL must own the database, or may CREATE in its schema"
                raise StartRefused(f"PostgreSQL at {self._place} refuses the tables ({error}); {cure}.") from None

    def due(self, migrations: Sequence[tuple[str, Path]]) -> list[str]:
        """Which migrations `open` would apply: `core 3`, say. Raises StartRefused as it would."""
        with closing(self._connect_patiently()) as connection:
            done = _applied(connection)
            return [f"{owner} {number}" for owner, number, _ in _missing(done, [*migrations, OWN])]

    def _open(self, connection: PostgresConnection, migrations: Sequence[tuple[str, Path]]) -> None:
        execute = connection.execute
        execute("SELECT pg_advisory_lock(?)", (LOCK,)).load()
        execute("BEGIN")
        execute(_MIGRATIONS)
        core, *others = migrations
        for owner, number, file in _missing(_applied(connection), [core, OWN, *others]):
            connection.run(script_of(file))
            execute("INSERT INTO migrations VALUES (?, ?, ?, ?)", (owner, number, _checksum(file), now_us()))
        execute("INSERT INTO log_head VALUES (1, 0, 0, 0, 0, 0) ON CONFLICT DO NOTHING")
        self._identity = execute(_IDENTITY).get
        self._epochs = self._read_epochs(connection)
        moment = execute("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)").get
        self.clock.follow(moment)
        execute("DELETE FROM commits WHERE at < ?", (moment - 86_400_000_000,))
        execute("COMMIT")
        execute("SELECT pg_advisory_unlock(?)", (LOCK,)).load()

    def note_migrations(self, execute: Callable[..., Any], migrations: Sequence[tuple[str, Path]]) -> None:
        """After a copy from elsewhere: every migration is applied, and the log's epochs go on. `execute` is psycopg's."""
        execute(_MIGRATIONS)
        for owner, number, file in _missing({}, [OWN, *migrations]):
            values = (owner, number, _checksum(file), now_us())
            execute("INSERT INTO migrations VALUES (%s, %s, %s, %s)", values)
        execute(f"INSERT INTO identity VALUES (1, ({_IDENTITY}))")

    def begin_epoch(self) -> str:
        """For a log that was restored in a way that can't be noticed: begin a new epoch. Every server must be stopped."""
        with closing(self._connect_patiently()) as connection:
            connection.execute("BEGIN")
            rows = connection.execute("SELECT first_seq, epoch FROM epochs ORDER BY 1, 2").fetchall()
            life = begin_epoch(connection, [(int(first), str(epoch)) for first, epoch in rows])
            connection.execute("COMMIT")
            connection.flush()
        return life[1]

    def _read_epochs(self, connection: PostgresConnection) -> Epochs:
        execute = connection.execute
        told = execute("SELECT told FROM identity").get
        lives = [
            (int(first), str(epoch)) for first, epoch in execute("SELECT first_seq, epoch FROM epochs ORDER BY 1, 2")
        ]
        if not lives or (told is not None and told != self._identity):
            lives.append(begin_epoch(connection, lives))
        if told != self._identity:
            execute(
                "INSERT INTO identity VALUES (1, ?) ON CONFLICT (one) DO UPDATE SET told = excluded.told",
                (self._identity,),
            )
        return Epochs(lives)


def begin_epoch(connection: PostgresConnection, lives: Sequence[tuple[int, str]]) -> tuple[int, str]:
    """Begin a new life of the log at the next seq; what was written before keeps its ids."""
    head = int(connection.execute("SELECT seq FROM log_head FOR UPDATE").get)
    life = head + 1, new_epoch(lives[-1][1] if lives else "0")
    connection.execute("INSERT INTO epochs VALUES (?, ?)", life)
    return life


def _usual(connect_seconds: float) -> dict[str, str]:
    """Parameters of a connection, unless the URL says otherwise. Dead peers are noticed in about ten seconds."""
    return {
        "application_name": "multi-agent-bridge",
        "client_encoding": "UTF8",
        "connect_timeout": str(max(2, round(connect_seconds))),
        "keepalives_idle": "5",
        "keepalives_interval": "2",
        "keepalives_count": "3",
        "tcp_user_timeout": "10000",
        "target_session_attrs": "read-write",
    }


def _applied(connection: PostgresConnection) -> dict[tuple[str, int], str]:
    if connection.execute("SELECT to_regclass('migrations') IS NULL").get:
        return {}
    rows = connection.execute("SELECT owner, number, checksum FROM migrations").fetchall()
    return {(owner, number): checksum for owner, number, checksum in rows}


def _missing(done: dict[tuple[str, int], str], migrations: Sequence[tuple[str, Path]]) -> list[tuple[str, int, Path]]:
    """What is to be applied, in order. Raises StartRefused for what a newer version applied, and for a file that changed."""
    missing = []
    for owner, folder in migrations:
        files = {int(file.name.split("_")[0]): file for file in sorted(folder.glob("[0-9]*.sql"))}
        newer = {number for name, number in done if name == owner} - set(files)
        if newer:
            raise StartRefused(
                f"The log was written by a newer version (migration {owner} {max(newer)} is unknown here); start that"
                " version."
            )
        for number, file in files.items():
            checksum = done.get((owner, number))
            if checksum is None:
                missing.append((owner, number, file))
            elif checksum != _checksum(file):
                raise StartRefused(
                    f"Migration {owner} {number} was changed after it was applied to this log; restore the file as released."
                )
    return missing


def _checksum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


class _NoUpkeep:
    """PostgreSQL keeps its files in shape itself."""

    def tick(self) -> None:
        """Nothing is to be done."""

    def close(self) -> None:
        """Nothing is open."""
