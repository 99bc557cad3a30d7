"""Generative evaluation of rows `{image, query, caption, target_json}`: what is written is read as JSON and scored.

The same rows are asked once more over a blank image: what is right there was known without looking.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from datasets import Dataset
from rich.progress import track
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from .generative_evaluation import grey_image, write_answers
from .structured_targets import JsonScores, score_json
from .vision_sft_collator import Qwen3VisionSFTCollator


@dataclass(frozen=True)
class GenerationSettings:
    """How `evaluate_qwen3` generates.

    Attributes:
        stage: before or after training; part of the names of the measures.
        temperature: 0 is greedy.
        blank_image: ask again over blank images.
    """

    stage: Literal["pre", "post"] = "pre"
    max_new_tokens: int = 256
    temperature: float = 0.0
    batch_size: int = 8
    blank_image: bool = True


@dataclass(frozen=True)
class QueryEvaluation:
    """What was measured, and what it was measured on.

    Attributes:
        metrics: `gen_eval/pre_exact_match` and the like, for trackers.
        scores: the same by field, with confusion matrices.
        answers: as the model wrote them, without special tokens.
    """

    metrics: dict[str, float]
    scores: JsonScores
    answers: list[str]


def evaluate_qwen3(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    eval_dataset: Dataset | Iterable[dict[str, Any]],
    collator: Qwen3VisionSFTCollator,
    cfg: GenerationSettings | None = None,
) -> QueryEvaluation:
    """Answer every row and score the answers.

    Args:
        eval_dataset: rows as the collator reads them, targets included.
        collator: of the training; prompts are made with `training=False`.

    Raises:
        ValueError: no rows, or a row that the collator refuses.
    """
    cfg = cfg or GenerationSettings()
    rows = list(eval_dataset)
    if not rows:
        raise ValueError("Evaluation needs at least 1 row, got 0. Hold some out with `eval_ratio`.")
    targets = [collator.target(row) for row in rows]
    prompts = collator.for_generation()
    answers = generate_answers(model, processor, rows, prompts, cfg, "Evaluating")
    scores = score_json(answers, targets)
    if cfg.blank_image:
        blank = generate_answers(model, processor, list(_blank(rows, collator)), prompts, cfg, "Evaluating (blank)")
        blind = score_json(blank, targets)
        scores.overall["blank_image"] = blind.overall["exact_match"]
        for name, measures in scores.fields.items():
            measures["blank_image"] = blind.fields[name]["accuracy"]
    metrics = {f"gen_eval/{cfg.stage}_{name}": value for name, value in scores.flat().items()}
    return QueryEvaluation(metrics, scores, answers)


def generate_answers(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    rows: list[dict[str, Any]],
    collator: Qwen3VisionSFTCollator,
    cfg: GenerationSettings,
    description: str,
) -> list[str]:
    """The answers of rows in batches padded on the left, thoughts and special tokens left out.

    Args:
        collator: with `training=False`.
        description: of the progress bar.
    """
    sampling = {"do_sample": True, "temperature": cfg.temperature} if cfg.temperature > 0 else {"do_sample": False}
    if not sampling["do_sample"]:  # Qwen's generation configurations have these, and transformers warns of them
        sampling |= dict.fromkeys(("temperature", "top_p", "top_k"))

    def batches() -> Iterator[tuple[list[str], BatchFeature]]:
        for start in track(range(0, len(rows), cfg.batch_size), description, transient=True):
            batch = rows[start : start + cfg.batch_size]
            yield [collator.prompt(row) for row in batch], collator(batch)

    return write_answers(model, processor, batches(), max_new_tokens=cfg.max_new_tokens, **sampling)


def _blank(rows: list[dict[str, Any]], collator: Qwen3VisionSFTCollator) -> Iterator[dict[str, Any]]:
    """The rows with grey images of the same size."""
    for row in rows:
        yield row | {collator.image_key: grey_image(row[collator.image_key])}


__all__ = ["GenerationSettings", "QueryEvaluation", "evaluate_qwen3", "generate_answers"]
