"""Machine code that Numba keeps is that of the source beside it, also where the source was replaced in place.

Numba keeps it under the hash of the file that a function stands in. So a compiled function may take nothing from
another file of the package: what it calls there, and constants too, are part of its machine code.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vlmexport.files import PACKAGE

DECORATORS = "vlmexport.compiled"
SOURCE = """
from vlmexport.compiled import compiled

@compiled
def inner(x):
    return x + 1

@compiled
def outer(x):
    return inner(x)

print(outer(10), sum(outer.stats.cache_hits.values()))
"""


def imported(tree: ast.Module) -> dict[str, str]:
    """Name in a module → the module of this package that it comes from."""
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {
        alias.asname or alias.name: statement.module
        for statement in statements
        if statement.module and statement.module.startswith("vlmexport")
        for alias in statement.names
    }


def compiled_functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    names = {name for name, module in imported(tree).items() if module == DECORATORS}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and names & {ast.unparse(each) for each in node.decorator_list}:
            yield node


def taken(source: str) -> dict[str, set[str]]:
    """Compiled function → what its body takes from other files of the package."""
    tree = ast.parse(source)
    found = {}
    for function in compiled_functions(tree):
        names = {node.id for line in function.body for node in ast.walk(line) if isinstance(node, ast.Name)}
        found[function.name] = names & imported(tree).keys()
    return found


MODULES = {path: text for path in sorted(PACKAGE.rglob("*.py")) if f"from {DECORATORS}" in (text := path.read_text())}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_compiled_function_takes_nothing_from_another_file(path: Path) -> None:
    found = taken(MODULES[path])
    assert found
    assert not any(found.values())


def test_what_another_file_gives_is_seen() -> None:
    source = f"from {DECORATORS} import compiled\nfrom vlmexport.a import f\n@compiled\ndef g(x):\n    return f(x)\n"
    assert taken(source) == {"g": {"f"}}


def test_an_edit_in_place_counts(tmp_path: Path) -> None:
    """Even one that leaves size and time of the file as they were, as archives with fixed times do."""
    path, said = tmp_path / "module.py", []
    for source in (SOURCE, SOURCE, SOURCE.replace("x + 1", "x + 2")):
        path.write_text(source)
        os.utime(path, (1_000_000_000, 1_000_000_000))
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import module"],
            capture_output=True, text=True, check=True, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        said.append(done.stdout.strip())
    assert said == ["11 0", "11 1", "12 0"]
