"""Mutations of a model that sees tiles: of its bundles' files, and of the code that cuts its pictures. Float model and
bundle share that code, so that transformers' processor alone tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gguf
import numpy as np
import pytest
from PIL import Image

from tests.mutations import graphs
from tests.mutations.conftest import Mutate
from tests.mutations.copies import Array, Mutant, failed
from vlmexport.checkpoint.spec import ImageProcessorSpec
from vlmexport.parity.result import ParityResult
from vlmexport.processing import tiles
from vlmexport.processing.image import ProcessedImage
from vlmexport.processing.tiles import Cut, Plan

pytestmark = pytest.mark.slow

SHUFFLE = 3
"""Patches along a side of what a visual token joins; 9 along a side of a view."""

Views = Iterator[Image.Image]
_plan, _views = tiles.plan, tiles.views


def column_order(cuts: Plan) -> tuple[Cut, ...]:
    side = cuts.side
    corners = ((column * side, row * side) for column in range(cuts.columns) for row in range(cuts.rows))
    return tuple((left, top, left + side, top + side) for left, top in corners)


def whole_first(image: Image.Image, spec: ImageProcessorSpec) -> Views:
    *parts, whole = _views(image, spec)
    yield from (whole, *parts)


def whole_of_the_picture(image: Image.Image, spec: ImageProcessorSpec) -> Views:
    """One rounding less."""
    *parts, _ = _views(image, spec)
    yield from (*parts, image.resize((spec.side,) * 2, Image.Resampling(spec.resample)))


def whole_without_antialias(image: Image.Image, spec: ImageProcessorSpec) -> Views:
    """Four pixels for each, as transformers.js and torch's ``interpolate`` take them."""
    *parts, _ = _views(image, spec)
    large, side = tiles.prepared(image, spec), spec.side
    affine = (large.width / side, 0, 0, 0, large.height / side, 0)
    yield from (*parts, large.transform((side, side), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR))


def resized_at_once(image: Image.Image, spec: ImageProcessorSpec) -> Image.Image:
    """One rounding less: the first step is left out."""
    cuts = _plan(image.height, image.width, spec)
    return image.resize(cuts.second, Image.Resampling(spec.resample))


CODE: dict[str, tuple[Any, str, Any]] = {
    "tiles in the order of columns": (Plan, "tiles", property(column_order)),
    "the whole first": (tiles, "views", whole_first),
    "the whole made of the picture": (tiles, "views", whole_of_the_picture),
    "the whole without antialias": (tiles, "views", whole_without_antialias),
    "resized at once": (tiles, "prepared", resized_at_once),
}


@pytest.mark.parametrize("name", CODE)
def test_code_that_cuts_is_red_at_pixels(name: str, mutant: Mutate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Float model and bundle are equally wrong, and what transformers makes is not."""
    found = mutant("tiles-fp32")
    monkeypatch.setattr(*CODE[name])
    result = found.check(replay=None)
    assert result.broken_stage == "pixels"
    assert not [place for place in failed(result) if place[1] == "local"]


PROCESSOR: dict[str, dict[str, Any]] = {
    "another filter": {"resample": 3},
    "another longest edge": {"size": {"longest_edge": 144}},
    "not split": {"do_image_splitting": False},
    "mean and deviation of ImageNet": {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
}
"""What clients are told, and the model was not trained with."""


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
@pytest.mark.parametrize("name", PROCESSOR)
def test_a_clients_processor_is_red_at_pixels(name: str, file: str, mutant: Mutate) -> None:
    """The first is transformers.js', the second Python's."""
    found = mutant("tiles-fp32")
    found.edit_json(file, lambda document: document.get("image_processor", document).update(PROCESSOR[name]))
    result = found.check()
    assert result.broken_stage == "pixels"
    assert not [place for place in failed(result) if place[1] == "local"]


def transposed(weight: Array) -> Array:
    """The squares that a visual token joins, column by column."""
    rows = weight.reshape(SHUFFLE, SHUFFLE, -1, weight.shape[1])
    return rows.swapaxes(0, 1).reshape(weight.shape)


def of_another_grid(table: Array) -> Array:
    """Rows of ten patches, of which the last is left out."""
    places = [row * 10 + column for row in range(9) for column in range(9)]
    return table[np.minimum(places, len(table) - 1)]


Edit = Callable[[Mutant], object]


def both(name: str, change: Callable[[Array], Array]) -> Edit:
    """In the two graphs that hold the connector."""

    def edit(found: Mutant) -> None:
        for graph in ("vision_encoder", "projector"):
            found.edit_weight(graph, name, change)

    return edit


def in_vision(name: str, change: Callable[[Array], Array]) -> Edit:
    return lambda found: found.edit_weight("vision_encoder", name, change)


def in_decoder(name: str, change: Callable[[Array], Array]) -> Edit:
    return lambda found: found.edit_weight("decoder_model_merged", name, change)


def with_hole(weight: Array) -> Array:
    weight[:, :16] = 0
    return weight


POSITIONS = "vision.embeddings.position_embedding"
TOWER = "vision.encoder.layers.2.mlp.fc1"
DECODER = "language.model.layers.1.self_attn.o_proj"
GRAPHS: dict[str, tuple[str, str, Edit]] = {
    "pixel shuffle transposed": ("tokens", "projector.proj", both("projector.proj.weight", transposed)),
    "connector": ("tokens", "projector.proj", both("projector.proj.weight", with_hole)),
    "positions of another grid": ("features", POSITIONS, in_vision(f"{POSITIONS}.weight", of_another_grid)),
    "tower layer": ("features", TOWER, in_vision(f"{TOWER}.weight", with_hole)),
    "tower epsilon": (
        "features", "vision.encoder.layers.0.layer_norm1",
        lambda found: found.edit_graph("vision_encoder", graphs.larger_layer_norm_epsilon),
    ),
    "decoder layer": ("logits", DECODER, in_decoder(f"{DECODER}.weight", with_hole)),
    "decoder epsilon": (
        "logits", "language.model.layers.0.input_layernorm",
        lambda found: found.edit_graph("decoder_model_merged", graphs.smaller_epsilon),
    ),
}  # fmt: skip
"""Fault → the stage that is red, the first layer that diverges, and what makes it."""


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_is_red_where_it_is(name: str, mutant: Mutate) -> None:
    stage, layer, edit = GRAPHS[name]
    found = mutant("tiles-fp32")
    edit(found)
    red_at(stage, found.check())
    assert found.first() == {stage: layer}


def red_at(stage: str, result: ParityResult) -> None:
    """There, fed by the float model, and of the other stages those behind it alone."""
    assert result.broken_stage == stage
    places = failed(result)
    assert (stage, "local") in places
    assert {place for place, mode in places if mode == "local"} <= {stage, "answer"}
    assert ("pixels", "chained") not in places


def test_a_view_that_the_encoder_is_not_given(mutant: Mutate, monkeypatch: pytest.MonkeyPatch) -> None:
    found, slices = mutant("tiles-fp32"), ProcessedImage.slices
    monkeypatch.setattr(ProcessedImage, "slices", lambda image: list(slices(image))[:-1])
    result = found.check()
    assert result.broken_stage == "features"
    assert ("pixels", "chained") not in failed(result)
    (stage,) = (stage for stage in result.stages if (stage.stage, stage.mode) == ("features", "local"))
    assert stage.error is not None
    assert stage.error.startswith("views of the shapes [[81, 128]")


MARKS: dict[str, tuple[str, str]] = {
    "newline behind a row": ("row_end", ""),
    "empty line before the whole": ("whole", "<fake_token_around_image><global-img>"),
    "last marker": ("end", ""),
    "columns first": ("tile", "<fake_token_around_image><row_{column}_col_{row}>"),
}
"""What the manifest says that stands around a view."""


@pytest.mark.parametrize(("name", "kind"), [*((name, "fp32") for name in MARKS), ("newline behind a row", "gguf")])
def test_a_mark_is_red_at_logits(name: str, kind: str, mutant: Mutate) -> None:
    field, text = MARKS[name]
    found = mutant(f"tiles-{kind}")
    found.edit_json("vlmexport.json", lambda told: told["source"]["spec"]["image_text"].update({field: text}))
    assert prompt_error(found).startswith("the prompt differs at token ")


def test_one_marker_of_another_place(mutant: Mutate) -> None:
    """Two added tokens have changed places in the tokenizer's file."""
    found = mutant("tiles-fp32")

    def swap(document: dict[str, Any]) -> None:
        one, other = (
            next(token for token in document["added_tokens"] if token["content"] == f"<row_{place}>")
            for place in ("1_col_2", "2_col_1")
        )
        one["content"], other["content"] = other["content"], one["content"]
        vocabulary = document["model"]["vocab"]
        if one["content"] in vocabulary:
            vocabulary[one["content"]], vocabulary[other["content"]] = one["id"], other["id"]

    found.edit_json("tokenizer.json", swap)
    assert prompt_error(found).startswith("the prompt differs at token ")


def prompt_error(found: Mutant) -> str:
    """What is said of the logits, chained; all that is fed by the float model is right."""
    result = found.check()
    assert result.broken_stage == "logits"
    assert not [place for place in failed(result) if place[1] == "local"]
    (stage,) = (stage for stage in result.stages if (stage.stage, stage.mode) == ("logits", "chained"))
    return stage.error or ""


def changed(tensor: str, change: Callable[[Array], Array]) -> Callable[[str, Array], None]:
    """One tensor of a GGUF file; it is given with the inputs along the last axis."""

    def edit(name: str, rows: Array) -> None:
        if name == tensor:
            rows[:] = change(rows.copy())

    return edit


GGUF: dict[str, tuple[str, str, Edit]] = {
    "pixel shuffle transposed": (
        "tokens", "projector.proj",
        lambda found: found.edit_tensors("mmproj", changed("mm.model.fc.weight", lambda rows: transposed(rows.T).T)),
    ),
    "positions of another grid": (
        "features", "vision.encoder.layers.0.self_attn.q_proj",
        lambda found: found.edit_tensors("mmproj", changed("v.position_embd.weight", of_another_grid)),
    ),
    "tower layer": (
        "features", TOWER,
        lambda found: found.edit_tensors("mmproj", changed("v.blk.2.ffn_up.weight", lambda rows: with_hole(rows.T).T)),
    ),
    "tower epsilon": (
        "features", "vision.encoder.layers.0.self_attn.q_proj",
        lambda found: found.edit_fields("mmproj", **{"clip.vision.attention.layer_norm_epsilon": 1e-2}),
    ),
    "decoder layer": (
        "logits", DECODER,
        lambda found: found.edit_tensors(
            "language", changed("blk.1.attn_output.weight", lambda rows: with_hole(rows.T).T)
        ),
    ),
    "decoder epsilon": (
        "logits", "language.model.layers.0.self_attn.q_proj",
        lambda found: found.edit_fields("language", **{"llama.attention.layer_norm_rms_epsilon": 1e-6}),
    ),
}  # fmt: skip
"""The same of GGUF files. Norms are not seen into, so that the layer behind the first one shows an epsilon."""


@pytest.mark.parametrize("name", GGUF)
def test_a_gguf_file_is_red_where_it_is(name: str, mutant: Mutate) -> None:
    stage, layer, edit = GGUF[name]
    found = mutant("tiles-gguf")
    edit(found)
    red_at(stage, found.check())
    assert found.first() == {stage: layer}


def test_mean_of_imagenet_in_an_mmproj(mutant: Mutate) -> None:
    found = mutant("tiles-gguf")
    path = found.own("mmproj")
    reader = gguf.GGUFReader(path, "r+")
    field = reader.fields["clip.vision.image_mean"]
    for place, value in zip(field.data, (0.485, 0.456, 0.406), strict=True):
        field.parts[place][:] = value
    del reader
    result = found.check()
    assert result.broken_stage == "pixels"
    assert not [place for place in failed(result) if place[1] == "local"]
