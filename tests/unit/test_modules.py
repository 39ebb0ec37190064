"""JavaScript modules put together as one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bus.transports.modules import put_together
from tests.conftest import require

ENTRY = """/** The entry. */
import { Shape } from "./parts/shapes.js";
import {
  twice,
} from "./parts/numbers.js";
export { twice } from "./parts/numbers.js";
export { Shape };
/** @import { Side } from "./parts/shapes.js" */
/** @typedef {import("./parts/shapes.js").Side} Side */

export class Square extends Shape {
  area = twice(2);
}
"""
SHAPES = """import { twice } from "./numbers.js";
export class Shape {
  sides = sides;
}
const sides = twice(2);
export async function drawn() {}
"""
NUMBERS = """/** @import { Square } from "../entry.js" */
export const two = 2;
export function twice(number) {
  return number * two;
}
"""


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "shapes.js").write_text(SHAPES)
    (tmp_path / "parts" / "numbers.js").write_text(NUMBERS)
    (tmp_path / "entry.js").write_text(ENTRY)
    return tmp_path / "entry.js"


def test_each_is_there_once_below_what_it_needs(entry: Path) -> None:
    text = put_together(entry)
    places = [text.index(line) for line in ("function twice(", "\nclass Shape {", "export class Square ")]
    assert places == sorted(places)
    assert text.count("function twice(") == 1
    assert "import" not in text


def test_it_exports_what_the_entry_does_and_runs(entry: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.mjs"
    whole.write_text(put_together(entry))
    script = (
        f"const all = await import('{whole.as_uri()}'); console.log(Object.keys(all).join(), new all.Square().sides);"
    )
    command = [require("node"), "--input-type=module", "--eval", script]
    assert subprocess.run(command, capture_output=True, check=True, text=True).stdout == "Shape,Square,twice 4\n"


def test_a_module_that_is_not_there_is_named(entry: Path) -> None:
    (entry.parent / "parts" / "numbers.js").unlink()
    with pytest.raises(FileNotFoundError, match=r"numbers\.js"):
        put_together(entry)
