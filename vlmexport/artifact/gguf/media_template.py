"""A published chat template whose messages are lists of texts and images, for clients of llama.cpp.

They put a marker where an image goes, as a text: ``<__media__>`` in llama-cpp-python, one with a random part in a
server. A template that looks for parts of type ``image`` takes it for words: Idefics3's writes another beginning of the
message then. So the messages are brought into the form that the template knows before it sees them.
"""

from __future__ import annotations

import re

from vlmexport.processing.tokenizer import IMAGE_MARKER

_OPEN, _CLOSE = "<__media", "__>"
_AS_PARTS = (
    f"{{%- set client = namespace(messages=[], marker='{_OPEN}{_CLOSE}') -%}}"
    "{%- for message in messages -%}"
    "{%- set content = message['content'] -%}"
    "{%- if content is string -%}{%- set content = [{'type': 'text', 'text': content}] -%}{%- endif -%}"
    "{%- set one = namespace(parts=[]) -%}"
    "{%- for part in content -%}"
    "{%- if part['type'] == 'image' -%}{%- set one.parts = one.parts + [part] -%}"
    "{%- else -%}"
    f"{{%- for piece in part['text'].split('{_OPEN}') -%}}"
    f"{{%- set cut = piece.split('{_CLOSE}') -%}}"
    "{%- if loop.first -%}{%- set rest = piece -%}"
    f"{{%- elif cut | length == 1 -%}}{{%- set rest = '{_OPEN}' + piece -%}}"
    "{%- else -%}"
    f"{{%- set client.marker = '{_OPEN}' + cut[0] + '{_CLOSE}' -%}}"
    "{%- set one.parts = one.parts + [{'type': 'image'}] -%}"
    f"{{%- set rest = cut[1:] | join('{_CLOSE}') -%}}"
    "{%- endif -%}"
    "{%- if rest -%}{%- set one.parts = one.parts + [{'type': 'text', 'text': rest}] -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- set parts = one.parts or [{'type': 'text', 'text': ''}] -%}"
    "{%- set client.messages = client.messages + [{'role': message['role'], 'content': parts}] -%}"
    "{%- endfor -%}"
    "{%- set messages = client.messages -%}"
)
_TAG = re.compile(r"(\{[{%#].*?[#%}]\})", re.DOTALL)
_LITERAL = re.compile(rf"'{IMAGE_MARKER}'|\"{IMAGE_MARKER}\"")


def media_template(source: str) -> str:
    """The template with its messages in parts, and the client's marker where it writes ``<image>``; as it is where that
    is written otherwise than as a whole literal or as text.

    Args:
        source: a template of a processor that puts images in place of ``<image>``.
    """
    pieces = _TAG.split(source)
    pieces[::2] = [text.replace(IMAGE_MARKER, "{{ client.marker }}") for text in pieces[::2]]
    pieces[1::2] = [_LITERAL.sub("client.marker", tag) for tag in pieces[1::2]]
    body = "".join(pieces)
    return source if IMAGE_MARKER in body else _AS_PARTS + body
