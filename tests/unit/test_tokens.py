"""JWTs, sessions, origins and their settings, by values alone: what is wrong is refused in a sentence."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import jwt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bus.errors import Forbidden, Malformed, StartRefused, Unauthenticated
from bus.identity.caller import Caller, Grant
from bus.identity.key_sets import MAX_KEYS, BadKeySet, KeySet
from bus.identity.origins import Origins
from bus.identity.references import Reference, refer
from bus.identity.sessions import LIFE_SECONDS, Sessions
from bus.identity.tokens import Tokens, id_of_token
from bus.settings import Settings, load
from tests.issuer import AUDIENCE, ISSUER, assembled, claims, ec_key, jwk, key_set, rsa_key, token

SECRET = "a secret of thirty-two bytes, or more"
NAMES = {"JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE}
ALGORITHMS = ("RS256", "ES256")


def of_secret(**more: str) -> Tokens:
    return Tokens(load({"JWT_SECRET": SECRET, **NAMES, **more}, env_file=None))


def signed(header: dict[str, Any] | None = None, **changes: Any) -> str:
    return jwt.encode(claims(**changes), SECRET, "HS256", headers=header)


# ---- tokens of a secret


def test_a_kid_means_nothing_where_there_is_one_secret() -> None:
    assert of_secret().check(signed({"kid": "whatever"})).name == "jwt:alice"


def test_a_second_look_costs_no_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, good = of_secret(), signed()
    first = tokens.check(good)
    monkeypatch.setattr(jwt, "decode", None)
    assert tokens.check(good) is first


def test_administration_needs_the_claim_and_the_setting() -> None:
    claimed = signed(bus={"scopes": ["admin"]})
    with pytest.raises(Unauthenticated, match="JWT_ALLOW_ADMIN"):
        of_secret().check(claimed)
    assert of_secret(JWT_ALLOW_ADMIN="true").check(claimed).admin
    assert not of_secret(JWT_ALLOW_ADMIN="true").check(signed(scope="admin", admin=True)).admin


WRONG_TYPES: list[dict[str, Any]] = [
    {"exp": "soon"},
    {"exp": 1e300},
    {"exp": float("inf")},
    {"nbf": []},
    {"iat": "x"},
    {"sub": 5},
    {"aud": {}},
    {"aud": 5},
    {"iss": []},
    {"jti": 5},
    {"jti": "a\nb"},
    {"bus": []},
    {"bus": {"clients": "alice"}},
    {"bus": {"clients": ["all"]}},
    {"bus": {"rate_per_minute": 0}},
    {"bus": {"scopes": ["root"]}},
]


@pytest.mark.parametrize("changes", WRONG_TYPES, ids=str)
def test_claims_of_a_wrong_type_are_refused(changes: dict[str, Any]) -> None:
    body = json.dumps({**claims(), **changes}).encode()
    with pytest.raises(Unauthenticated, match=r"^The JWT is not accepted: .*\.$"):
        of_secret().check(jwt.api_jws.encode(body, SECRET, "HS256"))


def part(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


DEEP = part(b"[" * 5000)
HEADERS = [
    b'{"alg":"HS256","x":' + b"[" * 2000,
    b'{"alg":["HS256"]}',
    b'{"alg":{}}',
    b'{"alg":null,"kid":null}',
    b"[]",
    b"1",
]


@given(st.one_of(st.text(), st.lists(st.binary(max_size=60).map(part), min_size=3, max_size=3).map(".".join)))
@example(f"{DEEP}.{DEEP}.")
@example("a" * 9000)
@example("\ud800..")
def test_garbage_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(Unauthenticated, match=r"^The JWT is not accepted: .*\.$"):
        of_secret().check(text.encode("utf-8", "replace").decode())


@pytest.mark.parametrize("header", HEADERS, ids=repr)
def test_a_header_that_is_none_is_refused_in_a_sentence(header: bytes) -> None:
    with pytest.raises(Unauthenticated, match=r"^The JWT is not accepted: .*\.$"):
        of_secret().check(f"{part(header)}.e30.e30")


@given(st.text())
def test_what_is_no_token_can_not_be_revoked(text: str) -> None:
    with pytest.raises(Malformed):
        id_of_token(text)


# ---- key sets


def test_a_key_is_found_by_its_name_and_its_family_alone() -> None:
    ec = jwt.algorithms.ECAlgorithm.to_jwk(ec_key("e").public_key(), as_dict=True)
    found = KeySet.read(json.dumps({"keys": [jwk("r"), {**ec, "kid": "e"}]}).encode(), ALGORITHMS)
    assert found.find("r", "RS256") is not None
    assert found.find("e", "ES256") is not None
    for kid, algorithm in (("r", "ES256"), ("e", "RS256"), ("r", "HS256"), ("x", "RS256"), ("r", "RS512")):
        assert found.find(kid, algorithm) is None
    assert found.find(None, "RS256") is not None  # there is one


def test_two_keys_of_one_name_are_none() -> None:
    text = json.dumps({"keys": [jwk("a"), jwk("b", kid="a")]}).encode()
    assert KeySet.read(text, ALGORITHMS).find("a", "RS256") is None


def test_private_halves_are_left_where_they_are() -> None:
    private = jwt.algorithms.RSAAlgorithm.to_jwk(rsa_key("p"), as_dict=True)
    found = KeySet.read(json.dumps({"keys": [{**private, "kid": "p"}]}).encode(), ALGORITHMS).find("p", "RS256")
    assert found is not None
    assert not hasattr(found.key, "private_numbers")
    assert jwt.decode(token(key="p"), found, ["RS256"], audience=AUDIENCE)["sub"] == "alice"


@pytest.mark.parametrize(
    "key",
    [
        {"kty": "oct", "k": "c2VjcmV0"},
        {"kty": "RSA"},
        {"kty": "RSA", "n": "!", "e": "!"},
        {"kty": "RSA", "n": 5, "e": []},
        {"kty": ["RSA"]},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {},
        {"use": "enc"},
        {"alg": "RSA-OAEP"},
        {"alg": "HS256"},
    ],
    ids=str,
)
def test_what_is_no_key_for_signatures_is_passed_over(key: dict[str, Any]) -> None:
    if key and "kty" not in key:
        key = jwk("x", **key)
    assert KeySet.read(json.dumps({"keys": [key, jwk("good")]}).encode(), ALGORITHMS).find("good", "RS256")
    with pytest.raises(BadKeySet, match="holds no key"):
        KeySet.read(json.dumps({"keys": [key]}).encode(), ALGORITHMS)


@given(st.binary())
@example(b'{"keys":' + b"[" * 100_000)
@example(b'{"keys":[1]}')
@example(json.dumps({"keys": [{}] * (MAX_KEYS + 1)}).encode())
def test_what_is_no_set_is_told(text: bytes) -> None:
    with pytest.raises(BadKeySet):
        KeySet.read(text, ALGORITHMS)


def test_a_set_may_be_large() -> None:
    assert len(key_set(*["k"] * 50)) > 16 * 1024


# ---- sessions


def test_a_session_is_read_as_it_was_begun_and_by_its_own_key_only() -> None:
    mine, others = Sessions(b"k" * 32), Sessions(b"x" * 32)
    cookie, session = mine.begin(Reference("key:abc"), 1_000_000)
    assert mine.read(cookie) == session
    assert session.expires_us == 1_000_000 + LIFE_SECONDS * 1_000_000
    with pytest.raises(Unauthenticated):
        others.read(cookie)


def test_a_session_lives_no_longer_than_its_credential_and_keeps_the_grants_of_a_token() -> None:
    alice = Caller("jwt:alice", Grant(clients=("alice",)), expires_us=5_000_000, ids=("jwt:one",))
    cookie, session = Sessions(b"k" * 32).begin(refer(alice, "proof"), 1_000_000)
    assert (session.expires_us, session.reference.grant, session.reference.proof) == (5_000_000, alice.grant, "")
    assert Sessions(b"k" * 32).read(cookie) == session


def test_grants_that_no_cookie_can_hold_are_told() -> None:
    many = Grant(clients=tuple(hashlib.sha256(bytes([at])).hexdigest() for at in range(200)))
    with pytest.raises(Malformed, match="too long for a cookie"):
        Sessions(b"k" * 32).begin(refer(Caller("jwt:x", many), ""), 0)


@given(st.text())
@example("." * 100)
@example("e30.AAAA")
def test_a_foreign_cookie_is_refused(text: str) -> None:
    with pytest.raises(Unauthenticated):
        Sessions(b"k" * 32).read(text)


# ---- origins


@pytest.mark.parametrize(
    ("origin", "scheme", "host", "is_allowed"),
    [
        ("https://a.example", "https", "a.example", True),
        ("https://a.example", "https", "a.example:443", True),
        ("https://a.example:443", "https", "a.example", True),
        ("http://a.example:80", "http", "a.example", True),
        ("http://[::1]:5001", "http", "[::1]:5001", True),
        ("https://a.example", "http", "a.example", False),
        ("http://a.example", "https", "a.example", False),
        ("http://a.example:443", "https", "a.example", False),
        ("http://a.example:5001", "http", "a.example", False),
        ("http://a.example.evil", "http", "a.example", False),
        ("http://a.example", "http", "", False),
        ("http://", "http", "", False),
        ("null", "http", "null", False),
        ("https://named.example", "http", "a.example", True),
    ],
)
def test_an_origin_is_the_same_or_another(origin: str, scheme: str, host: str, is_allowed: bool) -> None:
    origins = Origins(["https://named.example:443"])
    if is_allowed:
        origins.check(origin, scheme, host)
    else:
        with pytest.raises(Forbidden):
            origins.check(origin, scheme, host)


# ---- settings


def test_jwts_turn_auth_on() -> None:
    assert not load({}, env_file=None).auth_on
    settings: Settings = load({"JWT_JWKS_URL": "keys.json", **NAMES}, env_file=None)
    assert settings.auth_on
    assert settings.jwt_algorithm_names() == ("RS256", "ES256")
    assert load({"JWT_SECRET": SECRET, **NAMES}, env_file=None).jwt_algorithm_names() == ("HS256",)


URL = {"JWT_JWKS_URL": "https://issuer.example/jwks", **NAMES}
SHARED = {"JWT_SECRET": SECRET, **NAMES}


@pytest.mark.parametrize(
    ("environ", "why"),
    [
        ({**SHARED, "JWT_SECRET": "x" * 31}, "shorter than the 32 bytes"),
        ({**SHARED, "JWT_ALGORITHMS": "HS512"}, "shorter than the 64 bytes"),
        ({**SHARED, "JWT_ALGORITHMS": "none"}, "names none"),
        ({**SHARED, "JWT_ALGORITHMS": "HS256,RS256"}, "names RS256"),
        ({**URL, "JWT_ALGORITHMS": "RS256,HS256"}, "names HS256"),
        ({**URL, "JWT_ALGORITHMS": "NONE"}, "names NONE"),
        ({**URL, "JWT_SECRET": SECRET}, "contradict"),
        ({**URL, "JWT_ISSUER": ""}, "JWT_ISSUER and JWT_AUDIENCE"),
        ({**URL, "JWT_AUDIENCE": ""}, "JWT_ISSUER and JWT_AUDIENCE"),
        ({**URL, "JWT_JWKS_URL": "http://issuer.example/jwks"}, "must be an https"),
        ({**URL, "JWT_JWKS_URL": "file://host/keys"}, "must be an https"),
        ({**URL, "ENABLE_AUTH": "false"}, "contradict"),
        (NAMES, "set JWT_SECRET or JWT_JWKS_URL"),
        ({"JWT_ALGORITHMS": "RS256"}, "set JWT_SECRET or JWT_JWKS_URL"),
        ({"ALLOWED_ORIGINS": "*"}, "ALLOWED_ORIGINS"),
        ({"ALLOWED_ORIGINS": "https://*.example"}, "ALLOWED_ORIGINS"),
        ({"ALLOWED_ORIGINS": "null"}, "ALLOWED_ORIGINS"),
        ({"ALLOWED_ORIGINS": "app.example"}, "ALLOWED_ORIGINS"),
        ({"ALLOWED_ORIGINS": "https://app.example/path"}, "ALLOWED_ORIGINS"),
    ],
    ids=str,
)
def test_what_contradicts_itself_does_not_start(environ: dict[str, str], why: str) -> None:
    with pytest.raises(StartRefused, match=why) as refused:
        load(environ, env_file=None)
    assert SECRET not in str(refused.value)


def test_nothing_but_a_signature_makes_a_token() -> None:
    for header in ({"alg": "none"}, {"alg": "HS256"}, {"alg": ""}, {}):
        with pytest.raises(Unauthenticated):
            of_secret().check(assembled(header, claims()))


def test_the_settings_name_the_algorithm_and_not_the_token() -> None:
    long = SECRET * 2
    other = jwt.encode(claims(), long, "HS512")
    tokens = Tokens(load({"JWT_SECRET": long, **NAMES}, env_file=None))
    with pytest.raises(Unauthenticated, match="not signed with HS256"):
        tokens.check(other)
    assert Tokens(load({"JWT_SECRET": long, "JWT_ALGORITHMS": "HS512", **NAMES}, env_file=None)).check(other)
