"""Taking the tower out of a Qwen2.5-VL against loading both models whole: bytes read, memory and time, one run.

    python benchmarks/surgery_against_whole_models.py [--folder FOLDER]        (`make bench` runs it too; Linux)

Ours: `Qwen3VisionBridgeForCausalLM.from_vision_language_pretrained`, and `graft_vision_bridge`, which also writes the
model to disk. The plain way: load both models with `from_pretrained`, keep `.model.visual` and the language model, drop
the rest. Each in the checkpoints' bfloat16 and in float32, which a CPU often wants.

The checkpoints are random and made here, in a temporary folder: a Qwen2.5-VL with the layout and names of the published
7B, its widths scaled down, and a Qwen3 laid out as Qwen3-4B. Every measurement runs in a process of its own, its files
out of the page cache. Stock loading maps files and reads what is used, so every byte of the assembled weights is used
at the end, for a checksum on which all ways have to agree. The run fails where ours reads more than 1.05 times the
weights it needs or takes more than 1.15 times the memory of what it assembles. The table goes to the screen and to
`benchmarks/results/surgery_against_whole_models.json`.
"""

import argparse
import gc
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "surgery_against_whole_models.json"
READ_LIMIT, PEAK_LIMIT = 1.05, 1.15
NEEDED_DISK = 10e9  # both checkpoints, and one assembled model in float32
WAYS = ("plain", "ours", "ours, written to disk")
DTYPES = ("bfloat16", "float32")
TOKENS = {"image_token_id": 151_655, "vision_start_token_id": 151_652, "vision_end_token_id": 151_653}

# `config.json` of Qwen2.5-VL-7B as it was published, flat, with smaller hidden and intermediate sizes.
VISION = TOKENS | {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 152_064,
    "vision_config": {
        "depth": 32,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "window_size": 112,
    },
}
# Laid out as Qwen3-4B: three shards, tied, the head not stored. The sizes are those of Qwen3-0.6B.
LANGUAGE = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 151_936,
}


def make_checkpoints(folder: Path) -> dict[str, int]:
    """Write both checkpoints; bytes of their weights and of the files that each way has to download."""
    import torch
    import transformers
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen3ForCausalLM

    from qwen_grafts.processing import build_qwen_tokenizer

    with torch.device("meta"):
        whole = Qwen2_5_VLForConditionalGeneration(transformers.Qwen2_5_VLConfig(**VISION)).bfloat16().state_dict()
        language = Qwen3ForCausalLM(transformers.Qwen3Config(**LANGUAGE)).bfloat16().state_dict()
    del language["lm_head.weight"]
    for new, published in {"model.visual.": "visual.", "model.language_model.": "model."}.items():
        whole = {key.replace(new, published): tensor for key, tensor in whole.items()}
    tower = [key for key in whole if key.startswith("visual.")]
    vision_files = write_checkpoint(folder / "vision", VISION, whole, "1150MB")
    language_files = write_checkpoint(folder / "language", LANGUAGE, language, "500MB")
    transformers.Qwen2VLImageProcessor().save_pretrained(folder / "vision")
    build_qwen_tokenizer(151_643).save_pretrained(folder / "language")
    needed_files = {vision_files[key] for key in tower} | set(language_files.values())
    all_files = set(vision_files.values()) | set(language_files.values())
    return {
        "vision_checkpoint": sum(tensor.nbytes for tensor in whole.values()),
        "needed_weights": sum(tensor.nbytes for tensor in [*map(whole.get, tower), *language.values()]),
        "download_ours": sum(file.stat().st_size for file in needed_files),
        "download_plain": sum(file.stat().st_size for file in all_files),
    }


def write_checkpoint(folder: Path, config: dict[str, Any], tensors: dict[str, Any], shard_size: str) -> dict[str, Path]:
    """Write random bfloat16 weights shard by shard, with configuration and index; the file of every tensor."""
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    split = split_torch_state_dict_into_shards(tensors, max_shard_size=shard_size)
    for shard, keys in split.filename_to_tensors.items():
        print(f"writing {folder.name}/{shard}", file=sys.stderr)
        content = {key: torch.empty(tensors[key].shape, dtype=torch.bfloat16).normal_(0.0, 0.02) for key in keys}
        save_file(content, folder / shard, metadata={"format": "pt"})
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True))
    return {key: folder / shard for key, shard in split.tensor_to_filename.items()}


def drop_from_page_cache(files: Iterable[Path]) -> None:
    """Make the next reader of the files read the disk."""
    for file in files:
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def proc_value(file: str, name: str) -> int:
    """One value, in bytes, that the kernel keeps about this process."""
    line = next(line for line in Path("/proc/self", file).read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * (1024 if line.endswith("kB") else 1)


def checksum(tensors: dict[str, Any]) -> int:
    """Of every byte of tower and language model. The adapter is random; the head is tied and not in every file."""
    import torch

    sums = {
        name: zlib.crc32(tensor.flatten().view(torch.uint8).numpy())
        for name, tensor in tensors.items()
        if ".adapter." not in name and name != "lm_head.weight"
    }
    return zlib.crc32(json.dumps(sums, sort_keys=True).encode())


def measure(way: str, dtype: str, folder: Path) -> dict[str, float]:
    """One measurement in this process, from a cold cache."""
    import torch
    from safetensors.torch import load_file
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen3ForCausalLM

    from qwen_grafts import Qwen3VisionBridgeForCausalLM
    from qwen_grafts.hub_cards import graft_vision_bridge

    torch.set_num_threads(1)
    vision, language, out = folder / "vision", folder / "language", folder / "out"
    drop_from_page_cache([*vision.iterdir(), *language.iterdir()])
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    resident, read = proc_value("status", "VmRSS"), proc_value("io", "read_bytes")
    wall, process = time.perf_counter(), time.process_time()
    tensors: dict[str, Any] = {}
    if way == "plain":
        whole = Qwen2_5_VLForConditionalGeneration.from_pretrained(vision, dtype=dtype)
        causal = Qwen3ForCausalLM.from_pretrained(language, dtype=dtype)
        parts = {"vision_tower": whole.model.visual, "language_model": causal.model}
        del whole
        gc.collect()
        for name, part in parts.items():
            tensors |= {f"model.{name}.{key}": tensor for key, tensor in part.state_dict().items()}
    elif way == "ours":
        model = Qwen3VisionBridgeForCausalLM.from_vision_language_pretrained(
            str(vision), str(language), dtype=dtype, **TOKENS
        )
        tensors = model.state_dict()
    else:
        graft_vision_bridge(str(vision), str(language), out, dtype=dtype)
    total = checksum(tensors)
    measured = {
        "read": proc_value("io", "read_bytes") - read,
        "peak": proc_value("status", "VmHWM") - resident,
        "process_seconds": time.process_time() - process,
        "wall_seconds": time.perf_counter() - wall,
    }
    if out.exists():
        for file in out.glob("*.safetensors"):
            tensors |= load_file(file)
        total = checksum(tensors)
        shutil.rmtree(out)
    unique = {tensor.data_ptr(): tensor.nbytes for tensor in tensors.values()}
    return measured | {"assembled": sum(unique.values()), "checksum": total}


def check(what: str, way: str, measured: dict[str, float], needed: int) -> None:
    """Refuse what is no measurement, and ours where it is over a limit."""
    if measured["read"] < needed:
        sys.exit(
            f"{what}: {measured['read'] / 1e9:.2f} GB came from the disk where the weights have {needed / 1e9:.2f} GB; "
            "some lay in memory. Choose a --folder on a disk; a temporary folder may be in memory."
        )
    for name, base, limit in (("read", needed, READ_LIMIT), ("peak", measured["assembled"], PEAK_LIMIT)):
        if way != "plain" and measured[name] > limit * base:
            sys.exit(f"{what}: {name} {measured[name] / 1e9:.2f} GB is over {limit} x {base / 1e9:.2f} GB.")


def run(folder: Path, sizes: dict[str, int], repeats: int) -> dict[str, dict[str, dict[str, float]]]:
    """Every way in every dtype, by turns, checked; medians over the repeats."""
    collected: dict[str, dict[str, list[dict[str, float]]]] = {dtype: {way: [] for way in WAYS} for dtype in DTYPES}
    for repeat in range(repeats):
        for dtype, ways in collected.items():
            for way in ways:
                what = f"{way}, {dtype}"
                print(f"repeat {repeat + 1}/{repeats}: {what}", file=sys.stderr)
                done = subprocess.run(
                    [sys.executable, __file__, "--child", way, dtype, "--folder", str(folder)],
                    capture_output=True,
                    text=True,
                    env={"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
                )
                if done.returncode:  # -9: killed, most likely for memory
                    sys.exit(f"{what}: the process ended with {done.returncode}.\n{done.stderr[-3000:]}")
                measured = json.loads(done.stdout.splitlines()[-1])
                check(what, way, measured, sizes["needed_weights"])
                ways[way].append(measured)
            if len({measured.pop("checksum") for values in ways.values() for measured in values[repeat:]}) > 1:
                sys.exit(f"{dtype}: the ways did not assemble the same weights.")
    return {
        dtype: {
            way: {key: statistics.median(v[key] for v in values) for key in values[0]} for way, values in ways.items()
        }
        for dtype, ways in collected.items()
    }


def show(medians: dict[str, dict[str, dict[str, float]]], sizes: dict[str, int], repeats: int) -> None:
    """Print the table: every figure with its ratio to the plain way, then what the limits are about."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"One thread, {platform.machine()}, median of {repeats} runs; ratio to the plain way")
    columns = (
        "download",
        "",
        "read",
        "",
        "peak memory",
        "",
        "process",
        "",
        "wall",
        "",
        "read/needed",
        "peak/assembled",
    )
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    scales = {"download": (1e9, "GB"), "read": (1e9, "GB"), "peak": (1e9, "GB")}
    scales |= {"process_seconds": (1, "s"), "wall_seconds": (1, "s")}
    for dtype, ways in medians.items():
        plain = ways["plain"] | {"download": sizes["download_plain"]}
        for way, values in ways.items():
            values = plain if way == "plain" else values | {"download": sizes["download_ours"]}
            cells = [
                cell
                for key, (scale, unit) in scales.items()
                for cell in (f"{values[key] / scale:.2f} {unit}", f"{values[key] / plain[key]:.2f} x")
            ]
            limited = (values["read"] / sizes["needed_weights"], values["peak"] / values["assembled"])
            table.add_row(f"{way}, {dtype}", *cells, *(f"{ratio:.3f}" for ratio in limited))
    Console(width=170).print(table)


def main() -> None:
    """Make the checkpoints, measure, check, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    where = "a folder on a disk; what is made in it is deleted"
    parser.add_argument("--folder", type=Path, default=tempfile.gettempdir(), help=where)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=2, metavar=("WAY", "DTYPE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(*arguments.child, arguments.folder)))
        return
    if not arguments.folder.is_dir():
        parser.error(f"--folder {arguments.folder} is no folder.")
    if (free := shutil.disk_usage(arguments.folder).free) < NEEDED_DISK:
        parser.error(
            f"{arguments.folder} has {free / 1e9:.1f} GB free and {NEEDED_DISK / 1e9:.0f} GB are needed. Make room, or "
            "give a --folder on another disk."
        )
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        sizes = make_checkpoints(Path(folder))
        medians = run(Path(folder), sizes, arguments.repeats)
    show(medians, sizes, arguments.repeats)
    versions = {name: version(name) for name in ("torch", "transformers", "safetensors")}
    results = {"versions": versions, "bytes": sizes, "repeats": arguments.repeats, "medians": medians}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
