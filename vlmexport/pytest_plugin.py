"""``pytest --vlmexport-bundle DIR``: each gate of each stage of a bundle is a test case.

Loaded by every pytest run where vlmexport is installed, so nothing heavy is imported before a bundle is named.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from vlmexport.errors import VlmExportError
    from vlmexport.measures.stage_result import Mode
    from vlmexport.parity.result import ParityResult


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of a check."""
    group = parser.getgroup("vlmexport", "parity of exported bundles with their float model")
    group.addoption("--vlmexport-bundle", action="append", default=[], metavar="DIR", help="Check it; repeatable.")
    group.addoption("--vlmexport-reference", metavar="MODEL", help="The float model, where it moved.")
    group.addoption("--vlmexport-data", type=Path, metavar="PATH", help="Samples, as in `vlmexport check --data`.")
    group.addoption("--vlmexport-samples", type=int, metavar="N", help="How many.")


@pytest.hookimpl(tryfirst=True)  # before -k and -m choose
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the cases of the bundles; nothing runs before the first case does."""
    from vlmexport.errors import VlmExportError

    for folder in config.getoption("vlmexport_bundle"):
        name = Path(folder).resolve().name
        bundle = Bundle.from_parent(session, name=name, nodeid=name, folder=Path(folder))
        try:
            items.extend(bundle.collect())
        except VlmExportError as error:
            raise pytest.UsageError(str(error)) from error


class Bundle(pytest.Collector):
    """A bundle, checked once for all of its cases."""

    def __init__(self, *, folder: Path, **node: Any) -> None:
        super().__init__(**node)
        self.folder = folder

    def collect(self) -> Iterator[Gate]:
        """A case for every gate that the recipe sets, in every mode."""
        from vlmexport.artifact.bundle.manifest import read_manifest
        from vlmexport.measures.gates import bounds_of
        from vlmexport.measures.stage_result import MODES, STAGES
        from vlmexport.parity.layers.int8_weights import WRONG, stage_of

        recipe = read_manifest(self.folder).recipe
        int8 = {stage_of(component) for component in recipe.int8_components}
        for stage in STAGES:
            for mode in MODES if stage != "pixels" else MODES[1:]:  # pixels have no predecessor to be fed by
                of_weights = [WRONG] if stage in int8 and mode == "local" else []
                for metric in [*bounds_of(recipe.gates, stage, mode), *of_weights]:
                    yield Gate.from_parent(self, name=f"{stage}-{mode}-{metric}", place=(stage, mode, metric))

    @cached_property
    def outcome(self) -> ParityResult | VlmExportError:
        """The result, or why there is none; whichever, it is not tried again."""
        from vlmexport.errors import VlmExportError
        from vlmexport.parity.check import DEFAULT_SAMPLES, check

        option = self.config.getoption
        samples = option("vlmexport_samples") or DEFAULT_SAMPLES
        reference, data = option("vlmexport_reference"), option("vlmexport_data")
        try:
            return check(self.folder, reference=reference, samples=samples, data=data)
        except VlmExportError as error:
            return error


class GateFailed(Exception):
    """What was measured, and what is allowed."""


class Gate(pytest.Item):
    """One gate of one stage in one mode."""

    parent: Bundle

    def __init__(self, *, place: tuple[str, Mode, str], **node: Any) -> None:
        super().__init__(**node)
        self.place = place

    def runtest(self) -> None:
        """Look the gate up in the result of the check."""
        from vlmexport.parity.layers.int8_weights import WRONG
        from vlmexport.parity.result import ParityResult
        from vlmexport.report.places import places
        from vlmexport.report.rows import sentence

        result = self.parent.outcome
        if not isinstance(result, ParityResult):
            raise result
        stage, _, metric = self.place
        found = [gate for gate in result.gates if (gate.stage, gate.mode, gate.metric) == self.place]
        if not found and metric == "task_drop" and any(gate.stage == stage for gate in result.gates):
            pytest.skip("no sample says which answer is right")
        if not found and metric == WRONG:
            pytest.skip("no layer is int8")
        if not found:
            raise GateFailed(f"{stage} did not run; the check broke at {result.broken_stage}")
        if not found[0].passed:
            where = places(result, stage) if metric == WRONG else ()
            raise GateFailed("; ".join([sentence(found[0]), *where]))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """One line where a gate fails, or where there is no verdict."""
        from vlmexport.errors import VlmExportError

        if isinstance(excinfo.value, GateFailed | VlmExportError):
            return f"{self.parent.folder}: {excinfo.value}"
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Where it belongs: to the bundle's folder."""
        return self.parent.folder, None, f"{self.parent.name}: {self.name}"
