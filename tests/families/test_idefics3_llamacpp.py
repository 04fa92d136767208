"""Idefics3 and SmolVLM in libmtmd, in our runtime and in clients, against transformers' classes and processors."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.gguf_bundles import metadata
from tests.onnx_bundles import picture, sample
from tests.runtime.gguf_clients import IMAGE_TOKEN, LlamaCppPython, data_url, serve
from tests.smolvlm import (
    CONVERSATIONS,
    FIRST,
    LONGEST,
    PICTURES,
    SIDE,
    Model,
    Processor,
    asked_of,
    processor,
    write_25_patches,
    write_model,
)
from tests.smolvlm_gguf import opened, written
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.parity.compare.evaluate import run_samples
from vlmexport.processing.messages import Message, Picture
from vlmexport.processing.prompt import PLACEHOLDER
from vlmexport.runtime.joined import Joined
from vlmexport.source.checkpoint import open_checkpoint

pytestmark = pytest.mark.slow

Saved = tuple[Path, Model, Processor]
F32 = np.ndarray[Any, np.dtype[np.float32]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    folder = tmp_path_factory.mktemp("tiles") / "smolvlm"
    return folder, *write_model(folder, "smolvlm")


@pytest.fixture(scope="module")
def bundle(saved: Saved) -> Path:
    """All in F32."""
    return written(saved[0])


@pytest.fixture(scope="module")
def runtime(bundle: Path) -> Iterator[Joined]:
    with closing(opened(bundle)) as found:
        yield found


def distance(found: F32, expected: F32) -> float:
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def shown(messages: tuple[Message, ...]) -> list[Any]:
    count = sum(part is Picture.NEXT for message in messages for part in message.content)
    return [picture(number, size) for number, size in enumerate(PICTURES[:count])]


@torch.inference_mode()
def check_stages(runtime: Joined, model: Model, made: Processor, name: str) -> None:
    """All stages of one conversation. libmtmd rounds pixels and patch kernel to f16, which features show."""
    messages, images = CONVERSATIONS[name], shown(CONVERSATIONS[name])
    given = asked_of(made, messages, images)
    pixels = [runtime.pixels(image) for image in images]
    if images:
        assert (
            np.abs(np.concatenate([one.pixel_values for one in pixels]) - given["pixel_values"][0].numpy()).max() < 1e-6
        )
        seen = model.model.get_image_features(given["pixel_values"], given["pixel_attention_mask"], return_dict=True)
        features = [runtime.features(one) for one in pixels]
        expected = seen.last_hidden_state.numpy()
        assert distance(np.stack([view for one in features for view in one.views]), expected) < 1e-3
        tokens = np.concatenate([runtime.tokens(one) for one in features])
        assert distance(tokens, torch.cat(list(seen.pooler_output)).numpy()) < 1e-3
    prompt = runtime.prompt(messages, [one.views for one in pixels])
    image = model.config.image_token_id
    assert [image if i == PLACEHOLDER else i for i in prompt.ids] == given["input_ids"][0].tolist()
    tokens_of = [runtime.tokens(runtime.features(one)) for one in pixels]
    assert distance(runtime.logits(prompt, tokens_of, 0), model(**given).logits.numpy()) < 2e-3


@pytest.mark.parametrize("name", ["question", "turns", "between", "no-image"])
def test_every_stage_is_that_of_transformers(name: str, runtime: Joined, saved: Saved) -> None:
    check_stages(runtime, *saved[1:], name)


@pytest.mark.parametrize("size", [(1, 1), (300, 2), (333, 500), (512, 512), (513, 512), (640, 480)])
def test_libmtmd_cuts_the_same_views(size: tuple[int, int], runtime: Joined) -> None:
    """Pixel for pixel, so that there is nothing to repair."""
    image = picture(3, size)
    own, stock = (runtime.seeing.preprocess(image, own=own) for own in (True, False))  # type: ignore[attr-defined]
    assert own.views == stock.views
    assert np.abs(own.pixel_values - stock.pixel_values).max() < 1e-6
    assert runtime.stock([image]) is None


def test_a_picture_whose_height_pillow_resizes_first(runtime: Joined) -> None:
    """Pillow does so for some shapes, libmtmd never: a level or two, in the whole picture alone here."""
    image = picture(3, (128, 256))
    stock = runtime.stock([image])
    assert stock is not None
    own, other = runtime.pixels(image), stock.pixels(image)
    assert own.views == other.views
    levels = np.abs(own.pixel_values - other.pixel_values).max((1, 2, 3)) * 127.5
    assert levels[:-1].max() < 0.01 < levels[-1] < 2.5


def with_pixels(saved: Saved, folder: Path, **pixels: Any) -> tuple[Path, Processor]:
    """The checkpoint with another image processor."""
    shutil.copytree(saved[0], folder)
    made = processor("smolvlm", saved[2].tokenizer, **pixels)
    made.save_pretrained(folder)
    return written(folder), made


@pytest.mark.parametrize(
    "pixels", [{"size": {"longest_edge": SIDE}}, {"do_image_splitting": False}], ids=["one-tile", "no-splitting"]
)
def test_a_picture_that_is_one_view_is_two_in_stock_libmtmd(
    pixels: dict[str, Any], saved: Saved, tmp_path: Path
) -> None:
    """The file says so; our run makes the one view, and measures what stock llama.cpp makes of it."""
    folder, made = with_pixels(saved, tmp_path / "model", **pixels)
    manifest, square = read_manifest(folder), picture(3, (SIDE, SIDE))
    assert metadata(folder / manifest.seeing.file("mmproj"))["clip.vision.preproc_image_size"] == SIDE
    assert [note for note in manifest.notes if "twice as many visual tokens there" in note]
    with closing(opened(folder)) as runtime:
        check_stages(runtime, saved[1], made, "question")
        stock = runtime.stock([square])
        assert stock is not None
        one, two = runtime.pixels(square), stock.pixels(square)
        assert (one.views.tiles, len(one.views.grids)) == ((0, 0), 1)
        assert (two.views.tiles, len(two.views.grids)) == ((1, 1), 2)
        assert np.abs(two.pixel_values - one.pixel_values).max() * 127.5 < 2.5


def test_a_longest_edge_that_tiles_do_not_divide(saved: Saved, tmp_path: Path) -> None:
    """The file says the multiple that the model goes on to, so that both cut the same tiles."""
    folder, made = with_pixels(saved, tmp_path / "model", size={"longest_edge": 200})
    manifest = read_manifest(folder)
    assert metadata(folder / manifest.seeing.file("mmproj"))["clip.vision.preproc_image_size"] == LONGEST
    assert [note for note in manifest.notes if "256 pixels at once, the model to 200 first" in note]
    with closing(opened(folder)) as runtime:
        check_stages(runtime, saved[1], made, "question")
        for size in ((300, 220), (90, 20), (64, 64), (199, 100), (100, 201), (77, 300)):
            image = picture(3, size)
            stock = runtime.stock([image])
            assert runtime.pixels(image).views == (stock or runtime).pixels(image).views


def test_pictures_that_are_not_resized(saved: Saved, tmp_path: Path) -> None:
    """Stock llama.cpp resizes them; our run makes the views of the model."""
    folder, made = with_pixels(saved, tmp_path / "model", do_resize=False)
    assert [note for note in read_manifest(folder).notes if "the model cuts it as large as it is" in note]
    with closing(opened(folder)) as runtime:
        check_stages(runtime, saved[1], made, "question")
        stock, image = runtime.stock([picture(3, (300, 220))]), picture(3, (300, 220))
        assert stock is not None
        assert (runtime.pixels(image).views.tiles, stock.pixels(image).views.tiles) == ((4, 5), (3, 4))


def test_patches_that_share_a_position(tmp_path: Path) -> None:
    """25 a side: libmtmd has no such positions, so the table in the file has their rows twice."""
    model, made = write_25_patches(tmp_path / "model")
    with closing(opened(written(tmp_path / "model"))) as runtime:
        check_stages(runtime, model, made, "question")


def openai(messages: tuple[Message, ...], images: list[Any]) -> list[dict[str, Any]]:
    """A conversation as clients send it."""
    following = iter(images)
    return [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": part} if isinstance(part, str)
                else {"type": "image_url", "image_url": {"url": data_url(next(following))}} for part in message.content
            ],
        }
        for message in messages
    ]  # fmt: skip


def views_as_one(ids: list[int], image: int) -> list[int]:
    """Each run of image tokens as one."""
    return [IMAGE_TOKEN if i == image else i for place, i in enumerate(ids) if i != image or ids[place - 1] != image]


def test_clients_write_the_prompt_of_the_processor(bundle: Path, saved: Saved) -> None:
    """Ids of whole prompts as llama-cpp-python and libmtmd make them from the file alone, and the text as the server's
    own Jinja renders it. With the published template both would put a space between the role and an image."""
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    image = saved[1].config.image_token_id
    with closing(LlamaCppPython(bundle)) as client, serve(bundle) as server, closing(opened(bundle)) as ours:
        marker = server.get("/props")["media_marker"]
        for name, messages in CONVERSATIONS.items():
            images = shown(messages)
            expected = asked_of(saved[2], messages, images)["input_ids"][0].tolist()
            prompt = ours.prompt(messages, [ours.pixels(one).views for one in images])
            sent = openai(messages, images)
            rendered = server.post("/apply-template", messages=sent)["prompt"]
            assert rendered == prompt.text.replace("<image>", marker), name
            text = prompt.text.replace("<image>", "<__media__>")
            assert client.ids(text, images) == views_as_one(expected, image), name
        assert server.post("/v1/chat/completions", messages=sent, max_tokens=4)["choices"][0]["message"]["content"]
        question = openai(CONVERSATIONS["question"], shown(CONVERSATIONS["question"]))
        assert isinstance(client.ask(question), str)


def test_the_first_smolvlm_cannot_be_shown_a_picture_by_stock_llama_cpp(tmp_path: Path) -> None:
    """Its places of tiles are spelled. libmtmd looks for one token of the whole picture, and takes −1 where there is
    none. Our run writes the marks itself."""
    model, made = write_model(tmp_path / "first", "idefics3", FIRST)
    folder = written(tmp_path / "first")
    assert [note for note in read_manifest(folder).notes if "needs one token for '<global-img>'" in note]
    with closing(opened(folder)) as runtime:
        check_stages(runtime, model, made, "two-images")
    with closing(LlamaCppPython(folder)) as client:
        assert -1 in client.ids("<__media__>", [picture(0)])
        with pytest.raises(RuntimeError, match="llama_decode returned -1"):
            client.ask(openai(CONVERSATIONS["question"], [picture(0)]))


def test_what_stock_llama_cpp_would_give_is_measured_beside(saved: Saved, tmp_path: Path) -> None:
    """Where it makes other views."""
    folder, _ = with_pixels(saved, tmp_path / "model", do_image_splitting=False)
    samples = [sample(number) for number in (1, 2)]
    run = run_samples(folder, open_checkpoint(tmp_path / "model"), samples, stock=2)
    assert run.stock is not None
    assert any("given to libmtmd by itself" in note for note in run.notes)
    assert run_samples(written(saved[0]), open_checkpoint(saved[0]), samples, stock=2).stock is None


def test_a_picture_that_stock_llama_cpp_refuses_is_told_and_the_next_is_run(bundle: Path, saved: Saved) -> None:
    """Our run makes its views itself."""
    narrow, square = (replace(sample(3), image_id=str(size), load=partial(picture, 3, size))
                      for size in ((4000, 1), (128, 128)))  # fmt: skip
    run = run_samples(bundle, open_checkpoint(saved[0]), [narrow, square], stock=2)
    assert run.stock is not None
    assert run.stock.errors["pixels", "chained"].startswith("libmtmd refuses a picture of 4000x1")
    assert (len(run.measured.answers["chained"]), len(run.stock.answers["chained"])) == (2, 1)
    assert run.measured.errors == {}
