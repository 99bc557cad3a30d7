"""Every graft at full width in bfloat16 on one GPU: training step, generation, memory, MFU.

    python benchmarks/full_width.py                          (all cases, on a GPU)
    python benchmarks/full_width.py --cases clara --tiny     (the tiny presets, anywhere: does it run?)

Weights are random, since how long a step takes does not hang on them; sizes, trainers and what trains are those of the
recipe that each case names. A step is the trainer's own, with collation in the main process, optimizer and clipping,
median of several. Tokens are what the language model reads in a step, soft tokens included, padding left out. MFU is
the work of a step without recomputation, counted by torch's `FlopCounterMode`, against the chip's dense bfloat16 peak.
Generation is greedy and in eager mode, 64 new tokens.

CLaRa is also measured as its paper does on an H100 at rate 16 (arXiv 2511.18659): 20 documents compressed, a question
encoded, an answer of 64 tokens decoded from five documents. The paper's figures are of Mistral-7B, ours of a 4B.

Every case runs in a process of its own and takes one to two minutes. Results are added to
`benchmarks/results/full_width.json` part by part, so a run that is cut short keeps what it has.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from timing import Clock, write_results

RESULTS = Path(__file__).parent / "results" / "full_width.json"
# Dense bfloat16 operations a second, as NVIDIA's data sheets give them.
PEAK_FLOPS = {"H100": 989.4e12, "H200": 989.4e12}
STEPS, WARM_UP = 6, 3
NEW_TOKENS, REPEATS = 64, 3
GIB = 2**30


def device() -> torch.device:
    """The GPU, or the CPU for a trial."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def now() -> float:
    """Wall-clock seconds when all that was started on the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def random_model(model_class: type, config: Any) -> Any:
    """Random weights in bfloat16, made on the device."""
    with device():
        return model_class._from_config(config, dtype=torch.bfloat16)


def conversations(rows: int, size: tuple[int, int]) -> Any:
    """Crops of scikit-learn's two photographs with a caption of some forty words from Python's reference."""
    from datasets import Dataset
    from PIL import Image
    from sklearn.datasets import load_sample_images

    from qwen_grafts.recipes.topic_documents import topic_documents

    photographs = [Image.fromarray(array).resize((900, 600)) for array in load_sample_images().images]
    images = [[photographs[row % 2].crop((row, row, row + size[0], row + size[1]))] for row in range(rows)]
    texts = [" ".join(document.text.split()[:40]) for document in topic_documents()[:rows]]
    prompt = [{"role": "user", "content": "Describe the picture."}]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    return Dataset.from_dict({"images": images, "prompt": [prompt] * rows, "completion": completions})


def tokenizer(vocabulary: int, more: tuple[str, ...] = ()) -> Any:
    """Qwen3's special tokens behind words learned from Python's reference, so that texts have real lengths."""
    from qwen_grafts.processing import build_qwen_tokenizer, load_chat_template
    from qwen_grafts.recipes.topic_documents import topic_documents

    built = build_qwen_tokenizer(vocabulary, [document.text for document in topic_documents()], more)
    built.chat_template = load_chat_template()
    return built


def first_special_id(tiny: bool) -> int:
    """Of the vocabulary: where Qwen3's special tokens begin."""
    from qwen_grafts.configuration.presets import NUM_SPECIAL_TOKENS, TINY_VOCAB_SIZE

    return TINY_VOCAB_SIZE - NUM_SPECIAL_TOKENS if tiny else 151_643


def perceiver(tiny: bool) -> dict[str, Any]:
    """`recipes/perceiver_vlm/stage1_align.yaml`: the connector trains."""
    from transformers import SiglipImageProcessor

    from qwen_grafts import Qwen3PerceiverProcessor, Qwen3PerceiverVLM
    from qwen_grafts.configuration.presets import preset_config
    from qwen_grafts.recipes.trained_parts import freeze

    config = preset_config("perceiver-vlm-tiny" if tiny else "perceiver-vlm-8b")
    side = config.vision_config.image_size
    words = tokenizer(first_special_id(tiny))
    processor = Qwen3PerceiverProcessor(
        SiglipImageProcessor(size={"height": side, "width": side}),
        words,
        num_image_tokens=config.num_image_tokens,
        chat_template=words.chat_template,
    )
    model = random_model(Qwen3PerceiverVLM, config)
    freeze(model, [r"\bconnector\b"])
    return vision_case(model, processor, 2 if tiny else 16)


def bridge(tiny: bool) -> dict[str, Any]:
    """`recipes/vision_bridge/phase1_align.yaml`: the adapter trains; pictures of 448 x 336 pixels."""
    from transformers import Qwen2VLImageProcessor

    from qwen_grafts import Qwen3VisionBridgeForCausalLM, Qwen3VisionBridgeProcessor
    from qwen_grafts.configuration.presets import preset_config
    from qwen_grafts.recipes.trained_parts import freeze

    config = preset_config("vision-bridge-tiny" if tiny else "vision-bridge-4b")
    words = tokenizer(first_special_id(tiny))
    images = Qwen2VLImageProcessor(
        patch_size=config.vision_config.patch_size, merge_size=config.vision_config.spatial_merge_size
    )
    processor = Qwen3VisionBridgeProcessor(images, words, chat_template=words.chat_template)
    model = random_model(Qwen3VisionBridgeForCausalLM, config)
    freeze(model, [r"\badapter\b"])
    return vision_case(model, processor, 2 if tiny else 8)


def vision_case(model: Any, processor: Any, batch_size: int) -> dict[str, Any]:
    """Conversations about pictures of 448 x 336 pixels."""
    from qwen_grafts.recipes.graft_trainer import GraftSFTTrainer

    rows = conversations(batch_size * (STEPS + WARM_UP), (448, 336))

    def trainer(**settings: Any) -> Any:
        return GraftSFTTrainer(
            model=model, args=arguments(batch_size, **settings), train_dataset=rows, processing_class=processor
        )

    def inputs(batch: int) -> dict[str, Any]:
        content = [{"type": "image", "image": rows[0]["images"][0]}, {"type": "text", "text": "Describe the picture."}]
        asked = [[{"role": "user", "content": content}]] * batch
        return processor.apply_chat_template(
            asked, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )

    return {"model": model, "trainer": trainer, "inputs": inputs, "batch_size": batch_size}


def recursive(tiny: bool) -> dict[str, Any]:
    """`recipes/recursive_qwen/healing.yaml`: everything trains, at the configuration's own depth."""
    from datasets import Dataset

    from qwen_grafts import RecursiveQwenForCausalLM
    from qwen_grafts.configuration.presets import preset_config
    from qwen_grafts.recipes.recursive_trainer import RecursionArguments, RecursiveSFTTrainer

    config = preset_config("recursive-tiny" if tiny else "recursive-0.6b")
    model = random_model(RecursiveQwenForCausalLM, config)
    batch_size, length = (2, 64) if tiny else (4, 1024)
    words = tokenizer(first_special_id(tiny))
    ids = torch.randint(0, 400, (batch_size * (STEPS + WARM_UP), length), generator=torch.Generator().manual_seed(0))
    rows = Dataset.from_dict({"input_ids": ids.tolist()})

    def trainer(**settings: Any) -> Any:
        return RecursiveSFTTrainer(
            model=model,
            args=arguments(batch_size, **settings),
            train_dataset=rows,
            processing_class=words,
            recursion=RecursionArguments(),
        )

    def inputs(batch: int) -> dict[str, Any]:
        prompt = ids[:1, : length // 2].repeat(batch, 1)
        return {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}

    return {"model": model, "trainer": trainer, "inputs": inputs, "batch_size": batch_size}


def clara(tiny: bool) -> dict[str, Any]:
    """`recipes/clara/stage1_compress.yaml`: compressor, generator and memory tokens train; whole passages."""
    from datasets import Dataset

    from qwen_grafts import ClaraQwen3ForCausalLM, ClaraQwen3Processor
    from qwen_grafts.configuration.presets import preset_config
    from qwen_grafts.processing.memory_tokens import new_token_names
    from qwen_grafts.recipes.clara_stages import ClaraArguments, trained_names
    from qwen_grafts.recipes.clara_trainer import ClaraSFTTrainer
    from qwen_grafts.recipes.document_collator import DocumentCollator
    from qwen_grafts.recipes.document_data import DOCUMENT_ROW
    from qwen_grafts.recipes.topic_documents import topic_documents
    from qwen_grafts.recipes.trained_parts import freeze

    config = preset_config("clara-tiny" if tiny else "clara-4b")
    length, rates = config.doc_max_length, config.compression_rates
    names = new_token_names(length, rates)
    words = tokenizer(first_special_id(tiny) - tiny * len(names), tuple(names))
    config.document_token_id = words.convert_tokens_to_ids(names[0])
    model = random_model(ClaraQwen3ForCausalLM, config)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = words.eos_token_id, words.pad_token_id
    processor = model.processor = ClaraQwen3Processor(words, length, rates)
    freeze(model, trained_names("compression"))
    batch_size, rate = (2, 16) if tiny else (8, 16)
    text = " ".join(document.text for document in topic_documents())
    ids = words(text)["input_ids"]
    # A few tokens short, for what is lost or won where a text is cut and read again.
    documents = [words.decode(ids[start : start + length - 4]) for start in range(0, len(ids), length)]
    some = [documents[row % len(documents)] for row in range(batch_size * (STEPS + WARM_UP))]
    rows = Dataset.from_list(
        [
            {"question": "What does the text explain, and how?", "answer": " ".join(document.split()[:40])}
            | {"gold_answers": [], "documents": [document], "positives": [0], "data_type": "qa", "source_row": row}
            for row, document in enumerate(some)
        ],
        features=DOCUMENT_ROW,
    )

    def trainer(**settings: Any) -> Any:
        return ClaraSFTTrainer(
            model=model,
            args=arguments(batch_size, **settings),
            train_dataset=rows,
            data_collator=DocumentCollator(processor, "compression", rates=[rate], num_retrieved=1),
            processing_class=processor,
            clara=ClaraArguments(),
            stage="compression",
        )

    def inputs(batch: int) -> dict[str, Any]:
        counts = [length // rate] * 5
        memory = torch.cat(model.compress(documents[:5], compression_rate=rate)).flatten(0, 1)
        prompts = processor(["What does the text explain?"] * batch, placeholders=[counts] * batch)
        return dict(prompts) | {"memory": [memory] * batch}

    def as_in_the_paper() -> dict[str, float]:
        question = "Which of the texts explains how a module is found, and what does it say?"
        answered = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "top_k": 5}
        ways: dict[str, Callable[[], Any]] = {
            "compress_20_documents_ms": lambda: model.compress(documents[:20], compression_rate=rate),
            "encode_query_ms": lambda: model.encode_query([question], compression_rate=rate),
            "answer_from_5_of_20_ms": lambda: model.answer(question, documents[:20], compression_rate=rate, **answered),
        }
        return {name: 1e3 * seconds_of(way) for name, way in ways.items()}

    return {"model": model, "trainer": trainer, "inputs": inputs, "batch_size": batch_size, "more": as_in_the_paper}


def qwen3_vl(tiny: bool) -> dict[str, Any]:
    """`recipes/qwen3_vl_sft/lora_8b.yaml`: LoRA of rank 16 on the stock Qwen3-VL-8B's language model."""
    from peft import LoraConfig, get_peft_model
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    words = tokenizer(first_special_id(tiny))
    ids = words.get_vocab()
    patches = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2}
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessor(**patches), words, Qwen3VLVideoProcessor(**patches), chat_template=words.chat_template
    )
    depth, width, layers, heads = (2, 64, 2, 4) if tiny else (27, 1152, 36, 32)
    text = {
        "vocab_size": 512 if tiny else 151_936,
        "hidden_size": 128 if tiny else 4096,
        "intermediate_size": 256 if tiny else 12_288,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 2 if tiny else 8,
        "head_dim": 32 if tiny else 128,
        "pad_token_id": words.pad_token_id,
        "eos_token_id": words.eos_token_id,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5_000_000,
            "mrope_section": [8, 4, 4] if tiny else [24, 20, 20],
            "mrope_interleaved": True,
        },
    }
    vision = {
        "depth": depth,
        "hidden_size": width,
        "intermediate_size": 128 if tiny else 4304,
        "num_heads": 2 if tiny else 16,
        "patch_size": 16,
        "out_hidden_size": text["hidden_size"],
        "deepstack_visual_indexes": [0] if tiny else [8, 16, 24],
    }
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    batch_size = 2 if tiny else 4
    adapter = LoraConfig(
        r=16,
        lora_alpha=32,
        task_type="CAUSAL_LM",
        target_modules=r".*\blanguage_model\b.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
    )
    model = get_peft_model(random_model(Qwen3VLForConditionalGeneration, config), adapter)
    return vision_case(model, processor, batch_size)


CASES: dict[str, Callable[[bool], dict[str, Any]]] = {
    "perceiver": perceiver,
    "bridge": bridge,
    "recursive": recursive,
    "clara": clara,
    "qwen3_vl": qwen3_vl,
}


def arguments(batch_size: int, **settings: Any) -> Any:
    """What all cases train with; the folder is never written to."""
    from trl import SFTConfig

    values = {
        "output_dir": tempfile.gettempdir(),
        "per_device_train_batch_size": batch_size,
        "max_steps": STEPS + WARM_UP,
        "learning_rate": 1e-4,
        "max_length": None,
        "bf16": torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "logging_steps": STEPS + WARM_UP,
    }
    return SFTConfig(**(values | settings))


def seconds_of(call: Callable[[], Any]) -> float:
    """Median wall-clock seconds of a call, one more before to warm up."""
    call()
    times = []
    for _ in range(REPEATS):
        start = now()
        call()
        times.append(now() - start)
    return statistics.median(times)


def tokens_of(batch: dict[str, torch.Tensor], config: Any) -> int:
    """What the language model reads of a batch, in all roles, padding left out."""
    tokens = int(batch["attention_mask"].sum())
    if "document_input_ids" in batch:
        tokens += int((batch["document_input_ids"] != config.text_config.pad_token_id).sum())
    return tokens


def product_flops() -> dict[Any, Any]:
    """Formulas for matrix products that know the overloads with `out_dtype`, which TRL's fused loss calls."""

    def flops(left: torch.Tensor, right: torch.Tensor) -> int:
        return 2 * left.shape[0] * left.shape[1] * right.shape[1]

    def mm(left: torch.Tensor, right: torch.Tensor, *args: Any, **kwargs: Any) -> int:
        return flops(left, right)

    def addmm(bias: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *args: Any, **kwargs: Any) -> int:
        return flops(left, right)

    mm._get_raw = addmm._get_raw = True
    return {torch.ops.aten.mm: mm, torch.ops.aten.addmm: addmm}


def measure_training(case: dict[str, Any], checkpointing: bool) -> dict[str, float]:
    """Step time, tokens a second and peak memory of the trainer's loop; without checkpointing also a step's work."""
    from torch.utils.flop_counter import FlopCounterMode

    clock = Clock(now)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    trainer = case["trainer"](gradient_checkpointing=checkpointing)
    trainer.add_callback(clock)
    trainer.train()
    steps = [after - before for before, after in zip(clock.ends[WARM_UP - 1 :], clock.ends[WARM_UP:], strict=False)]
    step = statistics.median(steps)
    found = {"step_ms": 1e3 * step, "loss": trainer.state.log_history[0]["loss"]}
    if torch.cuda.is_available():
        found["peak_gib"] = torch.cuda.max_memory_allocated() / GIB
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    tokens = tokens_of(batch, trainer.model.config)
    found |= {"tokens": tokens, "tokens_per_second": tokens / step}
    if not checkpointing:
        with FlopCounterMode(display=False, custom_mapping=product_flops()) as counter:
            trainer.compute_loss(trainer.model, dict(batch)).backward()
        found["step_tflop"] = counter.get_total_flops() / 1e12
        trainer.model.zero_grad()
    return found


def measure_generation(case: dict[str, Any], batch: int) -> dict[str, float]:
    """Milliseconds of a token and tokens a second, the prompt and its image read inside."""
    model = case["model"].eval()
    inputs = {
        name: value.to(device(), model.dtype if value.is_floating_point() else None)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in case["inputs"](batch).items()
    }
    settings = {"min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS, "do_sample": False}
    with torch.inference_mode():
        seconds = seconds_of(lambda: model.generate(**inputs, **settings))
    return {"ms_per_token": 1e3 * seconds / NEW_TOKENS, "tokens_per_second": batch * NEW_TOKENS / seconds}


def measure(name: str, tiny: bool) -> Iterator[dict[str, Any]]:
    """Everything of one case, with one part more each time."""
    from transformers import set_seed

    set_seed(0)
    case = CASES[name](tiny)
    found: dict[str, Any] = {
        "recipe": CASES[name].__doc__.split(":")[0].strip("`"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "parameters": sum(parameter.numel() for parameter in case["model"].parameters()),
        "trained": sum(parameter.numel() for parameter in case["model"].parameters() if parameter.requires_grad),
        "batch_size": case["batch_size"],
    }
    plain = measure_training(case, checkpointing=False)
    work = plain["step_tflop"]
    found["train"] = {"without checkpointing": plain, "with checkpointing": measure_training(case, checkpointing=True)}
    peak = next((flops for chip, flops in PEAK_FLOPS.items() if chip in found["device"]), None)
    if peak is not None:
        for row in found["train"].values():
            row["mfu"] = work * 1e12 / (row["step_ms"] / 1e3) / peak
    yield found
    if "more" in case:
        found |= case["more"]()
        yield found
    found["generate"] = {}
    for batch in (1, 8):
        found["generate"][str(batch)] = measure_generation(case, batch)
        yield found


def show(cases: dict[str, dict[str, Any]]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Full width, bfloat16, one GPU", title_justify="left")
    for column in ("case", "trains / all", "checkpointing", "tokens a step", "step", "tokens/s", "peak", "MFU"):
        table.add_column(column, justify="left" if column == "case" else "right")
    table.add_column("generate, batch 1", justify="right")
    table.add_column("batch 8", justify="right")
    for name, row in cases.items():
        for way, trained in row["train"].items():
            table.add_row(
                name,
                f"{row['trained'] / 1e6:.0f} M / {row['parameters'] / 1e9:.2f} B",
                way.split()[0],
                str(trained["tokens"]),
                f"{trained['step_ms']:.0f} ms",
                f"{trained['tokens_per_second']:,.0f}",
                f"{trained['peak_gib']:.1f} GiB" if "peak_gib" in trained else "",
                f"{100 * trained['mfu']:.0f} %" if "mfu" in trained else "",
                *(f"{made['tokens_per_second']:.0f} tokens/s" for made in row.get("generate", {}).values()),
            )
    Console(width=170).print(table)


def main() -> None:
    """Measure every case in a process of its own, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--tiny", action="store_true", help="tiny presets, to see that it runs; writes nothing")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.child:
        for found in measure(parsed.child, parsed.tiny):
            print(json.dumps(found), flush=True)
        return
    known: dict[str, Any] = {}
    if RESULTS.is_file() and not parsed.tiny:
        known = json.loads(RESULTS.read_text(encoding="utf-8"))["cases"]
    failed = 0
    for name in parsed.cases:
        print(f"measuring {name}", file=sys.stderr, flush=True)
        command = [sys.executable, __file__, "--child", name, *(["--tiny"] if parsed.tiny else [])]
        with tempfile.TemporaryFile("w+") as errors:
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
            for line in child.stdout:
                if line.startswith('{"recipe"'):
                    known[name] = json.loads(line)
                    if not parsed.tiny:
                        write_results(RESULTS, {"versions": {"torch": torch.__version__}, "cases": known})
            if child.wait():
                failed += 1
                errors.seek(0)
                print(f"{name} ended with {child.returncode}.\n{errors.read()[-2500:]}", file=sys.stderr, flush=True)
    show(known)
    sys.exit(failed)


if __name__ == "__main__":
    main()
