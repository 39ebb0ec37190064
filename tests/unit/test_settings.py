"""Settings: what is read from where, and that a wrong value stops the start with one sentence that names it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bus.errors import StartRefused
from bus.settings import ROOT, Settings, check_bind, doubts, is_loopback, load

KEY = "sixteen letters!"


def read(**environ: str) -> Settings:
    return load(environ, env_file=None)


def refusal(environ: Mapping[str, str]) -> str:
    """The sentence that stops the start."""
    with pytest.raises(StartRefused) as refused:
        load(environ, env_file=None)
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert re.fullmatch(r"[A-Z].*\.", sentence)
    return sentence


# ---- where values come from


def test_nothing_set_gives_the_documented_defaults() -> None:
    settings = read()
    assert settings == Settings()
    assert (settings.message_bus_host, settings.message_bus_port, settings.web_concurrency) == ("127.0.0.1", 5001, 1)
    assert (settings.max_message_size, settings.inbox_limit, settings.max_connections) == (1024 * 1024, 10_000, 10_000)
    assert (settings.durability, settings.max_log_bytes, settings.auth_on) == ("full", None, False)
    assert settings.database_path == ROOT / "data" / "bus.db"


def test_the_environment_wins_over_the_file_even_when_it_is_empty(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("MESSAGE_BUS_PORT=6001\nINBOX_LIMIT=7\nDATA_DIR=elsewhere\nWEB_CONCURRENCY=\n")
    settings = load({"MESSAGE_BUS_PORT": "6002", "DATA_DIR": ""}, file)
    assert (settings.message_bus_port, settings.inbox_limit, settings.data_dir) == (6002, 7, "data")
    assert settings.web_concurrency == 1


def test_a_file_is_taken_as_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("API_KEY='$HOME and ${PATH} # all of it'\nMESSAGE_BUS_PORT = 6001 # a comment\nEXPORTED\n")
    settings = load({}, file)
    assert (settings.api_key, settings.message_bus_port) == ("$HOME and ${PATH} # all of it", 6001)
    assert load({}, tmp_path / "missing") == Settings()


def test_blanks_around_a_value_and_names_of_others_are_ignored() -> None:
    settings = read(MESSAGE_BUS_PORT=" 6001\t", PATH="/bin", message_bus_host="10.0.0.1", BUS="x")
    assert settings == Settings(message_bus_port=6001)


def test_words_are_read_in_any_case() -> None:
    settings = read(LOG_LEVEL="debug", DURABILITY="Relaxed", ENVIRONMENT="PRODUCTION", ENABLE_AUTH="True")
    assert (settings.log_level, settings.durability, settings.environment) == ("DEBUG", "relaxed", "production")
    assert settings.enable_auth is True


def test_settings_do_not_change() -> None:
    with pytest.raises(AttributeError):
        read().message_bus_port = 1  # type: ignore[misc]


# ---- wrong values


@pytest.mark.parametrize(
    ("name", "value", "cure"),
    [
        ("MESSAGE_BUS_PORT", "0", "a whole number >= 1"),
        ("MESSAGE_BUS_PORT", "65536", "a whole number <= 65535"),
        ("MESSAGE_BUS_PORT", "http", "a whole number"),
        ("MESSAGE_BUS_PORT", "5001.5", "a whole number"),
        ("WEB_CONCURRENCY", "0", "a whole number >= 1"),
        ("WEB_CONCURRENCY", "65", "a whole number <= 64"),
        ("MAX_MESSAGE_SIZE", "1023", "a whole number >= 1024"),
        ("MAX_MESSAGE_SIZE", "1MB", "a whole number"),
        ("MAX_CONNECTIONS", "-1", "a whole number >= 1"),
        ("INBOX_LIMIT", "0", "a whole number >= 1"),
        ("MAX_LOG_BYTES", "1000", "a whole number >= 1048576"),
        ("MAX_LOG_BYTES", "unlimited", "a whole number"),
        ("DRAIN_NOTICE_SECONDS", "-0.1", "a number >= 0.0"),
        ("DRAIN_NOTICE_SECONDS", "nan", "a number >= 0.0"),
        ("DRAIN_SPREAD_SECONDS", "inf", "a number <= 120.0"),
        ("ENABLE_AUTH", "maybe", "true or false"),
        ("ENABLE_STRUCTURED_LOGGING", "json", "true or false"),
        ("LOG_LEVEL", "LOUD", "one of DEBUG, INFO, WARNING, ERROR"),
        ("DURABILITY", "none", "one of full, relaxed"),
        ("ENVIRONMENT", "moon", "one of development, staging, production"),
    ],
)
def test_a_wrong_value_is_named_shown_and_mended(name: str, value: str, cure: str) -> None:
    sentence = refusal({name: value})
    assert sentence.startswith(f"The setting {name}=")
    assert value.lower() in sentence.lower()
    assert f"it must be {cure}. Mend it" in sentence


@pytest.mark.parametrize(
    ("url", "cure"),
    [
        ("mysql://db/bus", "sqlite:///"),
        ("data/bus.db", "sqlite:///"),
        ("sqlite://bus.db", "sqlite:///"),
        ("sqlite:///", "name a file"),
        ("sqlite:///:memory:", "name a file"),
    ],
)
def test_a_database_that_is_not_served_is_refused(url: str, cure: str) -> None:
    sentence = refusal({"DATABASE_URL": url})
    assert sentence.startswith("DATABASE_URL ")
    assert cure in sentence


def test_the_main_port_is_no_port_of_the_metrics_own() -> None:
    assert "name another one" in refusal({"METRICS_PORT": "5001"})
    assert read(METRICS_PORT="5002").metrics_port == 5002


def test_keys_that_can_be_guessed_or_contradict_are_refused_and_never_shown() -> None:
    short = refusal({"API_KEY": "guess-me"})
    assert "API_KEY" in short
    assert "guess-me" not in short
    both = refusal({"API_KEY": KEY, "ENABLE_AUTH": "false"})
    assert "ENABLE_AUTH=false" in both
    assert KEY not in both
    assert read(API_KEY=KEY).api_key == KEY


@pytest.mark.parametrize("name", ["API_KEY", "SECRET_KEY", "WEBHOOK_SECRET", "METRICS_TOKEN"])
def test_no_secret_is_so_short_that_it_could_be_guessed(name: str) -> None:
    short = refusal({name: "fifteen-letters"})
    assert name in short
    assert "use a longer one" in short
    assert "fifteen" not in short


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[
            ("ALLOWED_ORIGINS", value)
            for value in ("*", "null", "https://*.example", "app.example", "https://a.example/x")
        ],
        ("ALLOWED_ORIGINS", "https://good.example,ftp://a.example"),
        ("ALLOWED_ORIGINS", "https://user@a.example"),
        *[("ALLOWED_HOSTS", value) for value in ("*", "*.example", "http://a.example", "a.example/x")],
    ],
)
def test_who_may_bring_pages_is_listed_whole_and_never_by_a_pattern(name: str, value: str) -> None:
    sentence = refusal({name: value})
    assert sentence.startswith(f"{name} has ")
    assert "list each" in sentence


@pytest.mark.parametrize(
    ("name", "value", "cure"),
    [
        ("WEBHOOK_ALLOWED_TARGETS", "localhost", "127.0.0.0/8"),
        ("WEBHOOK_ALLOWED_TARGETS", "10.0.0.0/8,10.0.0.1/8", "no bit set after the prefix"),
        ("WEBHOOK_ALLOWED_TARGETS", "10.0.0.0/33", "127.0.0.0/8"),
        ("WEBHOOK_ALLOWED_TARGETS", "10.0.0.0/8,0.0.0.0/0", "name the networks"),
        ("WEBHOOK_ALLOWED_TARGETS", "::/0", "name the networks"),
        ("WEBHOOK_ALLOWED_PORTS", "9000,http", "1 to 65535"),
        ("WEBHOOK_ALLOWED_PORTS", "0", "1 to 65535"),
        ("TRUSTED_PROXIES", "localhost", "127.0.0.1/32"),
        ("TRUSTED_PROXIES", "10.0.0.1/8", "no bit set after the prefix"),
        ("TRUSTED_PROXIES", "0.0.0.0/0", "list your proxies alone"),
        ("TRUSTED_PROXIES", "10.0.0.0/8,::/0", "list your proxies alone"),
    ],
)
def test_targets_and_ports_that_can_not_be_meant_are_refused(name: str, value: str, cure: str) -> None:
    sentence = refusal({name: value})
    assert sentence.startswith(f"{name} ")
    assert cure in sentence


def test_secrets_in_a_file_that_others_can_read_are_warned_about(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    assert doubts(file) == []
    file.write_text(f"API_KEY={KEY}\nLOG_LEVEL=INFO\n")
    file.chmod(0o644)
    (sentence,) = doubts(file)
    assert "API_KEY" in sentence
    assert f"chmod 600 {file}" in sentence
    assert KEY not in sentence
    file.chmod(0o600)
    assert doubts(file) == []
    file.write_text("API_KEY=\nLOG_LEVEL=INFO\n")
    file.chmod(0o644)
    assert doubts(file) == []


@pytest.mark.parametrize("secret", ["whsec_QUJD", "whsec_not base64", "x" * 257])
def test_a_secret_that_can_not_sign_is_refused_and_never_shown(secret: str) -> None:
    sentence = refusal({"WEBHOOK_SECRET": secret})
    assert sentence.startswith("WEBHOOK_SECRET ")
    assert secret not in sentence


def test_every_setting_has_a_description_that_is_a_sentence() -> None:
    for field in msgspec.inspect.type_info(Settings).fields:
        assert isinstance(field.type, msgspec.inspect.Metadata), field.name
        description = (field.type.extra_json_schema or {}).get("description", "")
        assert description.endswith("."), field.name
        assert field.encode_name == field.name.upper()


# ---- what follows from them


def test_paths_are_relative_to_the_project_unless_they_are_absolute() -> None:
    assert read(DATA_DIR="kept").database_path == ROOT / "kept" / "bus.db"
    assert read(DATA_DIR="/srv/bus").database_path == Path("/srv/bus/bus.db")
    assert read(DATABASE_URL="sqlite:///kept/a.db", DATA_DIR="/srv").database_path == ROOT / "kept" / "a.db"
    assert read(DATABASE_URL="sqlite:////srv/a.db").database_path == Path("/srv/a.db")


@pytest.mark.parametrize(
    ("environ", "is_on"),
    [
        ({}, False),
        ({"ENABLE_AUTH": "true"}, True),
        ({"ENABLE_AUTH": "false"}, False),
        ({"API_KEY": KEY}, True),
        ({"API_KEY": KEY, "ENABLE_AUTH": "1"}, True),
    ],
)
def test_a_key_turns_auth_on(environ: dict[str, str], is_on: bool) -> None:
    assert read(**environ).auth_on is is_on


def test_logs_are_json_in_production_unless_told_otherwise() -> None:
    assert read(ENVIRONMENT="production").json_logs is True
    assert read(ENVIRONMENT="production", ENABLE_STRUCTURED_LOGGING="false").json_logs is False
    assert read(ENABLE_STRUCTURED_LOGGING="true").json_logs is True
    assert read().json_logs is False


def test_lists_are_separated_by_commas_and_compared_in_lower_case() -> None:
    settings = read(ALLOWED_ORIGINS=" https://A.example/ ,,http://b.example:80", ALLOWED_HOSTS="Bus, bus.example ,")
    assert settings.origins() == {"https://a.example", "http://b.example:80"}
    assert settings.hosts() == {"bus", "bus.example"}
    assert read().origins() == read().hosts() == frozenset()


def test_targets_are_networks_or_single_addresses() -> None:
    settings = read(WEBHOOK_ALLOWED_TARGETS="127.0.0.0/8, 10.1.2.3,fd00::/8", WEBHOOK_ALLOWED_PORTS="9000, 9001")
    assert [str(network) for network in settings.targets()] == ["127.0.0.0/8", "10.1.2.3/32", "fd00::/8"]
    assert settings.target_ports() == {9000, 9001}
    assert (read().targets(), read().target_ports()) == ((), frozenset())


def test_trusted_proxies_are_networks_or_single_addresses() -> None:
    settings = read(TRUSTED_PROXIES="10.1.2.3, fd00::/8")
    assert [str(network) for network in settings.proxies()] == ["10.1.2.3/32", "fd00::/8"]
    assert read().proxies() == ()


# ---- who may reach it

LOOPBACK = ["127.0.0.1", "127.8.9.10", "localhost", "LOCALHOST", "::1", "[::1]"]
BEYOND = ["0.0.0.0", "::", "[::]", "10.0.0.1", "192.168.1.5", "bus.example.com", "", "*"]
LOOKALIKES = [
    "127.example.com",
    "127.0.0.1.example.com",
    "localhost.example.com",
    "::1234",
    "[::1",
    "127.1",
    "1270.0.0.1",
]


@pytest.mark.parametrize("host", LOOPBACK)
def test_this_machine_is_known_by_its_names(host: str) -> None:
    assert is_loopback(host)
    assert read(MESSAGE_BUS_HOST=host).message_bus_host == host


@pytest.mark.parametrize("host", [*BEYOND, *LOOKALIKES])
def test_what_only_looks_like_this_machine_is_another(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("host", [host for host in (*BEYOND, *LOOKALIKES) if host])
def test_the_network_is_let_in_only_with_auth_or_in_so_many_words(host: str) -> None:
    sentence = refusal({"MESSAGE_BUS_HOST": host})
    assert f"Listening on {host} " in sentence
    assert "ENABLE_AUTH=true" in sentence
    for allowed in ({"ENABLE_AUTH": "true"}, {"ENABLE_AUTH": "false"}, {"API_KEY": KEY}):
        assert read(MESSAGE_BUS_HOST=host, **allowed).message_bus_host == host


def test_every_address_that_is_listened_on_counts() -> None:
    local: dict[str, Any] = {"settings": read(), "addresses": ["127.0.0.1", "unix:/run/bus.sock", "::1"]}
    check_bind(**local)
    local["addresses"].append("0.0.0.0")
    with pytest.raises(StartRefused, match=r"Listening on 0\.0\.0\.0 "):
        check_bind(**local)
