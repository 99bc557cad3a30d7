"""Scripts for a `ScriptedEndpoint` that write and check rows the way `writing_prompts` asks for.

A sentence of the text is a question (its first half) and the answer to it (its second half), so it is known which
answer is right: `is_answer` tells. A paraphrase has the words of the text in groups, the last one first. `good` does
all of it right, `bad` what models do wrong, each by the hash of what it is asked, and `garbage` nothing right.
"""

import json
import re
import time
import zlib

from scripted_endpoint import ChatRequest, completion

from qwen_grafts.recipes.clara.writing_prompts import SYSTEM

_TASK_OF = {text: key for key, text in SYSTEM.items()}
_TEXT = re.compile(r"<text>\n(.*?)\n</text>", re.S)
_PIECES = re.compile(r"(?<=[.!?])\s+|(?<=。)\s*|\[IMAGE DESCRIPTION\]|\n")
_ASKED = {"en": "How does it go on: {}?", "zh": "{}之后是什么?"}


def text_of(request: ChatRequest) -> str:
    """The chunk that is asked about."""
    return _TEXT.search(request.question).group(1)


def pairs_of(text: str, language: str) -> list[dict[str, str]]:
    """All questions with their answers."""
    pairs = []
    for sentence in map(str.strip, _PIECES.split(text)):
        words = list(sentence) if language == "zh" else sentence.split()
        if len(words) >= 8:
            glue, half = "" if language == "zh" else " ", len(words) // 2
            question = _ASKED[language].format(glue.join(words[:half]))
            pairs.append({"question": question, "answer": glue.join(words[half:])})
    return pairs


def is_answer(question: str, answer: str, text: str) -> bool:
    """Whether a text holds the sentence that a question begins and an answer ends."""
    return any({"question": question, "answer": answer} in pairs_of(text, language) for language in _ASKED)


def paraphrased(text: str, language: str) -> str:
    """The same words in another order."""
    text = text.replace("[IMAGE DESCRIPTION]", " ")
    words = list("".join(text.split())) if language == "zh" else text.split()
    groups = [words[start : start + 4] for start in range(0, len(words), 4)]
    return ("" if language == "zh" else " ").join(word for group in reversed(groups) for word in group)


def good(request: ChatRequest) -> str:
    """Everything right."""
    task, language = _TASK_OF[request.messages[0]["content"]]
    text = text_of(request)
    if task == "write":
        wanted = int(next(filter(None, re.search(r"Write (\d+) question|写 (\d+) 个问题", request.question).groups())))
        pairs = [pair for pair in pairs_of(text, language) if f"- {pair['question']}\n" not in request.question]
        return json.dumps({"pairs": pairs[:wanted]}, ensure_ascii=False)
    if task == "verify":
        question, answer = re.search(r"(?:Question: |问题：)(.*)\n(?:Answer: |答案：)(.*)\n", request.question).groups()
        right = is_answer(question, answer, text)
        quote = answer if right else ""
        verdict = {"answerable": right, "correct": right, "stands_alone": zlib.crc32(question.encode()) % 4 > 0}
        return json.dumps(verdict | {"quote": quote}, ensure_ascii=False)
    if task == "paraphrase":
        return json.dumps({"paraphrase": paraphrased(text, language)}, ensure_ascii=False)
    said = re.search(r"<paraphrase>\n(.*)\n</paraphrase>", request.question, re.S).group(1)
    right = said == paraphrased(text, language)
    return json.dumps({"complete": right, "nothing_added": right})


def bad(request: ChatRequest):
    """Two of three answers are wrong in one of the ways of models."""
    task, _ = _TASK_OF[request.messages[0]["content"]]
    answer = good(request)
    way = zlib.crc32(json.dumps(request.body, sort_keys=True).encode()) % 15
    if way == 0:
        return answer[: len(answer) // 2]
    if way == 1:
        return completion(request, answer[:20], "length")
    if way == 2:
        return f"Sure! Here you are:\n```json\n{answer}\n```"
    if way == 3:
        return "I'm sorry, but I can't help with that."
    if way == 4:
        return completion(request, None)
    if task == "write" and way < 10:
        pairs = json.loads(answer)["pairs"]
        for pair in pairs[::2]:
            pair |= [
                {"answer": "Nobody in the whole wide world knows that for certain"},
                {"answer": f"{pair['answer']} 98765 times"},
                {"question": "What is shown in extracted_assets/a.png?"},
                {"question": "What is the name of the file that holds this?"},
                {"answer": ""},
            ][way - 5]
        return json.dumps({"pairs": pairs}, ensure_ascii=False)
    if task == "paraphrase" and way < 10:
        return json.dumps({"paraphrase": text_of(request) if way % 2 else "Short."}, ensure_ascii=False)
    return answer


def garbage(request: ChatRequest) -> str:
    """Nothing of use."""
    return "".join(chr(97 + zlib.crc32(f"{request.text} {place}".encode()) % 26) for place in range(60))


def slow(request: ChatRequest) -> str:
    """Right, but a while later, some answers much later than others."""
    time.sleep(0.01 + zlib.crc32(request.question.encode()) % 5 / 100)
    return good(request)
