"""`qwen-grafts ask`: one question to a repository, about images or none; thought and answer as they are written.

The thought streams in grey, the answer in the terminal's own colour; which is which says transformers' own response
parser, by the tokenizer's response template.
"""

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.style import Style
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerBase, TextStreamer

from .processing import ThinkingBudget
from .processing.guarded_images import open_image
from .processing.thinking import RESPONSE_TEMPLATE

THOUGHT = Style(dim=True, italic=True)


class ThoughtStreamer(TextStreamer):
    """Prints what `generate` writes, thoughts apart from the answer.

    Args:
        tokenizer: of the model.
        prompt: what stands before the generation; it may have opened a thought.
        console: where to print.

    Attributes:
        message: after the generation, `reasoning_content` (if there was a thought) and `content`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: str, console: Console) -> None:
        # Special tokens end a turn; the parser has to see them.
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=False)
        self.parser = tokenizer.get_response_parser(RESPONSE_TEMPLATE, prefix=prompt)
        self.console = console
        self.message: dict[str, Any] = {}

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print a piece of text in the style of the part that it belongs to."""
        events = self.parser.feed(text)
        if stream_end:
            self.message, last = self.parser.finalize()
            events += last
        for event in events:
            if event["type"] == "region_chunk":
                style = THOUGHT if event["field"] == "reasoning_content" else None
                self.console.print(event["text"], style=style, end="", markup=False, highlight=False, soft_wrap=True)
            elif event["type"] == "region_close":
                self.console.print()


def ask(
    repository: str,
    question: str,
    images: list[Path],
    *,
    enable_thinking: bool | None,
    max_thinking_tokens: int | None,
    max_new_tokens: int,
    console: Console,
) -> dict[str, Any]:
    """Ask and print; returns the message.

    Args:
        repository: id or folder of a vision graft.
        images: files, in the order they are shown before the question.
        enable_thinking: True opens a thought, False an empty one; None leaves it to the model.
        max_thinking_tokens: budget of the thought.
        max_new_tokens: of thought and answer together.

    Raises:
        ValueError: a file that is no usable image, or a negative budget.
    """
    pictures = [open_image(image.name, image.parent) for image in images]
    processor = AutoProcessor.from_pretrained(repository, trust_remote_code=True)
    limits = (
        [] if max_thinking_tokens is None else [ThinkingBudget.from_tokenizer(processor.tokenizer, max_thinking_tokens)]
    )
    model = AutoModelForImageTextToText.from_pretrained(repository, trust_remote_code=True, dtype="auto")
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    content = [{"type": "image", "image": picture} for picture in pictures] + [{"type": "text", "text": question}]
    switch = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, **switch)
    inputs = processor(text=prompt, images=pictures or None, return_tensors="pt").to(model.device)
    streamer = ThoughtStreamer(processor.tokenizer, prompt, console)
    model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, logits_processor=limits, streamer=streamer)
    return streamer.message
