"""`GET /api/settings`: the settings in force, where each comes from, and what it means. Secrets are masked."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from dotenv import dotenv_values
from flask import Blueprint, Flask, Response

from bus.masking import MASK, masked_value
from bus.settings import ROOT, Settings, is_secret
from bus.transports.edge import json_answer
from bus.transports.openapi import Operation, serve

if TYPE_CHECKING:
    from bus.bus import Bus


class SettingInForce(msgspec.Struct):
    """One setting. `origin`: environment, file (.env), default, or program: given by whoever built the app. `value` of a
    secret is `***` when it is set."""

    name: str
    value: bool | int | float | str | None
    default: bool | int | float | str | None
    origin: Literal["environment", "file", "default", "program"]
    secret: bool
    description: str


class SettingsInForce(msgspec.Struct):
    """All settings, in the order of the manual."""

    settings: list[SettingInForce]


def in_force(settings: Settings) -> SettingsInForce:
    """What holds, and where it comes from. A file that has changed since the start is told by its old values."""
    written = dotenv_values(ROOT / ".env", interpolate=False)
    default, hints = Settings(), get_type_hints(Settings, include_extras=True)
    listed = []
    for field in Settings.__struct_fields__:
        name, value = field.upper(), getattr(settings, field)
        secret = is_secret(name)
        origin: Literal["environment", "file", "default", "program"] = "default"
        if os.environ.get(name, "").strip():
            origin = "environment"
        elif (written.get(name) or "").strip():
            origin = "file"
        elif value != getattr(default, field):
            origin = "program"
        shown = (MASK if value else None) if secret else masked_value(field, value)
        listed.append(
            SettingInForce(
                name, shown, masked_value(field, getattr(default, field)), origin, secret, _sentence(hints[field])
            )
        )
    return SettingsInForce(listed)


def _sentence(hint: Any) -> str:
    """The description of a field."""
    if get_origin(hint) is not Annotated:
        return ""
    described = [meta.description for meta in get_args(hint)[1:] if getattr(meta, "description", None)]
    return described[0] if described else ""


def register(app: Flask, bus: Bus) -> None:
    """Serve the settings in force, under /api and /api/v1, for administrators."""

    def settings() -> Response:
        return json_answer(in_force(bus.settings))

    operation = Operation("GET", "/api/settings", settings, "The settings in force, and their origin.", SettingsInForce)
    serve(app, Blueprint("in_force", __name__), [operation])
    app.extensions["in_force"] = settings
