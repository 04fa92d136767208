"""The tokenizer and the chat template of a GGUF language model."""

from __future__ import annotations

from vlmexport.artifact.gguf_file import Field
from vlmexport.checkpoint import PromptSpec, Spec, Tokenizer
from vlmexport.errors import CheckpointError

_KINDS = {"normal": 1, "unknown": 2, "control": 3, "user_defined": 4, "unused": 5, "byte": 6}
_ADDED_SCORE, _PAD_SCORE = -1000.0, -10000.0


def fields(tokenizer: Tokenizer, spec: Spec, rows: int) -> dict[str, Field]:
    """Metadata of a SentencePiece tokenizer, padded to the rows of the embedding.

    Args:
        rows: rows of ``token_embd``.

    Raises:
        CheckpointError: the tokenizer has more pieces than the embedding has rows.
    """
    texts = [f"[PAD{i}]" for i in range(rows)]
    scores = [_PAD_SCORE] * rows
    kinds = [_KINDS["unused"]] * rows
    pieces = tokenizer.pieces()
    if len(pieces) > rows:
        raise CheckpointError(
            f"{tokenizer.path} has {len(pieces)} pieces, the embedding only {rows} rows",
            "tokenizer and weights belong to different models",
        )
    for i, piece in enumerate(pieces):
        texts[i], scores[i], kinds[i] = piece.text, piece.score, _KINDS[piece.kind]
    for text, i in tokenizer.added.items():
        if i < rows:
            special = text in tokenizer.special
            texts[i], scores[i], kinds[i] = text, _ADDED_SCORE, _KINDS["control" if special else "user_defined"]
    found: dict[str, Field] = {
        "tokenizer.ggml.model": ("str", "llama"),
        "tokenizer.ggml.pre": ("str", "default"),
        "tokenizer.ggml.tokens": ("str[]", texts),
        "tokenizer.ggml.scores": ("f32[]", scores),
        "tokenizer.ggml.token_type": ("i32[]", kinds),
        "tokenizer.ggml.bos_token_id": ("u32", spec.bos_token_id),
        "tokenizer.ggml.eos_token_id": ("u32", spec.eos_token_id),
        "tokenizer.ggml.unknown_token_id": ("u32", 0),
        "tokenizer.ggml.add_bos_token": ("bool", True),
        "tokenizer.ggml.add_eos_token": ("bool", False),
        "tokenizer.chat_template": ("str", chat_template(spec.prompt)),
    }
    if not tokenizer.begins_with_space:
        found["tokenizer.ggml.add_space_prefix"] = ("bool", False)
    if spec.pad_token_id is not None and 0 <= spec.pad_token_id < rows:
        found["tokenizer.ggml.padding_token_id"] = ("u32", spec.pad_token_id)
    return found


def chat_template(prompt: PromptSpec) -> str:
    """A Jinja template of the conversation, for ``llama-server --jinja`` and ``llama-mtmd-cli --jinja``.

    It writes a line break after each image, as in training, and the model's marks around it where it has any: at a
    marker (``<__media__>``, or the server's ``<__media_…__>``) inside of a text, and at the part of an image where the
    content comes in parts.
    """
    system = prompt.system.replace("\\", "\\\\").replace("'", "\\'")
    start, end = prompt.image_start, prompt.image_end
    marked = f"replace('__>', '__>{end}\\n')"
    marked += f" | replace('<__media', '{start}<__media')" if start else ""
    return (
        "{%- macro written(content) -%}"
        "{%- if content is string -%}"
        f"{{{{- content | replace('__>\\n', '__>') | {marked} -}}}}"
        "{%- else -%}"
        "{%- for part in content -%}"
        "{%- if part['type'] == 'text' -%}"
        f"{{{{- part['text'] | replace('__>\\n', '__>') | {marked} -}}}}"
        f"{{%- else -%}}{{{{- '{start}' + (part['text'] or '<__media__>') + '{end}\\n' -}}}}{{%- endif -%}}"
        "{%- endfor -%}"
        "{%- endif -%}"
        "{%- endmacro -%}"
        "{%- if messages[0]['role'] == 'system' -%}"
        "{{- written(messages[0]['content']) + ' ' -}}"
        f"{{%- else -%}}{{{{- '{system} ' -}}}}{{%- endif -%}}"
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'user' -%}"
        f"{{{{- '{prompt.user}: ' + written(message['content']) + ' ' -}}}}"
        "{%- elif message['role'] == 'assistant' -%}"
        f"{{{{- '{prompt.assistant}: ' + written(message['content']) + eos_token -}}}}"
        "{%- endif -%}"
        "{%- endfor -%}"
        f"{{%- if add_generation_prompt -%}}{{{{- '{prompt.assistant}:' -}}}}{{%- endif -%}}"
    )
