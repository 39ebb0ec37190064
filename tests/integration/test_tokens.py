"""JWTs on the running server: which are accepted, what they grant, and what ends with them."""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest

from bus.testing import HOST, Answer, BusServer, ServerFailed, eventually
from tests.certificates import authority, serving
from tests.follower import Follower
from tests.issuer import AUDIENCE, ISSUER, assembled, claims, key_set, public_pem, rsa_key, token
from tests.rawws import CLOSE, RawWebSocket
from tests.refusals import KEY, check

NAMES = {"JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE}


@pytest.fixture(scope="module", params=[1, 4], ids=["1 worker", "4 workers"])
def bus(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BusServer]:
    """A server that accepts JWTs of a key set in a file."""
    file: Path = tmp_path_factory.mktemp("keys") / "set.json"
    file.write_bytes(key_set("first", "second"))
    env = {"API_KEY": KEY, "JWT_JWKS_URL": file.as_uri(), **NAMES}
    with BusServer(workers=request.param, env=env) as server:
        yield server


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def me(bus: BusServer, text: str) -> Answer:
    return bus.call("GET", "/api/auth/me", headers=bearer(text))


def why_not(bus: BusServer, text: str) -> str:
    """The sentence with which this token is refused, over REST, and by a socket."""
    with RawWebSocket(bus.port, "/ws/alice", bearer(text)) as socket:
        assert socket.status == 401
    sentence = check(me(bus, text), 401, "bad_credential")
    assert check(bus.call("POST", "/api/send", {"to": "bob"}, bearer(text)), 401, "bad_credential") == sentence
    return sentence


# ---- what is accepted


def test_the_subject_is_the_client_and_its_name_is_verified(bus: BusServer) -> None:
    good = token()
    found = me(bus, good).body
    assert (found["name"], found["clients"], found["admin"]) == ("jwt:alice", ["alice"], False)
    assert found["scopes"] == ["send", "read", "presence"]
    assert bus.call("GET", "/api/auth/me", headers={"X-API-Key": good}).body == found
    receipt = bus.call("POST", "/api/send", {"to": "bob", "payload": 1}, bearer(good)).body
    message = bus.call("GET", f"/api/messages/{receipt['message_id']}", headers=bearer(good)).body["message"]
    assert (message["from"], message["verified"]) == ("alice", True)
    check(bus.call("POST", "/api/send", {"from": "bob", "to": "carol"}, bearer(good)), 403, "not_your_name")
    check(bus.call("GET", "/api/messages?to=bob", headers=bearer(good)), 403, "not_your_name")
    check(bus.call("GET", "/api/keys", headers=bearer(good)), 403, "needs_admin")


def test_a_claim_says_what_is_granted(bus: BusServer) -> None:
    granted = {"scopes": ["send"], "clients": ["ci-*"], "send_to": ["queue:builds"]}
    good = token("auth0|5f7c8ec7", bus=granted)
    assert me(bus, good).body["name"] == "jwt:auth0|5f7c8ec7"
    sent = bus.call("POST", "/api/send", {"from": "ci-7", "to": "queue:builds"}, bearer(good))
    assert sent.status == 200
    check(bus.call("POST", "/api/send", {"from": "ci-7", "to": "bob"}, bearer(good)), 403, "not_allowed")
    check(bus.call("GET", "/api/messages?to=ci-7", headers=bearer(good)), 403, "not_allowed")


def test_sockets_and_streams_take_tokens(bus: BusServer) -> None:
    good = token()
    with Follower(bus.port, "alice", headers=bearer(good)):
        pass
    with RawWebSocket(bus.port, "/ws/alice") as socket:
        socket.send_json({"type": "auth", "token": good})
        assert socket.read_json()["type"] == "connection_confirmed"
    with RawWebSocket(bus.port, "/ws/bob", bearer(good)) as socket:
        assert socket.status == 403


def test_clocks_may_differ_by_a_minute(bus: BusServer) -> None:
    now = int(time.time())
    assert me(bus, token(exp=now - 50, iat=now - 600, nbf=now - 600)).status == 200
    assert me(bus, token(iat=now + 50, nbf=now + 50)).status == 200
    assert me(bus, token(aud=["another", AUDIENCE])).status == 200


# ---- what is refused


def confused() -> str:
    """Signed with HMAC, by what everybody knows: the public key."""
    text = assembled({"alg": "HS256", "kid": "first"}, claims())
    signed = text.rpartition(".")[0]
    mac = hmac.new(public_pem("first"), signed.encode(), hashlib.sha256).digest()
    return assembled({"alg": "HS256", "kid": "first"}, claims(), mac)


KID = "../../../../etc/passwd' UNION SELECT 'x' -- "
REFUSED = {
    "no algorithm": (lambda: assembled({"alg": "none", "kid": "first"}, claims()), "signed with RS256"),
    "none, in other letters": (lambda: assembled({"alg": "nOnE"}, claims(), b"x"), "signed with RS256"),
    "the public key as a secret": (confused, "signed with RS256"),
    "another algorithm of the same key": (
        lambda: jwt.encode(claims(), rsa_key("first"), "RS512", headers={"kid": "first"}),
        "signed with RS256",
    ),
    "another key's signature": (lambda: token(key="second", header={"kid": "first"}), "issuer's key"),
    "no kid, of two keys": (
        lambda: jwt.encode(claims(), rsa_key("first"), "RS256"),
        "not in the issuer's set",
    ),
    "an unknown kid": (lambda: token(key="third"), "not in the issuer's set"),
    "a long kid with paths and statements": (lambda: token(header={"kid": (KID * 12)[:512]}), "`kid` has more than"),
    "a short kid with them": (lambda: token(header={"kid": KID}), "not in the issuer's set"),
    "a kid that is no text": (lambda: assembled({"alg": "RS256", "kid": 1}, claims(), b"x"), "damaged"),
    "its own key": (
        lambda: token(key="third", header={"jku": "http://127.0.0.1:1/", "jwk": {"kty": "oct", "k": "eA"}}),
        "not in the issuer's set",
    ),
    "what must be understood": (lambda: token(header={"crit": ["b64"], "b64": False}), "damaged"),
    "another audience": (lambda: token(aud="another-bus"), "another audience"),
    "another issuer": (lambda: token(iss="https://evil.example"), "another issuer"),
    "expired 61 s ago": (lambda: token(exp=int(time.time()) - 61), "expired"),
    "valid in two minutes": (lambda: token(nbf=int(time.time()) + 120), "not valid yet"),
    **{
        f"no {name}": (lambda name=name: token(**{name: None}), "lacks one of") for name in ("exp", "nbf", "iss", "aud")
    },
    "no subject": (lambda: jwt.encode({**claims(), "sub": ""}, rsa_key("first"), "RS256", {"kid": "first"}), "`sub`"),
    "no subject at all": (
        lambda: jwt.encode(
            {name: value for name, value in claims().items() if name != "sub"},
            rsa_key("first"),
            "RS256",
            {"kid": "first"},
        ),
        "lacks one of",
    ),
    "a life of a day": (lambda: token(exp=int(time.time()) + 86_400), "lives longer than 3600 s"),
    "a subject that is no name": (lambda: token("topic:news"), "grants is wrong"),
    "a subject with a line's end": (lambda: token("a\nb"), "`sub` must be"),
    "a claim of administration": (lambda: token(bus={"scopes": ["admin"]}), "JWT_ALLOW_ADMIN"),
    "a claim with an unknown field": (lambda: token(bus={"admin": True}), "grants is wrong"),
    "a claim that is no object": (lambda: token(bus="admin"), "wrong type"),
    "a changed payload": (lambda: ".".join(part(at) for at, part in enumerate(swapped)), "issuer's key"),
}
swapped = [
    lambda at: token().split(".")[at],
    lambda at: token("admin").split(".")[at],
    lambda at: token().split(".")[at],
]


@pytest.mark.parametrize("kind", list(REFUSED))
def test_a_bad_token_is_refused_everywhere(bus: BusServer, kind: str) -> None:
    make, why = REFUSED[kind]
    assert why in why_not(bus, make())


def test_a_kid_of_ten_kilobytes_is_refused(bus: BusServer) -> None:
    long = token(header={"kid": (KID * 300)[:10_240]})
    assert me(bus, long).status in (400, 401, 431)  # a header of that size is more than the server reads
    with RawWebSocket(bus.port, "/ws/alice") as socket:
        socket.send_json({"type": "auth", "token": long})
        assert socket.read_frame().close_code == 4401
    assert me(bus, token()).status == 200
    assert "Traceback" not in bus.log


def test_what_is_no_token_is_a_wrong_key(bus: BusServer) -> None:
    for text in ("a.b.c", "..", "eyJ.eyJ.", "a.b", "." * 8000, f"{'eyJ' * 2000}.e30.", "bus_.._"):
        check(me(bus, text), 401, "bad_credential")


# ---- what ends


@pytest.mark.parametrize("by", ["jti", "token"])
def test_a_revoked_token_is_refused_on_every_worker_and_its_sockets_end(bus: BusServer, by: str) -> None:
    named, other = token(jti=f"to-be-revoked-{by}"), token(jti="stays")
    anonymous = token(exp=int(time.time()) + 500)
    revoked = named if by == "jti" else anonymous
    assert me(bus, revoked).status == 200
    with (
        RawWebSocket(bus.port, "/ws/alice", bearer(revoked)) as socket,
        RawWebSocket(bus.port, "/ws/alice", bearer(other)) as sister,
    ):
        assert socket.read_json()["type"] == sister.read_json()["type"] == "connection_confirmed"
        body = {"jti": f"to-be-revoked-{by}"} if by == "jti" else {"token": revoked}
        check(bus.call("POST", "/api/tokens/revoke", body, bearer(other)), 403, "needs_admin")
        assert bus.call("POST", "/api/tokens/revoke", body, {"X-API-Key": KEY}).status == 200
        while (frame := socket.read_frame(5)).opcode != CLOSE:
            pass
        assert frame.close_code == 4401
        eventually(lambda: {me(bus, revoked).status for _ in range(8)} == {401}, what="the word of it everywhere")
        check(me(bus, revoked), 401, "bad_credential")
        assert me(bus, other).status == 200
        sister.send_json({"type": "ping"})
        assert sister.read_json()["type"] == "pong"


@pytest.mark.parametrize(
    "body", [{}, {"jti": "a", "token": "b"}, {"jti": 1}, {"unknown": 1}, {"jti": "\n"}, {"token": "x"}]
)
def test_what_to_revoke_must_be_said(bus: BusServer, body: dict[str, Any]) -> None:
    assert bus.call("POST", "/api/tokens/revoke", body, {"X-API-Key": KEY}).status == 400


# ---- key sets over the network


class Issuer:
    """A server with TLS that hands out a key set, and counts who asks."""

    def __init__(self) -> None:
        self.served = key_set("first")
        self.status = 200
        self.asked = 0
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked += 1
                self.send_response(issuer.status)
                self.send_header("Content-Length", str(len(issuer.served)))
                self.end_headers()
                self.wfile.write(issuer.served)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self._server.socket = serving(HOST).wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://{HOST}:{self._server.server_port}/jwks.json"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    made = Issuer()
    yield made
    made.close()


def of_issuer(issuer: Issuer, tmp_path: Path) -> dict[str, str]:
    authority().cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    allowed = {"SSL_CERT_FILE": str(tmp_path / "authority.pem"), "WEBHOOK_ALLOWED_TARGETS": "127.0.0.0/8"}
    return {"API_KEY": KEY, "JWT_JWKS_URL": issuer.url, **NAMES, **allowed}


@pytest.mark.one_node("each has fetched its own keys")
def test_a_key_set_is_fetched_and_fetched_again_for_an_unknown_key_but_not_often(
    fresh_server: Any, issuer: Issuer, tmp_path: Path
) -> None:
    server = fresh_server(env=of_issuer(issuer, tmp_path))
    eventually(lambda: me(server, token()).status == 200, what="the key set")
    assert issuer.asked == 1
    issuer.served = key_set("first", "second")
    for _ in range(20):
        check(me(server, token(key="second")), 401, "bad_credential")  # it was fetched less than 30 s ago
    assert issuer.asked == 1


@pytest.mark.one_node("each has fetched its own keys")
def test_a_rotated_key_is_known_at_its_first_token_and_a_set_that_is_lost_stays(
    fresh_server: Any, issuer: Issuer, tmp_path: Path
) -> None:
    env = {**of_issuer(issuer, tmp_path), "BUS_EXTENSIONS": "tests.impatient_key_sets"}
    server = fresh_server(env=env)
    eventually(lambda: me(server, token()).status == 200, what="the key set")
    issuer.served = key_set("second")
    assert me(server, token(key="second")).status == 200
    assert issuer.asked == 2
    check(me(server, token()), 401, "bad_credential")  # of a key that the issuer has withdrawn
    issuer.status = 500
    check(me(server, token(key="third")), 401, "bad_credential")
    assert me(server, token(key="second")).status == 200
    assert "the former one stays" in server.log


def test_without_any_key_set_tokens_have_to_wait_and_keys_work(
    fresh_server: Any, issuer: Issuer, tmp_path: Path
) -> None:
    issuer.status = 503
    server = fresh_server(env=of_issuer(issuer, tmp_path))
    answer = me(server, token())
    check(answer, 503, "unavailable")
    assert int(answer.headers["retry-after"]) > 0
    assert server.call("GET", "/api/auth/me", headers={"X-API-Key": KEY}).status == 200


def test_a_start_without_a_good_key_set_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "set.json"
    env = {"API_KEY": KEY, **NAMES}
    for text, where, why in (
        (None, str(file), "it can't be read"),
        (b"{}", str(file), "no JSON Web Key Set"),
        (b'{"keys":[{"kty":"oct","k":"eA"}]}', file.as_uri(), "no key for RS256, ES256"),
        (b"", "https://127.0.0.1/jwks", "may not be called"),
    ):
        if text is not None:
            file.write_bytes(text)
        with pytest.raises(ServerFailed) as failed, BusServer(env={**env, "JWT_JWKS_URL": where}):
            pass
        assert why in str(failed.value)
