"""Rows packed into one sequence against the same rows padded: every vision model, one thread, one run.

    python benchmarks/packed_against_padded.py

Both ways are `GraftSFTTrainer` on the same model, rows and batches, and give the same losses, which is checked; one has
`pack_rows`. Every measurement runs in a process of its own, the ways by turns; process time of a training step, median
over steps and repeats. The table goes to the screen and to `benchmarks/results/packed_against_padded.json`.

Ragged rows have answers of log-normal length and, where the tower reads images at their own size, images of many sizes.
Even rows have all the same length and image: nothing to win, so what packing costs would show. The language model's
vocabulary is small, so that layers and head share the work as they do in Qwen3-4B.
"""

import argparse
import json
import math
import platform
import random
import resource
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from timing import Clock, measure_apart, medians, write_results

RESULTS = Path(__file__).parent / "results" / "packed_against_padded.json"
MODELS = ("Qwen3PerceiverVLM", "Qwen3VisionBridgeForCausalLM", "Qwen3VLForConditionalGeneration")
ROWS = ("ragged", "even")
WAYS = ("padded", "packed")
BATCH_SIZE, STEPS, WARM_UP = 8, 4, 1
VOCABULARY, FIRST_SPECIAL_ID = 1_280, 1_200
MEDIAN_ANSWER, SIGMA, LONGEST_ANSWER = 80, 1.0, 1_000  # tokens, which are bytes here
IMAGE_SIDES = (112, 400)
PATCH, MERGE, IMAGE_SIZE = 14, 2, 224
TEXT = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 4_096,
}
TOWER = {"hidden_size": 128, "intermediate_size": 512, "depth": 2, "num_heads": 2, "patch_size": PATCH}


def build(name: str, vocabulary: int = VOCABULARY, first_special_id: int = FIRST_SPECIAL_ID) -> tuple[Any, Any]:
    """Model and processor; all but the tower trains.

    Args:
        vocabulary: rows of embedding and head.
        first_special_id: below it lie the ordinary tokens.
    """
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
        SiglipImageProcessor,
        set_seed,
    )

    import qwen_grafts
    from qwen_grafts.processing import build_qwen_tokenizer, load_chat_template

    set_seed(0)
    tokenizer, template = build_qwen_tokenizer(first_special_id), load_chat_template()
    text = TEXT | {"vocab_size": vocabulary, "pad_token_id": first_special_id, "eos_token_id": first_special_id + 2}
    names = ("image", "video", "vision_start", "vision_end")
    tokens = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in zip(names, tokens, strict=True)
    }
    sizes = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2}
    pixels = {"shortest_edge": IMAGE_SIDES[0] ** 2, "longest_edge": IMAGE_SIDES[1] ** 2}
    images = Qwen2VLImageProcessor(size=pixels, **sizes)
    if name == "Qwen3VLForConditionalGeneration":
        rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 8, 8]}
        tower = TOWER | {"out_hidden_size": TEXT["hidden_size"], "deepstack_visual_indexes": [0]}
        tower |= {"spatial_merge_size": MERGE, "num_position_embeddings": 256}
        model = Qwen3VLForConditionalGeneration(
            Qwen3VLConfig(text_config=text | {"rope_parameters": rope}, vision_config=tower, **ids)
        )
        model.accepts_loss_kwargs = True  # as the grafts: a mean over all tokens, not over batches
        processor = Qwen3VLProcessor(images, tokenizer, Qwen3VLVideoProcessor(**sizes), chat_template=template)
        frozen = model.model.visual
    elif name == "Qwen3VisionBridgeForCausalLM":
        ids.pop("video_token_id")
        tower = TOWER | {"out_hidden_size": 256, "window_size": 112, "fullatt_block_indexes": [1]}
        config = qwen_grafts.Qwen3VisionBridgeConfig(
            vision_config=tower | {"model_type": "qwen2_5_vl_vision"}, text_config=text | {"model_type": "qwen3"}, **ids
        )
        model = qwen_grafts.Qwen3VisionBridgeForCausalLM(config)
        processor = qwen_grafts.Qwen3VisionBridgeProcessor(images, tokenizer, chat_template=template)
        frozen = model.model.vision_tower
    else:
        ids.pop("video_token_id")
        tower = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2}
        tower |= {"image_size": IMAGE_SIZE, "patch_size": PATCH, "model_type": "siglip_vision_model"}
        config = qwen_grafts.Qwen3PerceiverConfig(
            vision_config=tower,
            text_config=text | {"model_type": "qwen3"},
            connector_config={"num_latents": 64, "num_heads": 2},
            **ids,
        )
        model = qwen_grafts.Qwen3PerceiverVLM(config)
        processor = qwen_grafts.Qwen3PerceiverProcessor(
            SiglipImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}),
            tokenizer,
            num_image_tokens=config.num_image_tokens,
            chat_template=template,
        )
        frozen = model.model.vision_tower
    frozen.requires_grad_(False)
    return model, processor


def make_rows(kind: str) -> Any:
    """Crops of scikit-learn's two sample photographs, each with an answer; ragged or even."""
    from datasets import Dataset
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(array) for array in load_sample_images().images]
    draw = random.Random(0)
    images, answers = [], []
    for number in range(BATCH_SIZE * (STEPS + WARM_UP)):
        sides, length = (IMAGE_SIZE, IMAGE_SIZE), MEDIAN_ANSWER
        if kind == "ragged":
            sides = (draw.randint(*IMAGE_SIDES), draw.randint(*IMAGE_SIDES))
            length = min(round(draw.lognormvariate(math.log(MEDIAN_ANSWER), SIGMA)), LONGEST_ANSWER)
        images.append([photographs[number % 2].crop((5 * number, 0, 5 * number + sides[0], sides[1]))])
        answers.append([{"role": "assistant", "content": ("What the picture shows, word for word. " * 30)[:length]}])
    prompt = [{"role": "user", "content": "Describe the picture."}]
    return Dataset.from_dict({"images": images, "prompt": [prompt] * len(images), "completion": answers})


def measure(name: str, kind: str, way: str) -> dict[str, float]:
    """One run: process seconds of a step, peak resident memory, share of padding, the losses."""
    import torch
    from trl import SFTConfig

    from qwen_grafts.recipes.graft_trainer import GraftSFTTrainer

    torch.set_num_threads(1)
    model, processor = build(name)
    rows, clock = make_rows(kind), Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = GraftSFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=folder,
                per_device_train_batch_size=BATCH_SIZE,
                max_steps=STEPS + WARM_UP,
                max_length=None,
                bf16=False,
                shuffle_dataset=False,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=rows,
            processing_class=processor,
            callbacks=[clock],
            pack_rows=way == "packed",
        )
        masks = [batch["attention_mask"] for batch in trainer.get_train_dataloader()][WARM_UP:]
        trainer.train()
    return {
        "step_seconds": clock.median(),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "padding": 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks),
        "loss": trainer.state.log_history[-2]["loss"],
    }


def run(repeats: int) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """model -> rows -> way -> medians over the repeats, the ways by turns."""
    found: dict[str, Any] = {}
    for name in MODELS:
        for kind in ROWS:
            collected: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
            for repeat in range(repeats):
                for way in WAYS:
                    print(f"{name}, {kind} rows, {way}, repeat {repeat + 1} of {repeats}", file=sys.stderr)
                    collected[way].append(measure_apart(__file__, name, kind, way))
            found.setdefault(name, {})[kind] = {way: medians(values) for way, values in collected.items()}
            losses = [values["loss"] for values in found[name][kind].values()]
            if abs(losses[0] - losses[1]) > 1e-3:
                sys.exit(f"{name}, {kind} rows: the ways did not learn the same, their losses are {losses}.")
    return found


def show(found: dict[str, Any], repeats: int) -> None:
    """Print the table: packed by ratio to padded."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"One thread, {platform.machine()}, median of {repeats} runs; one training step")
    for column in ("model", "rows", "padding", "padded", "packed", "faster by", "padded", "packed", "memory"):
        table.add_column(column, justify="left" if column in ("model", "rows") else "right")
    for name, kinds in found.items():
        for kind, ways in kinds.items():
            padded, packed = ways["padded"], ways["packed"]
            table.add_row(
                name,
                kind,
                f"{padded['padding']:.0%}",
                f"{padded['step_seconds']:.2f} s",
                f"{packed['step_seconds']:.2f} s",
                f"{padded['step_seconds'] / packed['step_seconds']:.2f} x",
                f"{padded['peak_mib']:.0f} MiB",
                f"{packed['peak_mib']:.0f} MiB",
                f"{packed['peak_mib'] / padded['peak_mib']:.2f} x",
            )
    Console(width=140).print(table)


def main() -> None:
    """Measure, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=3, metavar=("MODEL", "ROWS", "WAY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(*arguments.child)))
        return
    found = run(arguments.repeats)
    show(found, arguments.repeats)
    setting = {"batch": BATCH_SIZE, "median_answer": MEDIAN_ANSWER, "sigma": SIGMA, "image_sides": IMAGE_SIDES}
    setting |= TEXT | {"vocab_size": VOCABULARY}
    versions = {package: version(package) for package in ("torch", "transformers", "trl")}
    results = {"versions": versions, "setting": setting, "repeats": arguments.repeats, "medians": found}
    write_results(RESULTS, results)


if __name__ == "__main__":
    main()
