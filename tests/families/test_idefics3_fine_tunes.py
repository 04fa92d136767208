"""Fine-tunes of Idefics3 and SmolVLM as people have them: each is saved as its tools save it, and compared with
transformers stage by stage. What merging by peft and a ``Trainer`` leave was taken from runs of both."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.families.test_idefics3 import check_stages, edit
from tests.onnx_bundles import picture
from tests.smolvlm import CLASSES, LOOK, TEMPLATE, Model, Processor, asked_of, new_model, processor, tokenizer
from vlmexport.errors import CheckpointError
from vlmexport.pipeline import export
from vlmexport.processing.prompt import PLACEHOLDER
from vlmexport.recipe import resolve
from vlmexport.runtime.open import open_runtime
from vlmexport.source.checkpoint import open_checkpoint

OTHER = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML, which people train with in place of the published template."""


@dataclass
class Tuned:
    """A model in a folder.

    Attributes:
        folder: what is opened.
        model: transformers' of the same weights.
        processor: its own.
    """

    folder: Path
    model: Model
    processor: Processor

    def save(self, **how: Any) -> Tuned:
        """As ``save_pretrained`` writes both; what transformers reads again is what counts."""
        self.model.save_pretrained(self.folder, **how)
        self.processor.save_pretrained(self.folder)
        found = CLASSES["smolvlm" if "SmolVLM" in type(self.model).__name__ else "idefics3"][1]
        self.model = found.from_pretrained(self.folder, dtype=torch.float32).eval()
        return self

    def weights(self, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
        """Store the tensors otherwise."""
        path = self.folder / "model.safetensors"
        save_file(change(load_file(path)), path, {"format": "pt"})


def tuned(folder: Path, kind: str = "smolvlm", tied: bool = False, **processed: Any) -> Tuned:
    text = {"tie_word_embeddings": tied} if tied else {}
    tokens = tokenizer()
    return Tuned(folder, new_model(kind, tokens, text, **text), processor(kind, tokens, **processed))


def padded(one: Tuned) -> Tuned:
    """Added tokens, rows up to a multiple, two heads, float16."""
    words = one.processor.tokenizer
    words.add_tokens(["<loc_1>", "<loc_2>"], special_tokens=True)
    words.add_tokens(["kilogram"])
    one.model.resize_token_embeddings(len(words), pad_to_multiple_of=64)
    assert one.model.config.text_config.vocab_size % 64 == 0
    one.model.half()
    return one.save()


def narrowed(one: Tuned) -> Tuned:
    """Rows for the tokens and no more, one head, bfloat16."""
    one.model.resize_token_embeddings(len(one.processor.tokenizer))
    one.model.bfloat16()
    return one.save()


def merged(one: Tuned) -> Tuned:
    """A low rank is added to weights, as merging does."""
    with torch.no_grad():
        for name, value in one.model.named_parameters():
            if ".q_proj.weight" in name or ".down_proj.weight" in name:
                value += 0.1 * torch.randn(value.shape[0], 4) @ torch.randn(4, value.shape[1])
    return one.save()


def trained(one: Tuned) -> Tuned:
    """A ``Trainer``'s folder: its state beside, gradient checkpointing in the config, no cache."""
    one.folder = one.folder / "run" / "checkpoint-10"
    one.save()
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "scaler.pt"):
        torch.save({"state": torch.zeros(3)}, one.folder / name)
    (one.folder / "trainer_state.json").write_text(json.dumps({"global_step": 10}))
    (one.folder / "latest").write_text("global_step10")
    edit(one.folder, lambda config: config.update(use_cache=False, _attn_implementation_autoset=True))
    return one


def sharded(one: Tuned) -> Tuned:
    one.save(max_shard_size="300KB")
    assert len(list(one.folder.glob("model-*-of-*.safetensors"))) > 2
    return one


def of_transformers_4(one: Tuned) -> Tuned:
    """Its files: an image processor and a template of their own, a list of added tokens, ``torch_dtype``."""
    one.save()
    path = one.folder / "processor_config.json"
    told = json.loads(path.read_text())
    pixels = told.pop("image_processor")
    (one.folder / "preprocessor_config.json").write_text(json.dumps(pixels | {"processor_class": "X"}))
    path.write_text(json.dumps({"image_seq_len": told["image_seq_len"], "processor_class": told["processor_class"]}))
    template = (one.folder / "chat_template.jinja").read_text()
    (one.folder / "chat_template.jinja").unlink()
    (one.folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    words = one.processor.tokenizer
    listed = {str(i): {"content": text, "special": True} for text, i in words.get_added_vocab().items()}
    edit(one.folder, lambda config: config.update(added_tokens_decoder=listed), "tokenizer_config.json")
    edit(one.folder, lambda config: config.update(torch_dtype=config.pop("dtype")))
    return one


def without_a_head(one: Tuned) -> Tuned:
    """What ``AutoModel`` saves: a tied head is not there, and no name begins with ``model.``."""
    one.save()
    one.weights(lambda held: {name.removeprefix("model."): value for name, value in held.items()})
    edit(one.folder, lambda config: config.update(architectures=["SmolVLMModel"]))
    return one


def of_no_class(one: Tuned) -> Tuned:
    """Old scripts name none, or the class that they loaded it with."""
    one.save()
    edit(one.folder, lambda config: config.update(architectures=["AutoModelForVision2Seq"]))
    return one


def wrapped(one: Tuned) -> Tuned:
    """Names as a compiled model in data parallelism has them."""
    one.save()
    one.weights(lambda held: {f"module._orig_mod.{name}": value for name, value in held.items()})
    return one


def of_other_words(one: Tuned) -> Tuned:
    """Another chat template, and another end of an answer."""
    one.processor.chat_template = OTHER
    one.processor.tokenizer.eos_token = "<|im_end|>"
    one.model.generation_config.eos_token_id = one.processor.tokenizer.eos_token_id
    return one.save()


def of_fewer_squares(one: Tuned) -> Tuned:
    """A connector that joins other squares, so that a view has 16 visual tokens, and pictures that are not cut."""
    words = one.processor.tokenizer
    one.model = new_model("smolvlm", words, {}, scale_factor=2)
    one.processor = processor("smolvlm", words, do_image_splitting=False)
    one.processor.image_seq_len = 16
    return one.save()


CHANGES: dict[str, tuple[Callable[[Tuned], Tuned], dict[str, Any]]] = {
    "padded": (padded, {"kind": "idefics3"}),
    "narrowed": (narrowed, {"tied": True}),
    "merged": (merged, {}),
    "trained": (trained, {}),
    "sharded": (sharded, {"kind": "idefics3"}),
    "transformers 4": (of_transformers_4, {"kind": "idefics3"}),
    "without a head": (without_a_head, {"tied": True}),
    "no class": (of_no_class, {}),
    "wrapped": (wrapped, {}),
    "other words": (of_other_words, {}),
    "fewer squares": (of_fewer_squares, {}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_stage(name: str, tmp_path: Path) -> None:
    change, how = CHANGES[name]
    one = change(tuned(tmp_path, **how))
    check_stages(one.folder, one.model, one.processor, "question")


def adapted(one: Tuned) -> None:
    """A layer as peft keeps it beside an adapter."""

    def change(held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = "model.text_model.layers.0.self_attn.q_proj"
        held[f"{name}.base_layer.weight"] = held.pop(f"{name}.weight")
        held[f"{name}.lora_A.default.weight"] = torch.zeros(4, 256)
        held[f"{name}.lora_B.default.weight"] = torch.zeros(256, 4)
        return held

    one.weights(change)


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_an_adapter_inside_is_told(prefix: str, tmp_path: Path) -> None:
    one = tuned(tmp_path).save()
    adapted(one)
    one.weights(lambda held: {prefix + name: value for name, value in held.items()})
    with pytest.raises(CheckpointError, match=r"holds an adapter that is not merged \(.*\): save what peft") as caught:
        open_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_adapters_folder_is_told(tmp_path: Path) -> None:
    """As ``save_pretrained`` of peft's class writes it, the processor beside it."""
    one = tuned(tmp_path)
    one.processor.save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    save_file({"base_model.model.model.x.lora_A.weight": torch.zeros(4)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"is a LoRA adapter, not a model: merge it into its base model"):
        open_checkpoint(tmp_path)


@pytest.mark.slow
def test_a_bundle_answers_as_the_model(tmp_path: Path) -> None:
    """One of all at once: added tokens, padded rows, bfloat16, a tied head, other words, files of transformers 4."""
    one = tuned(tmp_path / "model", tied=True)
    one.model.bfloat16()
    words = one.processor.tokenizer
    words.add_tokens(["<loc_1>", "<loc_2>"], special_tokens=True)
    one.model.resize_token_embeddings(len(words), pad_to_multiple_of=64)
    one.processor.chat_template = OTHER
    one = of_transformers_4(one)
    bundle = export(str(one.folder), resolve("onnx-fp32", environ={}), tmp_path / "bundle")
    image = picture(0, (300, 220))
    given = asked_of(one.processor, (LOOK,), [image])
    with closing(open_runtime(bundle)) as runtime, torch.inference_mode():
        made = runtime.pixels(image)
        tokens = runtime.tokens(runtime.features(made))
        prompt = runtime.prompt((LOOK,), [made.views])
        found = [token.id for token in runtime.generate(prompt, [tokens], 8)]
        answer = one.model.generate(**given, max_new_tokens=8, do_sample=False)[0, len(prompt.ids) :].tolist()
    image_token = one.model.config.image_token_id
    assert [image_token if i == PLACEHOLDER else i for i in prompt.ids] == given["input_ids"][0].tolist()
    assert found == answer
    assert (bundle / "chat_template.json").is_file()


def test_a_template_of_the_tokenizer_alone(tmp_path: Path) -> None:
    one = tuned(tmp_path).save()
    (tmp_path / "chat_template.jinja").unlink()
    edit(tmp_path, lambda config: config.update(chat_template=TEMPLATE), "tokenizer_config.json")
    check_stages(tmp_path, one.model, one.processor, "question")
