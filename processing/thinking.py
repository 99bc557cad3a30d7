"""Thoughts: Qwen3 writes `<think>…</think>` before an answer, and everything that reads or limits them is here.

- `split_thought` takes the thoughts out of a finished answer, for data to train on.
- `RESPONSE_TEMPLATE` lets `processor.parse_response(generated, prefix=prompt)` do it for what a model wrote, which may
  begin inside a block that the prompt opened and may end in the middle of one. The message it gives,
  `reasoning_content` apart from `content`, is what the chat template reads.
- `ThinkingMixin` gives a processor a token budget for thoughts.
"""

import copy
import re

from transformers import PreTrainedTokenizerBase

from .thinking_budget import ThinkingBudget

UNCLOSED = "unclosed think tag"
NESTED = "nested think tags"
EMPTY_ANSWER = "no answer beside the thought"

# Where libraries put a thought beside an answer's content; transformers and the chat template know all three.
THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning")

# A thought opens where the turn starts or another one ended, so an answer may speak of `<think>`. What is written after
# the turn's end is padding. A thought that is cut off leaves an empty content: readers of messages expect the key.
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant", "content": ""},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {
            "open_pattern": r"(?<=\A\s*|</think>\s*)<think>",
            "close_pattern": r"</think>\s*|(?:<\|im_end\|>|<\|endoftext\|>).*",
            "content": "text",
            "repeats": True,
            "join": "\n\n",
        },
        "content": {"close_pattern": r"(?:<\|im_end\|>|<\|endoftext\|>).*", "content": "text"},
    },
}

_TAG = re.compile(r"</?think>")


class ThoughtProblem(ValueError):  # noqa: N818
    """An answer whose thoughts cannot be told from it.

    Attributes:
        reason: one of `UNCLOSED`, `NESTED`, `EMPTY_ANSWER`.
        detail: what was seen.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)  # `args` as the signature: the error survives pickling between processes
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def split_thought(text: str) -> tuple[str | None, str]:
    """Take every `<think>…</think>` out of a finished answer.

    The tags count wherever they stand, in code too: a tokenizer makes each the same thinking token everywhere. What a
    model wrote after a prompt that opened the block has no opening tag and is refused here; `parse_response` reads it.

    Args:
        text: an answer of a data set.

    Returns:
        The thoughts, a blank line between them and "" for an empty block, and the answer without them and without space
        around it. A text without any tag comes back as it is, byte for byte, with None.

    Raises:
        ThoughtProblem: a tag without its partner, a block in a block, or nothing left to answer.
    """
    thoughts, answer = [], []
    start, opened = 0, False
    for number, tag in enumerate(_TAG.finditer(text), start=1):
        opens = tag.group() == "<think>"
        if opens and opened:
            raise ThoughtProblem(NESTED, f"tag {number} opens a thought inside another one")
        if not opens and not opened:
            raise ThoughtProblem(UNCLOSED, f"tag {number} closes a thought that no tag opened")
        (answer if opens else thoughts).append(text[start : tag.start()])
        start, opened = tag.end(), opens
    if opened:
        raise ThoughtProblem(UNCLOSED, f"the thought that tag {number} opens is never closed")
    if not thoughts:
        return None, text
    final = "".join([*answer, text[start:]]).strip()
    if not final:
        raise ThoughtProblem(EMPTY_ANSWER, f"nothing is left without {len(thoughts)} thoughts")
    return "\n\n".join(thought for part in thoughts if (thought := part.strip())), final


def set_response_template(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Make `parse_response` and `get_response_parser` work on a Qwen3 tokenizer, and on every copy that is saved of it.

    Returns:
        The same tokenizer.
    """
    tokenizer.response_template = copy.deepcopy(RESPONSE_TEMPLATE)
    return tokenizer


class ThinkingMixin:
    """A budget for thoughts, for a processor with a Qwen3 tokenizer; goes before `ProcessorMixin`."""

    def thinking_budget(self, max_thinking_tokens: int) -> ThinkingBudget:
        """What keeps a thought within `max_thinking_tokens` tokens: `generate(…, logits_processor=[budget])`.

        Raises:
            ValueError: a negative budget, or a tokenizer without Qwen3's thinking tokens.
        """
        return ThinkingBudget.from_tokenizer(self.tokenizer, max_thinking_tokens)


__all__ = [
    "EMPTY_ANSWER",
    "NESTED",
    "RESPONSE_TEMPLATE",
    "THOUGHT_KEYS",
    "UNCLOSED",
    "ThinkingMixin",
    "ThoughtProblem",
    "set_response_template",
    "split_thought",
]
