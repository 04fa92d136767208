"""Mutations of the prompt: the decoder is right, and is asked something else."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.mutations.conftest import Mutate
from tests.mutations.copies import failed

pytestmark = pytest.mark.slow


def test_a_wrong_bos(mutant: Mutate) -> None:
    found = mutant("fp32")

    def swap(document: dict[str, Any]) -> None:
        template = document["post_processor"]
        for token in template["special_tokens"].values():
            token["ids"] = [2]

    found.edit_json("tokenizer.json", swap)
    result = found.check()
    assert result.broken_stage == "logits"
    assert failed(result) >= {("logits", "chained")}
    assert not failed(result) & {("logits", "local"), ("tokens", "chained")}
    (stage,) = (stage for stage in result.stages if (stage.stage, stage.mode) == ("logits", "chained"))
    assert stage.error == "the prompt differs at token 0: 2, the float model's is 1"


def test_a_newline_missing_after_the_image(mutant: Mutate) -> None:
    found = mutant("fp32")

    def strip(document: dict[str, Any]) -> None:
        document["chat_template"] = document["chat_template"].replace("<image>\n", "<image>")

    found.edit_json("tokenizer_config.json", strip)
    result = found.check()
    assert result.broken_stage == "logits"
    (stage,) = (stage for stage in result.stages if (stage.stage, stage.mode) == ("logits", "chained"))
    assert stage.error is not None
    assert re.match(r"the prompt differs at token \d+: \d+, the float model's is \d+ ", stage.error)
    assert "for '\\n" in stage.error
