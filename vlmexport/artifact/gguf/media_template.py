"""A published chat template whose messages are lists of texts and images, for clients of llama.cpp.

They put a marker where an image goes, as a text: ``<__media__>`` in llama-cpp-python, one with a random part in a
server. A template that looks for parts of type ``image`` takes it for words: Idefics3's writes another beginning of the
message then. So the messages are brought into the form that the template knows before it sees them.
"""

from __future__ import annotations

import re

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
_LITERAL = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)


def media_template(source: str, token: str) -> str:
    """The template with its messages in parts, and the client's marker where it writes an image's token; as it is where
    that is written otherwise than in a literal or as text.

    Args:
        source: a template of a processor that puts images in place of that token.
    """
    pieces = _TAG.split(source)
    pieces[::2] = [text.replace(token, "{{ client.marker }}") for text in pieces[::2]]
    pieces[1::2] = [_LITERAL.sub(lambda found: _marked(found[0], token), tag) for tag in pieces[1::2]]
    body = "".join(pieces)
    return source if token in body else _AS_PARTS + body


def _marked(literal: str, token: str) -> str:
    """A literal of Jinja with the client's marker in place of the token."""
    if token not in literal:
        return literal
    quote = literal[0]
    texts = [f"{quote}{text}{quote}" if text else "" for text in literal[1:-1].split(token)]
    parts = [part for text in texts for part in (text, "client.marker")][:-1]
    found = " + ".join(filter(None, parts))
    return f"({found})" if "+" in found else found
