"""People's own samples: each form is read, and what is wrong with it is said in one line."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.onnx_bundles import picture
from vlmexport.calibrate import Sample
from vlmexport.calibrate.datasets import read
from vlmexport.calibrate.datasets.folder import DESCRIBE
from vlmexport.calibrate.datasets.images import CAPTION_PROMPT
from vlmexport.errors import UsageError
from vlmexport.processing.messages import Message, Picture, asked


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four images, one of them in a folder inside."""
    for name in ("a.jpg", "b.PNG", "c.webp", "more/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(len(name)).save(tmp_path / name)
    return tmp_path


def written(path: Path, document: Any, lines: bool = False) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(map(json.dumps, document)) + "\n" if lines else json.dumps(document))
    return path


def test_a_folder_of_images(images: Path) -> None:
    (images / "a.txt").write_text("A cat.\n\n two cats \n")
    (images / "notes.md").write_text("no image")
    found = {sample.image_id: sample for sample in read(images)}
    assert set(found) == {"a.jpg", "b.PNG", "c.webp", "more/d.png"}
    a, b = found["a.jpg"], found["b.PNG"]
    assert (a.question, a.answers, a.task) == (CAPTION_PROMPT, ("A cat.", "two cats"), "caption")
    assert (b.question, b.answers, b.answer) == (DESCRIBE, (), None)
    assert b.image().size == picture(5).size
    assert b.file == images / "b.PNG"


def test_a_folder_with_questions(images: Path) -> None:
    questions = [
        {"image": "a.jpg", "question": "What?", "answer": "a cat"},
        {"image": "a.jpg", "question": "Is it?", "answer": "Yes."},
        {"image": "b.PNG", "question": "How many?", "answers": [{"answer": "2"}] * 10},
        {"image": "b.PNG", "question": "Why?"},
        {"image": "b.PNG", "question": "Tell me.", "answer": "It is a long and winding story."},
    ]
    written(images / "questions.jsonl", questions, lines=True)
    found = {sample.question: sample for sample in read(images)}
    assert {text: sample.task for text, sample in found.items()} == {
        "What?": "exact", "Is it?": "yes_no", "How many?": "vqa", "Why?": "exact", "Tell me.": "caption",
    }  # fmt: skip
    assert [found[text].id for text in ("What?", "Is it?", "How many?")] == ["a.jpg#0", "a.jpg#1", "b.PNG#0"]
    assert found["How many?"].answers == ("2",) * 10


def test_pope(images: Path) -> None:
    entry = {"question_id": 1, "image": "a.jpg", "text": "Is there a cat?", "label": "no"}
    (sample,) = read(written(images / "pope.json", [entry], lines=True))
    assert (sample.question, sample.answers, sample.task) == ("Is there a cat?", ("no",), "yes_no")


def test_llava(images: Path) -> None:
    talk = [("human", "<image>\nWhat is it?"), ("gpt", "a cat"), ("human", "Why?"), ("gpt", "because")]
    turns = [{"from": who, "value": text} for who, text in talk]
    data = [{"id": "1", "image": "more/d.png", "conversations": turns}, {"id": "2", "conversations": turns[2:]}]
    first, second = sorted(read(written(images / "llava.json", data)), key=lambda sample: sample.id)
    assert (first.question, first.answers, first.image_id) == ("What is it?", ("a cat",), "more/d.png")
    assert first.messages == asked("What is it?")
    assert (second.question, second.answers, second.image_id) == ("Why?", ("because",), "more/d.png")
    assert second.messages == (*first.messages, Message("assistant", ("a cat",)), Message("user", ("Why?",)))


def test_llava_with_several_images(images: Path) -> None:
    """A question shows the images so far; where the marker stands nowhere, all come first."""
    talk = [("human", "<image>\nWhat is it?"), ("gpt", "a cat"), ("human", "And <image>?"), ("gpt", "two")]
    turns = [{"from": who, "value": text} for who, text in talk]
    names = ["a.jpg", "b.PNG"]
    first, second = sorted(
        read(written(images / "several.json", [{"image": names, "conversations": turns}])), key=lambda one: one.id
    )
    assert [one.image_id for one in first.alone()] == names[:1]
    assert [one.image_id for one in second.alone()] == names
    assert second.messages[-1].content == ("And", Picture.NEXT, "?")
    plain = [{"from": "human", "value": "Which?"}, {"from": "gpt", "value": "a"}]
    (sample,) = read(written(images / "plain.json", [{"image": names, "conversations": plain}]))
    assert sample.messages == asked("Which?", 2)
    with pytest.raises(UsageError, match="2 images, and 1 in the conversation"):
        read(written(images / "fewer.json", [{"image": names, "conversations": turns[:2]}]))


def test_a_question_about_several_images(images: Path) -> None:
    data = [{"image": ["b.PNG", "a.jpg"], "question": "Which is larger?", "answer": "the first"}]
    (sample,) = read(written(images / "questions.jsonl", data, lines=True))
    assert [one.image_id for one in sample.alone()] == ["b.PNG", "a.jpg"]
    assert sample.messages == asked("Which is larger?", 2)


def test_coco_as_its_archives_lie(images: Path) -> None:
    (images / "more").rename(images / "val2017")
    data = {
        "images": [{"id": 7, "file_name": "d.png"}, {"id": 8, "file_name": "without_captions.png"}],
        "annotations": [{"image_id": 7, "caption": "A cat. "}, {"image_id": 7, "caption": "Two cats"}],
    }
    (sample,) = read(written(images / "annotations" / "captions_val2017.json", data))
    assert (sample.answers, sample.task, sample.file) == (("A cat.", "Two cats"), "caption", images / "val2017/d.png")


def test_the_order_is_random_and_always_the_same(images: Path) -> None:
    questions = [{"image": "a.jpg", "question": f"{i}", "answer": "no" if i < 50 else "yes"} for i in range(100)]
    path = written(images / "q.json", questions)
    order = [sample.question for sample in read(path)]
    assert order == [sample.question for sample in read(path)]
    assert sorted(order, key=int) != order
    assert 10 < sum(int(question) < 50 for question in order[:50]) < 40


def test_questions_about_an_image_stay_together(images: Path) -> None:
    """So that its visual tokens can be dropped after the last of them."""
    names = ["a.jpg", "b.PNG", "c.webp", "more/d.png"]
    path = written(images / "q.json", [{"image": names[i % 4], "question": f"{i}"} for i in range(60)])
    order = [sample.image_id for sample in read(path)]
    assert sum(one != other for one, other in pairwise(order)) == 3


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x.json", "no json", "neither JSON nor JSON Lines"),
        ("x.json", "[]", "no known form"),
        ("x.json", '{"images": []}', "no known form"),
        ("x.json", '{"images": [], "annotations": []}', "holds no images"),
        ("x.json", '{"images": [{"id": 1}], "annotations": [{"image_id": 1}]}', "looks like COCO's captions, but"),
        ("x.json", '[{"image": "a.jpg", "conversations": []}]', "looks like LLaVA's JSON, but"),
        ("x.jsonl", '{"image": "no.jpg", "question": "?"}', "image no.jpg of .* is in none of"),
        ("x.json", '[{"image": "a.jpg", "question": "Is it?", "answer": true}]', "True is no text"),
        ("x.json", '[{"image": "a.jpg", "question": "Is it?", "answers": ["a", null]}]', "None is no text"),
        ("x.json", '[{"image": "a.jpg", "question": ["Is it?"]}]', "is no text"),
        ("questions.jsonl", '{"image": 1', "neither JSON nor JSON Lines"),
    ],
)
def test_errors(images: Path, name: str, text: str, words: str) -> None:
    (images / name).write_text(text)
    with pytest.raises(UsageError, match=words):
        read(images if name == "questions.jsonl" else images / name)


@pytest.mark.parametrize("key", ["question", "answer"])
def test_texts_that_are_no_utf8(images: Path, key: str) -> None:
    """Half characters: JSON can spell them, nothing can write them; file names of older systems hold them."""
    entry = {"image": "a.jpg", "question": "What?", "answer": "a cat", key: "half \ud800"}
    with pytest.raises(UsageError, match=r"'half \\ud800' is no UTF-8"):
        read(written(images / "q.json", [entry]))
    (images / "a.jpg").rename(images / "caf\udce9.jpg")
    with pytest.raises(UsageError, match=r"'caf\\udce9.jpg' is no UTF-8: rename"):
        read(images)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no images"):
        read(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        read(tmp_path / "no")


def test_what_an_editor_puts_before_a_text(images: Path) -> None:
    """A byte order mark is no part of a caption, nor of a document."""
    (images / "a.txt").write_text("A cat.", encoding="utf-8-sig")
    assert {sample.image_id: sample.answers for sample in read(images)}["a.jpg"] == ("A cat.",)
    entry = json.dumps({"image": "a.jpg", "question": "What?", "answer": 2})
    (images / "q.jsonl").write_text(f"{entry}\n{entry}", encoding="utf-8-sig")
    assert [sample.answers for sample in read(images / "q.jsonl")] == [("2",), ("2",)]
    (images / "a.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(UsageError, match=r"a\.txt is no UTF-8"):
        read(images)


def test_an_image_is_rgb_whatever_is_loaded() -> None:
    grey = Image.new("LA", (2, 1), (0, 0))
    assert Sample("a", "a", "?", lambda: grey).image().getpixel((0, 0)) == (255, 255, 255)
    depth = Image.new("F", (2, 1), 0.5)
    with pytest.raises(UsageError, match="image a holds floats"):
        Sample("a", "a", "?", lambda: depth).image()
