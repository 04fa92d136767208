"""Mutations of the projector. It lies in two files, alone and behind the encoder; a faulty exporter writes both."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest

from tests.mutations import graphs
from tests.mutations.conftest import Mutate
from tests.mutations.copies import failed

pytestmark = pytest.mark.slow

EDITS: dict[str, tuple[str, Callable[[onnx.ModelProto], None]]] = {
    "LDPv2's residual missing": ("projector", graphs.without_residual),
    "average pool replaced by a stride": ("projector.peg.peg.0", graphs.stride_for_average),
}
"""Fault → the first layer that diverges, and what makes the fault."""


@pytest.mark.parametrize("name", EDITS)
def test_it_is_red_at_tokens(name: str, mutant: Mutate) -> None:
    layer, edit = EDITS[name]
    found = mutant("fp32")
    for graph in ("vision_encoder", "projector"):
        found.edit_graph(graph, edit)
    result = found.check()
    assert result.broken_stage == "tokens"
    places = failed(result)
    assert places >= {("tokens", "local"), ("tokens", "chained")}
    assert not places & {("features", "local"), ("features", "chained"), ("logits", "local"), ("answer", "local")}
    assert found.first() == {"tokens": layer}
