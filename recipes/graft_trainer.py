"""TRL's `SFTTrainer` with what the grafts need of it, and no more.

- The head runs on supervised positions only, on every device. TRL's fused head leaves the others out on GPUs with
  Triton and scores all of them elsewhere, which on a CPU costs more than the rest of the step.
- Rows of a batch packed into one sequence without padding, which TRL refuses for data with images (`packed_rows.py`).
- Separate learning rates by part of the model.
- Whole conversations are rendered with their `chat_template_kwargs`, as prompts and completions are.
- Every checkpoint carries a card with licence, task and base: of a graft the one of the repository that training
  started from, of a stock model a draft; the finished card replaces both.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from huggingface_hub import ModelCard
from torch import nn
from torch.nn import functional
from transformers.utils import cached_file
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from ..configuration import GRAFTS
from .draft_card import draft_card
from .packed_rows import check_packable, documents_apart, pack_rows
from .thinking_data import TEMPLATE_COLUMN

# Positions whose entropy is taken at a time: with Qwen3's vocabulary 155 MB.
_ENTROPY_POSITIONS = 256


class GraftDataCollator(DataCollatorForVisionLanguageModeling):
    """TRL's collator for images, which reads the column `chat_template_kwargs` of conversations too.

    TRL heeds it in rows of prompt and completion and in data without images, and nowhere else.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """One batch.

        Raises:
            ValueError: conversations that ask for different template arguments.
        """
        asked = [example.get(TEMPLATE_COLUMN) or {} for example in examples]
        if "messages" not in examples[0] or not any(asked):
            return super().torch_call(examples)
        if different := sum(kwargs != asked[0] for kwargs in asked):
            raise ValueError(
                f"{different} of {len(asked)} conversations of a batch differ from the first in `{TEMPLATE_COLUMN}`; "
                "a batch is rendered with one set. Give all rows the same, or train on prompt and completion."
            )
        switches = "".join(f"{{%- set {name} = {value!r} -%}}" for name, value in asked[0].items())
        template = switches + (self.chat_template or self.processor.chat_template)
        return DataCollatorForVisionLanguageModeling.torch_call(replace(self, chat_template=template), examples)


@contextmanager
def _head_on(model: nn.Module, positions_BS: torch.Tensor) -> Iterator[None]:
    """Within it the model's head sees these positions alone, of all rows side by side: (1, N, D).

    `logits_to_keep` takes columns, and in rows of all lengths most of a column is padding or prompt.
    """
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][positions_BS][None],))
    try:
        yield
    finally:
        handle.remove()


def _entropy(logits_NV: torch.Tensor) -> torch.Tensor:
    log_probs_NV = logits_NV.log_softmax(-1)
    return -(log_probs_NV.exp() * log_probs_NV).sum(-1)


class GraftSFTTrainer(SFTTrainer):
    """`SFTTrainer` for grafts.

    Args:
        learning_rates: regular expression on parameter names -> learning rate; what matches none trains at
            `args.learning_rate`. The first match counts.
        pack_rows: train on the rows of a device's batch as one sequence without padding; same loss, same gradients.
            Evaluation is padded as ever.
        starting_revision: branch, tag or commit of the repository that the model was loaded from.

    Raises:
        ValueError: `pack_rows` with a model or an attention implementation that it cannot work with, or beside TRL's
            own packing of text.

    Attributes:
        loss_inputs: names of a batch that the loss reads and the model does not.
    """

    loss_inputs: tuple[str, ...] = ("labels",)

    def __init__(
        self,
        *args: Any,
        learning_rates: dict[str, float] | None = None,
        pack_rows: bool = False,
        starting_revision: str = "main",
        **kwargs: Any,
    ) -> None:
        self.learning_rates = learning_rates or {}
        self.pack_rows = pack_rows
        self.starting_revision = starting_revision
        self._finished_card: ModelCard | None = None
        super().__init__(*args, **kwargs)
        if pack_rows:
            check_packable(self.model)
            if self.padding_free or self.args.packing:
                raise ValueError(
                    "`pack_rows` takes out padding, and `packing` or `padding_free` leaves none. Choose one; for data "
                    "with images it is `pack_rows`."
                )
        if type(self.data_collator) is DataCollatorForVisionLanguageModeling:
            settings = {field.name: getattr(self.data_collator, field.name) for field in fields(self.data_collator)}
            self.data_collator = GraftDataCollator(**settings)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """transformers' training step, on packed rows where asked for; they stay apart through its backward pass."""
        if not self.pack_rows:
            return super().training_step(model, inputs, num_items_in_batch)
        with documents_apart(self.model):
            return super().training_step(model, pack_rows(self.model, inputs), num_items_in_batch)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Cross-entropy over the supervised tokens of all accumulated batches, as TRL computes it.

        The head sees the N positions whose next token has a label. Where TRL's own head is the better one (a GPU) or
        something else is asked of it (outputs, label smoothing, other losses), it is used.
        """
        plain = self.args.loss_type == "nll" and self.label_smoother is None and self.compute_loss_func is None
        if return_outputs or not plain or not self.own_head():
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        supervised_BS, labels_N = self.supervised_positions(inputs)
        forward_inputs = {key: value for key, value in inputs.items() if key not in self.loss_inputs}
        with _head_on(self.model, supervised_BS):
            outputs = model(**forward_inputs, **self.forward_options(), use_cache=False)
        total, logits_NV = self.summed_loss(outputs, labels_N, supervised_BS, inputs)
        loss = self.per_item(total, labels_N, num_items_in_batch)
        self._record_metrics(logits_NV.detach(), labels_N, inputs)
        return loss

    def supervised_positions(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Where (B, S) the next token has a label, and these N labels; one position in a batch without any."""
        labels_BS = inputs["labels"].to(self.accelerator.device)
        supervised_BS = functional.pad(labels_BS[:, 1:] != -100, (0, 1))
        supervised_BS[0, 0] |= ~supervised_BS.any()  # such a batch still needs a graph
        return supervised_BS, labels_BS.roll(-1, dims=1)[supervised_BS]

    def per_item(
        self, total: torch.Tensor, labels_N: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor:
        """A sum over tokens by the number of them in all accumulated batches, as the backward pass wants it."""
        counted = (labels_N != -100).sum() if num_items_in_batch is None else num_items_in_batch
        loss = total / torch.as_tensor(counted, device=total.device).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # the count is global, DDP averages gradients
        return loss

    def own_head(self) -> bool:
        """Whether this class computes the loss of a step, and not TRL's fused head."""
        return self.accelerator.device.type != "cuda"

    def forward_options(self) -> dict[str, Any]:
        """Further arguments of the model in a step of training."""
        return {}

    def summed_loss(
        self, outputs: Any, labels_N: torch.Tensor, positions_BS: torch.Tensor, inputs: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of a step, summed over its tokens, and the logits (N, V) that metrics are taken of.

        Args:
            outputs: of the model, whose head saw N positions: `logits` (1, N, V).
            labels_N: what the next token is, -100 where that is not learned.
            positions_BS: which positions these are.
            inputs: the batch.
        """
        logits_NV = outputs.logits.float()[0]
        return functional.cross_entropy(logits_NV, labels_N, ignore_index=-100, reduction="sum"), logits_NV

    def _record_mean(self, name: str, total: torch.Tensor, count: torch.Tensor) -> None:
        """Log a mean over what all processes have counted."""
        sums = torch.stack([total.detach().double(), count.double()])
        total, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        self._metrics["train" if self.model.training else "eval"][name].append(total / max(count, 1.0))

    def _record_metrics(self, logits_NV: torch.Tensor, labels_N: torch.Tensor, inputs: dict[str, Any]) -> None:
        """The figures TRL logs: entropy and accuracy on supervised tokens, tokens seen."""
        mode = "train" if self.model.training else "eval"
        mask_N = labels_N != -100
        # Documents that TRL packed come without padding and without a mask.
        tokens = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).sum()
        entropy_N = torch.cat([_entropy(part) for part in logits_NV.split(_ENTROPY_POSITIONS)])
        sums = torch.stack(
            [
                mask_N.sum().double(),
                (entropy_N * mask_N).sum().double(),
                (logits_NV.argmax(-1) == labels_N).sum().double(),
                tokens.double(),
            ]
        )
        counted, entropy, correct, tokens = self.accelerator.reduce(sums, reduction="sum").tolist()
        self._metrics[mode]["entropy"].append(entropy / max(counted, 1.0))
        self._metrics[mode]["mean_token_accuracy"].append(correct / max(counted, 1.0))
        if mode == "train":
            self._total_train_tokens += int(tokens)
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """transformers' optimizer, its parameter groups split by `learning_rates`."""
        optimizer = super().create_optimizer(*args, **kwargs)
        if not self.learning_rates:
            return optimizer
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        groups: list[dict[str, Any]] = []
        for group in optimizer.param_groups:
            by_rate: dict[float, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                by_rate.setdefault(self._learning_rate(names[id(parameter)]), []).append(parameter)
            groups += [{**group, "params": params, "lr": rate} for rate, params in by_rate.items()]
        trained = sum(parameter.requires_grad for parameter in self.model.parameters())
        assert sum(len(group["params"]) for group in groups) == trained, "every trained parameter has one group"
        optimizer.param_groups[:] = groups
        return optimizer

    def _learning_rate(self, name: str) -> float:
        matches = (rate for pattern, rate in self.learning_rates.items() if re.search(pattern, name))
        return next(matches, self.args.learning_rate)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save weights, code and processor, and the card with them."""
        super()._save(output_dir, state_dict)
        self._write_card(Path(output_dir or self.args.output_dir))

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Put the card beside the weights; TRL's, with an empty body, is never written."""
        self._write_card(Path(self.args.output_dir), dataset_name, tags)

    def keep_card(self) -> None:
        """The card that lies in `output_dir` is the finished one: what is saved or pushed from here on carries it."""
        self._finished_card = ModelCard.load(Path(self.args.output_dir) / "README.md")

    @property
    def starting_license(self) -> str | None:
        """The licence that the repository says which training started from; None where it says none."""
        return self._starting_card.data.license if self._starting_card else None

    @cached_property
    def _starting_card(self) -> ModelCard | None:
        """The card of the repository that training started from, a folder or on the Hub; None where it has none."""
        name = self.model.config._name_or_path
        source = name and cached_file(
            name,
            "README.md",
            revision=self.starting_revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return ModelCard.load(source) if source else None

    def _write_card(self, target: Path, dataset_name: str | None = None, tags: str | list[str] | None = None) -> None:
        """Write the finished card, or a graft's starting one, or a draft that names the base."""
        if not self.is_world_process_zero():
            return
        new_tags = sorted({*self._tag_names, *([tags] if isinstance(tags, str) else tags or [])})
        if self._finished_card is not None:
            card = self._finished_card
        elif self._starting_card is not None and self.model.config.model_type in GRAFTS:
            card = ModelCard(str(self._starting_card))
            card.data.tags = sorted({*(card.data.tags or []), *new_tags})
            if dataset_name and dataset_name not in (card.data.datasets or []):
                card.data.datasets = [*(card.data.datasets or []), dataset_name]
        else:
            kind = self.model.config.model_type
            card = draft_card(
                name=self.hub_model_id or Path(self.args.output_dir).name,
                base=self.model.config._name_or_path,
                revision=self.starting_revision,
                license=self.starting_license,
                adapter=is_peft_model(self.model),
                task=GRAFTS[kind].pipeline_tag if kind in GRAFTS else "image-text-to-text",
                tags=new_tags,
                datasets=[dataset_name] if dataset_name else [],
                log_history=self.state.log_history,
            )
        target.mkdir(parents=True, exist_ok=True)
        card.save(target / "README.md")
