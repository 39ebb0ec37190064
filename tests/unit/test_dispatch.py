"""What the dispatcher says of who hears: events that are dear to make are made for those only who want them now."""

from __future__ import annotations

from bus.dispatch import Dispatcher
from bus.events import ClockJumped, Event, MessageExpired


def test_a_handler_counts_while_it_wants_to_hear() -> None:
    dispatcher, wanted = Dispatcher(), [False]
    assert not dispatcher.wants(MessageExpired)
    dispatcher.on(MessageExpired, lambda _: None, wait=False, when=lambda: wanted[0])
    assert not dispatcher.wants(MessageExpired)
    wanted[0] = True
    assert dispatcher.wants(MessageExpired)
    assert not dispatcher.wants(ClockJumped)


def test_who_hears_all_hears_each() -> None:
    dispatcher = Dispatcher()
    dispatcher.on(Event, lambda _: None, wait=False)
    assert dispatcher.wants(MessageExpired)
