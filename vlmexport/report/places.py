"""Which layer a failing stage failed at, in sentences: wrong int8 weights, and what ``--bisect`` found."""

from __future__ import annotations

from vlmexport.artifact.bundle.card import number
from vlmexport.parity.result import BisectResult, LayerDifference, ParityResult

_SHOWN = 5


def places(result: ParityResult, stage: str) -> tuple[str, ...]:
    """Of one stage; none where no layer of it is known to be wrong."""
    wrong = [fault for fault in result.weights.faults if fault.stage == stage] if result.weights else []
    found = [f"{fault.layer}: {fault.what}" for fault in wrong[:_SHOWN]]
    if len(wrong) > _SHOWN:
        found.append(f"and {len(wrong) - _SHOWN} more layers")
    if result.bisect and stage in result.bisect.first:
        found.append(_first(result.bisect, stage))
    return tuple(found)


def _first(found: BisectResult, stage: str) -> str:
    layers = [layer for layer in found.layers if layer.stage == stage]
    place = next(i for i, layer in enumerate(layers) if layer.layer == found.first[stage])
    said = f"the first layer that diverges is {named(layers[place])} ({difference(layers[place])})"
    return f"{said}, behind {named(layers[place - 1])} ({difference(layers[place - 1])})" if place else said


def named(layer: LayerDifference) -> str:
    """A layer's path; of a whole component, what it gives."""
    return layer.layer if "." in layer.layer else f"what follows the layers of {layer.layer}"


def difference(layer: LayerDifference) -> str:
    """How far a layer is from the float model's."""
    return layer.note or "" if layer.nmse is None else f"NMSE {number(layer.nmse)}"


def costs(found: BisectResult) -> list[str]:
    """The int8 layers that cost most, a sentence for the tokens and one for the logits."""
    said = []
    for metric, where in (("nmse", "visual tokens"), ("kld", "logits")):
        worst = [loss for loss in found.losses if loss.metric == metric][:_SHOWN]
        if worst:
            each = ", ".join(f"{loss.layer} ({number(loss.loss)})" for loss in worst)
            said.append(f"int8 layers that cost most {metric} of the {where}, each alone: {each}")
    return said
