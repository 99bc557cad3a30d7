"""Train a graft or a stock Qwen-VL with TRL: one YAML is one run.

    qwen-grafts train recipes/perceiver_vlm/tiny.yaml
    qwen-grafts train recipes/qwen3_vl_sft/lora_8b.yaml
    torchrun --nproc_per_node 2 -m qwen_grafts.recipes.graft_sft --config recipes/perceiver_vlm/tiny.yaml
    accelerate launch -m qwen_grafts.recipes.graft_sft --config recipes/perceiver_vlm/stage1_align.yaml

Any value of the YAML can be overridden on the command line (`--learning_rate 1e-3`). A graft starts from an exported
repository, so that every checkpoint holds the code that loads it.
"""

import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, set_seed
from trl import ModelConfig, SFTConfig, TrlParser

from .. import configuration, modeling, processing  # noqa: F401  registers the grafts with the Auto classes
from .clara_stages import ClaraArguments, check_clara, is_clara, start_roles, trained_names
from .clara_trainer import ClaraSFTTrainer
from .document_collator import document_collator
from .graft_trainer import GraftSFTTrainer
from .held_out import HeldOutRows
from .model_loading import load_config, load_model, load_processor, pin_revision
from .preflight import preflight, preflight_documents, preflight_text
from .query_data import imbalance
from .recursive_trainer import RecursionArguments, RecursiveSFTTrainer, check_recursion, frozen_parts, is_recursive
from .resume import last_complete_checkpoint
from .run_metadata import check_saved, repeat_command, training_metadata, write_metadata, write_refused
from .trackers import check_trackers, record_run
from .trained_parts import freeze, lora, parse_learning_rates
from .training_data import DataArguments, load_training_data, read_in_order

TRAINERS: dict[str, type[GraftSFTTrainer]] = {"recursive_qwen": RecursiveSFTTrainer, "clara_qwen3": ClaraSFTTrainer}


@dataclass
class GraftArguments(RecursionArguments, ClaraArguments, DataArguments):
    """What a run needs beside TRL's `SFTConfig` and `ModelConfig`."""

    trainable: list[str] = field(
        default_factory=list,
        metadata={
            "help": "regular expressions on parameter names to train; default: the new part, of a recursive model "
            "everything; ignored with LoRA, which decides itself"
        },
    )
    learning_rates: list[str] = field(
        default_factory=list,
        metadata={"help": r"EXPRESSION=RATE for parameters with a learning rate of their own: '\bconnector\b=2e-5'"},
    )
    pack_rows: bool = field(
        default=False, metadata={"help": "train on a batch's rows as one sequence without padding; the same gradients"}
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
    generative_eval_batch_size: int = field(default=8, metadata={"help": "query rows answered at a time"})
    generative_eval_temperature: float = field(
        default=0.0, metadata={"help": "sampling temperature of query rows; 0 is greedy"}
    )


def main(
    graft_args: GraftArguments,
    training_args: SFTConfig,
    model_args: ModelConfig,
    finish: Callable[[GraftSFTTrainer], Any] | None = None,
) -> GraftSFTTrainer:
    """Run one recipe; returns the trainer after training.

    Args:
        graft_args, training_args, model_args: what `parse` gives.
        finish: called in the first process when all is saved and before anything is pushed at the end; the card that
            it leaves in the output folder is the one that is pushed.

    Raises:
        ValueError: anything preflight, the data or the configuration refuses, before the first step.
    """
    check_trackers(training_args.report_to)
    console = Console(quiet=training_args.local_process_index != 0)
    set_seed(training_args.seed)
    model_args = pin_revision(model_args)
    config = load_config(model_args)
    check_recursion(graft_args, config)
    check_clara(graft_args, graft_args.stage, config)
    if is_clara(config) and model_args.use_peft:
        raise ValueError("The roles of a CLaRa model are its adapters, and a stage trains them: leave out `use_peft`.")
    processor = load_processor(model_args, graft_args.image_min_pixels, graft_args.image_max_pixels)
    text_alone = isinstance(processor, PreTrainedTokenizerBase)
    if text_alone and graft_args.generative_eval_rows:
        raise ValueError(
            f"`generative_eval_rows` is {graft_args.generative_eval_rows}, and only rows with images are answered. "
            "Leave it out and watch the held-out loss."
        )
    data = load_training_data(
        graft_args, training_args.seed, training_args.dataset_num_proc, processor, training_args.max_length
    )
    console.print(f"Data: {data.summary}", highlight=False, markup=False)
    if classes := data.summary.get("classes"):
        console.print(f"Classes, with the most frequent against the rarest:\n{imbalance(classes)}", highlight=False)
    out = Path(training_args.output_dir)
    if data.refused and training_args.process_index == 0:
        report = write_refused(data.refused, out)
        console.print(f"{len(data.refused)} rows were refused; {report} lists each with its index and the reason.")
    model = load_model(model_args, console)
    own: dict[str, Any] = {}
    if is_recursive(config):
        own = {"recursion": graft_args}
    elif is_clara(config):
        own = {"clara": graft_args, "stage": graft_args.stage}
        graft_args.trainable = graft_args.trainable or trained_names(graft_args.stage)
        model.processor = processor
        start_roles(model, graft_args)
    if not model_args.use_peft:
        freeze(model, graft_args.trainable, frozen_parts(model, graft_args))
    if is_clara(config):
        data.collator = document_collator(
            model, processor, graft_args.stage, graft_args, (data.train, data.eval), training_args.max_length
        )
    training_args.remove_unused_columns = False  # images are no argument of any `forward`
    if graft_args.streaming:
        read_in_order(training_args)
    trainer = TRAINERS.get(config.model_type, GraftSFTTrainer)(
        model=model,
        args=training_args,
        train_dataset=data.train,
        eval_dataset=data.eval if training_args.eval_strategy != "no" else None,
        data_collator=data.collator,
        processing_class=processor,
        peft_config=lora(model_args, model),
        learning_rates=parse_learning_rates(graft_args.learning_rates),
        pack_rows=graft_args.pack_rows,
        starting_revision=model_args.model_revision,
        **own,
    )
    rows = trainer.train_dataset if text_alone else data.train  # TRL tokenizes texts, and leaves pictures as they are
    first_batch = trainer.data_collator(list(islice(rows, training_args.per_device_train_batch_size)))
    if is_clara(config):
        report = preflight_documents(trainer.model, processor, first_batch)
    elif text_alone:
        report = preflight_text(trainer.model, processor, first_batch)
    else:
        report = preflight(trainer.model, processor, first_batch, without_thinking=graft_args.strip_thinking)
    report.show(console)

    record = partial(
        training_metadata,
        trainer=trainer,
        model_args=model_args,
        recipe_args=graft_args,
        parameters=report.parameters,
        command=repeat_command(sys.argv),
    )
    record_run(trainer, record(dataset=data.summary, metrics={}, confusion={}, duration_seconds=0.0))
    held_out = HeldOutRows(trainer, data, graft_args, console)
    resume = training_args.resume_from_checkpoint
    if resume in (True, "true", "True"):
        resume = last_complete_checkpoint(out)
    held_out.answer("before")
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=resume)
    duration = time.perf_counter() - start
    held_out.answer("after")
    trainer.save_model()
    trainer.create_model_card(dataset_name=data.summary["name"] if graft_args.dataset_name else None)
    if trainer.is_world_process_zero():
        metadata = record(
            dataset=data.final_summary(),
            metrics=held_out.metrics,
            confusion=held_out.confusion,
            duration_seconds=duration,
        )
        write_metadata(metadata, out)
        check_saved(out, adapter=model_args.use_peft, images=not text_alone)
        if graft_args.streaming and data.refused:  # met while training
            write_refused(data.refused, out)
        if finish is not None:
            finish(trainer)
            trainer.keep_card()
    if training_args.push_to_hub:
        trainer.push_to_hub()
    return trainer


def parse(arguments: list[str] | None = None) -> tuple[GraftArguments, SFTConfig, ModelConfig]:
    """Read `--config FILE.yaml` and overrides; an unknown name is an error."""
    parser = TrlParser((GraftArguments, SFTConfig, ModelConfig))
    return parser.parse_args_and_config(arguments, fail_with_unknown_args=True)


def kind_of_model(model_args: ModelConfig) -> str:
    """What a run trains, by its configuration's `model_type` and as people write it: "Qwen3-VL", "Qwen3-Perceiver".

    Empty where no configuration is at hand; nothing is downloaded for it.
    """
    try:
        values, _ = PreTrainedConfig.get_config_dict(
            model_args.model_name_or_path, revision=model_args.model_revision, local_files_only=True
        )
    except OSError:
        return ""
    words = re.sub(r"(?<=\d)_(?=\d)", ".", values.get("model_type", "")).split("_")
    return "-".join(word.upper() if word in ("vl", "moe") else word.capitalize() for word in words)


def run(arguments: list[str] | None = None) -> GraftSFTTrainer:
    """The script: `parse` and `main`.

    Raises:
        RuntimeError: what went wrong, with the kind of model in front; the error that was met is its cause.
    """
    kind = ""
    try:
        parsed = parse(arguments)
        kind = kind_of_model(parsed[-1])
        return main(*parsed)
    except (ValueError, OSError) as error:
        raise RuntimeError(f"{kind} SFT failed: {error}".lstrip()) from error


if __name__ == "__main__":
    run()
