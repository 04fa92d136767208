"""``--max-views``: the image processor's file of the bundle says it, and every client follows by that file alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoImageProcessor, AutoProcessor

from tests.command import vlmexport
from tests.families.test_idefics3_bundle import sample
from tests.gguf_bundles import metadata
from tests.onnx_bundles import SHORT, picture
from tests.smolvlm import LOOK, PICTURES, SIDE, TOKENS, asked_of, processor, write_model
from tests.smolvlm_bundle import Built
from tests.smolvlm_gguf import opened
from tests.transformers_js import ask_node
from vlmexport.artifact.bundle.card import of_views
from vlmexport.artifact.bundle.contents import source_of
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.artifact.onnx.documents import documents, of_pictures
from vlmexport.checkpoint.documents import read_object
from vlmexport.families.reading.image_processor import read_image_processor
from vlmexport.measures.logits import kl_divergence
from vlmexport.parity.check import check
from vlmexport.parity.compare import spread
from vlmexport.parity.compare.evaluate import run_samples
from vlmexport.parity.compare.views import views_result
from vlmexport.parity.summary import views as in_short
from vlmexport.pipeline import export
from vlmexport.processing.image import pixel_values, process
from vlmexport.processing.image_processor import read_told
from vlmexport.processing.prompt import PLACEHOLDER
from vlmexport.recipe import Onnx, resolve
from vlmexport.runtime.open import open_runtime
from vlmexport.runtime.stages import F32
from vlmexport.source.checkpoint import Checkpoint, open_checkpoint

BUDGETS = (1, 4, 5, 12)


@pytest.fixture(scope="module")
def smolvlm(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("budget") / "model"
    write_model(folder, "smolvlm")
    return open_checkpoint(folder)


@pytest.fixture(scope="module")
def written(smolvlm: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """What a bundle's clients read, by budget: its documents, and the tokenizer."""
    found = {}
    for views in BUDGETS:
        found[views] = tmp_path_factory.mktemp(f"{views}")
        texts = documents(smolvlm.within(views), Onnx(), ())
        texts["tokenizer.json"] = (smolvlm.path / "tokenizer.json").read_text()
        for name, text in texts.items():
            (found[views] / name).write_text(text)
    return found


@pytest.mark.parametrize("views", BUDGETS)
def test_the_files_of_a_bundle_say_it(views: int, smolvlm: Checkpoint, written: dict[int, Path]) -> None:
    """Each file that any client reads, nothing else in it, and the manifest."""
    within = smolvlm.within(views)
    said = {"size": {"longest_edge": {1: 64, 4: 64, 5: 128, 12: 192}[views]}, "do_image_splitting": views > 4}
    before = documents(smolvlm, Onnx(), ())
    for name in before:
        old, new = (
            json.loads(text[name]) if name.endswith(".json") else {}
            for text in (before, {name: (written[views] / name).read_text()})
        )
        if name == "preprocessor_config.json":
            assert new == old | said
        elif name == "processor_config.json":
            assert new == old | {"image_processor": old["image_processor"] | said}
        else:
            assert new == old
    assert json.loads(of_pictures(within)["preprocessor_config.json"]) == read_object(
        written[views] / "preprocessor_config.json"
    )
    assert read_told(written[views], smolvlm.spec.image_processor) == within.spec.image_processor
    assert read_image_processor(written[views]) == within.spec.image_processor
    source = source_of(within)
    assert source.spec.image_processor.spec() == within.spec.image_processor
    assert source.configuration["image_processor"]["size"]["longest_edge"] == said["size"]["longest_edge"]


def test_a_checkpoint_of_older_transformers(smolvlm: Checkpoint, tmp_path: Path) -> None:
    """Its image processor is in a file of its own, and leaves out what is usual."""
    for file in smolvlm.path.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "processor_config.json").unlink()
    told: dict[str, Any] = {"image_processor_type": "SmolVLMImageProcessor", "size": {"longest_edge": 256}}
    told["max_image_size"] = {"longest_edge": SIDE}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    found = documents(open_checkpoint(tmp_path).within(1), Onnx(), ())
    assert json.loads(found["preprocessor_config.json"]) == told | {
        "size": {"longest_edge": SIDE},
        "do_resize": True,
        "do_image_splitting": False,
    }


@settings(max_examples=25, deadline=None)
@given(width=st.integers(1, 500), height=st.integers(1, 500), views=st.sampled_from(BUDGETS))
@example(width=4000, height=1, views=5)
@example(width=1, height=4000, views=12)
@example(width=64, height=64, views=5)
@example(width=65, height=64, views=1)
def test_transformers_by_the_bundles_own_file(
    width: int, height: int, views: int, smolvlm: Checkpoint, written: dict[int, Path]
) -> None:
    """Views and every pixel of them, of pictures of any size."""
    theirs = AutoImageProcessor.from_pretrained(written[views], backend="pil")
    image, spec = picture(width, (width, height)), smolvlm.within(views).spec.image_processor
    expected = theirs([image], return_tensors="np")["pixel_values"][0]
    assert len(expected) <= views
    np.testing.assert_allclose(pixel_values(image, spec), expected, rtol=0, atol=2**-22)


@pytest.mark.parametrize("views", BUDGETS)
def test_a_prompt_is_the_processors_of_the_bundles_files(
    views: int, smolvlm: Checkpoint, written: dict[int, Path]
) -> None:
    """Of one view: without places and newlines, as of a picture that is not cut."""
    theirs = AutoProcessor.from_pretrained(written[views])
    theirs.image_processor = AutoImageProcessor.from_pretrained(written[views], backend="pil")
    within = smolvlm.within(views)
    for number, size in enumerate(PICTURES):
        image = picture(number, size)
        seen = process(image, within.spec.image_processor, (2, 2)).views
        ids = within.prompts.prompt((LOOK,), [seen]).ids
        expected = asked_of(theirs, (LOOK,), [image])["input_ids"][0].tolist()
        token = theirs.tokenizer.convert_tokens_to_ids("<image>")
        assert [token if i == PLACEHOLDER else i for i in ids] == expected


def test_a_budget_that_holds_already_changes_nothing(smolvlm: Checkpoint) -> None:
    assert smolvlm.within(17) is smolvlm
    assert smolvlm.within(None) is smolvlm
    assert (smolvlm.budget, smolvlm.pixels, smolvlm.found_at.max_views) == (None, {}, None)
    assert smolvlm.within(5).found_at.max_views == 5


@pytest.fixture(scope="module")
def bundle(tiny_smolvlm: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of graphs, of five views at most."""
    recipe = resolve("onnx-fp32", {"max_views": 5}, environ={})
    return export(str(tiny_smolvlm[2].parent / "model"), recipe, tmp_path_factory.mktemp("five") / "bundle")


@pytest.mark.slow
def test_a_bundle_runs_within_it(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert (manifest.recipe.max_views, manifest.image_processor.size.longest_edge) == (5, 2 * SIDE)
    with closing(open_runtime(bundle)) as runtime:
        for number, (size, views) in enumerate(((PICTURES[0], 5), (PICTURES[1], 5), ((20, 90), 3), ((4000, 1), 3))):
            made = runtime.pixels(picture(number, size))
            assert len(made.pixel_values) == len(made.views.grids) == views
            assert len(runtime.tokens(runtime.features(made))) == views * TOKENS


@pytest.mark.parametrize(
    ("size", "changes", "views"),
    [((128, 96), {}, 5), ((300, 220), {}, 5), ((150, 90), {"do_resize": False}, 7)],
    ids=["of-its-size", "resized", "as-large-as-it-is"],
)  # fmt: skip
def test_transformers_js_makes_as_many_views(
    size: tuple[int, int], changes: dict[str, Any], views: int, bundle: Path, tiny_smolvlm: Built,
    transformers_js: Path, tmp_path: Path,
) -> None:  # fmt: skip
    """By the bundle's file: under its budget; or of one that says the picture is not resized."""
    read = shutil.copytree(bundle, tmp_path / "bundle")
    for name in ("preprocessor_config.json", "processor_config.json"):
        told = read_object(read / name)
        told.get("image_processor", told).update(changes)
        (read / name).write_text(json.dumps(told))
    theirs = AutoProcessor.from_pretrained(read)
    expected = asked_of(theirs, (LOOK,), [picture(3, size)])["input_ids"][0].tolist()
    assert expected.count(theirs.tokenizer.convert_tokens_to_ids("<image>")) == views * TOKENS
    picture(3, size).save(tmp_path / "picture.png")
    asked = [(tmp_path / "picture.png", "What is in it?")]
    (found,) = ask_node(transformers_js, read, asked, 2, type(tiny_smolvlm[0]).__name__)
    assert found["input_ids"] == expected


@torch.inference_mode()
def answered(model: Any, given: Any, answer: list[int] | None = None) -> tuple[list[int], F32]:
    """transformers' greedy answer and the logits that it is taken from; of a given answer its logits."""
    length = given["input_ids"].shape[1]
    if answer is None:
        answer = model.generate(**given, max_new_tokens=SHORT, do_sample=False)[0, length:].tolist()
    ids = torch.cat([given["input_ids"], torch.tensor([answer[:-1]])], 1)
    pixels = {"pixel_values": given["pixel_values"], "pixel_attention_mask": given["pixel_attention_mask"]}
    return answer, model(input_ids=ids, **pixels).logits[:, length - 1 :].numpy()


@pytest.mark.slow
@pytest.mark.usefixtures("short_answers")
def test_what_a_budget_costs_by_itself_is_what_transformers_own_model_loses(bundle: Path, tiny_smolvlm: Built) -> None:
    """Fed by its own processor, with the published size and with the bundle's."""
    model, made, _ = tiny_smolvlm
    fewer, samples = (
        processor("smolvlm", made.tokenizer, size={"longest_edge": 2 * SIDE}),
        [sample(i) for i in range(4)],
    )
    divergences, equal = [], 0
    for one in samples:
        whole, budget = (asked_of(by, one.messages, [one.image()]) for by in (made, fewer))
        answer, logits = answered(model, whole)
        divergences += kl_divergence(logits, answered(model, budget, answer)[1])[0].tolist()
        equal += answered(model, budget)[0] == answer
    found = run_samples(bundle, open_checkpoint(tiny_smolvlm[2].parent / "model").within(5), samples)
    assert found.without is not None
    (said,) = [stage for stage in found.without.stages() if (stage.stage, stage.mode) == ("logits", "chained")]
    assert said.metrics["kld"] == pytest.approx(float(np.mean(divergences)), rel=1e-3)
    assert (found.without.samples, sum(row.equal for row in found.without.answers["chained"])) == (4, equal)
    assert min(divergences) >= 0 < max(divergences)


@pytest.mark.usefixtures("short_answers")
@pytest.mark.slow
def test_a_check_is_against_the_float_model_under_the_same_budget(bundle: Path, tmp_path: Path) -> None:
    """What the budget costs by itself stands beside, in every report, and in a recording; it changes no verdict."""
    samples, recording = [sample(seed) for seed in range(20)], tmp_path / "recorded"
    result = check(bundle, samples=samples, record=recording)
    assert result.passed, result.stages
    assert result.views is not None
    assert (result.views.most, result.views.without, result.views.samples) == (5, 17, 20)
    assert {stage.stage: stage.error for stage in result.views.stages} == {"logits": None, "answer": None}
    words = "the budget of views (at most 5 of a picture, 17 without it) costs the float model by itself, on 20 samples"
    assert words in (bundle / "README.md").read_text()
    manifest = read_manifest(bundle)
    assert manifest.parity is not None
    assert manifest.parity.views is not None
    assert manifest.parity.views.stages["logits"]["kld"] > 0
    assert check(bundle, samples=samples, replay=recording).views == result.views


@pytest.mark.slow
@pytest.mark.usefixtures("short_answers")
def test_a_prompt_with_all_views_that_is_too_long(bundle: Path, tiny_smolvlm: Built) -> None:
    """The budget is what makes it fit, so its cost cannot be told; the check goes on."""
    checkpoint = open_checkpoint(tiny_smolvlm[2].parent / "model").within(5)
    short = replace(checkpoint.spec, language=replace(checkpoint.spec.language, max_positions=100))
    found = run_samples(bundle, replace(checkpoint, spec=short), [sample(2)])
    assert found.without is not None
    result = views_result(found.without, checkpoint)
    assert result is not None
    assert "could not be measured: the prompt of sample 2 is 137 tokens long" in of_views(in_short(result))
    assert not found.measured.errors


@pytest.mark.slow
@pytest.mark.usefixtures("short_answers")
def test_workers_open_the_model_under_the_same_budget(
    bundle: Path, tiny_smolvlm: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they measured is added up."""
    checkpoint = open_checkpoint(tiny_smolvlm[2].parent / "model").within(5)
    samples = [sample(seed) for seed in range(3)]

    def here(work: Callable[[Any, float], Any], parts: list[Any], where: str) -> Iterator[tuple[int, Any]]:
        yield from ((number, work(part, 0.5)) for number, part in enumerate(parts))

    monkeypatch.setattr(spread, "spread", here)
    monkeypatch.setattr(spread, "IMAGES", 2)
    found, whole = (
        spread.evaluate(bundle, checkpoint, samples, "local:2", lambda: None),
        run_samples(bundle, checkpoint, samples),
    )
    assert found.without is not None
    assert whole.without is not None
    assert not found.measured.errors
    assert found.without.answers == whole.without.answers
    assert (found.without.samples, found.without.logits["chained"].metrics()) == (
        3,
        pytest.approx(whole.without.logits["chained"].metrics()),
    )


@pytest.mark.parametrize(("views", "edge"), [(5, 2 * SIDE), (4, SIDE)])
def test_libmtmd_reads_it_in_the_mmproj(views: int, edge: int, smolvlm: Checkpoint, tmp_path: Path) -> None:
    """By itself it makes as many views of a picture as the model under the budget; where that sees one, two, which is
    said and within a budget of two."""
    found = vlmexport("gguf", smolvlm.path, "--type", "f32", "--max-views", f"{views}", "--quiet", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    bundle = tmp_path / f"model-gguf-f32-{views}views"
    manifest = read_manifest(bundle)
    assert metadata(bundle / manifest.seeing.file("mmproj"))["clip.vision.preproc_image_size"] == edge
    assert any("twice as many visual tokens there" in note for note in manifest.notes) is (views == 4)
    assert ("twice as many visual tokens there" in (bundle / "README.md").read_text()) is (views == 4)
    with closing(opened(bundle)) as runtime:
        for number, size in enumerate((*PICTURES, (333, 500), (1, 1), (500, 9))):
            image = picture(number, size)
            own, stock = (runtime.seeing.preprocess(image, own=own) for own in (True, False))  # type: ignore[attr-defined]
            assert own.views == process(image, smolvlm.within(views).spec.image_processor, (2, 2)).views
            assert len(stock.views.grids) == max(len(own.views.grids), 2) <= views


@pytest.mark.parametrize("command", ["onnx", "gguf"])
def test_a_family_without_views_says_so(command: str, tmp_path: Path) -> None:
    found = vlmexport(command, "demo", "--max-views", "5", "--output", str(tmp_path / "bundle"))
    assert (found.returncode, list(tmp_path.iterdir())) == (2, [])
    line = "error: max_views is 5, but this model sees every picture as one view: leave out --max-views\n"
    assert found.stderr == line
