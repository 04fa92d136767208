"""Mutations of the vision encoder: red at features, and nothing else is to blame."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from tests.mutations import graphs
from tests.mutations.conftest import Mutate
from tests.mutations.copies import Array, failed

pytestmark = pytest.mark.slow

Weight = tuple[str, Callable[[Array], Array]]
WEIGHTS: dict[str, Weight] = {
    "position embeddings shifted by one": (
        "vision.embeddings.position_embedding.weight",
        lambda table: np.roll(table, 1, 0),
    ),
    "BGR": ("vision.embeddings.patch_embedding.weight", lambda kernel: kernel[:, ::-1]),
}
EDITS: dict[str, Callable[[onnx.ModelProto], None]] = {
    "last ViT layer dropped": graphs.drop_last_layer,
    "feature layer -1 instead of -2": graphs.append_layer,
    "class token kept": graphs.keep_class_token,
}
WHOLE = "vision"
"""Where all layers are right, and what is taken of them is not."""


@pytest.mark.parametrize("name", [*WEIGHTS, *EDITS])
def test_it_is_red_at_features(name: str, mutant: Mutate) -> None:
    found = mutant("fp32")
    if name in WEIGHTS:
        found.edit_weight("vision_encoder", *WEIGHTS[name])
    else:
        found.edit_graph("vision_encoder", EDITS[name])
    result = found.check()
    assert result.broken_stage == "features"
    places = failed(result)
    assert ("features", "local") in places
    assert not places & {("pixels", "chained"), ("tokens", "local"), ("logits", "local"), ("answer", "local")}
    assert found.first() == {"features": WEIGHTS[name][0].removesuffix(".weight") if name in WEIGHTS else WHOLE}
