"""A bundle of graphs of a model that sees tiles: five stages, fed by transformers' own processor of its files; and in
an unmodified transformers.js."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession
from PIL import Image

from tests.onnx_bundles import picture
from tests.smolvlm import CONVERSATIONS, LOOK, PICTURES, asked_of
from tests.smolvlm_bundle import ANSWER, Built
from tests.transformers_js import ask_node
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.calibrate import Sample
from vlmexport.calibrate.samples import calibration_folder
from vlmexport.parity.check import check
from vlmexport.processing.prompt import PLACEHOLDER
from vlmexport.runtime.open import open_runtime


def sample(seed: int) -> Sample:
    """Pictures of 3x4, 4x3 and 4x4 tiles."""
    size = ((300, 220), (70, 90), (64, 64))[seed % 3]
    return Sample(f"{seed}", f"{seed}", "what is the image ?", lambda: picture(seed, size), answer="a chat")


@pytest.mark.usefixtures("short_answers")
@pytest.mark.slow
def test_a_bundle_passes_its_check(tiny_smolvlm: Built) -> None:
    result = check(tiny_smolvlm[2], samples=[sample(seed) for seed in range(20)])
    assert result.passed, result.stages


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two-images", "between", "turns", "no-image"])
def test_a_conversation_is_answered_as_transformers_does(name: str, tiny_smolvlm: Built) -> None:
    """By nothing but the bundle's files; the vision graph takes any number of views."""
    model, processor, bundle = tiny_smolvlm
    messages, count = CONVERSATIONS[name], 0 if name == "no-image" else 2
    images = [picture(i, size) for i, size in enumerate(PICTURES[:count])]
    given = asked_of(processor, messages, images)
    with closing(open_runtime(bundle)) as runtime:
        made = [runtime.pixels(image) for image in images]
        prompt = runtime.prompt(messages, [one.views for one in made])
        tokens = [runtime.tokens(runtime.features(one)) for one in made]
        found = [token.id for token in runtime.generate(prompt, tokens, ANSWER)]
        logits = runtime.logits(prompt, tokens, 0)
    image = model.config.image_token_id
    assert [image if i == PLACEHOLDER else i for i in prompt.ids] == given["input_ids"][0].tolist()
    if images:
        pixels = np.concatenate([one.pixel_values for one in made])
        np.testing.assert_allclose(pixels, given["pixel_values"][0].numpy(), atol=1e-6)
    with torch.no_grad():
        expected = model(**given).logits.numpy()
    assert np.linalg.norm(logits - expected) < 1e-5 * np.linalg.norm(expected)
    answer = model.generate(**given, max_new_tokens=ANSWER, do_sample=False)[0, len(prompt.ids) :]
    assert found == answer.tolist()


def test_the_graph_makes_a_clients_view_of_the_whole_again(tiny_smolvlm: Built) -> None:
    """The tiles are right, as of a prepared picture; the whole is made without antialiasing, as by transformers.js."""
    _, processor, bundle = tiny_smolvlm
    photo = Image.open(calibration_folder() / "images" / "photo-coffee.jpg").resize((400, 300))
    right = asked_of(processor, (LOOK,), [photo])["pixel_values"].numpy()
    tiles = right[0, :12].reshape(3, 4, 3, 64, 64).transpose(2, 0, 3, 1, 4).reshape(1, 3, 192, 256)
    sent = right.copy()
    sent[0, 12] = torch.nn.functional.interpolate(torch.from_numpy(tiles.copy()), (64, 64), mode="bilinear")[0]
    session = InferenceSession(bundle / read_manifest(bundle).seeing.file("vision_encoder"))
    ours, side_by_side, repaired = (
        session.run(["image_features"], {"pixel_values": views})[0]
        for views in (right.transpose(1, 0, 2, 3, 4), right, sent)
    )
    np.testing.assert_allclose(side_by_side, ours, atol=1e-5)
    assert np.square(repaired - ours).sum() / np.square(ours).sum() < 1e-6
    assert np.abs(sent - right).max() > 0.1


def test_node(tiny_smolvlm: Built, transformers_js: Path, tmp_path: Path) -> None:
    """Of a picture that it does not have to enlarge: the graph makes the view of the whole again."""
    model, processor, bundle = tiny_smolvlm
    picture(3, (256, 192)).save(tmp_path / "picture.png")
    given = asked_of(processor, (LOOK,), [picture(3, (256, 192))])
    asked = [(tmp_path / "picture.png", "What is in it?")]
    (found,) = ask_node(transformers_js, bundle, asked, ANSWER, type(model).__name__)
    ids = given["input_ids"][0].tolist()
    assert found["input_ids"] == ids
    np.testing.assert_allclose(found["pixels"], given["pixel_values"].numpy().ravel()[:12], atol=1e-6)
    assert found["tokens"] == model.generate(**given, max_new_tokens=ANSWER, do_sample=False)[0, len(ids) :].tolist()
