"""Learning running affine evaluation: one run of `RecursiveSFTTrainer`, or of a stock Qwen3 as its control.

Small batches and many steps; a step reads as many operations whether its rows are short or long, and they grow together
with the number of cycles. With large batches, or with long rows from the start, this does not learn in minutes.
"""

import time
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig, SFTConfig

from .affine_task import affine_batches, affine_tokenizer, collate_batches, curriculum
from .graft_trainer import GraftSFTTrainer
from .preflight import count_parameters
from .recursive_trainer import RecursionArguments, RecursiveSFTTrainer, is_recursive
from .run_metadata import training_metadata, write_metadata
from .weight_average import WeightAverage

CYCLES, LONGEST = 16, 16
STEPS, TOKENS_A_STEP, WARMUP = 4_000, 256, 0.5
EMA_DECAY = 0.998


def affine_trainer(
    model: PreTrainedModel,
    output_dir: Path,
    *,
    seed: int,
    cycles: int = CYCLES,
    steps: int = STEPS,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> GraftSFTTrainer:
    """A trainer ready to start.

    Args:
        model: recursive, or a stock causal model of the same vocabulary.
        output_dir: where the model is saved.
        seed: of data and training.
        cycles: of a recursive model, from the middle of the run on; up to there they grow as the rows do.
        steps: of the run.
    """
    shared: dict[str, Any] = {
        "args": SFTConfig(
            output_dir=str(output_dir),
            max_steps=steps,
            per_device_train_batch_size=1,  # a row of the data set is all rows of a step
            train_sampling_strategy="sequential",
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
            max_length=None,
            learning_rate=2e-3,
            lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr_rate": 0.05},
            warmup_steps=min(100, steps // 10),
            weight_decay=0.01,
            adam_beta2=0.98,
            max_grad_norm=1.0,
            bf16=False,
            gradient_checkpointing=False,
            logging_steps=max(1, steps // 80),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
        ),
        "train_dataset": affine_batches(curriculum(steps, LONGEST, WARMUP), TOKENS_A_STEP, seed),
        "data_collator": collate_batches,
        "processing_class": tokenizer or affine_tokenizer(),
    }
    if is_recursive(model.config):
        recursion = RecursionArguments(
            train_cycles=[cycles], cycles_warmup=WARMUP, deep_supervision=True, ema_decay=EMA_DECAY
        )
        return RecursiveSFTTrainer(model, recursion=recursion, **shared)
    trainer = GraftSFTTrainer(model, **shared)
    trainer.add_callback(WeightAverage(trainer, EMA_DECAY))
    return trainer


def train_affine(model: PreTrainedModel, output_dir: Path, *, seed: int, command: str, **settings: Any) -> None:
    """Train, save model and tokenizer, and write `training_meta.json`.

    Args:
        model: a recursive model; it holds the moving average of its weights afterwards.
        command: what repeats the run.
        settings: see `affine_trainer`.
    """
    trainer = affine_trainer(model, output_dir, seed=seed, **settings)
    start = time.perf_counter()
    trainer.train()
    duration = time.perf_counter() - start
    trainer.save_model()
    rows = trainer.train_dataset
    metadata = training_metadata(
        trainer=trainer,
        model_args=ModelConfig(model_name_or_path=str(output_dir)),
        recipe_args=trainer.recursion,
        dataset={
            "name": "running affine evaluation",
            "fingerprint": rows._fingerprint,
            "train_rows": sum(map(len, rows["input_ids"])),
            "eval_rows": 0,
            "refused_rows": {},
        },
        parameters=count_parameters(trainer.model),
        metrics={},
        confusion={},
        command=command,
        duration_seconds=duration,
    )
    write_metadata(metadata, output_dir)


__all__ = ["CYCLES", "EMA_DECAY", "LONGEST", "STEPS", "TOKENS_A_STEP", "WARMUP", "affine_trainer", "train_affine"]
