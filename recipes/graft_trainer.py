"""TRL's `SFTTrainer` with what the grafts need of it, and no more.

- The head runs on supervised positions only, on every device. TRL's fused head leaves the others out on GPUs with
  Triton and scores all of them elsewhere, which on a CPU costs more than the rest of the step.
- Rows of a batch packed into one sequence without padding, which TRL refuses for data with images (`packed_rows.py`).
- Separate learning rates by part of the model.
- Whole conversations are rendered with their `chat_template_kwargs`, as prompts and completions are.
- The model card of the repository that training started from goes along with every checkpoint, instead of a card
  without licence, task and `trust_remote_code`.
"""

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from torch import nn
from torch.nn import functional
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from .packed_rows import check_packable, documents_apart, pack_rows
from .thinking_data import TEMPLATE_COLUMN


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


class GraftSFTTrainer(SFTTrainer):
    """`SFTTrainer` for grafts.

    Args:
        learning_rates: regular expression on parameter names -> learning rate; what matches none trains at
            `args.learning_rate`. The first match counts.
        pack_rows: train on the rows of a device's batch as one sequence without padding; same loss, same gradients.
            Evaluation is padded as ever.

    Raises:
        ValueError: `pack_rows` with a model or an attention implementation that it cannot work with, or beside TRL's
            own packing of text.
    """

    def __init__(
        self,
        *args: Any,
        learning_rates: dict[str, float] | None = None,
        pack_rows: bool = False,
        **kwargs: Any,
    ) -> None:
        self.learning_rates = learning_rates or {}
        self.pack_rows = pack_rows
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

        The head sees the columns in which any row has a label. Where TRL's own head is the better one (a GPU) or
        something else is asked of it (outputs, label smoothing, other losses), it is used.
        """
        plain = self.args.loss_type == "nll" and self.label_smoother is None and self.compute_loss_func is None
        if return_outputs or not plain or self.accelerator.device.type == "cuda":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels_BS = inputs["labels"][:, 1:]
        supervised = (labels_BS != -100).any(dim=0)
        supervised[0] |= ~supervised.any()  # a batch without labels still needs a graph
        columns_K = supervised.nonzero().squeeze(-1)
        forward_inputs = {key: value for key, value in inputs.items() if key != "labels"}
        logits_BKV = model(**forward_inputs, use_cache=False, logits_to_keep=columns_K).logits.float()
        labels_BK = labels_BS[:, columns_K].to(logits_BKV.device)
        total = functional.cross_entropy(
            logits_BKV.flatten(0, 1), labels_BK.flatten(), ignore_index=-100, reduction="sum"
        )
        counted = (labels_BK != -100).sum() if num_items_in_batch is None else num_items_in_batch
        loss = total / torch.as_tensor(counted, device=total.device).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # the count is global, DDP averages gradients
        self._record_metrics(logits_BKV.detach(), labels_BK, inputs)
        return loss

    def _record_metrics(self, logits: torch.Tensor, labels: torch.Tensor, inputs: dict[str, Any]) -> None:
        """The figures TRL logs: entropy and accuracy on supervised tokens, tokens seen."""
        mode = "train" if self.model.training else "eval"
        mask = labels != -100
        log_probs = logits[mask].log_softmax(-1)
        sums = torch.stack(
            [
                mask.sum().double(),
                -(log_probs.exp() * log_probs).sum().double(),
                (log_probs.argmax(-1) == labels[mask]).sum().double(),
                inputs["attention_mask"].sum().double(),
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
        """Put the starting repository's card beside the weights; without one, TRL's."""
        if not self._write_card(Path(self.args.output_dir), dataset_name, tags):
            super().create_model_card(model_name, dataset_name, tags)

    def _write_card(self, target: Path, dataset_name: str | None = None, tags: str | list[str] | None = None) -> bool:
        """Write the starting repository's card into `target`; False where that has none."""
        source = Path(self.model.config._name_or_path) / "README.md"
        if not source.is_file():
            return False
        if self.is_world_process_zero():
            card = ModelCard.load(source)
            new_tags = {*self._tag_names, *([tags] if isinstance(tags, str) else tags or [])}
            card.data.tags = sorted({*(card.data.tags or []), *new_tags})
            if dataset_name and dataset_name not in (card.data.datasets or []):
                card.data.datasets = [*(card.data.datasets or []), dataset_name]
            target.mkdir(parents=True, exist_ok=True)
            card.save(target / "README.md")
        return True
