"""Train a graft with TRL: one YAML is one run.

    qwen-grafts train recipes/perceiver_vlm/tiny.yaml
    torchrun --nproc_per_node 2 -m qwen_grafts.recipes.graft_sft --config recipes/perceiver_vlm/tiny.yaml
    accelerate launch -m qwen_grafts.recipes.graft_sft --config recipes/perceiver_vlm/stage1_align.yaml

Any value of the YAML can be overridden on the command line (`--learning_rate 1e-3`). Starts from an exported
repository, so that every checkpoint holds the code that loads it.
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed
from trl import ModelConfig, SFTConfig, TrlParser, get_peft_config, get_quantization_config

from .. import configuration, modeling, processing  # noqa: F401  registers the grafts with the Auto classes
from .generative_evaluation import evaluate
from .graft_trainer import GraftSFTTrainer
from .preflight import preflight
from .resume import last_complete_checkpoint
from .run_metadata import repeat_command, training_metadata, write_metadata, write_refused
from .trained_parts import freeze, parse_learning_rates
from .training_data import DataArguments, load_training_data


@dataclass
class GraftArguments(DataArguments):
    """What a run needs beside TRL's `SFTConfig` and `ModelConfig`."""

    trainable: list[str] = field(
        default_factory=list,
        metadata={
            "help": "regular expressions on parameter names to train; default: the new part; ignored with LoRA, "
            "which decides itself"
        },
    )
    learning_rates: list[str] = field(
        default_factory=list,
        metadata={"help": r"EXPRESSION=RATE for parameters with a learning rate of their own: '\bconnector\b=2e-5'"},
    )
    image_min_pixels: int | None = field(
        default=None, metadata={"help": "least pixels of an image, for towers of dynamic resolution"}
    )
    image_max_pixels: int | None = field(
        default=None, metadata={"help": "most pixels of an image; larger ones are scaled down"}
    )
    generative_eval_rows: int = field(
        default=0, metadata={"help": "held-out rows answered before and after training, with image controls"}
    )
    generative_eval_tokens: int = field(default=32, metadata={"help": "longest answer in that evaluation"})


def main(graft_args: GraftArguments, training_args: SFTConfig, model_args: ModelConfig) -> GraftSFTTrainer:
    """Run one recipe; returns the trainer after training.

    Raises:
        ValueError: anything preflight, the data or the configuration refuses, before the first step.
    """
    console = Console(quiet=training_args.local_process_index != 0)
    set_seed(training_args.seed)
    data = load_training_data(graft_args, training_args.seed, training_args.dataset_num_proc)
    console.print(f"Data: {data.summary}", highlight=False, markup=False)
    if data.refused and training_args.process_index == 0:
        report = write_refused(data.refused, Path(training_args.output_dir))
        console.print(f"{len(data.refused)} rows were refused; {report} lists each with its index and the reason.")
    budget = {"min_pixels": graft_args.image_min_pixels, "max_pixels": graft_args.image_max_pixels}
    budget = {name: pixels for name, pixels in budget.items() if pixels is not None}
    processor = AutoProcessor.from_pretrained(
        model_args.model_name_or_path, revision=model_args.model_revision, trust_remote_code=True, **budget
    )
    if budget and "longest_edge" not in processor.image_processor.size:
        raise ValueError(f"This tower reads images of one size; leave out {', '.join(f'image_{n}' for n in budget)}.")
    model = AutoModelForImageTextToText.from_pretrained(
        model_args.model_name_or_path,
        revision=model_args.model_revision,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
        quantization_config=get_quantization_config(model_args),
        trust_remote_code=True,
    )
    if not model_args.use_peft:
        freeze(model, graft_args.trainable)
    training_args.remove_unused_columns = False  # images are no argument of any `forward`
    trainer = GraftSFTTrainer(
        model=model,
        args=training_args,
        train_dataset=data.train,
        eval_dataset=data.eval if training_args.eval_strategy != "no" else None,
        processing_class=processor,
        peft_config=get_peft_config(model_args),
        learning_rates=parse_learning_rates(graft_args.learning_rates),
    )
    first_rows = [data.train[index] for index in range(min(training_args.per_device_train_batch_size, len(data.train)))]
    first_batch = trainer.data_collator(first_rows)
    report = preflight(trainer.model, processor, first_batch, without_thinking=graft_args.strip_thinking)
    report.show(console)

    metrics = {}
    rows = data.eval.select(range(min(graft_args.generative_eval_rows, len(data.eval)))) if data.eval else []

    def answer_held_out_rows(when: str) -> None:
        if len(rows) and trainer.is_world_process_zero():
            tokens = graft_args.generative_eval_tokens
            switch = False if graft_args.strip_thinking else None
            metrics[when] = evaluate(trainer.model, processor, rows, max_new_tokens=tokens, enable_thinking=switch)
            console.print(f"Exact match {when} training: {metrics[when]}", highlight=False)
        trainer.accelerator.wait_for_everyone()

    resume = training_args.resume_from_checkpoint
    if resume in (True, "true", "True"):
        resume = last_complete_checkpoint(Path(training_args.output_dir))
    answer_held_out_rows("before")
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=resume)
    duration = time.perf_counter() - start
    answer_held_out_rows("after")
    trainer.save_model()
    trainer.create_model_card(dataset_name=data.summary["name"] if graft_args.dataset_name else None)
    if trainer.is_world_process_zero():
        metadata = training_metadata(
            trainer=trainer,
            dataset=data.summary,
            parameters=report.parameters,
            metrics=metrics,
            command=repeat_command(sys.argv),
            duration_seconds=duration,
        )
        write_metadata(metadata, Path(training_args.output_dir))
    if training_args.push_to_hub:
        trainer.push_to_hub()
    return trainer


def parse(arguments: list[str] | None = None) -> tuple[GraftArguments, SFTConfig, ModelConfig]:
    """Read `--config FILE.yaml` and overrides; an unknown name is an error."""
    parser = TrlParser((GraftArguments, SFTConfig, ModelConfig))
    return parser.parse_args_and_config(arguments, fail_with_unknown_args=True)


if __name__ == "__main__":
    main(*parse())
