"""What transformers and the clients make of a tiny checkpoint or its bundle, beside what we make."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from family_layouts import Tiny
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, LlamaTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vlmexport import open_model, open_runtime
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.checkpoint.spec import Spec
from vlmexport.processing.messages import asked
from vlmexport.processing.prompt import Prompt, Span
from vlmexport.runtime.reference import ReferenceRuntime
from vlmexport.runtime.stages import Runtime

QUESTION, COUNT = "what is the chat ?", 8
ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tests" / "runtime" / "transformers.mjs"

Figures = dict[str, Any]


def picture(size: tuple[int, int]) -> Image.Image:
    """Coloured blobs."""
    pixels = np.random.default_rng(3).integers(0, 255, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size)


def beside_transformers(tiny: Tiny) -> Figures:
    """Of one picture that is no square.

    Pixels: the largest difference. Features, visual tokens, logits: the norm of the difference by the norm of theirs.
    Prompt ids, greedy ids: whether they are equal.
    """
    assert tiny.theirs is not None
    ours = ReferenceRuntime(open_model(str(tiny.path), str(tiny.tower) if tiny.tower else None))
    spec = open_model(str(tiny.path)).spec
    theirs = AutoModelForImageTextToText.from_pretrained(tiny.theirs, dtype=torch.float32).eval()
    image = picture((300, 220))
    seen = _padded(image, spec.image_processor.mean) if spec.image_processor.do_pad else image
    expected_pixels = _image_processor(tiny.theirs, spec)(seen, return_tensors="pt")["pixel_values"]
    processed = ours.pixels(image)
    pixels, features = processed.pixel_values, ours.features(processed)
    tokens = ours.tokens(features)
    prompt = ours.prompt(asked(QUESTION), [processed.views])
    image_id = theirs.config.image_token_id
    ids, own = _expanded(prompt, image_id), spec.template if spec.layout == "internvl-chat" else None
    with torch.inference_mode():
        given = torch.from_numpy(pixels).reshape(expected_pixels.shape)
        found = theirs.model.get_image_features(given, return_dict=True)
        inputs = {"input_ids": torch.tensor([ids]), "pixel_values": given}
        logits = theirs(**inputs).logits
        greedy = theirs.generate(
            **inputs, attention_mask=torch.ones_like(inputs["input_ids"]), max_new_tokens=COUNT, do_sample=False
        )[0, len(ids) :].tolist()
    return {
        "pixels": float((given - expected_pixels).abs().max()),
        "features": _relative(features.rows[None], _features(found, theirs.config).numpy()),
        "tokens": _relative(tokens, np.stack(found.pooler_output).reshape(tokens.shape)),
        "prompt ids": ids == _prompt_ids(tiny.theirs, prompt, seen, image_id, own),
        "logits": _relative(ours.logits(prompt, [tokens], len(ids)), logits.numpy()),
        "greedy ids": _ids(ours, prompt, tokens) == greedy,
    }


def beside_parts(tiny: Tiny) -> Figures:
    """The same where transformers has the parts alone: its SigLIP, Llama and tokenizer, and torchvision's resizing."""
    assert tiny.parts is not None
    ours, theirs, image = ReferenceRuntime(open_model(str(tiny.path))), tiny.parts, picture((300, 220))
    processed = ours.pixels(image)
    features = ours.features(processed)
    tokens = ours.tokens(features)
    messages = asked(QUESTION)
    prompt = ours.prompt(messages, [processed.views])
    with torch.inference_mode():
        expected, grid = theirs.pixels(image)
        found = theirs.features(torch.from_numpy(processed.pixel_values))
        visual, ids = theirs.visual(found), theirs.ids(messages, [grid])
        logits, greedy = theirs.logits(ids, visual), theirs.answer(ids, visual, COUNT)
    return {
        "pixels": float(np.abs(processed.pixel_values - expected.numpy()).max()),
        "features": _relative(features.rows, found.flatten(0, 1).numpy()),
        "tokens": _relative(tokens, visual.numpy()),
        "prompt ids": ids == _expanded(prompt, theirs.image_token),
        "logits": _relative(ours.logits(prompt, [tokens], len(ids)), logits.numpy()),
        "greedy ids": _ids(ours, prompt, tokens) == greedy,
    }


def _features(found: Any, config: Any) -> torch.Tensor:
    """Of FastVLM [1, width, rows, columns] is made rows, and of Idefics3 [views, patches, width]; of InternVL and of
    CLIP the class token is left out, of CLIP the layer is taken."""
    if config.model_type == "internvl":
        patches: torch.Tensor = found.last_hidden_state[:, 1:].flatten(0, 1)[None]
        return patches
    if found.hidden_states is None and found.last_hidden_state.ndim == 3:
        rows: torch.Tensor = found.last_hidden_state.flatten(0, 1)[None]
        return rows
    if found.last_hidden_state.ndim == 4:
        flat: torch.Tensor = found.last_hidden_state.flatten(2).transpose(1, 2)
        return flat
    hidden: torch.Tensor = found.hidden_states[config.vision_feature_layer]
    return hidden[:, 1:] if config.vision_feature_select_strategy == "default" else hidden


def _image_processor(folder: Path, spec: Spec) -> Any:
    """By Pillow, as the published code resizes; torchvision rounds otherwise by one level."""
    if spec.image_processor.mode == "tiles":
        return AutoImageProcessor.from_pretrained(folder, backend="pil")
    if spec.image_processor.mode == "canvas":
        return AutoImageProcessor.from_pretrained(folder, backend="pil", crop_to_patches=True)
    saved = folder / "processor_config.json"
    if saved.exists():
        return CLIPImageProcessorPil(**json.loads(saved.read_text(encoding="utf-8"))["image_processor"])
    return CLIPImageProcessorPil.from_pretrained(folder)


def _prompt_ids(folder: Path, prompt: Prompt, image: Image.Image, image_id: int, template: str | None) -> list[int]:
    """Of transformers' processor and its template, or another one; of its Llama tokenizer, text by text, as LLaVA's
    code does."""
    if (folder / "processor_config.json").exists():
        processor = AutoProcessor.from_pretrained(folder)
        content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
        asked_so = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(asked_so, chat_template=template, add_generation_prompt=True)
        return [int(i) for i in processor(text=text, images=image)["input_ids"][0]]
    tokenizer = LlamaTokenizer.from_pretrained(folder)
    before, after = (tokenizer(one, add_special_tokens=False).input_ids for one in prompt.text.split("<image>"))
    (span,) = prompt.spans
    return [tokenizer.bos_token_id, *before, *[image_id] * span.length, *after]


def _padded(image: Image.Image, mean: tuple[float, ...]) -> Image.Image:
    """LLaVA's ``expand2square``."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(255 * value) for value in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _expanded(prompt: Prompt, image_id: int) -> list[int]:
    """The ids, the image's own id at each placeholder."""
    return [i for chunk in prompt.chunks() for i in ([image_id] * chunk.length if isinstance(chunk, Span) else chunk)]


def _relative(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _ids(runtime: Runtime, prompt: Prompt, tokens: npt.NDArray[np.float32]) -> list[int]:
    return [token.id for token in runtime.generate(prompt, [tokens], COUNT)]


def clients(bundle: Path, scratch: Path) -> dict[str, Figures]:
    """An ONNX bundle in unmodified clients, with a picture that none of them has to resize: whether pixels, prompt ids
    and greedy ids are those of our runtime."""
    manifest = read_manifest(bundle)
    image_id = manifest.decoding.image_token_id
    with closing(open_runtime(bundle)) as runtime:
        side = manifest.image_processor.size.longest_edge or manifest.image_processor.side
        image = picture((side, side))
        processed = runtime.pixels(image)
        pixels, tokens = processed.pixel_values, runtime.tokens(runtime.features(processed))
        prompt = runtime.prompt(asked(QUESTION), [processed.views])
        greedy = _ids(runtime, prompt, tokens)
    image.save(scratch / "client.png")
    assert image_id is not None
    ids = _expanded(prompt, image_id)
    return {
        "transformers.js": _transformers_js(bundle, scratch / "client.png", pixels, ids, greedy),
        "onnxruntime-genai": _genai(bundle, pixels, ids, len(tokens), greedy),
    }


def _transformers_js(
    bundle: Path, image: Path, pixels: npt.NDArray[np.float32], ids: list[int], greedy: list[int]
) -> Figures:
    folder = Path(os.environ.get("VLMEXPORT_TEST_NODE", SCRIPT.parent))
    if not (shutil.which("node") and (folder / "node_modules" / "@huggingface" / "transformers").is_dir()):
        return {"status": "skipped", "reason": "Node or @huggingface/transformers is not installed"}
    script = SCRIPT if folder == SCRIPT.parent else shutil.copy(SCRIPT, folder / "transformers.run.mjs")
    named = json.loads((bundle / "config.json").read_text(encoding="utf-8")).get("architectures")
    if not named:
        return {"status": "refused", "reason": "config.json names no class of transformers.js"}
    (kind,) = named
    command = ["node", str(script), str(bundle), str(COUNT), kind]
    asked = json.dumps({"picture": str(image), "question": QUESTION})
    done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=300, cwd=folder)
    if done.returncode:
        return {
            "status": "fails",
            "reason": next(line for line in done.stderr.splitlines() if "Error: " in line).replace(f"{bundle}/", ""),
        }
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return _judged({
        "pixels": bool(np.allclose(found["pixels"], pixels.ravel()[:12], atol=1e-4)),
        "prompt ids": found["input_ids"] == ids, "greedy ids": found["tokens"] == greedy,
    })  # fmt: skip


def _genai(bundle: Path, pixels: npt.NDArray[np.float32], ids: list[int], count: int, greedy: list[int]) -> Figures:
    try:
        import onnxruntime_genai as genai
    except ImportError:
        return {"status": "skipped", "reason": "onnxruntime-genai is not installed"}
    if not (bundle / "genai_config.json").exists():
        return {"status": "refused", "reason": "; ".join(read_manifest(bundle).notes) or "no genai_config.json"}
    try:
        model = genai.Model(str(bundle))
        settings = genai.GeneratorParams(model)
        settings.set_search_options(max_length=len(ids) + COUNT)
        generator, inputs = genai.Generator(model, settings), genai.NamedTensors()
        inputs["input_ids"] = np.array([ids], np.int32)
        inputs["pixel_values"] = pixels
        inputs["num_image_tokens"] = np.array([count], np.int64)
        generator.set_inputs(inputs)
        found: list[int] = []
        while len(found) < COUNT and not generator.is_done():
            generator.generate_next_token()
            found.append(int(generator.get_next_tokens()[0]))
    except RuntimeError as error:
        return {"status": "fails", "reason": str(error).splitlines()[0].replace(f"{bundle}/", "")}
    return _judged({"greedy ids": found == greedy})


def _judged(equal: dict[str, bool]) -> Figures:
    """Works where all is equal."""
    wrong = [name for name, same in equal.items() if not same]
    reason = {"reason": f"other {', '.join(wrong)} than our runtime"} if wrong else {}
    return {"status": "fails" if wrong else "works", "equal": equal, **reason}
