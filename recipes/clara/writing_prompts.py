"""What an endpoint is asked when rows are written: four tasks, in English and in Chinese, and what a task is told anew.

Each task is one system message, which says who is asked, and one user message, a jinja2 template. Both are in the
language of the text; a text in any other language is asked about in English, to be answered in its own.
"""

from collections.abc import Sequence
from typing import Any, Literal

from jinja2 import Environment, StrictUndefined

Task = Literal["write", "verify", "paraphrase", "compare"]
Language = Literal["en", "zh"]

SYSTEM: dict[tuple[Task, Language], str] = {
    ("write", "en"): "You write questions and answers about a text. You answer with JSON only.",
    ("write", "zh"): "你根据一段文字编写问题和答案。只用 JSON 回答。",
    ("verify", "en"): "You check whether an answer is supported by a text. You answer with JSON only.",
    ("verify", "zh"): "你检查一个答案是否有一段文字作为依据。只用 JSON 回答。",
    ("paraphrase", "en"): "You say a text again in other words. You answer with JSON only.",
    ("paraphrase", "zh"): "你用不同的话重述一段文字。只用 JSON 回答。",
    ("compare", "en"): "You check whether two texts say the same. You answer with JSON only.",
    ("compare", "zh"): "你检查两段文字说的是否相同。只用 JSON 回答。",
}

_PROMPTS: dict[tuple[Task, Language], str] = {
    ("write", "en"): """\
<text>
{{ chunk }}
</text>
{% if context %}
The text comes from: {{ context }}
{% endif %}

Write {{ count }} question{{ "s" if count > 1 }} about what this text says, each with its answer.
- Each question can be answered from this text alone, and each asks for something else.
- Each question names what it is about, so that somebody who does not see the text understands it. Never write "the \
text", "the document", "the passage", "the image", "above", "page 3" or "figure 2".
- Never ask for the name or path of a file, folder, link or picture, and never write one. Leave out marks such as \
[IMAGE DESCRIPTION].
- Each answer is correct and short: a few words, or one or two sentences. It writes numbers as the text does.
- Write in the language of the text.
{% if taken %}

These were asked already:
{% for question in taken %}
- {{ question }}
{% endfor %}
{% endif %}
{% if problems %}

Earlier ones were refused. Do better:
{% for problem in problems %}
- {{ problem }}
{% endfor %}
{% endif %}

Answer with this JSON: {"pairs": [{"question": "...", "answer": "..."}]}
If the text says nothing more that one could ask about, answer with {"pairs": []}""",
    ("write", "zh"): """\
<text>
{{ chunk }}
</text>
{% if context %}
这段文字出自：{{ context }}
{% endif %}

请针对这段文字的内容写 {{ count }} 个问题，并给出每个问题的答案。
- 每个问题只凭这段文字就能回答，各个问题问的内容不同。
- 每个问题都写明所问的对象，没有看到这段文字的人也能看懂。不要写“文中”“本文”“该文档”“图中”“上文”“第3页”“图2”。
- 不要问文件、文件夹、链接或图片的名称和路径，也不要写出它们。不要写 [IMAGE DESCRIPTION] 之类的标记。
- 每个答案正确而简短：几个词，或一两句话。数字按原样书写。
- 用这段文字的语言（中文）书写。
{% if taken %}

以下问题已经问过：
{% for question in taken %}
- {{ question }}
{% endfor %}
{% endif %}
{% if problems %}

之前的结果没有通过检查，请改进：
{% for problem in problems %}
- {{ problem }}
{% endfor %}
{% endif %}

用这样的 JSON 回答：{"pairs": [{"question": "……", "answer": "……"}]}
如果没有更多内容可问，就回答 {"pairs": []}""",
    ("verify", "en"): """\
<text>
{{ chunk }}
</text>

Question: {{ question }}
Answer: {{ answer }}

Judge by this text alone, not by what you know.
- answerable: whether the text answers the question.
- correct: whether the answer is what the text says, all of it.
- stands_alone: whether somebody who does not see the text, and searches many texts, understands what the question is \
about.
- quote: the words of the text that support the answer, copied letter by letter; "" if there are none.

Answer with this JSON: {"answerable": true, "correct": true, "stands_alone": true, "quote": "..."}""",
    ("verify", "zh"): """\
<text>
{{ chunk }}
</text>

问题：{{ question }}
答案：{{ answer }}

只根据这段文字判断，不要用你自己的知识。
- answerable：这段文字是否回答了这个问题。
- correct：答案的全部内容是否与这段文字相符。
- stands_alone：没有看到这段文字、要在许多文字中查找的人，能否看懂问题问的是什么。
- quote：支持答案的原话，逐字照抄；没有就写 ""。

用这样的 JSON 回答：{"answerable": true, "correct": true, "stands_alone": true, "quote": "……"}""",
    ("paraphrase", "en"): """\
<text>
{{ chunk }}
</text>

Say this text again in other words and in another order.
- Keep every fact, every number and every name; add none.
- Change the wording throughout; copy no long run of words.
- About as long as the text, as prose, in its language. Leave out marks such as [IMAGE DESCRIPTION].
{% if taken %}

Unlike these:
{% for paraphrase in taken %}
- {{ paraphrase }}
{% endfor %}
{% endif %}
{% if problems %}

An earlier one was refused. Do better:
{% for problem in problems %}
- {{ problem }}
{% endfor %}
{% endif %}

Answer with this JSON: {"paraphrase": "..."}""",
    ("paraphrase", "zh"): """\
<text>
{{ chunk }}
</text>

请换一种说法、换一种顺序重述这段文字。
- 保留所有事实、数字和名称，不要添加。
- 全部改换措辞，不要照抄长句。
- 长度与原文相近，写成连贯的文字，用同一种语言（中文）。不要写 [IMAGE DESCRIPTION] 之类的标记。
{% if taken %}

要与以下重述不同：
{% for paraphrase in taken %}
- {{ paraphrase }}
{% endfor %}
{% endif %}
{% if problems %}

之前的结果没有通过检查，请改进：
{% for problem in problems %}
- {{ problem }}
{% endfor %}
{% endif %}

用这样的 JSON 回答：{"paraphrase": "……"}""",
    ("compare", "en"): """\
<text>
{{ chunk }}
</text>

<paraphrase>
{{ paraphrase }}
</paraphrase>

- complete: whether the paraphrase says every fact of the text.
- nothing_added: whether it says nothing that the text does not say.

Answer with this JSON: {"complete": true, "nothing_added": true}""",
    ("compare", "zh"): """\
<text>
{{ chunk }}
</text>

<paraphrase>
{{ paraphrase }}
</paraphrase>

- complete：重述是否说出了原文的每一个事实。
- nothing_added：重述是否没有说原文没有的内容。

用这样的 JSON 回答：{"complete": true, "nothing_added": true}""",
}
_ENVIRONMENT = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)  # no HTML
_TEMPLATES = {key: _ENVIRONMENT.from_string(prompt) for key, prompt in _PROMPTS.items()}


def messages(task: Task, language: Language, **values: Any) -> list[dict[str, str]]:
    """A task's conversation.

    Args:
        values: of the template: `chunk`, and with it `context`, `count`, `taken`, `problems` ("write"), `question` and
            `answer` ("verify"), `taken`, `problems` ("paraphrase"), or `paraphrase` ("compare").
    """
    return [
        {"role": "system", "content": SYSTEM[task, language]},
        {"role": "user", "content": _TEMPLATES[task, language].render(values)},
    ]


def writing_messages(
    language: Language,
    chunk: str,
    context: str,
    count: int,
    taken: Sequence[str] = (),
    problems: Sequence[str] = (),
) -> list[dict[str, str]]:
    """`messages` of "write"; without `taken` and `problems` those of the first round."""
    return messages(
        "write", language, chunk=chunk, context=context, count=count, taken=list(taken), problems=list(problems)
    )


__all__ = ["SYSTEM", "Language", "Task", "messages", "writing_messages"]
