"""Small templates that use Jinja as the published ones of a family do: its functions, filters, tags and whitespace.

They are written for these tests, from what is known of the families; no published text is in them.
"""

from __future__ import annotations

from typing import Any

FAMILIES = {
    "llava-hf": """\
{% for message in messages %}{{ message['role'].upper() }}: \
{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}<image>
{% endfor %}
{% if message['role'] != 'assistant' %}\
{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}
{% else %}
{% generation %}{{ message['content'][0]['text'] + ' ' }}{% endgeneration %}
{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}""",
    "idefics3": """\
<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}\
{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}\
{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}\
{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>
{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}""",
    "qwen2-vl": """\
{% set image_count = namespace(value=0) %}{% for message in messages %}\
{% if loop.first and message['role'] != 'system' %}\
<|im_start|>system
Be helpful.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>
{% else %}{% for content in message['content'] %}\
{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}\
{% set image_count.value = image_count.value + 1 %}\
{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>\
{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}""",
    "gemma3": """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set prefix = '' -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("roles must alternate") }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (prefix if loop.first else '') }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("no such content") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}""",
    "llama-3.2-vision": """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set image_ns = namespace(has_images=false) %}
{%- for message in messages %}
    {%- for content in message['content'] %}
        {%- if content['type'] == 'image' %}
            {%- set image_ns.has_images = true %}
        {%- endif %}
    {%- endfor %}
{%- endfor %}
{%- if not image_ns.has_images %}
    {{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday: " + date_string + "<|eot_id|>" }}
{%- endif %}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if message['content'] is string %}
        {{- message['content'] | trim }}
    {%- else %}
        {%- for content in message['content'] %}
            {%- if content['type'] == 'image' %}
                {{- '<|image|>' }}
            {%- else %}
                {{- content['text'] }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|eot_id|>' + (date_string if loop.last else '') }}
{%- endfor %}
{%- if tools %}{{- tools | tojson(indent=4) }}{%- endif %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}""",
    "pixtral": """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] not in ("user", "assistant") %}
        {{- raise_exception("only user and assistant, not " + message["role"]) }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {{- "[INST]" }}
        {%- if loop.last and system_message is defined %}
            {{- system_message | string + "\\n\\n" }}
        {%- endif %}
        {%- if message["content"] is not string %}
            {%- for chunk in message["content"] %}
                {%- if chunk["type"] == "text" %}
                    {{- chunk["text"] }}
                {%- elif chunk["type"] == "image" %}
                    {{- "[IMG]" }}
                {%- else %}
                    {{- raise_exception("unrecognised chunk") }}
                {%- endif %}
            {%- endfor %}
        {%- else %}
            {{- message["content"] }}
        {%- endif %}
        {{- "[/INST]" }}
    {%- else %}
        {{- message["content"] | tojson + eos_token }}
    {%- endif %}
{%- endfor %}""",
    "mistral-small": """\
{%- set today = strftime_now("%Y-%m-%d") %}
{{- bos_token }}{{- '[SYSTEM_PROMPT]It is ' + today + '.[/SYSTEM_PROMPT]' }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}{%- continue %}{%- endif %}
    {%- for block in message['content'] if message['content'] is not string %}
        {%- if block['type'] in ['image', 'image_url'] %}{{ '[IMG]' }}{%- else %}{{ block['text'] }}{%- endif %}
    {%- endfor %}
    {%- if message['role'] == 'assistant' %}{{ eos_token }}{%- break %}{%- endif %}
{%- endfor %}""",
    "qwen3-vl": """\
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages | length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and not (message.content is string and
        message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- macro render(content) -%}
    {%- if content is string -%}{{ content }}
    {%- else -%}
        {%- for item in content -%}
            {%- if item.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
            {%- elif item.text is defined -%}{{ item.text }}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- for message in messages %}
    {%- set text = render(message.content) %}
    {%- if message.role == 'assistant' and '</think>' in text %}
        {%- set thought = text.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- set text = text.split('</think>')[-1].lstrip('\\n') %}
        {%- if loop.index0 > ns.last_query_index and enable_thinking is defined %}{{- thought }}{%- endif %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + text.strip('\\n') + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}""",
    "lfm2-vl": """\
{{- bos_token -}}
{%- set system_prompt = "" -%}
{%- set ns = namespace(system_prompt="") -%}
{%- if messages[0]["role"] == "system" -%}
    {%- set ns.system_prompt = messages[0]["content"] -%}
    {%- set messages = messages[1:] -%}
{%- endif -%}
{%- if tools -%}
    {%- set ns.system_prompt = ns.system_prompt + ("\\n" if ns.system_prompt else "") + "Tools: [" -%}
    {%- for tool in tools -%}
        {%- if tool is not string -%}{%- set tool = tool | tojson -%}{%- endif -%}
        {%- set ns.system_prompt = ns.system_prompt + tool -%}
        {%- if not loop.last -%}{%- set ns.system_prompt = ns.system_prompt + ", " -%}{%- endif -%}
    {%- endfor -%}
    {%- set ns.system_prompt = ns.system_prompt + "]" -%}
{%- endif -%}
{%- if ns.system_prompt -%}{{- "<|im_start|>system\\n" + ns.system_prompt + "<|im_end|>\\n" -}}{%- endif -%}
{%- for message in messages -%}
    {{- "<|im_start|>" + message["role"] + "\\n" -}}
    {%- set content = message["content"] -%}
    {%- if content is not string -%}
        {%- set ns.content = "" -%}
        {%- for item in content -%}
            {%- if item["type"] == "image" -%}{%- set ns.content = ns.content + "<image>" -%}
            {%- elif item["type"] == "text" -%}{%- set ns.content = ns.content + item["text"] -%}
            {%- else -%}{%- set ns.content = ns.content + item | tojson -%}
            {%- endif -%}
        {%- endfor -%}
        {%- set content = ns.content -%}
    {%- endif -%}
    {{- content + "<|im_end|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\\n" -}}{%- endif -%}""",
    "phi-vision": """\
{% for message in messages %}{{ '<|' + message['role'] + '|>' + '\\n' }}\
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{{ '<|image_1|>\\n' if message['content'] | map(attribute='type') | list | select('in', ['image']) | list }}\
{{ message['content'] | selectattr('text', 'defined') | map(attribute='text') | join('\\n') }}{% endif %}\
{{ '<|end|>\\n' }}{% endfor %}{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}\
{{- '<|assistant|>\\n' -}}{% endif %}""",
    "aya-vision": """\
{{ bos_token }}{%- macro document_turn(documents) -%}
{{ documents | tojson(ensure_ascii=true, sort_keys=true, separators=(',', ':')) }}
{%- endmacro -%}
{%- set roles = dict(user='<|USER|>', assistant='<|BOT|>', system='<|SYS|>') -%}
{%- if documents %}{{ document_turn(documents) }}{% endif -%}
{% for message in messages -%}
    <|TURN|>{{ roles.get(message.role, '<|?|>') }}
    {%- if message.content is mapping or message.content is string %}{{ message.content }}
    {%- else %}
        {%- for item in message.content | sort(attribute='type') %}
            {{- item.get('text', '<image>') | replace('\\r', '') }}
        {%- endfor %}
    {%- endif %}<|END|>
{%- endfor %}{% if add_generation_prompt %}<|TURN|><|BOT|>{% endif %}""",
    "granite-vision": """\
{%- if messages[0]['role'] != 'system' %}
{{- 'Today is ' ~ strftime_now('%B %d, %Y') ~ '.\\n' }}
{%- endif %}
{%- set text %}{% for message in messages %}\
[{{ loop.index }}/{{ loop.length }} {{ loop.cycle('a', 'b') }} {{ message.role | title }}]
{% for key, value in message.items() if key != 'role' %}{{ key }}={{ value | tojson }}
{% endfor %}
    {%+ if loop.previtem is defined and loop.previtem.role == message.role %}
        {{- raise_exception('two of ' ~ message.role) }}
    {% endif %}
{% endfor %}{% endset %}
{{- text | trim | indent(1) }}
{%- filter upper %}{{ '\\n' if add_generation_prompt }}assistant:{% endfilter %}""",
}  # fmt: skip


def _parts(question: str) -> list[dict[str, Any]]:
    return [{"type": "image"}, {"type": "text", "text": question}]


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "a question": [{"role": "user", "content": _parts("What is <it> & 'why'? 漢字 🙂")}],
    "text first": [{"role": "user", "content": _parts("  What?\n")[::-1]}],
    "spelled out": [{"role": "user", "content": _parts("{{ x }} {% if %} <|im_end|>\r\n")}],
    "turns": [
        {"role": "system", "content": "Be <brief>."},
        {"role": "user", "content": _parts("One?")},
        {"role": "assistant", "content": [{"type": "text", "text": "<think>\nHm\n</think>\n\nYes."}]},
        {"role": "user", "content": "Two?"},
    ],
    "no picture": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "<think>I</think>Me."}],
    "two in a row": [{"role": "user", "content": "Who?"}, {"role": "user", "content": "You?"}],
    "another role": [{"role": "tool", "content": [{"type": "audio", "path": "x"}]}],
    "none": [],
}
