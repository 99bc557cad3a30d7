"""Training of CLaRa models in all their stages, on TRL's `SFTTrainer`.

- The loss of compression: cross-entropy on the answers, and a part that keeps the mean of a passage's memory near the
  mean of its text. A passage counts as much as the answer it belongs to has tokens, so accumulated batches are exact.
- The loss of retrieval: how much of the softmax over the candidates falls on the right documents.
- A checkpoint holds what trains and names where the rest came from: of a model of four billion parameters, its roles.

Shapes: B rows, N passages of a batch, P supervised positions of all rows, S tokens of a prompt, V vocabulary.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME
from trl import SFTConfig

from ..configuration.configuration_clara_qwen3 import ROLES
from .clara_stages import ClaraArguments, check_clara
from .graft_trainer import GraftSFTTrainer


class ClaraSFTTrainer(GraftSFTTrainer):
    """`GraftSFTTrainer` for CLaRa models, with batches of `DocumentCollator`.

    Args:
        model: a `ClaraQwen3ForCausalLM` in which the parts of the stage train.
        stage: one of `clara_stages.TRAINED_PARTS`.
        clara: its settings.

    Raises:
        ValueError: settings out of range, or that this loss does not know.
    """

    loss_inputs = ("labels", "positives")

    def __init__(
        self, model: PreTrainedModel, args: SFTConfig, *more: Any, stage: str, clara: ClaraArguments, **kwargs: Any
    ) -> None:
        check_clara(clara, stage, model.config)
        if args.loss_type != "nll" or args.label_smoothing_factor or kwargs.get("compute_loss_func"):
            raise ValueError(
                "CLaRa models train on a loss of their own; leave out `loss_type`, `label_smoothing_factor` and "
                "`compute_loss_func`."
            )
        args.dataset_kwargs = (args.dataset_kwargs or {}) | {"skip_prepare_dataset": True}
        self.stage, self.clara = stage, clara
        if clara.num_retrieved is not None:
            model.config.num_retrieved = clara.num_retrieved
        super().__init__(model, args, *more, **kwargs)

    def own_head(self) -> bool:
        """Always: TRL's fused head knows the answers' loss alone."""
        return True

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The stage's loss."""
        if self.stage != "retrieval":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = model(**{name: value for name, value in inputs.items() if name not in self.loss_inputs})
        scores_BN, right_BN = outputs.retrieval_scores, inputs["positives"]
        scores_BN = scores_BN.masked_fill(~inputs["candidates"], float("-inf"))
        scaled_BN = scores_BN / self.model.config.retrieval_temperature
        loss_B = scaled_BN.logsumexp(dim=1) - scaled_BN.masked_fill(~right_BN, float("-inf")).logsumexp(dim=1)
        self._record_recall(scores_BN.topk(min(self.model.config.num_retrieved, scores_BN.shape[1])).indices, right_BN)
        loss = loss_B.mean()
        return (loss, outputs) if return_outputs else loss

    def summed_loss(
        self, outputs: Any, labels_P: torch.Tensor, positions_BS: torch.Tensor, inputs: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy on the answers, and the weighted alignment loss where the compressor trains."""
        total, logits_PV = super().summed_loss(outputs, labels_P, positions_BS, inputs)
        learned_B = _learned_by_row(positions_BS, labels_P)
        if self.stage == "end_to_end":
            self._record_recall(outputs.retrieved, inputs["positives"])
        elif self.clara.mse_weight:
            latents = len(outputs.memory[0])
            passages_B = (inputs["input_ids"] == self.model.config.document_token_id).sum(dim=1) // latents
            weight_N = (learned_B / passages_B.clamp(min=1)).repeat_interleave(passages_B)
            alignment = (outputs.alignment_loss * weight_N).sum()
            self._record_mean("alignment_loss", alignment, learned_B.sum())
            self._record_mean("answer_loss", total, learned_B.sum())
            total = total + self.clara.mse_weight * alignment
        return total, logits_PV

    def _record_recall(self, retrieved_BK: torch.Tensor, right_BN: torch.Tensor) -> None:
        """Share of the questions that chose a right document, at the first place and at any."""
        hit_BK = right_BN.gather(1, retrieved_BK.clamp(min=0)) & (retrieved_BK >= 0)
        count = torch.tensor(len(hit_BK), device=hit_BK.device)
        self._record_mean("recall_at_1", hit_BK[:, 0].sum(), count)
        self._record_mean(f"recall_at_{hit_BK.shape[1]}", hit_BK.any(dim=1).sum(), count)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """A checkpoint holds what trains; what a run ends with is whole."""
        target = Path(output_dir or self.args.output_dir)
        if not target.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-") or not self._starting_point():
            super()._save(output_dir, state_dict)
            return
        config = self.model.config
        before = config.graft_only, config.stored_roles, config.base_models
        trained = {name.rsplit(".", 1)[-1] for name, p in self.model.named_parameters() if p.requires_grad}
        config.graft_only, config.stored_roles = True, [role for role in ROLES if role in trained]
        config.base_models = {"language": {"repo_id": self._starting_point(), "revision": self.starting_revision}}
        tensors = self.model.state_dict() if state_dict is None else state_dict
        try:
            kept = {name: tensor for name, tensor in tensors.items() if self.model.is_stored(name, config)}
            super()._save(output_dir, kept)
        finally:
            config.graft_only, config.stored_roles, config.base_models = before

    def _starting_point(self) -> str:
        return self.model.config._name_or_path

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Put the parts that a checkpoint holds into the model that training started from."""
        file = Path(resume_from_checkpoint, SAFE_WEIGHTS_NAME)
        if self.is_fsdp_enabled or not file.is_file():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        tensors = load_file(file)
        problems = self.model.load_state_dict(tensors, strict=False)
        trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        if problems.unexpected_keys or not trained <= tensors.keys():
            raise ValueError(
                f"{resume_from_checkpoint} does not belong to this run: {len(trained - tensors.keys())} of "
                f"{len(trained)} trained tensors are not in it, and {len(problems.unexpected_keys)} have no place. "
                "Resume with the recipe it was written by."
            )


def _learned_by_row(positions_BS: torch.Tensor, labels_P: torch.Tensor) -> torch.Tensor:
    """(B,) supervised tokens of each row."""
    learned_BS = torch.zeros_like(positions_BS, dtype=torch.long)
    learned_BS[positions_BS] = (labels_P != -100).long()
    return learned_BS.sum(dim=1)


__all__ = ["ClaraSFTTrainer"]
