"""What a caller may do: the one place that decides, and says why. Denied is what nothing allows.

Routes ask for a right (`need_right`), then for what they do to whom (`need`). Administrators, and everybody while auth is
off, may do everything. Nothing here does I/O; callers on the hot path look at `Caller.admin` first.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from bus.errors import Forbidden
from bus.identity.caller import Caller, Fitting, Right
from bus.message import EVENT, Kind, Message

VERIFIED = b',"verified":true'
"""Among a message's `extras`: its sender's name came from a credential."""


class Action(StrEnum):
    """What is done; the target is what stands behind it."""

    ACT = "act-as"  # a client's name
    SEND = "send"  # an address
    ON_BEHALF = "on-behalf-of"  # a client's name
    READ = "read"  # a client's inbox
    SUBSCRIBE = "subscribe"  # a pattern of topics
    CLAIM = "claim"  # a queue
    PRESENCE = "presence"
    READ_ALL = "read-all"
    ADMINISTER = "administer"


_SCOPES = {
    Action.SEND: "send",
    Action.ON_BEHALF: "on-behalf-of",
    Action.READ: "read",
    Action.SUBSCRIBE: "read",
    Action.CLAIM: "read",
    Action.PRESENCE: "presence",
    Action.READ_ALL: "read-all",
    Action.ADMINISTER: "admin",
}


class Decision(msgspec.Struct, frozen=True):
    """Whether, and why."""

    allowed: bool
    why: str


def decide(caller: Caller, action: Action, target: str = "") -> Decision:
    """Whether `caller` may do `action` to `target`, and what decided it."""
    if caller.admin:
        who = "An administrator" if caller.credential else "With auth off, everybody"
        return Decision(True, f"{who} may do everything.")
    scope = _SCOPES.get(action)
    if scope is not None and scope not in caller.scopes:
        return Decision(False, f"The credential lacks the scope {scope}; it has {_listed(sorted(caller.scopes))}.")
    allowed, granted = _covers(caller, action, target)
    if granted is None:
        return Decision(True, f"The credential has the scope {scope}.")
    field, patterns = granted
    if allowed:
        return Decision(True, f"Its `{field}` cover {target}.")
    return Decision(False, f"Its `{field}` are {_listed(patterns)}, which does not cover {target}.")


def _covers(caller: Caller, action: Action, target: str) -> tuple[bool, tuple[str, tuple[str, ...]] | None]:
    """Whether the target is granted, and by which field of the grant; None: the action has no target."""
    grant = caller.grant
    if action in (Action.ACT, Action.READ):
        return target in caller.clients, ("clients", grant.clients)
    if action is Action.SEND:
        return _may_address(grant.send_to, target), ("send_to", grant.send_to)
    if action is Action.SUBSCRIBE:
        return any(covers(pattern, target) for pattern in grant.topics), ("topics", grant.topics)
    if action is Action.CLAIM:
        return target in caller.queues, ("queues", grant.queues)
    return True, None


def need(caller: Caller, action: Action, target: str = "") -> None:
    """Go on only if it is allowed. Raises Forbidden, which says why."""
    if caller.admin:
        return
    decision = decide(caller, action, target)
    if decision.allowed:
        return
    sentence = f"This is not allowed: {_lower(decision.why)}"
    if action in (Action.ACT, Action.READ):
        raise Forbidden(sentence, code="not_your_name")
    raise Forbidden(sentence, code="not_allowed")


def need_right(caller: Caller, right: Right) -> None:
    """Go on only if the caller has what a route asks for. Raises Forbidden."""
    if caller.admin or right in (Right.OPEN, Right.SIGNED, Right.ANY) or right.value in caller.scopes:
        return
    if right is Right.ADMIN:
        raise Forbidden("This needs the right to administer.", code="needs_admin")
    raise Forbidden(f"This needs a credential with the scope {right}.", code="not_allowed")


def authorise(caller: Caller, message: Message, on_behalf_of: str | None = None) -> None:
    """Check a send, and mark its sender as verified where the credential says who it is. Raises Forbidden."""
    if caller.admin:
        return
    if message.sender not in caller.clients:
        need(caller, Action.ACT, message.sender)
    if not caller.sends_anywhere or "send" not in caller.scopes:
        for address in addresses_of(message):
            need(caller, Action.SEND, address)
    if on_behalf_of is not None:
        need(caller, Action.ON_BEHALF, on_behalf_of)
    if message.terms is not None and message.terms.ttl_us is not None:
        message.terms = msgspec.structs.replace(message.terms, may_lengthen=False)
    if caller.is_bound:
        message.extras += VERIFIED


def addresses_of(message: Message) -> tuple[str, ...]:
    """A message's recipients, as addresses."""
    if message.kind is Kind.ALL:
        return ("all",)
    if message.kind is Kind.TOPIC:
        return (f"topic:{message.address}",)
    if message.kind is Kind.QUEUE:
        return (f"queue:{message.address}",)
    return message.names


def may_see(caller: Caller, message: Message) -> bool:
    """Whether a caller may read a message by its id: who sent it, who gets it, and who reads all."""
    if caller.admin or "read-all" in caller.scopes:
        return True
    if "read" not in caller.scopes:
        return False
    if message.sender in caller.clients and not message.flags & EVENT:
        return True
    if message.kind == Kind.ALL:
        return True
    if message.kind == Kind.TOPIC:
        return decide(caller, Action.SUBSCRIBE, message.address).allowed
    if message.kind == Kind.QUEUE:
        return message.address in caller.queues
    return any(name in caller.clients for name in message.names)


def covers(granted: str, asked: str) -> bool:
    """Whether a pattern of topics matches all that another one, or a topic, matches."""
    theirs = asked.split(".")
    for at, level in enumerate(granted.split(".")):
        if level == ">":
            return at < len(theirs)
        if at >= len(theirs) or theirs[at] == ">" or (level != "*" and level != theirs[at]):
            return False
    return len(theirs) == len(granted.split("."))


def _may_address(granted: tuple[str, ...], address: str) -> bool:
    if "*" in granted or address in granted:
        return True
    if address.startswith("topic:"):
        topic = address.removeprefix("topic:")
        return any(covers(p.removeprefix("topic:"), topic) for p in granted if p.startswith("topic:"))
    return address in Fitting(p for p in granted if not p.startswith("topic:"))


def _listed(items: tuple[str, ...] | list[str]) -> str:
    return ", ".join(items[:10]) + (" and more" if len(items) > 10 else "") if items else "none"


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]
