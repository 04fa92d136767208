"""Costs of checkpoints, from estimate to command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from tests.checkpoints import tiny_spec, write_checkpoint
from tests.command import vlmexport
from tests.test_cli import assert_one_line_error
from vlmexport.costs import choose_phones, estimate
from vlmexport.costs.phones import phones
from vlmexport.plan import plan
from vlmexport.recipe import resolve
from vlmexport.report.costs import compare, plot
from vlmexport.source.checkpoint import Checkpoint, open_checkpoint
from vlmexport.source.locate import open_model


def test_fewer_bits_take_less_time_a_token(tiny: Checkpoint) -> None:
    phone = choose_phones(["raspberry-pi-5"])
    names = ("onnx-arm64-int4", "onnx-arm64", "onnx-fp32")
    found = {name: estimate(tiny, resolve(name), phone).times[0] for name in names}
    tokens = [found[name].token.low for name in names]
    assert tokens == sorted(tokens)
    assert found["onnx-fp32"].image.low == pytest.approx(4 * found["onnx-arm64"].image.low)
    assert found["onnx-arm64"].image == found["onnx-arm64-int4"].image


def test_a_token_reads_the_decoder_and_not_the_embedding(tiny: Checkpoint) -> None:
    (phone,) = choose_phones(["raspberry-pi-5"])
    costs = estimate(tiny, resolve("gguf-f16"), [phone])
    language = tiny.spec.language
    read = costs.times[0].token.low * phone.bandwidth * phone.token[1]
    weights = 2 * (costs.parameters["language"] - language.vocab_size * language.hidden_size)
    assert read == pytest.approx(weights, rel=0.25), "the file's vocabulary is part of it, and large in a tiny model"
    assert read < next(part.bytes for part in costs.plan.parts if part.name == "language")


def test_a_recipe_that_refuses_has_no_times(tmp_path: Path) -> None:
    linear = open_checkpoint(write_checkpoint(tmp_path / "linear", tiny_spec("linear", image_size=56)))
    recipe, phone = resolve("gguf-q4_k_m"), choose_phones(["snapdragon-888"])
    found = [estimate(checkpoint, recipe, phone) for checkpoint in (open_model("demo"), linear)]
    assert [bool(one.times) for one in found] == [True, False]
    assert "linear" in str(found[1].facts()["refused"])
    console = Console(width=200)
    with console.capture() as capture:
        console.print(compare(found))
    assert capture.get().count("refused") == 5
    assert plot(found).count("<circle") == 2


def test_compare(tiny_folder: Path, tmp_path: Path) -> None:
    plot = tmp_path / "costs.svg"
    found = vlmexport("compare", "demo", tiny_folder, "--phone", "raspberry-pi-5", "--plot", plot)
    assert found.returncode == 0, found.stderr
    assert "Raspberry Pi 5" in found.stdout
    row = next(line for line in found.stdout.splitlines() if "visual tokens" in line)
    assert row.count("144") == 2
    assert plot.read_text().count("<circle") == 4


def test_plan_shows_every_phone(tiny: Checkpoint, tiny_folder: Path) -> None:
    (facts,) = json.loads(vlmexport("plan", tiny_folder, "--recipe", "onnx-arm64", "--json").stdout)
    assert facts["bytes"] == plan(tiny, [resolve("onnx-arm64")])[0].bytes
    assert facts["operations"]["vision"] > facts["operations"]["projector"] > 0
    assert [time["phone"] for time in facts["times"]] == list(phones())


def test_an_unknown_phone() -> None:
    assert_one_line_error(vlmexport("plan", "demo", "--phone", "nokia"), 2, "unknown phone 'nokia'", "snapdragon-888")
