"""What must hold before a run spends its first step, on images or on text alone.

Each of these once passed in silence: a text template that renders every content block empty, an image placeholder
under supervision, a stop token that is never learned, a thought that was to be left out, LoRA on the vision tower,
nothing to train at all.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

END_OF_TURN = "<|im_end|>"
THINKING_TAGS = ("<think>", "</think>")
_SHOWN_CHARACTERS = 400


@dataclass
class Preflight:
    """What the first batch looks like and what will be trained.

    Attributes:
        text: the first row as the model reads it, placeholders collapsed.
        supervised: what of it is learned, as text.
        rows, tokens, supervised_tokens, image_tokens: counts of the first batch.
        parameters: part -> {"total", "trained"}.
        lora_modules: part -> number of modules with an adapter.
    """

    text: str
    supervised: str
    rows: int
    tokens: int
    supervised_tokens: int
    image_tokens: int
    parameters: dict[str, dict[str, int]]
    lora_modules: dict[str, int]

    def show(self, console: Console) -> None:
        """Print the tables."""
        table = Table(title="Parameters", title_justify="left")
        for column in ("part", "total", "trained", "LoRA modules"):
            table.add_column(column, justify="left" if column == "part" else "right")
        for part, counts in self.parameters.items():
            lora = self.lora_modules.get(part)
            table.add_row(part, f"{counts['total']:,}", f"{counts['trained']:,}", f"{lora:,}" if lora else "")
        console.print(table)
        console.print(
            f"First batch: {self.rows} rows, {self.tokens} tokens, "
            + (f"{self.image_tokens} of them image placeholders, " if self.image_tokens else "")
            + f"{self.supervised_tokens} supervised."
        )
        console.print(f"  reads   {self.text!r}\n  learns  {self.supervised!r}", markup=False, highlight=False)


def preflight(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    batch: dict[str, torch.Tensor],
    *,
    without_thinking: bool = False,
) -> Preflight:
    """Check one collated batch against the model.

    Args:
        model: a graft or any vision-language model of transformers, with or without PEFT.
        batch: what the data collator gives, `labels` included.
        without_thinking: the data has no thoughts, so no thinking token may be learned, and each row has an empty
            thought before its answer.

    Raises:
        ValueError: any of the conditions fails; the message says which, with counts, and what to do.
    """
    tokenizer = processor.tokenizer
    ids_BS, labels_BS = batch["input_ids"], batch["labels"]
    image_token_id = model.config.image_token_id
    _check_supervised(labels_BS, "the answers, the chat template and `max_length` (set it to null for vision data)")
    if int((labels_BS == image_token_id).sum()):
        raise ValueError(
            f"{int((labels_BS == image_token_id).sum())} image placeholders are supervised; labels must be -100 there. "
            "Train on the completion only (`completion_only_loss` or `assistant_only_loss`)."
        )
    answers = [tokenizer.decode(row[row != -100], skip_special_tokens=True).strip() for row in labels_BS]
    if empty := [index for index, text in enumerate(answers) if not text]:
        raise ValueError(
            f"{len(empty)} of {len(answers)} answers render empty (rows {empty[:5]}): the chat template drops their "
            "content. Qwen3's text template does that to content blocks; load `processing.load_chat_template()`."
        )
    stop_id = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    unstopped = (~(labels_BS == stop_id).any(dim=1)).nonzero().flatten().tolist()
    if unstopped:
        raise ValueError(
            f"{END_OF_TURN} is not supervised in {len(unstopped)} of {len(ids_BS)} rows (rows {unstopped[:5]}): the "
            "model would not learn to stop. Put it inside the template's generation markers, and do not truncate."
        )
    if without_thinking:
        _check_without_thinking(tokenizer, ids_BS, labels_BS)
    placeholders = int((ids_BS == image_token_id).sum())
    features = _count_features(model, batch)
    if placeholders != features:
        raise ValueError(
            f"The first batch holds {placeholders} image placeholders and {features} image features. Processor and "
            "model must come from the same repository, and rows must not be truncated (`max_length: null`)."
        )
    _check_length(model, ids_BS.shape[1])
    return Preflight(
        text=_collapse(tokenizer.decode(ids_BS[0][batch["attention_mask"][0].bool()]), processor.image_token),
        supervised=tokenizer.decode(labels_BS[0][labels_BS[0] != -100]),
        rows=len(ids_BS),
        tokens=int(batch["attention_mask"].sum()),
        supervised_tokens=int((labels_BS != -100).sum()),
        image_tokens=placeholders,
        parameters=_trained_parameters(model),
        lora_modules=_lora_modules(model),
    )


def preflight_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: dict[str, torch.Tensor]
) -> Preflight:
    """Check one collated batch of text, or of token rows, against a model of text alone.

    Args:
        model: with or without PEFT.
        batch: what the data collator gives; documents that lie in one row have `position_ids`.

    Raises:
        ValueError: a row that supervises nothing, ids outside the vocabulary, a document that is too long, or nothing
            to train.
    """
    ids_BS, labels_BS = batch["input_ids"], batch["labels"]
    mask_BS = batch.get("attention_mask", torch.ones_like(ids_BS)).bool()
    _check_supervised(labels_BS, "the rows, the chat template and `max_length`")
    vocabulary = model.config.vocab_size
    ids_N, learned_N = ids_BS[mask_BS], labels_BS[labels_BS != -100]
    if outside := sum(int(((ids < 0) | (ids >= vocabulary)).sum()) for ids in (ids_N, learned_N)):
        raise ValueError(
            f"{outside} ids and labels of the first batch are outside the model's vocabulary of {vocabulary}. Take the "
            "tokenizer of the model's own repository."
        )
    positions_BS = batch.get("position_ids")
    _check_length(model, int(positions_BS.max()) + 1 if positions_BS is not None else ids_BS.shape[1])
    return Preflight(
        text=_shorten(tokenizer.decode(ids_BS[0][mask_BS[0]])),
        supervised=_shorten(tokenizer.decode(labels_BS[0][labels_BS[0] != -100])),
        rows=len(ids_BS) if positions_BS is None else int((positions_BS == 0).sum()),
        tokens=int(mask_BS.sum()),
        supervised_tokens=len(learned_N),
        image_tokens=0,
        parameters=_trained_parameters(model),
        lora_modules=_lora_modules(model),
    )


def preflight_documents(model: PreTrainedModel, processor: ProcessorMixin, batch: dict[str, torch.Tensor]) -> Preflight:
    """Check one batch of `DocumentCollator` against a CLaRa model.

    Raises:
        ValueError: ids outside the vocabulary, a question without a right document, a prompt that is too long, or
            nothing to train.
    """
    tokenizer, config = processor.tokenizer, model.config
    prompts = "input_ids" in batch
    ids_BS = batch["input_ids"] if prompts else batch["query_input_ids"]
    labels_BS = batch["labels"] if prompts else torch.full_like(ids_BS, -100)
    mask_BS = batch["attention_mask"].bool() if prompts else ids_BS != tokenizer.pad_token_id
    vocabulary = config.get_text_config().vocab_size
    documents_NL = batch.get("document_input_ids", ids_BS[:0])  # or latents, which are no ids
    if outside := sum(int((ids >= vocabulary).sum()) for ids in (ids_BS, documents_NL)):
        raise ValueError(
            f"{outside} ids of the first batch are outside the model's vocabulary of {vocabulary}. Take the processor "
            "of the model's own repository."
        )
    if "positives" in batch and (without := int((~batch["positives"].any(dim=1)).sum())):
        raise ValueError(f"{without} of {len(ids_BS)} questions of the first batch have no right document.")
    _check_length(model, max(ids_BS.shape[1], documents_NL.shape[1]))
    return Preflight(
        text=_collapse(tokenizer.decode(ids_BS[0][mask_BS[0]]), processor.document_token),
        supervised=tokenizer.decode(labels_BS[0][labels_BS[0] != -100]),
        rows=len(ids_BS),
        tokens=int(mask_BS.sum()) + int((documents_NL != tokenizer.pad_token_id).sum()),
        supervised_tokens=int((labels_BS != -100).sum()),
        image_tokens=0,
        parameters=_trained_parameters(model),
        lora_modules=_lora_modules(model),
    )


def _check_supervised(labels_BS: torch.Tensor, where: str) -> None:
    without = (~(labels_BS != -100).any(dim=1)).nonzero().flatten().tolist()
    if without:
        raise ValueError(
            f"{len(without)} of {len(labels_BS)} rows of the first batch supervise no token (rows {without[:5]}). "
            f"Check {where}."
        )


def _check_length(model: PreTrainedModel, longest: int) -> None:
    limit = model.config.get_text_config().max_position_embeddings
    if longest > limit:
        raise ValueError(f"A row of {longest} tokens exceeds the language model's {limit} positions; shorten it.")


def _trained_parameters(model: nn.Module) -> dict[str, dict[str, int]]:
    parameters = count_parameters(model)
    if not any(counts["trained"] for counts in parameters.values()):
        raise ValueError("Nothing is trained: every parameter is frozen. Check `trainable` or the LoRA target regex.")
    return parameters


def _check_without_thinking(tokenizer: PreTrainedTokenizerBase, ids_BS: torch.Tensor, labels_BS: torch.Tensor) -> None:
    tag_ids = ids_BS.new_tensor(tokenizer.convert_tokens_to_ids(list(THINKING_TAGS)))
    learned = int(torch.isin(labels_BS, tag_ids).sum())
    if learned:
        raise ValueError(
            f"{learned} thinking tokens ({', '.join(THINKING_TAGS)}) of the first batch are supervised, though the "
            "data was stripped of thoughts. Use this package's chat template (`processing.load_chat_template()`)."
        )
    missing = [row for row, ids in enumerate(ids_BS) if not torch.isin(tag_ids, ids).all()]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(ids_BS)} rows of the first batch have no empty thought before the answer (rows "
            f"{missing[:5]}): the chat template ignores `enable_thinking=False`. Use this package's "
            "(`processing.load_chat_template()`)."
        )


def count_parameters(model: nn.Module) -> dict[str, dict[str, int]]:
    """Part of the model -> {"total", "trained"}.

    Tied weights count once, where they first appear; the idle copies that PEFT keeps of `modules_to_save` do not. Of
    weights in 4 bits, two lie in a byte; counted is what they stand for.
    """
    counts: dict[str, dict[str, int]] = defaultdict(lambda: {"total": 0, "trained": 0})
    for name, parameter in model.named_parameters():
        if ".original_module." in name:
            continue
        part, packed = counts[_part(name, model)], getattr(parameter, "quant_state", None)
        count = parameter.numel() if packed is None else packed.shape.numel()
        part["total"] += count
        part["trained"] += count if parameter.requires_grad else 0
    return dict(counts)


def _part(name: str, model: nn.Module) -> str:
    """`base_model.model.model.connector.projector.fc1.weight` -> `connector`, or what the configuration calls it."""
    wrappers = {"base_model", "model", "module", "_orig_mod"}
    pieces = [piece for piece in name.split(".") if piece not in wrappers]
    own = getattr(getattr(model, "config", None), "parameter_part", None)
    return (own and own(".".join(pieces))) or pieces[0]


def _lora_modules(model: nn.Module) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for name, _ in model.named_modules():
        if name.endswith("lora_A"):
            counts[_part(name, model)] += 1
    return dict(counts)


def _count_features(model: PreTrainedModel, batch: dict[str, Any]) -> int:
    """Soft tokens that the batch's images really give."""
    if batch.get("pixel_values") is None:
        return 0
    names = ("pixel_values", "pixel_attention_mask", "spatial_shapes", "image_grid_thw")
    inputs = {name: batch[name].to(model.device) for name in names if batch.get(name) is not None}
    with torch.no_grad():
        features = model.get_image_features(**inputs, return_dict=True).pooler_output
    return sum(len(item) for item in features)


def _shorten(text: str) -> str:
    """A document's beginning; the whole of it would fill the screen."""
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]} …"


def _collapse(text: str, image_token: str) -> str:
    """Runs of placeholders as `<|image_pad|> x 64`."""
    count = 0
    while image_token * (count + 1) in text:
        count += 1
    return text.replace(image_token * count, f"{image_token} x {count}") if count > 1 else text
