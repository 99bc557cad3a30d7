"""Perceiver VLM against LLaVA-HF: the same tower, the same Qwen3, the same data, one thread, one run.

    make bench        (or: python benchmarks/perceiver_against_llava.py)

Peer: `LlavaForConditionalGeneration` with the same SigLIP and Qwen3 configurations, trained by plain TRL
(`SFTTrainer`) with tower and language model frozen, as LLaVA's own alignment stage does. Ours: `Qwen3PerceiverVLM`
through `GraftSFTTrainer`. Every measurement runs in a process of its own, the peers by turns; process time, median of
several repeats. The table goes to the screen and to `benchmarks/results/perceiver_against_llava.json`.

The two differ where the designs differ: LLaVA feeds every patch to the language model, we feed the resampler's
latents; LLaVA under plain TRL builds a graph through the hooked tower and scores every position, we do neither. The
peer `ours-equal-tokens` takes the first of these away: as many latents as LLaVA has patches.
"""

import argparse
import json
import platform
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from timing import Clock, measure_apart, medians, write_results

RESULTS = Path(__file__).parent / "results" / "perceiver_against_llava.json"
IMAGE_SIZE, PATCH_SIZE = 384, 14  # SigLIP2 so400m: 27 x 27 = 729 patches
NUM_PATCHES = (IMAGE_SIZE // PATCH_SIZE) ** 2
BATCH_SIZE, STEPS, NEW_TOKENS = 4, 3, 24
WARM_UP = 1


def configs() -> tuple[Any, Any]:
    """Tower and language model, scaled down from the 8B preset; the vocabulary keeps its full size."""
    from transformers import Qwen3Config, SiglipVisionConfig

    vision = SiglipVisionConfig(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        vision_use_head=False,
    )
    text = Qwen3Config(
        vocab_size=151_936,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=True,
        eos_token_id=151645,
        pad_token_id=151643,
    )
    return vision, text


def build(peer: str) -> tuple[Any, Any, type]:
    """Model, processor and trainer class of one peer; tower and language model frozen."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, SiglipImageProcessor, set_seed
    from trl import SFTTrainer

    from qwen_grafts import Qwen3PerceiverConfig, Qwen3PerceiverProcessor, Qwen3PerceiverVLM
    from qwen_grafts.configuration.presets import RECOMMENDED_CONNECTOR
    from qwen_grafts.processing import build_qwen_tokenizer, load_chat_template
    from qwen_grafts.recipes.graft_trainer import GraftSFTTrainer

    set_seed(0)
    vision, text = configs()
    images = SiglipImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    tokenizer = build_qwen_tokenizer(151_643)
    template = load_chat_template()
    if peer == "llava":
        config = LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=151_655,
            image_seq_length=NUM_PATCHES,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )
        model = LlavaForConditionalGeneration(config)
        processor = LlavaProcessor(
            images,
            tokenizer,
            patch_size=PATCH_SIZE,
            vision_feature_select_strategy="full",
            image_token="<|image_pad|>",
            chat_template=template,
        )
        trained, trainer_class = model.model.multi_modal_projector, SFTTrainer
    else:
        latents = NUM_PATCHES if peer == "ours-equal-tokens" else 64
        connector = {"num_latents": latents, "num_heads": 4} | RECOMMENDED_CONNECTOR
        model = Qwen3PerceiverVLM(
            Qwen3PerceiverConfig(vision_config=vision, text_config=text, connector_config=connector)
        )
        processor = Qwen3PerceiverProcessor(images, tokenizer, num_image_tokens=latents, chat_template=template)
        trained, trainer_class = model.model.connector, GraftSFTTrainer
    model.requires_grad_(False)
    trained.requires_grad_(True)
    return model, processor, trainer_class


def rows() -> Any:
    """Photograph crops with a caption each: scikit-learn's two sample photographs."""
    from datasets import Dataset
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(array) for array in load_sample_images().images]
    crops = [
        photograph.crop((40 * step, 20 * step, 40 * step + 320, 20 * step + 320))
        for step in range(BATCH_SIZE * (STEPS + WARM_UP) // 2)
        for photograph in photographs
    ]
    prompt = [{"role": "user", "content": "Describe the picture in one sentence."}]
    caption = [{"role": "assistant", "content": "A photograph with many colours, taken in daylight."}]
    count = len(crops)
    images = [[crop] for crop in crops]
    return Dataset.from_dict({"images": images, "prompt": [prompt] * count, "completion": [caption] * count})


def measure_training(peer: str) -> dict[str, float]:
    """Process seconds of one optimizer step and peak resident memory, gradient checkpointing as TRL sets it."""
    from trl import SFTConfig

    model, processor, trainer_class = build(peer)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_class(
            model=model,
            args=SFTConfig(
                output_dir=folder,
                per_device_train_batch_size=BATCH_SIZE,
                max_steps=STEPS + WARM_UP,
                max_length=None,
                bf16=False,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=rows(),
            processing_class=processor,
            callbacks=[clock],
        )
        trainer.train()
    return {"step_seconds": clock.median(), "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def measure_generation(peer: str) -> dict[str, float]:
    """Process seconds to answer about one image, greedy, the image encoded inside."""
    import torch

    model, processor, _ = build(peer)
    row = rows()[0]
    content = [{"type": "image", "image": row["images"][0]}, {"type": "text", "text": row["prompt"][0]["content"]}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    durations = []
    for _ in range(STEPS + WARM_UP):
        start = time.process_time()
        with torch.no_grad():
            model.eval().generate(**inputs, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS, do_sample=False)
        durations.append(time.process_time() - start)
    return {"generate_seconds": statistics.median(durations[WARM_UP:])}


MEASUREMENTS = {"train": measure_training, "generate": measure_generation}
PEERS = ("llava", "ours", "ours-equal-tokens")


def child(what: str, peer: str) -> None:
    """One measurement in this process; prints it as JSON."""
    import torch

    torch.set_num_threads(1)
    print(json.dumps(MEASUREMENTS[what](peer)))


def run(repeats: int) -> dict[str, dict[str, float]]:
    """Every measurement of every peer, by turns; medians over the repeats."""
    collected: dict[str, list[dict[str, float]]] = {peer: [] for peer in PEERS}
    for repeat in range(repeats):
        for peer in PEERS:
            values: dict[str, float] = {}
            for what in MEASUREMENTS:
                print(f"repeat {repeat + 1}/{repeats}: {what} {peer}", file=sys.stderr)
                values |= measure_apart(__file__, what, peer)
            collected[peer].append(values)
    return {peer: medians(values) for peer, values in collected.items()}


def main() -> None:
    """Measure, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "PEER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return
    from rich.console import Console
    from rich.table import Table

    found = run(arguments.repeats)
    table = Table(title=f"One thread, {platform.machine()}, median of {arguments.repeats} runs; ratio to LLaVA-HF")
    for column in ("model", "training step", "", "peak memory", "", f"generate {NEW_TOKENS} tokens", ""):
        table.add_column(column, justify="left" if column == "model" else "right")
    units = {"step_seconds": "{:.2f} s", "peak_mib": "{:.0f} MiB", "generate_seconds": "{:.2f} s"}
    for peer, values in found.items():
        cells = [
            cell
            for name, unit in units.items()
            for cell in (unit.format(values[name]), f"{values[name] / found['llava'][name]:.2f} x")
        ]
        table.add_row(peer, *cells)
    Console(width=130).print(table)
    shape = {"batch": BATCH_SIZE, "image": IMAGE_SIZE, "patches": NUM_PATCHES, "new_tokens": NEW_TOKENS}
    results = {"setting": shape, "repeats": arguments.repeats, "medians": found}
    write_results(RESULTS, results)


if __name__ == "__main__":
    main()
