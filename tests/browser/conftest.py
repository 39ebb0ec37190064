"""A real Chromium for the tests of pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import can_not_run, require

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Chromium with an empty profile."""
    chromium = require("chromium")
    try:
        from playwright.sync_api import sync_playwright  # noqa: PLC0415  # a laptop may be without
    except ImportError:
        can_not_run("playwright is not installed; requirements-dev.txt has it.")
    with sync_playwright() as playwright:
        profile: Path = tmp_path_factory.mktemp("profile")
        made = playwright.chromium.launch_persistent_context(
            str(profile), executable_path=chromium, headless=True, args=ARGUMENTS
        )
        yield made
        made.close()
