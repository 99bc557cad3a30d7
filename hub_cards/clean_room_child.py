"""Measure a published folder with transformers alone: what a stranger's machine does with it.

`clean_room.py` starts this file as a process of its own (`python -I clean_room_child.py request.json`), in which this
package cannot be imported, the caches are empty and the Hub is out of reach. It only measures; the parent judges. So
nothing here may import the package, and the parent measures its reference with the very same functions.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoConfig, PreTrainedTokenizerBase

NEW_TOKENS = 8
PROMPTS = ("What is in the picture?", "This row has no picture and is longer, so that one of the two rows is padded.")
PROMPTS_OF_TEXT = ("What is it?", "This row is longer than the other one, so that one of the two rows is padded.")


def check_image() -> Image.Image:
    """A picture that is the same everywhere: a gradient, wider than high."""
    width, height = 56, 40
    pixels = bytes(v % 256 for y in range(height) for x in range(width) for v in (4 * x, 6 * y, 2 * x + 3 * y))
    return Image.frombytes("RGB", (width, height), pixels)


def check_batch(processor: Any) -> dict[str, torch.Tensor]:
    """The fixed batch, left-padded: a row with an image and a row of text only; with two documents and with none; for a
    tokenizer, two rows of text.
    """
    if isinstance(processor, PreTrainedTokenizerBase):
        prompts = list(PROMPTS_OF_TEXT)
        if processor.chat_template:
            rows = [[{"role": "user", "content": prompt}] for prompt in prompts]
            prompts = processor.apply_chat_template(rows, add_generation_prompt=True, tokenize=False)
        return dict(processor(prompts, padding=True, padding_side="left", return_tensors="pt"))
    if hasattr(processor, "passages"):
        return dict(processor(list(PROMPTS_OF_TEXT), [[PROMPTS[0], PROMPTS[1] * 3], []]))
    picture = [{"type": "image", "image": check_image()}, {"type": "text", "text": PROMPTS[0]}]
    text = [{"type": "text", "text": PROMPTS[1]}]
    rows = [[{"role": "user", "content": content}] for content in (picture, text)]
    batch = processor.apply_chat_template(
        rows,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    )
    return dict(batch)


def check_queries(processor: Any) -> dict[str, torch.Tensor]:
    """Questions and the documents that they are scored against; empty where the processor reads none."""
    if not hasattr(processor, "query_inputs"):
        return {}
    documents = check_batch(processor)["document_input_ids"]
    return {"query_input_ids": processor.query_inputs(list(PROMPTS_OF_TEXT)), "document_input_ids": documents}


@torch.no_grad()
def scores_of(model: Any, queries: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B, N) cosines of questions and documents in float32."""
    return model(**queries).retrieval_scores.float().cpu()


@torch.no_grad()
def logits_of(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B, S, V) logits in float32."""
    return model(**inputs).logits.float().cpu()


@torch.no_grad()
def greedy(model: Any, inputs: dict[str, torch.Tensor], use_cache: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """`NEW_TOKENS` greedy tokens (B, N) and the logits (B, N, V) they were chosen from.

    Barred are stop tokens and placeholders of images, videos and documents: a model with random weights may choose one,
    and would then be asked for one more item than there is.
    """
    names = ("image_token_id", "video_token_id", "document_token_id")
    placeholders = [getattr(model.config, name, None) for name in names]
    output = model.generate(
        **inputs,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        suppress_tokens=[token for token in placeholders if token is not None] or None,
        do_sample=False,
        num_beams=1,
        use_cache=use_cache,
        return_dict_in_generate=True,
        output_logits=True,
    )
    tokens = output.sequences[:, inputs["input_ids"].shape[1] :]
    return tokens.cpu(), torch.stack(output.logits, dim=1).float().cpu()


def count_parameters(model: Any) -> dict[str, int]:
    """Part -> number of parameters; a part is a child of the backbone, or a child beside it, or what the configuration
    calls it. Tied ones count once, and the part that has no others is there with 0.
    """
    own = getattr(model.config, "parameter_part", None)
    prefix = f"{model.base_model_prefix}." if model.base_model is not model else ""
    counts: dict[str, int] = {}
    seen: set[int] = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        short = name.removeprefix(prefix)
        part = (own and own(short)) or short.partition(".")[0]
        counts[part] = counts.get(part, 0) + (0 if id(parameter) in seen else parameter.numel())
        seen.add(id(parameter))
    return counts


class _Refuse(MetaPathFinder):
    """Makes one package impossible to import, however it is installed."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname.split(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def _refuse(package: str) -> None:
    sys.meta_path.insert(0, _Refuse(package))
    try:
        import_module(package)
    except ModuleNotFoundError:
        return
    raise AssertionError(f"{package} was importable in the clean room")


class _Record:
    """What was measured, on disk after every stage, so that the parent knows how far a dead child came."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = {"models": {}}
        self.tensors: dict[str, torch.Tensor] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.values["stage"] = name
        self.path.write_text(json.dumps(self.values), encoding="utf-8")
        yield

    def finish(self) -> None:
        if self.tensors:
            contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
            save_file(contiguous, self.path.with_suffix(".safetensors"))
        self.values["stage"] = None
        self.path.write_text(json.dumps(self.values), encoding="utf-8")


def _describe(model: Any) -> dict[str, Any]:
    cls = type(model)
    return {
        "class": cls.__name__,
        "remote": cls.__module__.startswith("transformers_modules."),
        "parameters": count_parameters(model),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def _auto_classes(config: Any) -> list[str]:
    """Auto classes to load through, those with a head first."""
    named = [auto for auto in getattr(config, "auto_map", None) or {} if auto.startswith("AutoModel")]
    if not named:
        stock = ("AutoModelForImageTextToText", "AutoModelForCausalLM")
        named = [auto for auto in stock if type(config) in getattr(transformers, auto)._model_mapping][:1]
    return sorted(named, key=lambda auto: (auto == "AutoModel", auto))


def _measure_weights(
    directory: str, config: Any, inputs: dict[str, torch.Tensor], queries: dict[str, torch.Tensor], record: _Record
) -> None:
    head = None
    for auto in _auto_classes(config):
        head = _measure_model(auto, directory, inputs, queries, record, head)


def _measure_model(
    auto: str,
    directory: str,
    inputs: dict[str, torch.Tensor],
    queries: dict[str, torch.Tensor],
    record: _Record,
    head: Any | None,
) -> Any | None:
    """Load through one Auto class and run it; returns the first head met, which the backbone is measured with."""
    with record.stage(f"loading the weights through {auto}"):
        model, info = getattr(transformers, auto).from_pretrained(
            directory, trust_remote_code=True, output_loading_info=True
        )
    keys = {kind: sorted(info[f"{kind}_keys"]) for kind in ("missing", "unexpected")}
    record.values["models"][auto] = _describe(model) | keys
    with record.stage(f"running the model of {auto}"):
        if queries:
            record.tensors[f"scores.{auto}"] = scores_of(model, queries)
        if model.get_output_embeddings() is None:
            with torch.no_grad():
                hidden_states = model(**inputs).last_hidden_state
                if head is not None:
                    record.tensors[f"logits.{auto}"] = head(hidden_states).float()
            return head
        record.tensors[f"logits.{auto}"] = logits_of(model, inputs)
        if head is None:
            for name, use_cache in (("cached", True), ("uncached", False)):
                tokens, logits = greedy(model, inputs, use_cache)
                record.tensors |= {f"tokens.{name}": tokens, f"steps.{name}": logits}
        return head or model.get_output_embeddings()


def _measure_shapes(config: Any, record: _Record) -> None:
    for auto in _auto_classes(config):
        with record.stage(f"building the model of {auto} on the meta device"), torch.device("meta"):
            model = getattr(transformers, auto).from_config(config, trust_remote_code=True)
        record.values["models"][auto] = _describe(model)


def _run_snippet(snippet: str, repo_id: str, directory: str, record: _Record) -> None:
    """Run the card's snippet as it stands, in a folder where its picture lies and its repository id is a link."""
    folder = record.path.parent / "snippet"
    link = folder / repo_id
    link.parent.mkdir(parents=True)
    link.symlink_to(directory, target_is_directory=True)
    check_image().save(folder / "image.png")
    os.chdir(folder)
    with record.stage("running the card's snippet"):
        exec(compile(snippet, "the card's snippet", "exec"), {"__name__": "__main__"})


def main(request_file: str) -> None:
    """Measure what `request_file` asks for; results go beside it."""
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    _refuse(request["package"])
    record = _Record(Path(request_file).with_name("record.json"))
    directory = request["directory"]
    with record.stage("loading the configuration"):
        config = AutoConfig.from_pretrained(directory, trust_remote_code=True)
    # A model of text alone has a tokenizer in the place of a processor.
    named = getattr(config, "auto_map", None) or {"AutoProcessor": ""}
    auto = "AutoProcessor" if "AutoProcessor" in named else "AutoTokenizer"
    with record.stage("loading the processor"):
        processor = getattr(transformers, auto).from_pretrained(directory, trust_remote_code=True)
    with record.stage("building a batch with the processor"):
        inputs, queries = check_batch(processor), check_queries(processor)
    record.values["parts"] = {"AutoConfig": type(config).__name__, auto: type(processor).__name__}
    record.tensors |= {f"inputs.{name}": tensor for name, tensor in inputs.items()}
    record.tensors |= {f"queries.{name}": tensor for name, tensor in queries.items()}
    if request["weights"]:
        _measure_weights(directory, config, inputs, queries, record)
    else:
        _measure_shapes(config, record)
    if request["snippet"] is not None:
        _run_snippet(request["snippet"], request["repo_id"], directory, record)
    record.finish()


if __name__ == "__main__":
    main(sys.argv[1])
