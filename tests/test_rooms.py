"""Data flows down the page: a module imports only from rooms above its own (docs/architecture.md)."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import vlmexport

PACKAGE = Path(vlmexport.__file__).parent
# demo holds scenes and weights and imports nothing, so it stands first.
ROOMS = (
    "errors", "text", "extras", "threads", "units", "console", "files", "cache", "compiled", "workers", "demo",
    "recipe", "environment", "flags", "checkpoint", "processing", "families", "source", "model", "measures",
    "calibrate", "quantize", "fallback", "measure", "artifact", "prepare", "pipeline", "design", "runtime", "bench",
    "parity", "serve", "plan", "costs", "report", "cli", "pytest_plugin", "__init__", "__main__",
)  # fmt: skip
# Folders of a room, and modules that stand between them, in the order in which data passes them.
INNER = {
    "artifact": ("bundle", "onnx/session", "onnx/passes", "onnx/trace", "onnx/build", "onnx/read", "onnx", "gguf"),
    "runtime": ("stages", "layers", "instructions", "int8_kernels", "engines", "llamacpp/worker", "llamacpp/process",
                "llamacpp/probe", "llamacpp", "ort", "joined", "ort/arm64", "reference", "open"),
    "parity": ("result", "reference", "compare", "layers"),
}  # fmt: skip
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def room(module: str) -> str:
    return module.split("/")[0].removesuffix(".py")


def imported_rooms(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "vlmexport":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("vlmexport."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("vlmexport.")}
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_upwards(module: str) -> None:
    own = room(module)
    assert own in ROOMS, f"{module} is in no known room"
    allowed = ROOMS[: ROOMS.index(own) + 1]
    assert imported_rooms((PACKAGE / module).read_text(encoding="utf-8")) <= set(allowed)


def dotted(module: str) -> str:
    return ".".join(("vlmexport", *Path(module).with_suffix("").parts)).removesuffix(".__init__")


def imported_modules(source: str, known: set[str]) -> set[str]:
    """Modules that a source names anywhere, for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & known | ({node.module} if inner - known else set())
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & known


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """Module → modules that it imports."""
    known = {dotted(module) for module in MODULES}
    return {dotted(module): imported_modules((PACKAGE / module).read_text(encoding="utf-8"), known) - {dotted(module)}
            for module in MODULES}  # fmt: skip


def test_no_circle(imports: dict[str, set[str]]) -> None:
    TopologicalSorter(imports).prepare()  # raises CycleError, with the modules of a circle


def test_a_circle_is_seen() -> None:
    known = {"vlmexport.a", "vlmexport.a.b", "vlmexport.c"}
    source = "if TYPE_CHECKING:\n    from vlmexport.a import b\ndef f():\n    import vlmexport.c"
    assert imported_modules(source, known) == {"vlmexport.a.b", "vlmexport.c"}
    assert imported_modules("from vlmexport.a import b, x", known) == {"vlmexport.a", "vlmexport.a.b"}
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


@pytest.mark.parametrize("of_room", INNER)
def test_folders_stand_in_order(of_room: str, imports: dict[str, set[str]]) -> None:
    order = [f"vlmexport.{of_room}.{place.replace('/', '.')}" for place in INNER[of_room]]

    def floor(module: str) -> int | None:
        """Of the place within places that it lies in."""
        found = [place for place in order if f"{module}.".startswith(f"{place}.")]
        return order.index(max(found, key=len)) if found else None

    floors = {module: floor(module) for module in imports}
    assert set(floors.values()) == {None, *range(len(order))}, "a place is empty"
    upwards = [(module, other) for module, others in imports.items() for other in others
               if (own := floors[module]) is not None and other.startswith(f"vlmexport.{of_room}.")
               and ((its := floors[other]) is None or its > own)]  # fmt: skip
    assert not upwards


@pytest.mark.parametrize(("own", "other"), [("llamacpp", "ort"), ("ort", "llamacpp")])
def test_no_engine_takes_of_another(own: str, other: str, imports: dict[str, set[str]]) -> None:
    place, strange = f"vlmexport.runtime.{own}.", f"vlmexport.runtime.{other}"
    taken = {module: sorted(one for one in others if one.startswith(strange)) for module, others in imports.items()
             if module.startswith(place)}  # fmt: skip
    assert taken
    assert not any(taken.values())


@pytest.mark.parametrize("module", [module for module in MODULES if room(module) == "artifact"])
def test_writers_run_no_float_model(module: str) -> None:
    """What a bundle needs of it was measured before; tracing takes a sketch."""
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    taken = {(node.module, alias.name) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
             for alias in node.names}  # fmt: skip
    assert ("vlmexport.model", "load") not in taken
    assert "vlmexport.model.weights" not in {origin for origin, _ in taken}


def test_the_document_lists_them() -> None:
    """In this order, each with what it does."""
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.partition("## Rooms")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)(?:\.py|/)` \| \S", table, re.MULTILINE)
    assert tuple(listed) == tuple(name for name in ROOMS if not name.startswith("__"))


def test_an_upward_import_is_seen() -> None:
    source = "from vlmexport.parity.check import check\nimport vlmexport.cli\nfrom vlmexport import plan"
    assert imported_rooms(source) == {"parity", "cli", "plan"}


def test_public_face() -> None:
    assert vlmexport.__all__ == ["Recipe", "ask", "check", "export", "open_model", "open_runtime", "resolve"]
    for name in vlmexport.__all__:
        assert callable(getattr(vlmexport, name))
    with pytest.raises(AttributeError, match="nothing"):
        _ = vlmexport.nothing


def test_no_module_hides_a_public_name() -> None:
    """An imported submodule becomes an attribute of the package and would take the name's place."""
    assert not {Path(module).stem for module in MODULES if "/" not in module} & set(vlmexport.__all__)
