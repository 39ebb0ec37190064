"""Where somebody wants to see each request, the lane lets none pass Flask and gunicorn by."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask
from gunicorn.config import Config

from bus.settings import Settings
from bus.transports.lane import _hindrance
from server_ws import create_app


def configured(**settings: object) -> Config:
    config = Config()
    for name, value in {"keepalive": 15, **settings}.items():
        config.set(name, value)
    return config


def test_nothing_hinders_the_lane_of_what_ships() -> None:
    assert _hindrance(create_app(Settings()), configured()) == ""


def wrap(app: Flask) -> None:
    app.wsgi_app = lambda environ, start_response: []  # type: ignore[method-assign,assignment]


@pytest.mark.parametrize(
    "look",
    [
        lambda app: app.before_request(lambda: None),
        lambda app: app.after_request(lambda response: response),
        lambda app: app.teardown_request(lambda error: None),
        lambda app: app.before_request_funcs.setdefault("rest", []).append(lambda: None),
        wrap,
    ],
    ids=["before", "after", "teardown", "before those of REST", "around"],
)
def test_a_hook_around_requests_hinders_it(look: Callable[[Flask], object]) -> None:
    app = create_app(Settings())
    look(app)
    assert "extension" in _hindrance(app, configured())


@pytest.mark.parametrize(
    "settings",
    [
        {"accesslog": "-"},
        {"statsd_host": "localhost:8125"},
        {"max_requests": 1000},
        {"proxy_protocol": "auto"},
        {"keepalive": 0},
    ],
    ids=str,
)
def test_what_gunicorn_is_to_do_with_each_request_hinders_it(settings: dict[str, object]) -> None:
    assert "gunicorn" in _hindrance(create_app(Settings()), configured(**settings))


def test_without_rest_there_is_no_lane() -> None:
    assert _hindrance(create_app(Settings(disabled_extensions="rest")), configured()) == "there is no REST."
