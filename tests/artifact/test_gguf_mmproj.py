"""The mmproj: names, shapes, types and keys that libmtmd reads, and what it cannot hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.checkpoints import tiny_spec, write_checkpoint
from tests.gguf_bundles import export, metadata, shapes, tensors, value_types
from vlmexport.artifact.gguf import mmproj
from vlmexport.checkpoint.spec import Spec
from vlmexport.errors import Unsupported
from vlmexport.families import Family
from vlmexport.families.reading.bundles import Mmproj
from vlmexport.source.checkpoint import Checkpoint, open_checkpoint

BLOCK = ("attn_q", "attn_k", "attn_v", "attn_out", "ln1", "ln2", "ffn_up", "ffn_down")
LDP_BLOCK = ("0.0.weight", "0.1.weight", "0.1.bias", "1.fc1.weight", "1.fc1.bias", "1.fc2.weight", "1.fc2.bias",
             "2.0.weight", "2.1.weight", "2.1.bias")  # fmt: skip
PROJECTORS = {
    "mlp2x_gelu": ("mlp", [f"mm.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")]),
    "ldpnetv2": (
        "ldpv2",
        [f"mm.model.{m}.{part}" for m in ("mlp.0", "mlp.2", "peg.0") for part in ("weight", "bias")],
    ),
    "ldpnet": (
        "ldp",
        [f"mm.model.mlp.{i}.{part}" for i in (1, 3) for part in ("weight", "bias")]
        + [f"mm.model.mb_block.{b}.block.{name}" for b in (1, 2) for name in LDP_BLOCK],
    ),
}


@pytest.fixture(scope="module", params=PROJECTORS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("mmproj")
    checkpoint = open_checkpoint(write_checkpoint(folder / "tiny", tiny_spec(request.param, num_layers=1)))
    export(checkpoint, folder / "out", type="f16")
    return request.param, folder / "out" / "mmproj-tiny-F16.gguf"


def test_names_and_types(exported: tuple[str, Path]) -> None:
    kind, path = exported
    tower = {"v.class_embd", "v.patch_embd.weight", "v.position_embd.weight", "v.pre_ln.weight", "v.pre_ln.bias"}
    # Two of three layers: select_layer is -2, and post_layernorm is left out.
    tower |= {f"v.blk.{i}.{name}.{part}" for i in (0, 1) for name in BLOCK for part in ("weight", "bias")}
    found = tensors(path)
    assert set(found) == tower | set(PROJECTORS[kind][1])
    types, sizes = {name: type_name for name, (type_name, _) in found.items()}, shapes(path)
    assert sizes["v.class_embd"] == (64,)
    assert (types["v.patch_embd.weight"], sizes["v.patch_embd.weight"]) == ("f16", (64, 3, 14, 14))
    assert (types["v.position_embd.weight"], sizes["v.position_embd.weight"]) == ("f32", (577, 64))
    assert sizes["v.blk.0.ffn_up.weight"] == (128, 64)
    for name, type_name in types.items():
        if len(sizes[name]) == 1:
            assert type_name == "f32", name
        elif name != "v.position_embd.weight":
            assert type_name == "f16", name


def test_depthwise_and_pointwise_shapes(exported: tuple[str, Path]) -> None:
    kind, path = exported
    sizes = shapes(path)
    if kind == "ldpnetv2":
        assert sizes["mm.model.peg.0.weight"] == (256, 3, 3)
    if kind == "ldpnet":
        assert sizes["mm.model.mb_block.2.block.0.0.weight"] == (256, 3, 3)
        assert sizes["mm.model.mb_block.2.block.1.fc1.weight"] == (64, 256)
        assert sizes["mm.model.mb_block.2.block.2.0.weight"] == (256, 256)


def test_keys(exported: tuple[str, Path]) -> None:
    kind, path = exported
    found, types = metadata(path), value_types(path)
    assert found["general.architecture"] == "clip"
    assert found["general.type"] == "mmproj"
    assert found["clip.projector_type"] == PROJECTORS[kind][0]
    assert found["clip.has_vision_encoder"] is True
    expected = {"image_size": 336, "patch_size": 14, "embedding_length": 64, "feed_forward_length": 128,
                "block_count": 2, "projection_dim": 256, "attention.head_count": 1}  # fmt: skip
    for key, value in expected.items():
        assert found[f"clip.vision.{key}"] == value
        assert types[f"clip.vision.{key}"] == ["UINT32"]
    assert found["clip.vision.feature_layer"] == [2]
    assert types["clip.vision.feature_layer"] == ["ARRAY", "INT32"]
    assert types["clip.vision.image_mean"] == types["clip.vision.image_std"] == ["ARRAY", "FLOAT32"]
    assert types["clip.vision.attention.layer_norm_epsilon"] == ["FLOAT32"]
    assert not {"clip.use_gelu", "clip.use_silu", "clip.vision.image_grid_pinpoints"} & set(found)


def test_f32_keeps_depthwise_kernels_in_f16(tiny: Checkpoint, tmp_path: Path) -> None:
    export(tiny, tmp_path / "out", type="f32", mmproj_type="f32")
    types = {name: kind for name, (kind, _) in tensors(tmp_path / "out" / "mmproj-tiny-F32.gguf").items()}
    assert {name for name, kind in types.items() if kind != "f32"} == {"mm.model.peg.0.weight"}


def test_q8_0(tiny: Checkpoint, tmp_path: Path) -> None:
    manifest = export(tiny, tmp_path / "out", type="f16", mmproj_type="q8_0")
    path = tmp_path / "out" / "mmproj-tiny-Q8_0.gguf"
    assert metadata(path)["general.file_type"] == 7
    types, sizes = {name: kind for name, (kind, _) in tensors(path).items()}, shapes(path)
    halves = {"v.patch_embd.weight", "mm.model.peg.0.weight"}
    assert {name for name, kind in types.items() if kind == "f16"} == halves
    assert manifest.tensors.items() >= dict.fromkeys(halves, "f16").items()
    for name in types.keys() - halves - {"v.position_embd.weight"}:
        assert types[name] == ("f32" if len(sizes[name]) == 1 else "q8_0"), name


@pytest.mark.parametrize(
    ("changes", "words"),
    [({}, None), ({"do_pad": False}, "centre crops"), ({"image_mean": (0.5, 0.5, 0.5)}, "pads with")],
)
def test_what_libmtmd_does_with_wide_images_is_noted(
    changes: dict[str, Any], words: str | None, tiny: Checkpoint, tmp_path: Path
) -> None:
    spec = replace(tiny.spec, image_processor=replace(tiny.spec.image_processor, **changes))
    notes = export(replace(tiny, spec=spec), tmp_path / "out", type="f16").notes
    assert [note for note in notes if "wide images" in note] == [note for note in notes[2:] if words and words in note]
    assert len(notes) == 2 + (words is not None)


def test_rows_that_are_no_whole_blocks_stay_in_f16(tiny: Checkpoint) -> None:
    name = "mlp.mlp.0.weight"
    odd = replace(tiny.tensors["projector"][name], shape=(256, 40))
    changed = replace(tiny, tensors=tiny.tensors | {"projector": tiny.tensors["projector"] | {name: odd}})
    types = {entry.name: entry.type for entry in mmproj.entries(changed, "q8_0")}
    assert (types["mm.model.mlp.0.weight"], types["mm.model.mlp.2.weight"]) == ("f16", "q8_0")


def test_the_epsilon_of_ldpnet_is_the_towers(tiny: Checkpoint) -> None:
    spec = replace(tiny.spec, projector=replace(tiny.spec.projector, kind="ldpnet"))
    assert mmproj.projector_of(spec).projector_type == "ldp"
    with pytest.raises(Unsupported, match=r"epsilon 1e-06 for the projector's norms, whose own is 1e-05"):
        mmproj.projector_of(replace(spec, vision=replace(spec.vision, layer_norm_eps=1e-6)))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": "siglip"}, "siglip"),
        ({"select_feature": "cls_patch"}, "cls_patch"),
        ({"hidden_act": "relu"}, "relu"),
        ({"intermediate_size": 64}, "swaps"),
        ({"select_layer": 0}, "hidden state 0"),
    ],
)
def test_refuses_towers(tiny: Checkpoint, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unsupported, match=f"{reason}.*--vision onnx"):
        mmproj.projector_of(replace(tiny.spec, vision=replace(tiny.spec.vision, **changes)))


@pytest.mark.parametrize(("activation", "key"), [("gelu", "clip.use_gelu"), ("silu", "clip.use_silu")])
def test_activations(tiny: Checkpoint, activation: str, key: str) -> None:
    spec = replace(tiny.spec, vision=replace(tiny.spec.vision, hidden_act=activation))
    assert mmproj.fields(spec, "f16")[key] == ("bool", True)


@pytest.mark.parametrize("kind", ["ldpnet", "ldpnetv2"])
def test_refuses_other_grids(kind: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / kind, tiny_spec(kind, image_size=168, num_layers=1)))
    with pytest.raises(Unsupported, match="24x24"):
        export(checkpoint, tmp_path / "out")


def test_a_family_has_its_own_words(tiny: Checkpoint, tmp_path: Path) -> None:
    """What it says stands over what its tower and its projector say; or it says why there is no mmproj."""
    said = Mmproj(
        {"clip.vision.image_size": ("u32", 384), "clip.vision.preproc_image_size": ("u32", 768)}, ("Beware.",)
    )
    family = SimpleNamespace(gguf=lambda spec: said)
    found = export(replace(tiny, family=cast(Family, family)), tmp_path / "out", type="f16")
    held = metadata(tmp_path / "out" / found.seeing.file("mmproj"))
    assert (held["clip.vision.image_size"], held["clip.vision.preproc_image_size"]) == (384, 768)
    assert held["clip.vision.patch_size"] == tiny.spec.vision.patch_size
    assert "Beware." in found.notes

    def refuses(spec: Spec) -> Mmproj:
        raise Unsupported("libmtmd cuts other tiles", "export a hybrid")

    with pytest.raises(Unsupported, match="cuts other tiles"):
        export(replace(tiny, family=cast(Family, SimpleNamespace(gguf=refuses))), tmp_path / "none", type="f16")


def test_no_tensor_is_left_out_without_a_word(tiny: Checkpoint) -> None:
    vision = tiny.spec.vision
    assert mmproj.tower_name("post_layernorm.weight", vision) is None
    assert mmproj.tower_name(f"encoder.layers.{vision.used_layers}.mlp.fc1.weight", vision) is None
    for name in ("embeddings.patch_embedding.bias", "encoder.layers.0.layer_scale1.weight"):
        with pytest.raises(Unsupported, match=f"cannot hold the vision encoder's tensor {name}"):
            mmproj.tower_name(name, vision)
