"""Certificates of an authority that only the tests know, good ones and bad ones."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from functools import cache

import trustme


@cache
def authority() -> trustme.CA:
    """The authority. `authority().cert_pem.write_to_path(file)` writes what SSL_CERT_FILE may name."""
    return trustme.CA()


def trusting() -> ssl.SSLContext:
    """A caller's context that trusts the authority and nobody else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    authority().configure_trust(context)
    return context


def serving(*names: str, expired: bool = False, by: trustme.CA | None = None) -> ssl.SSLContext:
    """A server's context with a certificate for these names or addresses, by the authority unless told."""
    now = datetime.now(UTC)
    days = (now - timedelta(days=30), now - timedelta(days=1)) if expired else (None, None)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (by or authority()).issue_cert(*names, not_before=days[0], not_after=days[1]).configure_cert(context)
    return context
