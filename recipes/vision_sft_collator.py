"""Rows of an image, a question and an answer to batches for SFT, and to prompts for generation.

What is learned is decided by where a token stands, never by which token it is: the prompt and the answer are tokenised
apart and joined, so role markers that a user writes into a question stay part of the prompt. Each image is processed
once. Nothing is truncated: half of an image's tokens are no image.

Letters: B rows, S tokens.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, ProcessorMixin

from ..processing.guarded_images import upright_rgb

IGNORED = -100
VISION_PLACEHOLDERS = ("<|image_pad|>", "<|video_pad|>")


class Qwen3VisionSFTCollator:
    """Data collator for rows `{image, query, caption?, target_json}`, for Qwen-VL and this package's vision grafts.

    A question is the query, stripped, and with a caption a line `CAPTION: …` below it. The answer and its end of turn
    (`<|im_end|>` and the template's line break) are supervised, and nothing else.

    Args:
        processor: of the model; its chat template decides the format.
        training: False leaves the answers out and gives prompts for `generate`, padded on the left.
        max_length: refuse longer rows, image tokens counted; `row_length` tells beforehand.
        image_key, query_key, caption_key, target_key: columns. An image is one that is open (`recipes.query_data`
            opens files below an image root); a target is text, or an object that becomes JSON.
        system_prompt: stands before every question.

    Raises:
        ValueError: the processor's tokenizer has no padding token, or its chat template does not render a conversation
            as its prompt and then the answer.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        training: bool = True,
        max_length: int | None = None,
        image_key: str = "image",
        query_key: str = "query",
        caption_key: str = "caption",
        target_key: str = "target_json",
        system_prompt: str | None = None,
    ) -> None:
        self.processor = processor
        self.training = training
        self.max_length = max_length
        self.image_key = image_key
        self.query_key = query_key
        self.caption_key = caption_key
        self.target_key = target_key
        self.system_prompt = system_prompt
        if processor.tokenizer.pad_token_id is None:
            raise ValueError("The tokenizer has no `pad_token`; set one that is not an end of turn.")
        self._turn_end = self._end_of_turn()

    def for_generation(self) -> "Qwen3VisionSFTCollator":
        """The same collator with `training=False`."""
        keys = ("max_length", "image_key", "query_key", "caption_key", "target_key", "system_prompt")
        return type(self)(self.processor, training=False, **{key: getattr(self, key) for key in keys})

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> BatchFeature:
        """One batch.

        Returns:
            What the processor gives for text and images; in training padded on the right, with `labels`.

        Raises:
            ValueError: a row without an image or a question, in training one without an answer, vision placeholders in
                a text, or a row longer than `max_length`.
        """
        prompts = [self.prompt(example) for example in examples]
        batch = self.processor(
            text=prompts,
            images=[[self._image(example)] for example in examples],
            padding=True,
            padding_side="left",
            add_special_tokens=False,  # the template has written them
            return_tensors="pt",
        )
        if self.training:
            batch = self._with_answers(batch, [self.target(example) for example in examples])
        self._check_lengths(batch["attention_mask"].sum(dim=1).tolist())
        return batch

    def prompt(self, example: Mapping[str, Any]) -> str:
        """The rendered prompt of a row, up to where the answer begins."""
        return self._render(self._messages(self._question(example)))

    def target(self, example: Mapping[str, Any]) -> str:
        """The answer of a row as text.

        Raises:
            ValueError: there is none.
        """
        value = example.get(self.target_key)
        text = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
        if not text.strip():
            raise ValueError(f"A row has no answer: {self.target_key!r} is {value!r}. Leave it out or give a target.")
        return self._without_placeholders(text.strip(), self.target_key)

    def row_length(self, example: Mapping[str, Any]) -> int:
        """Tokens of a row in training, image tokens counted; no pixel is processed.

        Raises:
            ValueError: what a batch with this row would raise, and a picture that the processor cannot resize.
        """
        text = self.prompt(example) + self.target(example) + self._turn_end
        width, height = self._image(example).size
        counted = self.processor._get_num_multimodal_tokens(image_sizes=[(height, width)])
        text_tokens = len(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])
        return text_tokens - 1 + counted.num_image_tokens[0]

    def _question(self, example: Mapping[str, Any]) -> str:
        query = str(example.get(self.query_key) or "").strip()
        if not query:
            raise ValueError(f"A row has no question: {self.query_key!r} is empty. Leave it out or ask something.")
        caption = str(example.get(self.caption_key) or "")
        text = f"{query}\nCAPTION: {caption}" if caption.strip() else query
        return self._without_placeholders(text, self.query_key)

    def _messages(self, question: str) -> list[dict[str, Any]]:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        system = [{"role": "system", "content": [{"type": "text", "text": self.system_prompt}]}]
        return [*(system if self.system_prompt else []), {"role": "user", "content": content}]

    def _render(self, messages: list[dict[str, Any]], prompt: bool = True) -> str:
        return self.processor.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)

    def _end_of_turn(self) -> str:
        """What the chat template writes after an answer."""
        question, answer = self._messages("question"), "{}"
        reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        whole, prompt = self._render([*question, reply], prompt=False), self._render(question)
        if not whole.startswith(prompt + answer) or whole == prompt + answer:
            raise ValueError(
                "The chat template does not render a conversation as its prompt, the answer and an end of turn, so "
                f"the answer cannot be told from the prompt: {whole!r}. Use the model's own template."
            )
        return whole.removeprefix(prompt + answer)

    def _image(self, example: Mapping[str, Any]) -> Image.Image:
        image = example.get(self.image_key)
        if image is None:
            raise ValueError(f"A row has no image under {self.image_key!r}; its columns are {', '.join(example)}.")
        if not isinstance(image, Image.Image):
            raise ValueError(
                f"{self.image_key!r} holds a {type(image).__name__}, not an open image. "
                "`recipes.query_data.load_query_rows` opens file names below an image root."
            )
        return upright_rgb(image)

    def _without_placeholders(self, text: str, key: str) -> str:
        """A text that holds no image: one placeholder too many, and the images no longer fit the text."""
        if found := [token for token in VISION_PLACEHOLDERS if token in text]:
            raise ValueError(f"The text of {key!r} contains {', '.join(found)}. Take it out of the data.")
        return text

    def _with_answers(self, batch: BatchFeature, answers: list[str]) -> BatchFeature:
        """Prompts (left-padded) and answers joined and padded on the right, everything but the answers masked."""
        tokenizer = self.processor.tokenizer
        texts = [answer + self._turn_end for answer in answers]
        answer_ids = [torch.tensor(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        kept = [mask.bool() for mask in batch["attention_mask"]]
        prompts = [ids[mask] for ids, mask in zip(batch["input_ids"], kept, strict=True)]
        pairs = list(zip(prompts, answer_ids, strict=True))
        padded = {
            "input_ids": ([torch.cat(pair) for pair in pairs], tokenizer.pad_token_id),
            "attention_mask": ([torch.ones(len(p) + len(a), dtype=torch.long) for p, a in pairs], 0),
            "labels": ([torch.cat([torch.full_like(p, IGNORED), a]) for p, a in pairs], IGNORED),
        }
        if "mm_token_type_ids" in batch:  # Qwen3-VL needs it for its positions; an answer is text, which is 0
            types = [row[mask] for row, mask in zip(batch["mm_token_type_ids"], kept, strict=True)]
            rows = [torch.cat([t, torch.zeros_like(a)]) for t, a in zip(types, answer_ids, strict=True)]
            padded["mm_token_type_ids"] = (rows, 0)
        for name, (rows, fill) in padded.items():
            batch[name] = pad_sequence(rows, batch_first=True, padding_value=fill)
        return batch

    def _check_lengths(self, lengths: list[int]) -> None:
        too_long = [length for length in lengths if self.max_length is not None and length > self.max_length]
        if too_long:
            raise ValueError(
                f"{len(too_long)} of {len(lengths)} rows are longer than `max_length={self.max_length}` tokens, the "
                f"longest {max(too_long)}; a row with an image is never cut. Raise `max_length`, lower "
                "`image_max_pixels`, or leave such rows out (`on_bad_row: skip`)."
            )


__all__ = ["IGNORED", "VISION_PLACEHOLDERS", "Qwen3VisionSFTCollator"]
