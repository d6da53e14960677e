"""Files stay short, hold one noun each, and say in their name what they hold. Generated code is left out."""

from __future__ import annotations

import ast
import subprocess
import warnings
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[2]
GENERATED = "proto/gen/"

FILE_LINES_LIMIT = 400
FILE_LINES_AIM = 300
FUNCTION_LINES_LIMIT = 60
VAGUE_NAMES = {"util", "utils", "helper", "helpers", "misc", "stuff", "manager", "managers"}
VAGUE_FILES = VAGUE_NAMES | {"common"}


def written_files() -> list[str]:
    """Every file of the repository that a person wrote: tracked, or new and not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    return sorted(name for name in listed if name and not name.startswith(GENERATED) and (ROOT / name).is_file())


PYTHON_FILES = [name for name in written_files() if name.endswith(".py")]


def functions_over(limit: int, source: str) -> list[tuple[str, int]]:
    """(name, lines) of each function longer than `limit`, decorators left out."""
    tree = ast.parse(source)
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = [(node.name, (node.end_lineno or node.lineno) - node.lineno + 1) for node in found]
    return [(name, lines) for name, lines in lengths if lines > limit]


def is_vague(name: str) -> bool:
    path = PurePosixPath(name)
    stem = path.stem.strip("_").removeprefix("test_")
    return stem in VAGUE_FILES or any(part.strip("_") in VAGUE_NAMES for part in path.parts[:-1])


def test_there_is_code_to_check() -> None:
    assert len(PYTHON_FILES) > 10


@pytest.mark.filterwarnings("default::UserWarning")
def test_files_are_short() -> None:
    lengths = {name: len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in PYTHON_FILES}
    aim_missed = {name: lines for name, lines in lengths.items() if FILE_LINES_AIM < lines <= FILE_LINES_LIMIT}
    if aim_missed:
        warnings.warn(f"over {FILE_LINES_AIM} lines, split them when you next pass by: {aim_missed}", stacklevel=1)
    too_long = {name: lines for name, lines in lengths.items() if lines > FILE_LINES_LIMIT}
    assert not too_long, f"more than {FILE_LINES_LIMIT} lines: {too_long}"


def test_functions_are_short() -> None:
    too_long = {}
    for name in PYTHON_FILES:
        if found := functions_over(FUNCTION_LINES_LIMIT, (ROOT / name).read_text(encoding="utf-8")):
            too_long[name] = found
    assert not too_long, f"functions of more than {FUNCTION_LINES_LIMIT} lines: {too_long}"


def test_names_say_something() -> None:
    vague = [name for name in written_files() if is_vague(name)]
    assert not vague, f"name these for what they hold: {vague}"


def test_test_files_have_unique_names() -> None:
    """A failure's short name then says where it is."""
    places: dict[str, list[str]] = {}
    for name in PYTHON_FILES:
        path = PurePosixPath(name)
        if path.name.startswith("test_"):
            places.setdefault(path.name, []).append(name)
    repeated = {name: where for name, where in places.items() if len(where) > 1}
    assert not repeated, f"prefix these with their part: {repeated}"


def test_the_checks_can_fail() -> None:
    assert functions_over(2, "def long():\n    a = 1\n    return a\n") == [("long", 3)]
    assert functions_over(3, "def short():\n    a = 1\n    return a\n") == []
    assert is_vague("services/router/src/hyperflexis_router/utils.py")
    assert is_vague("services/router/src/hyperflexis_router/helpers/wire.py")
    assert not is_vague("libs/common/src/hyperflexis_common/clock.py")
