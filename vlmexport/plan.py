"""What an export would write and take, from config and tensor headers alone: bytes, bits a weight, peak memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from vlmexport.artifact.bundle.halves import LABELS
from vlmexport.artifact.onnx.passes.repeat_layers import TRACED
from vlmexport.artifact.onnx.sizes import extras, used_tower
from vlmexport.artifact.write import Writer
from vlmexport.errors import Unsupported
from vlmexport.flags import gguf_recipe, gguf_type, vision_flags
from vlmexport.measure import hessian_bytes
from vlmexport.model import plugins
from vlmexport.recipe import Recipe, resolve, shipped
from vlmexport.source.checkpoint import COMPONENTS, Checkpoint

_GB = 10**9
GGUF_PEAK = 0.25 * _GB
"""Peak of a GGUF export: it holds a few blocks of rows, whatever the model."""

_LIBRARIES = 1.12 * _GB
"""torch, transformers and the ONNX packages, once something was traced."""

_IN_FLIGHT, _IN_FLIGHT_COPIES = 0.38 * _GB, 2
"""Weights that are read, converted and written at a time, at most; of a small model, copies of its float32 weights."""

_SKETCH_COPIES = 3
"""A traced sketch lives in torch, in its graph, and in the session that it is compared in."""


@dataclass(frozen=True)
class Part:
    """A component of a bundle: ``bytes`` of its files, ``weights`` it stands for."""

    name: str
    bytes: int
    weights: int

    @property
    def bits(self) -> float:
        """Bits a weight; 0 where it holds none of its own."""
        return 8 * self.bytes / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class Plan:
    """One recipe on one checkpoint. ``refused`` says why it cannot be, ``cure`` what can; then there are no parts."""

    recipe: str
    parts: tuple[Part, ...] = ()
    calibrates: tuple[str, ...] = ()
    peak: int = 0
    refused: str | None = None
    cure: str = ""

    @property
    def bytes(self) -> int:
        """Of the whole bundle."""
        return sum(part.bytes for part in self.parts)

    def facts(self) -> dict[str, object]:
        """In plain data."""
        parts = [asdict(part) | {"bits_per_weight": round(part.bits, 3)} for part in self.parts]
        return {
            "recipe": self.recipe, "bytes": self.bytes, "parts": parts, "calibrated_components": list(self.calibrates),
            "peak_memory_bytes": self.peak, "refused": self.refused,
        }  # fmt: skip


def choose(
    names: Sequence[str], kinds: Sequence[str], bits: int | None, flags: Mapping[str, Any], vision: str | None = None
) -> list[Recipe]:
    """The recipes to plan: those named and those of GGUF types. Without any, q4_k_m where there are flags of GGUF, else
    all that ship.

    Args:
        names: of recipes, or TOML files.
        flags: dotted keys of the recipe that all of them get; values that are None are left out.
        vision: what sees in those of GGUF, as ``vision_flags`` takes it.

    Raises:
        UsageError: an unknown recipe or number of bits, or a value that does not fit.
    """
    types = [gguf_type(kind, None) for kind in kinds] + ([gguf_type(None, bits)] if bits is not None else [])
    wanted: list[tuple[str, dict[str, str]]] = [(name, {}) for name in names] + [gguf_recipe(kind) for kind in types]
    if not wanted:
        wanted = (
            [gguf_recipe(None)]
            if any(flags[name] for name in flags if name.startswith("gguf."))
            else [(name, {}) for name in shipped()]
        )
    found = [resolve(name, {**chosen, **flags}) for name, chosen in wanted]
    if vision is None:
        return found
    return [
        resolve(name, {**chosen, **flags, **vision_flags(vision, None, name, one.name)})
        if one.format == "gguf"
        else one
        for one, (name, chosen) in zip(found, wanted, strict=True)
    ]


def plan(checkpoint: Checkpoint, recipes: Iterable[Recipe]) -> list[Plan]:
    """Plan exports. GGUF files will be of exactly these sizes, ONNX within 2 %; the peak is a figure for Linux, of a
    first export: where its trace or its statistics are kept from another one, it takes less.

    Raises:
        UsageError: an unknown GGUF type.
    """
    plugins.check_parts(checkpoint)
    settings = cache(lambda: extras(checkpoint))
    return [_plan(checkpoint, recipe, settings) for recipe in recipes]


def _plan(checkpoint: Checkpoint, recipe: Recipe, settings: Callable[[], int]) -> Plan:
    checkpoint, calibrates = checkpoint.within(recipe.max_views), recipe.statistics_components
    try:
        parts, peak = _onnx(checkpoint, recipe, settings) if recipe.format == "onnx" else _gguf(checkpoint, recipe)
    except Unsupported as error:
        return Plan(recipe.name, refused=error.what, cure=error.cure)
    if calibrates:
        peak = max(peak, _calibration(checkpoint, calibrates))
    if recipe.uses_gptq:
        language = checkpoint.spec.language
        peak = max(peak, _calibration(checkpoint, COMPONENTS) + hessian_bytes(language) / language.num_layers)
    return Plan(recipe.name, parts, calibrates, int(peak))


def _weights(checkpoint: Checkpoint) -> dict[str, int]:
    """Weights in use by component."""
    found = {component: checkpoint.parameters(component) for component in COMPONENTS[1:]}
    return {"vision": sum(tensor.numel for _, tensor in used_tower(checkpoint)), **found}


def _gguf(checkpoint: Checkpoint, recipe: Recipe) -> tuple[tuple[Part, ...], float]:
    """A budget is spent but for a part of the smallest step."""
    writer = Writer(checkpoint, recipe)
    writer.refuse()
    weights, total = _weights(checkpoint), writer.sizes
    parts = [Part("language", total.pop("language"), weights["language"])]
    stands_for, peak = weights["vision"] + weights["projector"], float(GGUF_PEAK)
    if recipe.gguf.vision == "mmproj":
        parts.append(Part(LABELS["mmproj"], total.pop("mmproj"), stands_for))
    else:
        parts.append(Part("vision_encoder", total.pop("vision_encoder"), stands_for))
        parts.append(Part("projector", total.pop("projector"), 0))
        peak = _working(checkpoint) + _SKETCH_COPIES * _sketch(checkpoint, recipe)
    parts += [Part(LABELS[role], size, 0) for role, size in total.items()]
    return tuple(parts), peak


def _onnx(checkpoint: Checkpoint, recipe: Recipe, settings: Callable[[], int]) -> tuple[tuple[Part, ...], float]:
    weights, graphs = _weights(checkpoint), Writer(checkpoint, recipe).sizes
    table = plugins.token_table(checkpoint).numel
    stands_for = {
        "vision_encoder": weights["vision"] + weights["projector"], "embed_tokens": table,
        "decoder_model_merged": weights["language"] - table,
    }  # fmt: skip
    parts = [Part(name, size, stands_for.get(name, 0)) for name, size in graphs.items()]
    parts.append(Part("tokenizer and settings", settings(), 0))
    return tuple(parts), _working(checkpoint) + _SKETCH_COPIES * _sketch(checkpoint, recipe) + graphs["embed_tokens"]


def _working(checkpoint: Checkpoint) -> float:
    """What any export takes that traces or calibrates."""
    float_weights = 4.0 * sum(checkpoint.parameters(component) for component in COMPONENTS)
    return _LIBRARIES + min(_IN_FLIGHT, _IN_FLIGHT_COPIES * float_weights)


def _sketch(checkpoint: Checkpoint, recipe: Recipe) -> int:
    """Bytes of the float32 weights that are traced."""
    spec, weights = checkpoint.spec, _weights(checkpoint)
    part = TRACED / spec.vision.used_layers if spec.vision.used_layers > TRACED else 1.0
    layers = part * weights["vision"] + weights["projector"]
    if recipe.format == "onnx" and not recipe.onnx.fused_decoder:
        layers += TRACED / spec.language.num_layers * weights["language"]
    return int(4 * layers)


def _calibration(checkpoint: Checkpoint, components: tuple[str, ...]) -> float:
    """The float model in memory, as far as half of what is free reaches; else mapped, and so counted as it is."""
    from vlmexport.model.weights import available_memory

    budget, total = available_memory() / 2, _working(checkpoint)
    for component in components:
        resident = 4.0 * checkpoint.parameters(component)
        stays = resident <= budget
        budget -= resident if stays else 0
        total += resident if stays else sum(tensor.nbytes for tensor in checkpoint.tensors[component].values())
    return total
