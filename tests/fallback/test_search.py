"""Float fallback by measurement, on the demo: the layers that int8 ruins are found, and no others go back to float."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from vlmexport.calibrate import Sample, calibration_samples
from vlmexport.calibrate.collect import collect
from vlmexport.console import Advance, Console, Unit
from vlmexport.fallback import search
from vlmexport.fallback.search import Fallback
from vlmexport.fallback.simulated import int8_layers
from vlmexport.model import VLM, load
from vlmexport.processing.tokenizer import Tokenizer
from vlmexport.quantize.choice import Choice
from vlmexport.quantize.int8 import Decisions
from vlmexport.quantize.observers import activation_range
from vlmexport.quantize.ranges import Range
from vlmexport.quantize.schemes import find_scheme
from vlmexport.recipe import Gates
from vlmexport.source.locate import open_model

SCHEME = find_scheme("fbgemm")
GATES = Gates(tokens_cosine=0.99, logits_kld=0.05)
RUINED = {"vision": "vision.encoder.layers.1.mlp.fc2", "language": "language.model.layers.2.self_attn.o_proj"}

Opened = tuple[VLM, Tokenizer, list[Sample], dict[str, Choice]]


@pytest.fixture(scope="module")
def opened() -> Opened:
    """The demo, a few samples, and int8 with ranges of these samples for every layer."""
    checkpoint = open_model("demo")
    vlm, samples = load(checkpoint), calibration_samples(6)
    found = collect(vlm, checkpoint.prompts, samples)
    choices = {
        path: Choice(activation_range(layer, "mse", SCHEME), None, 1, 0.0, SCHEME)
        for path, layer in found.layers.items()
        if "down_proj" not in path and "patch_embedding" not in path
    }
    return vlm, checkpoint.prompts, samples, choices


def of(component: str, choices: dict[str, Choice]) -> dict[str, Choice]:
    return {path: choice for path, choice in choices.items() if path.startswith(f"{component}.")}


@pytest.mark.parametrize("component", ["vision", "language"])
@pytest.mark.slow
def test_a_ruined_layer_goes_back_alone(component: str, opened: Opened) -> None:
    vlm, tokenizer, samples, choices = opened
    mine = of(component, choices)
    fallback = Fallback(lambda: (vlm, tokenizer), samples, GATES)
    assert fallback(Decisions(mine)) == {}
    assert fallback.losses == {}  # nothing was ranked: all of it passes
    wide = mine[RUINED[component]].span
    mine[RUINED[component]] = Choice(Range(500 * wide.low, 500 * wide.high), None, 1, 0.0, SCHEME)
    sent_back = fallback(Decisions(mine))
    assert list(sent_back) == [RUINED[component]]
    assert "measured" in sent_back[RUINED[component]]
    assert max(fallback.losses, key=lambda path: fallback.losses[path]) == RUINED[component]


class Told(Console):
    """Notes what is said: the steps that were announced, and how many were done."""

    def __init__(self) -> None:
        super().__init__()
        self.announced: dict[str, int] = {}
        self.done: dict[str, int] = {}

    @contextmanager
    def progress(self, label: str, total: int, unit: Unit = "steps", done: int = 0) -> Iterator[Advance]:
        def advance(amount: int = 1, /) -> None:
            self.done[label] += amount

        self.announced[label], self.done[label] = total, done
        yield advance


@pytest.mark.slow
def test_a_large_model_is_ranked_on_few_samples_and_judged_on_all(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred groups of layers on two dozen samples would be hours of work; and every step of it is announced."""
    vlm, tokenizer, samples, choices = opened
    mine, told = of("vision.encoder.layers.1", choices), Told()
    wide = mine[RUINED["vision"]].span
    mine[RUINED["vision"]] = Choice(Range(500 * wide.low, 500 * wide.high), None, 1, 0.0, SCHEME)
    monkeypatch.setattr(search, "RANKING", 1)
    sent_back = Fallback(lambda: (vlm, tokenizer), samples, GATES, told)(Decisions(mine))
    assert list(sent_back) == [RUINED["vision"]]
    assert len(mine) == 6
    finding = "finding the fewest of them"
    assert told.announced == {
        "measuring tokens in float": 6, "measuring tokens in int8": 6, "ranking 6 groups of layers": 6 * search.FEWEST,
        finding: 3 * 6,
    }  # fmt: skip
    assert told.done == told.announced | {finding: 2 * 6}  # halves of six are found in two steps or three


def test_the_model_is_as_it_was_afterwards(opened: Opened) -> None:
    vlm, _, samples, choices = opened
    pixels = vlm.pixels(samples[0].image())
    before = vlm.features(pixels)
    with int8_layers(vlm, choices, list(of("vision", choices))):
        within = vlm.features(pixels)
    assert not torch.equal(before, within)
    assert torch.equal(before, vlm.features(pixels))


def test_nothing_is_opened_for_a_graph_without_int8_layers() -> None:
    def never() -> tuple[VLM, Tokenizer]:
        raise AssertionError

    assert Fallback(never, [], GATES)(Decisions()) == {}
