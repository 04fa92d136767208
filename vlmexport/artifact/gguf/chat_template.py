"""The chat template of a GGUF language model: the conversation ``v1`` of MobileVLM and LLaVA-1.5, in Jinja.

It keeps to what Python's Jinja and llama.cpp's own engine both run. The end of an answer is written as text, because
llama-cpp-python renders ``eos_token`` as an empty string.
"""

from __future__ import annotations

from vlmexport.checkpoint.spec import PromptSpec, quoted

_MARKER = "<__media__>"
_OPEN, _CLOSE = "<__media", "__>"
"""How a place for an image begins and ends: ``<__media__>``, or a server's ``<__media_…__>``."""


def chat_template(prompt: PromptSpec, end: str = "</s>") -> str:
    """A Jinja template for every client that reads ``tokenizer.chat_template``; llama.cpp's tools need ``--jinja``.

    A line break follows each image, as in training. Where all images come after the text of their message they are
    moved before it, as training does (``preprocess_multimodal``): the OpenAI order, question first, is not one that
    the models know. An image between texts stays where it is. Content in parts is joined to a text first, as
    llama.cpp's server joins it. Answers given back lose the space at their ends, as MobileVLM strips them.

    Args:
        end: the text of the end-of-sequence token, which closes an answer.
    """
    user, assistant = quoted(f"{prompt.user}: "), quoted(f"{prompt.assistant}: ")
    return (
        _written_macro(quoted(prompt.image_start + _OPEN), quoted(_CLOSE + prompt.image_end + "\n"))
        + _JOINED_MACRO
        + "{%- macro content(value) -%}"
        "{%- if value is string -%}{{- written(value) -}}"
        "{%- elif value -%}{{- written(joined(value)) -}}{%- endif -%}"
        "{%- endmacro -%}"
        "{%- if messages[0]['role'] == 'system' -%}"
        "{{- content(messages[0]['content']) + ' ' -}}"
        f"{{%- else -%}}{{{{- {quoted(prompt.system + ' ')} -}}}}{{%- endif -%}}"
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'user' -%}"
        f"{{{{- {user} + content(message['content']) + ' ' -}}}}"
        "{%- elif message['role'] == 'assistant' -%}"
        f"{{{{- {assistant} + (content(message['content']) | trim) + {quoted(end)} -}}}}"
        "{%- endif -%}"
        "{%- endfor -%}"
        f"{{%- if add_generation_prompt -%}}{{{{- {quoted(prompt.assistant + ':')} -}}}}{{%- endif -%}}"
    )


def _written_macro(opening: str, closing: str) -> str:
    """``written(value)``: a text with markers, as the model reads it; ``opening`` and ``closing`` of each image.

    ``behind(value)`` is what stands behind the first image apart from other images.
    """
    return (
        "{%- macro behind(value) -%}"
        f"{{%- for piece in value.split('{_OPEN}') -%}}"
        f"{{%- if not loop.first -%}}{{{{- piece.split('{_CLOSE}')[1:] | join('{_CLOSE}') -}}}}"
        f"{{%- if '{_CLOSE}' not in piece -%}}{{{{- piece + '.' -}}}}{{%- endif -%}}{{%- endif -%}}"
        "{%- endfor -%}"
        "{%- endmacro -%}"
        "{%- macro written(value) -%}"
        "{%- set images_last = behind(value) == '' -%}"
        f"{{%- for piece in value.split('{_OPEN}') -%}}"
        "{%- if loop.first -%}{%- if not images_last -%}{{- piece -}}{%- endif -%}"
        f"{{%- elif '{_CLOSE}' not in piece -%}}{{{{- '{_OPEN}' + piece -}}}}"
        "{%- else -%}"
        f"{{%- set cut = piece.split('{_CLOSE}') -%}}"
        f"{{{{- {opening} + cut[0] + {closing} + (cut[1:] | join('{_CLOSE}')) -}}}}"
        "{%- endif -%}"
        "{%- endfor -%}"
        f"{{%- if images_last -%}}{{{{- value.split('{_OPEN}')[0] -}}}}{{%- endif -%}}"
        "{%- endmacro -%}"
    )


_JOINED_MACRO = (
    "{%- macro joined(parts) -%}"
    "{%- set last = namespace(text=false) -%}"
    "{%- for part in parts -%}"
    f"{{%- if part['type'] != 'text' or part['text'][:{len(_OPEN)}] == '{_OPEN}' -%}}"
    f"{{{{- part['text'] or '{_MARKER}' -}}}}{{%- set last.text = false -%}}"
    "{%- else -%}"
    "{%- if last.text -%}{{- '\\n' -}}{%- endif -%}"
    "{{- part['text'] -}}{%- set last.text = true -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- endmacro -%}"
)
"""``joined(parts)``: one text, with a line break between texts and none beside an image. Clients put a marker in a part
of its own, of whatever type."""
