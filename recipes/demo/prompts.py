"""Prompts as token ids: the v1 conversation of MobileVLM, and the SentencePiece model that goes with the demo."""

from __future__ import annotations

import io
from pathlib import Path

import sentencepiece

from vlmexport.demo.questions import Question, corpus

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
VOCABULARY = 1536
BOS, EOS = 1, 2

# Ordinary words: they fill the vocabulary, so that other questions than the trained ones are not spelled in letters.
ORDINARY = """
the be to of and a in that have it for not on with he as you do at this but his by from they we say her she or an
will my one all would there their what so up out if about who get which go me when make can like time no just him
know take people into year your good some could them see other than then now look only come its over think also back
after use two how our work first well way even new want because any these give day most us image photo picture scene
shows object objects color colors animal animals food fruit vehicle tool small large big bright dark next near
between behind front under above below left right top bottom middle corner center side square round many several few
none both each person man woman child water sky tree grass road table street light hand face head eye body building
window door room wearing standing sitting holding playing eating looking walking running flying lying number letter
word text sign name describe please tell answer question short detail kind type place thing part group line shape
pattern texture surface nothing something everything here where why does did is are was were has had been being more
less very much too
"""


def train_tokenizer(path: Path) -> None:
    """Write a SentencePiece BPE model as Llama's: byte fallback, identity normalization, spaces kept."""
    prompts = [f"{SYSTEM} USER: "] * 60
    lines = [f"{line} ASSISTANT:" for line in corpus()]
    # The image's line break stands before the question: first words are pieces without a leading space, too.
    firsts = [f"/{line.split()[0]}" for line in corpus()]
    ordinary = [" ".join(ORDINARY.split())] * 3
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(prompts + lines + firsts + ordinary),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        character_coverage=1.0,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())


class Prompts:
    """Token ids of the two chunks around the image; each chunk is tokenized by itself."""

    def __init__(self, path: Path) -> None:
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))

    def before(self) -> list[int]:
        """The system text up to the image, with BOS."""
        return [BOS, *self.pieces.encode(f"{SYSTEM} USER: ")]

    def after(self, text: str) -> list[int]:
        """From the image to where the answer begins."""
        return list(self.pieces.encode(f"\n{text} ASSISTANT:"))

    def turn(self, question: Question) -> tuple[list[int], int]:
        """Question and answer with EOS as one chunk, and how many of its ids come before the answer."""
        ids = [*self.pieces.encode(f"\n{question.text} ASSISTANT: {question.answer}"), EOS]
        prompt = self.after(question.text)
        if ids[: len(prompt)] != prompt:
            raise ValueError(f"the answer changes how {question.text!r} is tokenized")
        return ids, len(prompt)

    def name_id(self, name: str) -> int:
        """The one piece that is this word after a space."""
        ids = self.pieces.encode(name)
        if len(ids) != 1:
            raise ValueError(f"{name!r} is {len(ids)} pieces")
        return int(ids[0])
