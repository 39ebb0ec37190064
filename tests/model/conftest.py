"""Fixtures of the model's tests: an empty store to be copied."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.model.product import make_template


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty store; each history works on a copy."""
    return make_template(tmp_path_factory.mktemp("template"))
