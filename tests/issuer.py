"""Somebody who signs JWTs: keys, key sets, good tokens, and whatever else is asked for."""

from __future__ import annotations

import base64
import json
import time
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ISSUER, AUDIENCE = "https://issuer.example", "the-bus"


@cache
def rsa_key(name: str) -> rsa.RSAPrivateKey:
    """A key of this name, made once."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@cache
def ec_key(name: str) -> ec.EllipticCurvePrivateKey:
    """The same on P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def public_pem(name: str) -> bytes:
    """What an attacker knows of an RSA key."""
    return rsa_key(name).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def jwk(name: str, **more: Any) -> dict[str, Any]:
    """An RSA key's public half, as a member of a set."""
    public = jwt.algorithms.RSAAlgorithm.to_jwk(rsa_key(name).public_key(), as_dict=True)
    return {**public, "kid": name, "use": "sig", "alg": "RS256", **more}


def key_set(*names: str) -> bytes:
    """A set of RSA keys."""
    return json.dumps({"keys": [jwk(name) for name in names]}).encode()


def claims(sub: str = "alice", **changes: Any) -> dict[str, Any]:
    """Good claims, but for the changes; None leaves a claim out."""
    now = int(time.time())
    good = {"sub": sub, "iss": ISSUER, "aud": AUDIENCE, "iat": now, "nbf": now, "exp": now + 600}
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def token(sub: str = "alice", *, key: str = "first", header: dict[str, Any] | None = None, **changes: Any) -> str:
    """A token that is signed with RS256, by a key that `header` may name wrongly."""
    return jwt.encode(claims(sub, **changes), rsa_key(key), "RS256", headers={"kid": key, **(header or {})})


def assembled(header: dict[str, Any], payload: dict[str, Any], signature: bytes = b"") -> str:
    """A token as no library would make it."""
    parts = [json.dumps(header).encode(), json.dumps(payload).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)
