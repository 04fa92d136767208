"""The recipe of the model whose questions need the tiles: scenes, prompts, lessons, and a tiny run of everything."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from recipes.tiles import scenes, views  # noqa: E402
from recipes.tiles.model import processor  # noqa: E402
from recipes.tiles.scenes import NAMES, NUMBERS, PLACES, SEEDS, ask, is_unseen, make_scene, paint  # noqa: E402

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "tiles"
MODES = ((3, {}), (2, {"size": {"longest_edge": 144}}), (0, {"do_image_splitting": False}))


@pytest.fixture(scope="module")
def model() -> Any:
    from recipes.tiles.model import new_model

    return new_model(0).eval()


def test_a_seed_gives_one_scene_for_ever() -> None:
    scene = make_scene(SEEDS["heldout"].start + 1)
    assert scene == make_scene(scene.seed)
    assert ask(scene) == ask(scene)
    assert np.array_equal(paint(scene), paint(scene))
    placed = [(one.name, PLACES[one.region]) for one in scene.objects]
    assert (scenes.VERSION, scene.width, scene.height, scene.background) == (1, 551, 526, "white")
    assert placed == [
        ("snail", "top right"), ("snail", "middle left"), ("lion", "middle right"), ("bus", "middle center"),
    ]  # fmt: skip


def test_pictures_have_one_to_nine_objects_in_their_regions_and_448_pixels_or_more() -> None:
    made = [make_scene(seed) for seed in SEEDS["heldout"][:150]]
    assert {len(scene.objects) for scene in made} == set(range(1, 10))
    for scene in made:
        assert paint(scene).size == (scene.width, scene.height) if scene.seed % 50 == 0 else True
        assert min(scene.width, scene.height) >= 448
        assert max(scene.width, scene.height) < 1.5 * min(scene.width, scene.height)  # else 3 × 2 tiles
        assert len({one.region for one in scene.objects}) == len(scene.objects)
        for one in scene.objects:
            assert (int(one.y * 3) * 3 + int(one.x * 3)) == one.region


def test_training_never_sees_what_is_held_out() -> None:
    ranges = sorted(SEEDS.values(), key=lambda seeds: seeds.start)
    assert all(one.stop <= other.start for one, other in itertools.pairwise(ranges))
    for name in ("train", "validation"):
        pairs = [(one.name, one.region) for seed in SEEDS[name][:150] for one in make_scene(seed).objects]
        assert not [pair for pair in pairs if is_unseen(*pair)]
    assert any(question.unseen for seed in SEEDS["heldout"][:20] for question in ask(make_scene(seed)))


def test_answers_are_true() -> None:
    kinds = set()
    for seed in SEEDS["heldout"][:100]:
        scene = make_scene(seed)
        at = {PLACES[one.region]: one.name for one in scene.objects}
        for question in ask(scene):
            kinds.add((question.kind, question.answer if question.kind == "how many" else ""))
            if question.kind == "what":
                assert at[question.text.removeprefix("What is in the ").rstrip("?")] == question.answer
            elif question.kind == "where":
                name = question.text.removeprefix("Where is the ").rstrip("?")
                assert [place for place, other in at.items() if other == name] == [question.answer]
            else:
                many = question.text.removeprefix("How many ").removesuffix(" are there?")
                count = sum(scenes.plural(name) == many for name in at.values())
                assert NUMBERS[count] == question.answer
    assert kinds == {("what", ""), ("where", ""), *(("how many", number) for number in NUMBERS)}


def test_every_name_is_one_token_and_the_vocabulary_is_smollms() -> None:
    from recipes.tiles.model import word_ids
    from recipes.tiles.vocabulary import END, MARKERS, tokenizer

    pieces = tokenizer()
    word_ids((*NAMES, *map(scenes.plural, NAMES), *(word for place in PLACES for word in place.split()), *NUMBERS))
    assert pieces.convert_ids_to_tokens([0, 1, 2]) == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert pieces.eos_token == END
    assert len(pieces) % 64 == 0
    for text in (*MARKERS, "<image>", "<fake_token_around_image>", "<global-img>"):
        assert len(pieces(text, add_special_tokens=False)["input_ids"]) == 1
    assert pieces.decode(pieces("Zürich, 12 été 🙂\n\n")["input_ids"]) == "Zürich, 12 été 🙂\n\n"


@pytest.mark.parametrize(("grid", "told"), MODES)
def test_packed_turns_are_single_turns(model: Any, grid: int, told: dict[str, Any]) -> None:
    """Against the model's own forward pass of what the processor makes, in all tiles, fewer, and one view."""
    from recipes.tiles.packing import pack, run
    from recipes.tiles.see import visual_tokens
    from recipes.tiles.views import cut

    scene, prepare = make_scene(SEEDS["validation"].start), processor()
    questions = ask(scene)
    packed = pack([questions], grid)
    with torch.no_grad():
        for at, question in enumerate(questions[:: len(questions) - 1]):
            turn = [{"type": "image"}, {"type": "text", "text": question.text}]
            text = prepare.apply_chat_template([{"role": "user", "content": turn}], add_generation_prompt=True)
            inputs = prepare(text=text, images=[paint(scene)], return_tensors="pt", **told)
            logits = model(**inputs).logits[0, -1]
            visual = visual_tokens(model, inputs["pixel_values"][0]).flatten(0, 1)[None]
            number = at * (len(questions) - 1)
            ours = run(model, visual, packed)[0][packed.owners == number][0]
            torch.testing.assert_close(ours, logits, atol=1e-4, rtol=1e-4)
    if grid == 3:
        scaled = torch.from_numpy(cut(scene, prepare.image_processor)).float() / 127.5 - 1
        torch.testing.assert_close(scaled, inputs["pixel_values"][0], atol=1e-5, rtol=0)


def test_labels_lie_where_the_objects_are() -> None:
    """A patch is called after the sprite on it: its colours there differ from the background's."""
    scene = make_scene(SEEDS["validation"].start + 3)
    plain = dataclasses.replace(scene, objects=())
    with_objects, without = (views.cut(one, processor().image_processor).astype(int) for one in (scene, plain))
    changed = np.abs(with_objects - without).mean(1).reshape(10, 9, 8, 9, 8).mean((2, 4)).reshape(10, 81)
    labels = views.patch_labels(scene, 3)
    names = {NAMES.index(one.name) for one in scene.objects}
    assert set(labels.flatten()) == names | {views.NOTHING, views.UNCLEAR}
    assert changed[np.isin(labels, list(names))].mean() > 20
    assert changed[labels == views.NOTHING].mean() < 1


@pytest.mark.parametrize("grid", [3, 2, 0])
def test_lessons_point_at_what_the_question_is_about(grid: int) -> None:
    """What lies at a place is shown by visual tokens, in tiles or in the one view there is."""
    from recipes.tiles import looking
    from recipes.tiles.model import SEEN
    from recipes.tiles.packing import pack
    from recipes.tiles.views import NOTHING, cell_labels

    scene = make_scene(SEEDS["validation"].start + 3)
    labels = torch.from_numpy(cell_labels(scene, grid or 3)[None])[:, -1 if grid == 0 else 0 :]
    packed = pack([ask(scene)], grid)
    shown, where = looking.shown_by(packed, labels)
    tiles = max(1, labels.shape[1] - 1)
    assert (shown != NOTHING).sum() == len(scene.objects)
    for at, question in enumerate(packed.questions):
        if question.kind == "what":
            there = looking.there(packed, shown, labels.shape[1], where)[at].nonzero().flatten().tolist()
            assert len(there) == 1
            assert there[0] in where[: tiles * SEEN].tolist()
            assert NAMES[int(shown[0, there[0]])] == question.answer


def test_the_shipped_model_needs_the_tiles() -> None:
    """Its first held-out scenes, once more; all of them stand in scores.json."""
    from recipes.tiles.evaluate import scores

    kept = json.loads((MODEL / "scores.json").read_text(encoding="utf-8"))
    assert kept["10 views"]["all"]["exact"] >= 0.85
    assert kept["10 views"]["all"]["exact"] - kept["1 view"]["all"]["exact"] >= 0.15
    found = {mode: scores(MODEL, mode, 20)["all"]["exact"] for mode in kept}
    assert found["10 views"] >= 0.8
    assert found["10 views"] - found["1 view"] >= 0.15


def test_the_shipped_model_answers_by_generate() -> None:
    """Every greedy token at once, as scores are counted, and one after the other, as everybody runs it."""
    from recipes.tiles.packing import exact, pack, run
    from recipes.tiles.see import visual_tokens

    prepare = transformers.AutoProcessor.from_pretrained(MODEL)
    shipped = transformers.AutoModelForImageTextToText.from_pretrained(MODEL, dtype=torch.float32).eval()
    scene = make_scene(SEEDS["heldout"].start)
    questions = ask(scene)
    for question in questions[::3]:
        turn = [{"type": "image"}, {"type": "text", "text": question.text}]
        text = prepare.apply_chat_template([{"role": "user", "content": turn}], add_generation_prompt=True)
        inputs = prepare(text=text, images=[paint(scene)], return_tensors="pt")
        with torch.no_grad():
            visual = visual_tokens(shipped, inputs["pixel_values"][0]).flatten(0, 1)[None]
            packed = pack([[question]], 3)
            right = exact(run(shipped, visual, packed)[0], packed)[0]
            ids = shipped.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert right == (prepare.decode(ids, skip_special_tokens=True) == f" {question.answer}")
    assert sum(file.stat().st_size for file in MODEL.iterdir()) < 20_000_000


@pytest.mark.slow
def test_training_goes_on_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    from recipes.tiles import answer, see
    from recipes.tiles.model import new_model

    draw = torch.Generator().manual_seed(0)
    labels, patches = (torch.randint(0, 49, (4, count), generator=draw) for count in (9, 81))
    batch = see.Batch(torch.randn(4, 3, 72, 72, generator=draw), labels, patches)
    tokens = torch.randn(3, 10, 9, 256, generator=draw).half().numpy()
    seen = answer.Seen(0, 3, tokens, np.stack([views.cell_labels(make_scene(seed), 3) for seed in range(3)]))
    modes = dict.fromkeys(answer.MODES, seen)

    def first(folder: Path) -> see.Trainer:
        return see.Trainer(folder, see.Plan(steps=2, batch=4))

    def second(folder: Path) -> answer.Trainer:
        return answer.Trainer(folder, answer.Plan(steps=2, batch=2), new_model(0))

    make: Any
    for make, inputs in ((first, batch), (second, modes)):
        unbroken, stopped = make(tmp_path / "nothing"), make(tmp_path)
        for _ in range(2):
            unbroken.advance(inputs)
        stopped.advance(inputs)
        stopped.save()
        again = make(tmp_path)
        assert again.step == 1
        again.advance(inputs)
        kept = again.model.state_dict()
        for name, tensor in unbroken.model.state_dict().items():
            torch.testing.assert_close(kept[name], tensor, atol=0, rtol=0)


@pytest.mark.slow
def test_smoke_run_of_every_stage(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "recipes.tiles.train", "--smoke", "--threads", "1", "--work", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    made = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert made.dtype == torch.float16
    assert type(transformers.AutoProcessor.from_pretrained(tmp_path / "model")).__name__ == "Idefics3Processor"
    assert sum(file.stat().st_size for file in (tmp_path / "model").iterdir()) < 20_000_000
    assert torch.load(tmp_path / "see.pt")["step"] == torch.load(tmp_path / "answer.pt")["step"] == 2
