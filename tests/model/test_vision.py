"""Vision encoders against transformers, timm or the steps of their papers; parameter counts against published ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import SiglipVisionConfig, SiglipVisionModel

from vlmexport.checkpoint.spec import VisionSpec
from vlmexport.design import vision_of
from vlmexport.errors import Unsupported
from vlmexport.model import plugins
from vlmexport.model.random_weights import measure_statistics, randomise
from vlmexport.model.vision import mobileformer, s2

State = dict[str, torch.Tensor]
Run = Callable[[torch.Tensor], torch.Tensor]


def encoder(text: str, image_size: int | None = None) -> tuple[VisionSpec, nn.Module, Run]:
    """An encoder of random weights: its Spec, its module, and its features stage."""
    spec = vision_of(text, image_size)
    plugin = plugins.vision(spec)
    module = plugin.build(spec)
    randomise(module, torch.Generator().manual_seed(0))
    module.eval()
    measure_statistics(module, lambda: plugin.features(module, noise(spec), spec))
    return spec, module, lambda pixels: plugin.features(module, pixels, spec)


def noise(spec: VisionSpec, images: int = 2) -> torch.Tensor:
    side = spec.image_size
    return torch.randn(images, 3, side, side, generator=torch.Generator().manual_seed(1))


def assert_near(got: torch.Tensor, want: torch.Tensor) -> None:
    assert got.shape == want.shape
    assert float((got - want).norm() / want.norm()) < 1e-5


def parameters(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


@torch.inference_mode()
def test_siglip_is_transformers() -> None:
    spec, module, run = encoder("siglip:tiny")
    hidden = module(noise(spec), output_hidden_states=True).hidden_states
    assert_near(run(noise(spec)), hidden[-2])


@torch.inference_mode()
def test_vit_is_the_tutorials_head_by_head() -> None:
    spec, module, run = encoder("vit:tiny")
    state = module.state_dict()
    grid, patch, width, head = spec.grid, spec.patch_size, spec.hidden_size, spec.hidden_size // spec.num_heads
    squares = noise(spec).unfold(2, patch, patch).unfold(3, patch, patch).permute(0, 2, 3, 1, 4, 5)
    patches = squares.reshape(2, grid**2, -1) @ state["patch_embedding.weight"].flatten(1).T
    patches = patches + state["patch_embedding.bias"]
    x = torch.cat([state["cls_token"].repeat(2, 1, 1), patches], 1) + state["pos_embedding"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, (width,), state[f"{name}.weight"], state[f"{name}.bias"])

    for place in (f"blocks.{i}" for i in range(spec.num_layers)):
        normed, heads = norm(x, f"{place}.norm1"), []
        for h in range(spec.num_heads):
            rows = slice(h * head, (h + 1) * head)
            q, k, v = (normed @ state[f"{place}.attn.{part}_proj.weight"][rows].T for part in ("q", "k", "v"))
            heads.append(functional.softmax(q @ k.transpose(1, 2) * width**-0.5, -1) @ v)
        x = x + torch.cat(heads, -1) @ state[f"{place}.attn.out_proj.weight"].T + state[f"{place}.attn.out_proj.bias"]
        inner = norm(x, f"{place}.norm2") @ state[f"{place}.fc1.weight"].T + state[f"{place}.fc1.bias"]
        x = x + functional.gelu(inner) @ state[f"{place}.fc2.weight"].T + state[f"{place}.fc2.bias"]
    assert_near(run(noise(spec)), norm(x, "layer_norm")[:, 1:])
    whole = plugins.vision(spec).features(module, noise(spec), replace(spec, select_feature="cls_patch"))
    assert_near(whole, norm(x, "layer_norm"))


@torch.inference_mode()
def test_s2_joins_the_maps_of_tiles() -> None:
    spec, module, run = encoder("s2_1_2_3:siglip:tiny", 48)
    inner = s2.wrapped(spec)
    assert (spec.image_size, spec.grid, spec.num_patches, spec.hidden_size) == (144, 3, 9, 3 * 64)

    def map_of(tile: torch.Tensor) -> torch.Tensor:
        """f32 [images, 3, 48, 48] → [images, width, 3, 3]."""
        found = plugins.vision(inner).features(module, tile, inner)
        return found.transpose(1, 2).unflatten(2, (3, 3))

    maps = []
    for scale in (1, 2, 3):
        image = functional.interpolate(noise(spec), (48 * scale,) * 2, mode="bicubic")
        tiles = [[map_of(tile) for tile in row.chunk(scale, 3)] for row in image.chunk(scale, 2)]
        whole = torch.cat([torch.cat(row, 3) for row in tiles], 2)
        maps.append(functional.interpolate(whole, (3, 3), mode="area"))
    assert_near(run(noise(spec)), torch.cat(maps, 1).flatten(2).transpose(1, 2))


@pytest.mark.parametrize("text", ["s2", "s2_2_3:vit:tiny", "s2_1_1:vit:tiny"])
def test_s2_says_what_it_needs(text: str) -> None:
    with pytest.raises(Unsupported, match=r"names no encoder|do not grow from 1"):
        vision_of(text)


@torch.inference_mode()
def test_a_block_of_mobileformer_is_the_papers() -> None:
    """Mobile ← Former → Mobile of one block, step by step, for the variant without groups."""
    _, module, _ = encoder("mobileformer:52m", 64)
    block = module.features[1]  # type: ignore[index]
    state = block.state_dict()
    random = torch.Generator().manual_seed(2)
    x, tokens = torch.randn(2, 12, 4, 4, generator=random), torch.randn(2, 3, 128, generator=random)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, (128,), state[f"{name}.weight"], state[f"{name}.bias"])

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
        parts = zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True)
        found = [functional.softmax(a @ b.transpose(1, 2) * b.shape[-1] ** -0.5, -1) @ c for a, b, c in parts]
        return torch.cat(found, -1)

    def slopes(y: torch.Tensor, name: str) -> torch.Tensor:
        inner = linear(tokens[:, 0], f"{name}.hyper.0").clamp(min=0)
        theta = functional.hardsigmoid(linear(inner, f"{name}.hyper.2"))[:, :, None, None]
        first, second = theta[:, : y.shape[1]], theta[:, y.shape[1] :]
        return torch.maximum(y * (2 * (first - 0.5) + 1), y * (2 * (second - 0.5)))

    def convolve(y: torch.Tensor, name: str, groups: int = 1) -> torch.Tensor:
        weight = state[f"{name}.0.weight"]
        y = functional.conv2d(y, weight, padding=weight.shape[-1] // 2, groups=groups)
        statistics = [state[f"{name}.1.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return functional.batch_norm(y, *statistics)

    given, rows = tokens, x.flatten(2).transpose(1, 2)
    gate = 2 * functional.hardsigmoid(linear(given, "local_global.alpha.0"))
    seen = attend(linear(given, "local_global.q"), rows, rows, 2) * gate
    tokens = norm(given + linear(seen, "local_global.proj"), "local_global.layer_norm")
    mixed = attend(linear(tokens, "global_block.q"), tokens, tokens, 4)
    tokens = norm(tokens + linear(mixed, "global_block.channel_mlp"), "global_block.layer_norm")
    inner = functional.gelu(linear(tokens, "global_block.ffn.0"))
    tokens = norm(tokens + linear(inner, "global_block.ffn.2"), "global_block.ffn_norm")
    y = slopes(convolve(x, "conv1"), "hyper1")
    y = x + convolve(slopes(convolve(y, "conv2", y.shape[1]), "hyper2"), "conv3")
    told = attend(
        y.flatten(2).transpose(1, 2), linear(tokens, "global_local.k"), linear(tokens, "global_local.proj"), 2
    )
    y = y + told.transpose(1, 2).unflatten(2, (4, 4))
    for got, want in zip(block(x, given), (y, tokens), strict=True):
        assert_near(got, want)


MOBILE_FORMER = {"508m": 14.0, "294m": 11.4, "214m": 9.4, "151m": 7.6, "96m": 4.6, "52m": 3.5, "26m": 3.2}
"""Millions of parameters, classifier included: arXiv:2108.05895 and the authors' release."""


@pytest.mark.slow
@pytest.mark.parametrize("name", MOBILE_FORMER)
def test_mobileformer_has_the_published_size(name: str) -> None:
    """Parameters within 3 %. Multiply-adds of products alone, without norms and activations, are 0 to 11 % fewer than
    the published ones: the name says those."""
    spec = vision_of(f"mobileformer:{name}")
    plugin = plugins.vision(spec)
    module = plugin.build(spec).to("meta").eval().requires_grad_(False)
    total = (parameters(module) + mobileformer.head_parameters(name)) / 1e6
    assert total == pytest.approx(MOBILE_FORMER[name], rel=0.03)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        assert plugin.features(module, torch.empty(1, 3, 224, 224, device="meta"), spec).shape == (
            1,
            49,
            spec.hidden_size,
        )
    variant = mobileformer.VARIANTS[name]
    inner = 6 * spec.hidden_size
    head = 49 * inner * spec.hidden_size // variant.groups + (inner + variant.token_width + 1000) * variant.head
    assert 0.89 < (counter.get_total_flops() / 2 + head) / 1e6 / int(name[:-1]) <= 1.0


TIMM = {
    "mobilenetv3_small_100": 2.5, "mobilenetv3_large_100": 5.4,  # arXiv:1905.02244
    "efficientnet_b0": 5.3,  # arXiv:1905.11946
    "efficientnet_lite0": 4.7,  # tensorflow/tpu, efficientnet/lite/README.md
    "mobilevit_xxs": 1.3, "mobilevit_xs": 2.3, "mobilevit_s": 5.6,  # arXiv:2110.02178
    "mobilevitv2_100": 4.9,  # arXiv:2206.02680
    "efficientformer_l1": 12.3, "efficientformer_l3": 31.3,  # arXiv:2206.01191
    "efficientformerv2_s0": 3.5,  # arXiv:2212.08059
    "fastvit_t8": 4.0,  # timm's card of Apple's weights; arXiv:2303.14189 says 3.6
    "fastvit_mci0": 11.4,  # arXiv:2311.17049, MobileCLIP-S0's image encoder
}  # fmt: skip
"""Millions of parameters, classifier included."""

HEADS = ("classifier", "head", "conv_head", "norm_head")


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_timm_models_have_the_published_size(name: str) -> None:
    """Our tower is the published model without its head."""
    timm = pytest.importorskip("timm", reason="timm is not installed")
    from timm.utils.model import reparameterize_model

    spec = vision_of(f"timm:{name}")
    with torch.device("meta"):
        whole = timm.create_model(name).eval()
    assert parameters(whole) / 1e6 == pytest.approx(TIMM[name], rel=0.03)
    merged_model = reparameterize_model(timm.create_model(name).eval(), inplace=True)  # computes, so not on meta
    merged = {key: value.shape for key, value in merged_model.named_parameters()}
    tower = {key: value.shape for key, value in plugins.vision(spec).build(spec).named_parameters()}
    assert tower.items() <= merged.items()
    left = merged.keys() - tower.keys()
    assert left
    assert all(key.startswith(HEADS) for key in left)
    mean, _ = plugins.vision(spec).colours(spec)
    assert (mean, spec.image_size) == (tuple(whole.pretrained_cfg["mean"]), spec.grid * 32)


@torch.inference_mode()
def test_timm_features_are_timms_last_map() -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    spec, module, run = encoder("timm:mobilenetv3_small_050", 96)
    found = module.forward_features(noise(spec))  # type: ignore[operator]
    assert (spec.grid, spec.hidden_size) == found.shape[2:0:-1][:1] + found.shape[1:2]
    assert torch.equal(run(noise(spec))[:, 4], found[:, :, 1, 1])


@pytest.mark.parametrize(
    ("text", "size", "message"),
    [
        ("timm:nope", None, "timm has no model 'nope': known, for example: mobilenetv3_small_100"),
        ("timm:efficientformer_l1", 160, "cannot take images of 160 pixels .*its own size is 224"),
        ("timm:mobilenetv3_small_050", 70, "do not divide: use a multiple of 32"),
        ("mobileformer:1m", None, "known: mobileformer:294m"),
        ("mobileformer:26m", 100, "use a multiple of 32, such as 96"),
    ],
)
def test_what_an_encoder_cannot_be_is_said(text: str, size: int | None, message: str) -> None:
    if text.startswith("timm"):
        pytest.importorskip("timm", reason="timm is not installed")
    with pytest.raises(Unsupported, match=message):
        vision_of(text, size)


TRANSFORMERS = {
    "clip:b16": 86, "clip:b32": 86, "clip:l14": 307, "clip:l14-336": 307,  # ViT-B and ViT-L: arXiv:2010.11929
    "siglip:b16-224": 86, "siglip:b16-384": 86, "siglip:l16-256": 307,  # the same towers
    "siglip_normed:b16-224": 86, "siglip_normed:b16-256": 86, "siglip_normed:b16-512": 86,
}  # fmt: skip
"""Millions of parameters of the tower."""


@pytest.mark.parametrize("text", TRANSFORMERS)
def test_transformers_have_the_published_size(text: str) -> None:
    spec = vision_of(text)
    assert parameters(plugins.vision(spec).build(spec)) / 1e6 == pytest.approx(TRANSFORMERS[text], rel=0.03)


def test_so400m_has_the_published_size() -> None:
    """428 million with its pooling head: arXiv:2305.13035. The head is what we leave out."""
    spec = vision_of("siglip:so400m-384")
    assert (spec.grid, spec.num_patches) == (27, 729)
    config = SiglipVisionConfig(
        hidden_size=spec.hidden_size, intermediate_size=spec.intermediate_size, num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads, image_size=spec.image_size, patch_size=spec.patch_size,
    )  # fmt: skip
    with torch.device("meta"):
        whole = SiglipVisionModel(config)
    assert parameters(whole) / 1e6 == pytest.approx(428, rel=0.03)
    tower = plugins.vision(spec).build(spec)
    left = {name for name, _ in whole.named_parameters()} - {name for name, _ in tower.named_parameters()}
    assert left
    assert all(name.startswith("head.") for name in left)
