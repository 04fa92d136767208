"""SmolDocling and granite-docling: Idefics3 with tags of documents as special tokens; the second has a vocabulary, a
template and a tied head of its own. Published configs on tiny models, against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import Idefics3Processor, PreTrainedTokenizerFast
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from tests.families.test_idefics3 import check_stages, edit
from tests.smolvlm import LONGEST, SIDE, TOKENS, new_model, processor, tokenizer
from tests.vocabularies import byte_level
from vlmexport.artifact.gguf import byte_level as gguf
from vlmexport.processing.fast_tokenizer import FastTokenizer
from vlmexport.source.checkpoint import open_checkpoint

TAGS = (
    "<doctag>", "</doctag>", "<text>", "</text>", "<otsl>", "</otsl>", "<fcel>", "<nl>", "<code>", "</code>", "<rec_",
    "<link_", "<page_break>",
)  # fmt: skip
PLACES = tuple(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5))
GRANITE = (
    "<|pad|>", "<|end_of_text|>", *PLACES[:2], "<text>", *PLACES[2:5], "<|start_of_role|>", "<|end_of_role|>",
    *PLACES[5:7], "<image>", *(tag for tag in TAGS if tag != "<text>"), "<|unk|>", "<fake_token_around_image>",
    "<global-img>", *PLACES[7:],
)  # fmt: skip
"""In the order of granite-docling's: places of tiles lie between tags."""

ROLES = (
    "{%- for message in messages -%}{{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    "{%- for part in message['content'] -%}{{- part['text'] if part['type'] == 'text' else '<image>' -}}{%- endfor -%}"
    "{%- endif -%}{{- '<|end_of_text|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start_of_role|>assistant<|end_of_role|>' -}}{%- endif -%}"
)
SAID = ("turns", "strange")


@pytest.fixture(scope="module")
def granite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With what its published files say beside what the classes read. As many rows as tokens: the processor adds one
    more, ``<end_of_utterance>``, which has none."""
    folder = tmp_path_factory.mktemp("granite")
    tokens = PreTrainedTokenizerFast(
        tokenizer_object=byte_level("dbrx", special=GRANITE), bos_token="<|start_of_role|>",
        eos_token="<|end_of_text|>", pad_token="<|end_of_text|>", unk_token="<|unk|>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    text = {"tie_word_embeddings": True, "head_dim": 64, "vocab_size": len(tokens)}
    model = new_model("idefics3", tokens, text, tie_word_embeddings=True)
    model.bfloat16().save_pretrained(folder)
    pixels = Idefics3ImageProcessorPil(size={"longest_edge": LONGEST}, max_image_size={"longest_edge": SIDE})
    Idefics3Processor(pixels, tokens, TOKENS, ROLES).save_pretrained(folder)
    edit(folder, lambda config: config.update(vocab_size=config["text_config"]["vocab_size"], use_cache=True))
    assert tokens.convert_tokens_to_ids("<end_of_utterance>") == model.config.text_config.vocab_size
    return folder


@pytest.mark.parametrize("name", SAID)
def test_every_stage_of_granite_docling(name: str, granite: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(granite, dtype="float32").eval()
    made = AutoProcessor.from_pretrained(granite, backend="pil")
    check_stages(granite, model, made, name)


def test_what_is_read_of_granite_docling(granite: Path) -> None:
    checkpoint = open_checkpoint(granite)
    tokenizer = checkpoint.tokenizer
    end = tokenizer.added["<|end_of_text|>"]
    assert checkpoint.spec.stop_token_ids == (end,)
    assert checkpoint.prompts.end_of_turn == end
    assert "lm_head.weight" not in checkpoint.tensors["language"]
    assert set(GRANITE) <= tokenizer.special
    assert "<end_of_utterance>" not in tokenizer.added
    assert isinstance(tokenizer, FastTokenizer)
    assert gguf.pre(tokenizer.path, tokenizer.document) == "dbrx"  # numbers of up to three digits, as Granite has them


@pytest.mark.parametrize("name", SAID)
def test_every_stage_of_smoldocling(name: str, tmp_path: Path) -> None:
    tokens = tokenizer()
    tokens.add_special_tokens({"additional_special_tokens": list(TAGS)}, replace_extra_special_tokens=False)
    model, made = new_model("idefics3", tokens, {}), processor("idefics3", tokens)
    model.save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    check_stages(tmp_path, model, made, name)
    assert set(TAGS) <= open_checkpoint(tmp_path).tokenizer.special
