"""Every language model, whatever the folder holds: names, ONNX with its cache or without, int8, fused operators,
llama.cpp."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

import vlmexport.model.language as folder
from tests.conformance.parts import SCHEMES, measure
from tests.gguf_bundles import export
from tests.onnx_bundles import picture, through_the_cache
from tests.prompts import as_inputs, ask
from vlmexport import pipeline
from vlmexport.artifact.gguf.language import gguf_name, importance_names
from vlmexport.artifact.onnx.build import fused_decoder
from vlmexport.artifact.onnx.passes.clean import save
from vlmexport.artifact.onnx.trace import compare, components
from vlmexport.artifact.onnx.trace.components import Inputs
from vlmexport.design import Design, create, language_of, specify
from vlmexport.errors import CheckpointError, Unsupported
from vlmexport.model import VLM, load, plugins
from vlmexport.model.sketch import sketch
from vlmexport.pipeline import open_whole
from vlmexport.plan import plan
from vlmexport.recipe import resolve
from vlmexport.runtime.open import open_runtime
from vlmexport.runtime.reference import ReferenceRuntime
from vlmexport.source.checkpoint import Checkpoint

EXAMPLES = [
    str(import_module(f"{folder.__name__}.{info.name}").EXAMPLE) for info in pkgutil.iter_modules(folder.__path__)
]
IDS = [1, *range(3, 14)]
Opened = Callable[[str], Checkpoint]


def design(text: str) -> Design:
    """Behind a tower and a projector that an mmproj holds."""
    return Design("clip:tiny", "mlp2x_gelu", text, image_size=56)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """A checkpoint of each."""

    @cache
    def get(text: str) -> Checkpoint:
        path = tmp_path_factory.mktemp("language") / "model"
        create(design(text), path)
        return open_whole(str(path))

    return get


@pytest.mark.parametrize("text", EXAMPLES)
def test_a_checkpoint_of_it_opens_as_it_was_specified(text: str, opened: Opened) -> None:
    checkpoint = opened(text)
    spec, plugin = checkpoint.spec.language, plugins.decoder(text.split(":")[0])
    assert spec == specify(design(text)).language
    shapes = {name: tuple(value.shape) for name, value in plugin.build(spec).state_dict().items()}
    assert plugin.shapes(spec) == shapes
    assert set(plugin.TABLES) <= set(shapes)
    inside = [name.removeprefix(plugin.LAYERS) for name in shapes if name.startswith(plugin.LAYERS)]
    assert {name.split(".")[0] for name in inside} == {"0", "1"}
    assert spec.generates == plugin.GENERATES
    table = load(checkpoint).language.get_input_embeddings().weight  # type: ignore[operator]
    assert torch.equal(table, plugins.token_table(checkpoint).torch().float())


@pytest.mark.parametrize("text", EXAMPLES)
def test_damaged_weights_are_found_before_they_are_read(text: str, opened: Opened, tmp_path: Path) -> None:
    create(design(text), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    state = load_file(file)
    name = next(key for key in state if key.startswith("language.") and ".1." in key)
    whole = state.pop(name)
    for damaged, reason in ((state, "1 tensor is missing"), (state | {name: torch.zeros(3, 5)}, "has the shape")):
        save_file(damaged, file)
        with pytest.raises(CheckpointError, match=reason):
            open_whole(str(tmp_path / "model"))
    save_file(state | {name: whole, "language.extra": whole.clone()}, file)
    with pytest.raises(Unsupported, match="1 tensor is unknown: extra"):
        open_whole(str(tmp_path / "model"))


@pytest.mark.parametrize("text", EXAMPLES)
def test_gguf_names_every_tensor_or_says_why_not(text: str) -> None:
    spec = language_of(text)
    shapes = plugins.language(spec).shapes(spec)
    try:
        names = {name: gguf_name(spec, name) for name in shapes}
    except Unsupported as error:
        assert error.cure
        return
    assert len(set(names.values())) == len(names)
    assert {"token_embd.weight", "output_norm.weight", "output.weight"} <= set(names.values())
    linear = {
        path for path, layer in plugins.language(spec).build(spec).named_modules() if type(layer) is torch.nn.Linear
    }
    measured = importance_names(spec)
    assert {path.removeprefix("language.") for path in measured} == linear
    expected = {names[f"{path}.weight"] for path in linear - {"lm_head"}}
    assert set(measured.values()) - {"output.weight", "token_embd.weight"} == expected


class LargestSquare(TorchDispatchMode):
    """Whether any operator gives [..., positions, positions] in floating point, as attention weights are."""

    def __init__(self, positions: int) -> None:
        super().__init__()
        self._positions, self.found = positions, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for value in outputs if isinstance(outputs, tuple | list) else (outputs,):
            square = isinstance(value, torch.Tensor) and tuple(value.shape[-2:]) == (self._positions,) * 2
            self.found |= square and value.is_floating_point() and value.dim() > 2 and value.shape[1] > 1
        return outputs


@pytest.mark.parametrize("text", EXAMPLES)
def test_the_float_model_holds_no_attention_weights(text: str, opened: Opened) -> None:
    """Of a prompt of 4,096 positions they would be a gigabyte a layer; the results are the same up to rounding."""
    vlm = load(opened(text), components=("language",))
    embeds, mask = vlm.embed([1, *range(3, 40)] * 2).reshape(2, 38, -1), torch.ones(2, 38, dtype=torch.long)
    mask[1, :5] = 0
    found = []
    for kernel in (None, "eager"):
        if kernel:
            vlm.language.set_attn_implementation(kernel)  # type: ignore[operator]
        with torch.inference_mode(), LargestSquare(38) as watch:
            outputs = vlm.language(inputs_embeds=embeds, attention_mask=mask).logits
        found.append((outputs[0], watch.found))
    (ours, has_weights), (eager, has_eager_weights) = found
    assert (has_weights, has_eager_weights) == (False, True)
    assert (ours - eager).abs().max() < 1e-5 * eager.abs().max()


def decoder_inputs(vlm: VLM, seed: int, length: int, past: int) -> Inputs:
    """Two sequences: embeddings of tokens, mask, positions and a cache; logits of all positions."""
    random, spec = torch.Generator().manual_seed(seed), vlm.spec.language
    embeds = vlm.embed(torch.randint(3, 64, (2 * length,), generator=random).tolist()).reshape(2, length, -1)
    shape = (2, spec.num_kv_heads, past, spec.head_dim)
    held = [tuple(torch.randn(shape, generator=random) for _ in range(2)) for _ in range(spec.num_layers)]
    mask, positions = torch.ones(2, past + length, dtype=torch.long), torch.arange(past, past + length).repeat(2, 1)
    return embeds, mask, positions, held, torch.tensor(0)  # type: ignore[return-value]


def whole_prompts(vlm: VLM, seed: int, length: int) -> Inputs:
    """The same for a language model that reads them at once."""
    embeds, mask, positions, *_ = decoder_inputs(vlm, seed, length, 0)
    return embeds, mask, positions


@pytest.mark.parametrize("text", EXAMPLES)
@pytest.mark.slow
def test_onnx_in_float_and_int8(text: str, tmp_path: Path) -> None:
    vlm = sketch(specify(design(text)), 1, ("language",))
    if vlm.spec.language.generates:
        calibration, probe = decoder_inputs(vlm, 0, 60, 0), decoder_inputs(vlm, 1, 9, 5)
    else:
        calibration, probe = whole_prompts(vlm, 0, 60), whole_prompts(vlm, 1, 40)
    found = measure(vlm, components.trace_decoder(vlm), calibration, probe, tmp_path)
    assert found.apart < 2e-5
    assert compare.check_cache(vlm, tmp_path / "float.onnx") < 2e-5
    for scheme in SCHEMES:
        assert not found.coverage[scheme].float32
        assert found.sqnr[scheme] > 10


@pytest.mark.parametrize("text", EXAMPLES)
def test_fused_operators(text: str, opened: Opened, tmp_path: Path) -> None:
    """The checkpoint is float16, so float16 weights are the float model's own."""
    checkpoint = opened(text)
    if not plugins.language(checkpoint.spec.language).FUSED:
        recipe, out = resolve("onnx-fp32-int4"), tmp_path / "out"
        with pytest.raises(Unsupported, match=r"fused operators is not known .* use --decoder fp32 or int8"):
            pipeline.export(str(checkpoint.path), recipe, out)
        assert not out.exists()
        assert "fused operators" in str(plan(checkpoint, [recipe])[0].refused)
        return
    path, vlm = tmp_path / "decoder.onnx", load(checkpoint)
    save(fused_decoder.build(checkpoint, fused_decoder.HALF), path)
    with torch.inference_mode():
        embeds = vlm.embed(IDS)
        expected = vlm.logits(as_inputs(embeds), 0).numpy()
    got = through_the_cache(path, embeds, (7, len(IDS)))
    assert np.linalg.norm(got - expected) < 1e-5 * np.linalg.norm(expected)
    save(fused_decoder.build(checkpoint, fused_decoder.Weights(32, accuracy=0)), path)
    assert np.corrcoef(through_the_cache(path, embeds, (7, len(IDS))).ravel(), expected.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("text", EXAMPLES)
def test_llama_cpp_gives_the_float_models_logits_or_is_not_asked(text: str, opened: Opened, tmp_path: Path) -> None:
    checkpoint = opened(text)
    if not checkpoint.spec.language.generates:
        with pytest.raises(Unsupported, match=f"GGUF cannot hold a {checkpoint.spec.language.kind} that answers"):
            pipeline.export(str(checkpoint.path), resolve("gguf-q8_0"), tmp_path / "bundle")
        assert not (tmp_path / "bundle").exists()
        return
    reference = ReferenceRuntime(checkpoint)
    export(checkpoint, tmp_path / "bundle", type="f32", mmproj_type="f32")
    runtime = open_runtime(tmp_path / "bundle")
    tokens = reference.tokens(reference.features(reference.pixels(picture(0))))
    prompt = ask(runtime, "what is it?", len(tokens))
    assert prompt == ask(reference, "what is it?", len(tokens))
    got, expected = runtime.logits(prompt, [tokens], 0), reference.logits(prompt, [tokens], 0)
    answers = [[token.id for token in side.generate(prompt, [tokens], 6)] for side in (runtime, reference)]
    runtime.close()
    assert np.linalg.norm(got - expected) < 1e-3 * np.linalg.norm(expected)
    assert answers[0] == answers[1]
