"""Held-out rows, answered before and after training: conversations, query rows with JSON, questions about documents."""

from typing import Any

from rich.console import Console
from trl import SFTTrainer

from .clara_stages import is_clara
from .document_evaluation import evaluate_documents
from .generative_evaluation import evaluate
from .query_evaluation import GenerationSettings, evaluate_qwen3
from .training_data import TrainingData

STAGES = {"before": "pre", "after": "post"}


class HeldOutRows:
    """The rows of a run that are answered by generating.

    Args:
        trainer: its model answers.
        data: of the run; the first `generative_eval_rows` of the rows held out are asked.
        arguments: the recipe's.

    Attributes:
        metrics: "before" and "after" -> kind of question or field -> measures.
        confusion: field -> its confusion matrix, of the last evaluation.

    Raises:
        ValueError: the model is sharded, which one process alone cannot make answer.
    """

    def __init__(self, trainer: SFTTrainer, data: TrainingData, arguments: Any, console: Console) -> None:
        self.trainer, self.arguments, self.console = trainer, arguments, console
        self.collator = data.collator
        count = min(arguments.generative_eval_rows, len(data.eval)) if data.eval is not None else 0
        self.rows = data.eval.select(range(count)) if count else None
        self.metrics: dict[str, Any] = {}
        self.confusion: dict[str, Any] = {}
        if self.rows is not None and trainer.is_fsdp_enabled:
            raise ValueError("A sharded model cannot answer on one process; set `generative_eval_rows: 0` under FSDP.")

    def answer(self, when: str) -> None:
        """Ask on the main process, while the others wait; log and keep what comes of it.

        Args:
            when: "before" or "after".
        """
        if self.rows is not None and self.trainer.is_world_process_zero():
            if is_clara(self.trainer.model.config):
                self.metrics[when] = self._documents()
            elif self.collator is None:
                self.metrics[when] = self._conversations()
            else:
                self.metrics[when] = self._queries(STAGES[when])
            self.console.print(f"Answers {when} training: {self.metrics[when]}", highlight=False, markup=False)
        self.trainer.accelerator.wait_for_everyone()

    def _conversations(self) -> dict[str, dict[str, float]]:
        return evaluate(
            self.trainer.model,
            self.trainer.processing_class,
            self.rows,
            max_new_tokens=self.arguments.generative_eval_tokens,
            enable_thinking=False if self.arguments.strip_thinking else None,
        )

    def _documents(self) -> dict[str, dict[str, float]]:
        return evaluate_documents(
            self.trainer.model,
            self.rows,
            self.arguments.stage,
            max_new_tokens=self.arguments.generative_eval_tokens,
            batch_size=self.arguments.generative_eval_batch_size,
        )

    def _queries(self, stage: str) -> dict[str, dict[str, float]]:
        settings = GenerationSettings(
            stage=stage,
            max_new_tokens=self.arguments.generative_eval_tokens,
            temperature=self.arguments.generative_eval_temperature,
            batch_size=self.arguments.generative_eval_batch_size,
        )
        result = evaluate_qwen3(self.trainer.model, self.trainer.processing_class, self.rows, self.collator, settings)
        self.trainer.log(dict(result.metrics))
        self.confusion = result.scores.confusion
        return result.scores.by_kind()


__all__ = ["HeldOutRows"]
