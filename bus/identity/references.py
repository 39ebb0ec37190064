"""What stands for a credential where it must not be kept itself: in a ticket's row, in a session's cookie."""

from __future__ import annotations

import msgspec

from bus.identity.caller import Caller, Grant


class Reference(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whose credential it is. Who holds a reference is as good as the credential, and no longer.

    `name` is the caller's. `proof`: of the admin key, the beginning of its digest, so that a changed key ends what was
    derived from it. `grant`, `expires_us` and `ids`: of what has no row that could be looked at.
    """

    name: str
    proof: str = ""
    grant: Grant | None = None
    expires_us: int | None = None
    ids: tuple[str, ...] = ()


def refer(caller: Caller, proof: str) -> Reference:
    """The reference to a caller's credential."""
    return Reference(
        caller.name,
        proof if caller.name == "admin" else "",
        caller.grant if caller.name.startswith("jwt:") else None,
        caller.expires_us,
        caller.ids,
    )
