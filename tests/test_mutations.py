"""What the tests are worth: every bug in mutations.py is found by the tests it names.

The table is checked at once; `python -m pytest -m slow tests/test_mutations.py` plants the bugs,
and `python tests/mutations.py` prints the figure.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import mutations
import pytest
from conftest import ROOT
from mutations import MUTATIONS, Copy, Mutation


@cache
def functions(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.pure
def test_every_row_still_fits_the_code() -> None:
    """The text it changes is there, once; the tests it names are."""
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS)
    for mutation in MUTATIONS:
        text = mutations.planted(mutation)  # says which row, and what to do, where it does not fit
        if mutation.file.endswith(".py"):
            compile(text, mutation.file, "exec")
        assert mutation.tests, mutation.name
        for test in mutation.tests:
            file, _, name = test.partition("::")
            assert name.split("[")[0] in functions(file), f"{mutation.name}: no test {test}"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copy]:
    yield Copy(tmp_path_factory.mktemp("planted"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_a_planted_bug_is_found(mutation: Mutation, copy: Copy) -> None:
    left, output = copy.survivors(mutation)
    assert not left, output
    changed = (copy.root / mutation.file).read_bytes()
    assert changed == (ROOT / mutation.file).read_bytes(), "the next bug would not be alone"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_without_a_bug_every_named_test_passes(copy: Copy) -> None:
    assert mutations.sick(copy, mutations.named(MUTATIONS)) == []


@pytest.mark.slow
def test_what_is_no_bug_survives_and_what_crashes_is_no_catch(copy: Copy) -> None:
    test = "test_settings.py::test_flags"
    harmless = Mutation("", "tgx/settings.py", "empty counts as not set.", "as it is.", (test,))
    assert copy.survivors(harmless)[0] == [f"{test}: passes"]
    exits = "import os; os._exit(9)\ndef flag("
    crash = Mutation("", "tgx/settings.py", "def flag(", exits, (test,))
    assert copy.survivors(crash)[0] == [f"{test}: pytest ended with 9"]
    gone = Mutation("", "tgx/settings.py", "no such text", "", (test,))
    with pytest.raises(LookupError, match="move the row to where that code went"):
        copy.survivors(gone)
    assert Path(copy.root / "tgx/settings.py").read_text() == (ROOT / "tgx/settings.py").read_text()
