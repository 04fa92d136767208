"""An ONNX bundle on ONNX Runtime, through nothing but the bundle's own files."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image
from tokenizers import Tokenizer

from vlmexport.artifact.bundle import Manifest
from vlmexport.artifact.session import THREADS, open_session, run
from vlmexport.artifact.tokenizer_json import encode
from vlmexport.artifact.verify import empty_cache
from vlmexport.checkpoint import PromptSpec, VisionSpec
from vlmexport.checkpoint.tokenizer import Prompt, split_prompt
from vlmexport.errors import CheckpointError
from vlmexport.model.pixels import pixel_values
from vlmexport.runtime.stages import F32, Token

_MACHINES = {"x86": ("x86_64", "amd64", "i386", "i686"), "arm64": ("arm64", "aarch64")}


class OrtRuntime:
    """The five stages of an ONNX bundle; sessions are opened when a stage first needs them.

    ``features`` reads the value inside the vision graph that the manifest names. ``tokens`` runs the projector alone,
    except on the very array that ``features`` returned last: those tokens came out of the whole vision graph, which is
    what users run.
    """

    def __init__(self, bundle: Path, manifest: Manifest, threads: int = THREADS) -> None:
        self.name = f"onnxruntime {onnxruntime.__version__}"
        self.notes = _notes(manifest)
        spec = manifest.source.spec
        self.eos_token_id = int(spec["eos_token_id"])
        self._bos = int(spec["bos_token_id"])
        self._bundle, self.details, self._threads = bundle, manifest.details, threads
        self._vision_spec = VisionSpec(**spec["vision"])
        self._template = PromptSpec(**manifest.details["prompt"])
        self._last: tuple[F32, F32] | None = None
        try:
            self._tokenizer = Tokenizer.from_file(str(bundle / self.details["tokenizer"]))
        except Exception as error:  # tokenizers raises Exception itself
            raise CheckpointError(f"{bundle} has no readable tokenizer.json ({error})", "export it again") from error

    def pixels(self, image: Image.Image) -> F32:
        """RGB image → [1, 3, height, width]."""
        return pixel_values(image, self._vision_spec).numpy()

    def features(self, pixels: F32) -> F32:
        """[1, 3, height, width] → [1, patches, vision width]."""
        outputs = run(self._vision, {"pixel_values": pixels})
        features = outputs[self.details["features"]]
        self._last = (features, outputs["image_features"][None])
        return features

    def tokens(self, features: F32) -> F32:
        """[1, patches, vision width] → [1, visual tokens, hidden]."""
        if self._last is not None and features is self._last[0]:
            return self._last[1]
        return run(self._projector, {"features": features})["image_features"][None]

    def prompt(self, question: str) -> Prompt:
        """Token ids before and after the image, by ``tokenizer.json``."""
        text = self._template.text(question)
        before, after = split_prompt(text)
        ids = (self._bos, *encode(self._tokenizer, before))
        return Prompt(text, ids, tuple(encode(self._tokenizer, after)))

    def logits(self, prompt: Prompt, tokens: F32) -> F32:
        """[1, sequence, vocabulary]."""
        return self._step(self._embeds(prompt, tokens), empty_cache(self._decoder))[0]

    def generate(self, prompt: Prompt, tokens: F32, max_new_tokens: int) -> Iterator[Token]:
        """Greedy decoding, the end-of-sequence token included."""
        embeds, cache = self._embeds(prompt, tokens), empty_cache(self._decoder)
        for _ in range(max_new_tokens):
            logits, cache = self._step(embeds, cache)
            second, best = np.partition(logits[0, -1], -2)[-2:]
            token = int(logits[0, -1].argmax())
            yield Token(token, float(best - second))
            if token == self.eos_token_id:
                return
            embeds = self._embed((token,))

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, without control tokens."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()

    def close(self) -> None:
        """Release the sessions."""
        for name in ("_vision", "_projector", "_embedding", "_decoder"):
            self.__dict__.pop(name, None)

    @cached_property
    def _vision(self) -> onnxruntime.InferenceSession:
        return self._open("vision_encoder", self.details["features"])

    @cached_property
    def _projector(self) -> onnxruntime.InferenceSession:
        return self._open("projector")

    @cached_property
    def _embedding(self) -> onnxruntime.InferenceSession:
        return self._open("embed_tokens")

    @cached_property
    def _decoder(self) -> onnxruntime.InferenceSession:
        return self._open("decoder_model_merged")

    @cached_property
    def _takes_positions(self) -> bool:
        return any(value.name == "position_ids" for value in self._decoder.get_inputs())

    def _open(self, graph: str, also: str | None = None) -> onnxruntime.InferenceSession:
        return open_session(self._bundle / self.details["graphs"][graph], self._threads, also)

    def _embed(self, ids: tuple[int, ...]) -> F32:
        outputs = run(self._embedding, {"input_ids": np.array([ids], np.int64).reshape(1, -1)})
        return outputs["inputs_embeds"]

    def _embeds(self, prompt: Prompt, tokens: F32) -> F32:
        image = tokens.reshape(1, -1, tokens.shape[-1])
        return np.concatenate([self._embed(prompt.before), image, self._embed(prompt.after)], 1)

    def _step(self, embeds: F32, cache: dict[str, Any]) -> tuple[F32, dict[str, Any]]:
        past = next(iter(cache.values())).shape[2]
        total = past + embeds.shape[1]
        given = {"inputs_embeds": embeds, "attention_mask": np.ones((1, total), np.int64), **cache}
        if self._takes_positions:
            given["position_ids"] = np.arange(past, total)[None]
        outputs = run(self._decoder, given)
        logits = outputs.pop("logits")
        return logits, {name.replace("present", "past_key_values"): value for name, value in outputs.items()}


def _notes(manifest: Manifest) -> tuple[str, ...]:
    target, machine = manifest.recipe.target, platform.machine().lower()
    if target in _MACHINES and machine not in _MACHINES[target]:
        here = next((name for name, machines in _MACHINES.items() if machine in machines), machine)
        return (f"{target} bundle run with {here} kernels",)
    return ()
