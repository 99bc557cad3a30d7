"""The console script `qwen-grafts`: thin commands over the folders; nothing is computed here."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from huggingface_hub.errors import HfHubHTTPError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .data_cli import data_app

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False
)
graft_app = typer.Typer(no_args_is_help=True, help="Assemble a graft from base checkpoints.")
app.add_typer(graft_app, name="graft")
app.add_typer(data_app, name="data")
console = Console()

Language = Annotated[str, typer.Option(help="Dense Qwen3 checkpoint of any size: repository id or folder.")]
NewFolder = Annotated[Path, typer.Argument(help="Folder of the new repository.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit.")]
Dtype = Annotated[str, typer.Option(help="Of the whole model; auto: the language model's.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what lies at the target.")]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Grafts for Qwen3: custom Hugging Face architectures that load, train, publish and serve.

    Example: `qwen-grafts export --preset perceiver-vlm-tiny outputs/tiny`
    """


@graft_app.command("perceiver-vlm")
def graft_perceiver_vlm(
    vision: Annotated[str, typer.Option(help="SigLIP, SigLIP2 or timm checkpoint: repository id or folder.")],
    language: Language,
    out: NewFolder,
    connector: Annotated[
        str, typer.Option(help="`recommended`, `specified`, or a JSON object of connector settings.")
    ] = "recommended",
    vision_revision: Revision = None,
    language_revision: Revision = None,
    dtype: Dtype = "auto",
    overwrite: Overwrite = False,
) -> None:
    """SigLIP2 + Perceiver resampler + Qwen3.

    Example: `qwen-grafts graft perceiver-vlm --vision google/siglip2-so400m-patch14-384 --language Qwen/Qwen3-8B-Base
    outputs/perceiver-vlm-8b`
    """
    from .hub_cards import graft_perceiver_vlm as assemble

    path = assemble(
        vision,
        language,
        out,
        connector=connector,
        vision_revision=vision_revision,
        language_revision=language_revision,
        dtype=dtype,
        overwrite=overwrite,
    )
    console.print(
        f"Wrote {path}. Train its connector with: qwen-grafts train RECIPE --model_name_or_path {path}", soft_wrap=True
    )


@graft_app.command("vision-bridge")
def graft_vision_bridge(
    vision: Annotated[str, typer.Option(help="Qwen2.5-VL checkpoint of any size: repository id or folder.")],
    language: Language,
    out: NewFolder,
    adapter: Annotated[str, typer.Option(help="`linear` or `mlp`.")] = "linear",
    vision_revision: Revision = None,
    language_revision: Revision = None,
    dtype: Dtype = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Qwen2.5-VL's vision tower + adapter + Qwen3; only the shards that hold the tower are fetched and read.

    Example: `qwen-grafts graft vision-bridge --vision Qwen/Qwen2.5-VL-7B-Instruct --language Qwen/Qwen3-4B
    outputs/vision-bridge-4b`
    """
    from .hub_cards import graft_vision_bridge as assemble

    path = assemble(
        vision,
        language,
        out,
        adapter=adapter,
        vision_revision=vision_revision,
        language_revision=language_revision,
        dtype=dtype,
        overwrite=overwrite,
    )
    console.print(
        f"Wrote {path}. Train its adapter with: qwen-grafts train RECIPE --model_name_or_path {path}", soft_wrap=True
    )


@graft_app.command("recursive")
def graft_recursive(
    source: Annotated[str, typer.Option(help="Dense Qwen2 or Qwen3 checkpoint: repository id or folder.")],
    out: NewFolder,
    revision: Revision = None,
    core: Annotated[
        str | None, typer.Option(help="FIRST:END, layers of the source that run again; default: the middle half.")
    ] = None,
    select: Annotated[str, typer.Option(help="Layers that are kept: `all`, `sandwich` or `even`.")] = "all",
    layers: Annotated[int | None, typer.Option(help="Layers of the core, for `sandwich` and `even`.")] = None,
    H_cycles: Annotated[int, typer.Option("--H-cycles", help="Updates of the high state.")] = 3,
    L_cycles: Annotated[int, typer.Option("--L-cycles", help="Updates of the low state in each.")] = 3,
    dtype: Annotated[str, typer.Option(help="Of the model; auto: the source's.")] = "auto",
    overwrite: Overwrite = False,
) -> None:
    """A Qwen whose middle layers run again and again before each token; its source's function until it is trained.

    Example: `qwen-grafts graft recursive --source Qwen/Qwen3-0.6B --core 7:21 outputs/recursive-0.6b`
    """
    from .hub_cards import graft_recursive as assemble

    path = assemble(
        source,
        out,
        revision=revision,
        core=core,
        select=select,
        layers=layers,
        H_cycles=H_cycles,
        L_cycles=L_cycles,
        dtype=dtype,
        overwrite=overwrite,
    )
    console.print(f"Wrote {path}. Train it with: qwen-grafts train RECIPE --model_name_or_path {path}", soft_wrap=True)


@graft_app.command("clara")
def graft_clara(
    source: Annotated[str, typer.Option(help="Dense Qwen3 checkpoint: repository id or folder.")],
    out: NewFolder,
    revision: Revision = None,
    doc_max_length: Annotated[int, typer.Option(help="Most tokens of a passage.")] = 256,
    rates: Annotated[
        list[int] | None,
        typer.Option(help="Tokens of a passage for one latent; give it again for more rates. Default: 32."),
    ] = None,
    lora_rank: Annotated[int, typer.Option(help="Of each role's terms.")] = 16,
    lora_alpha: Annotated[float, typer.Option(help="The terms are scaled by this divided by the rank.")] = 32,
    dtype: Annotated[str, typer.Option(help="Of the model; auto: the source's.")] = "auto",
    graft_only: Annotated[
        bool, typer.Option("--graft-only", help="Write the new parts alone; loading fetches the source.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """A Qwen3 that compresses documents, retrieves and answers from them; its source's function until it is trained.

    Example: `qwen-grafts graft clara --source Qwen/Qwen3-4B-Instruct-2507 --rates 32 --rates 4 outputs/clara-4b`
    """
    from .hub_cards import graft_clara as assemble

    path = assemble(
        source,
        out,
        revision=revision,
        doc_max_length=doc_max_length,
        compression_rates=rates or (32,),
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        dtype=dtype,
        graft_only=graft_only,
        overwrite=overwrite,
    )
    console.print(f"Wrote {path}. Train it with: qwen-grafts train RECIPE --model_name_or_path {path}", soft_wrap=True)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="A YAML under recipes/.", exists=True, dir_okay=False)],
) -> None:
    """Run a training recipe; anything after the file overrides its values. Ends with card and clean-room check.

    Example: `qwen-grafts train recipes/perceiver_vlm/stage1_align.yaml --learning_rate 1e-3`
    """
    from .hub_cards import finish_run
    from .recipes.graft_sft import GraftSFTTrainer, main, parse

    sys.argv = ["qwen-grafts train", "--config", str(recipe), *context.args]

    def finish(trainer: GraftSFTTrainer) -> None:
        report = finish_run(Path(trainer.args.output_dir), repo_id=trainer.hub_model_id)
        without = "The adapter's base is a local folder: push that first, then this with `push --base-repo-id`."
        console.print(str(report or without), soft_wrap=True)

    main(*parse(sys.argv[1:]), finish=finish)


@app.command()
def export(
    out: NewFolder,
    preset: Annotated[str | None, typer.Option(help="Named configuration, randomly initialised.")] = None,
    model: Annotated[Path | None, typer.Option(help="Or: a trained folder, checkpoint or adapter to export.")] = None,
    config_only: Annotated[bool, typer.Option("--config-only", help="Leave the weights out.")] = False,
    graft_only: Annotated[
        bool, typer.Option("--graft-only", help="With --model: the trained new parts alone; loading fetches the bases.")
    ] = False,
    role: Annotated[
        str | None,
        typer.Option(help="With --model: `compressor`, `query_reasoner` or `generator` of a CLaRa, as a PEFT adapter."),
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Tokenizer for a preset; default: byte-level.")] = None,
    seed: Annotated[int, typer.Option(help="Of a preset's random weights.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Write a loadable repository: model, code, processor, tokenizer, card.

    Example: `qwen-grafts export --preset perceiver-vlm-8b --config-only outputs/perceiver-vlm-8b`
    """
    from .hub_cards import export_folder, export_preset, export_role

    if (preset is None) == (model is None):
        raise ValueError("Give exactly one of `--preset NAME` and `--model DIR`.")
    if role is not None:
        given = {"--preset": preset, "--graft-only": graft_only, "--config-only": config_only, "--overwrite": overwrite}
        if wrong := [name for name, value in given.items() if value]:
            raise ValueError(
                f"`--role` writes an adapter of `--model DIR` into a new folder; leave out {', '.join(wrong)}."
            )
        console.print(f"Wrote {export_role(model, role, out)}, a PEFT adapter.", soft_wrap=True)
        return
    if preset is not None:
        path = export_preset(preset, out, config_only=config_only, tokenizer=tokenizer, seed=seed, overwrite=overwrite)
    else:
        path = export_folder(model, out, graft_only=graft_only, overwrite=overwrite)
    console.print(f"Wrote {path}. Check it with: qwen-grafts verify {path}", soft_wrap=True)


@app.command()
def verify(
    directory: Annotated[Path, typer.Argument(help="An exported repository.", exists=True, file_okay=False)],
) -> None:
    """Load a repository in a clean process where this package does not exist, and compare.

    Example: `qwen-grafts verify outputs/tiny`
    """
    from .hub_cards import verify as verify_directory

    console.print(str(verify_directory(directory)), soft_wrap=True)


@app.command()
def push(
    directory: Annotated[Path, typer.Argument(help="An exported repository.", exists=True, file_okay=False)],
    repo_id: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Create the repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to.")] = None,
    commit_message: Annotated[str | None, typer.Option(help="Of the one commit.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    base_repo_id: Annotated[
        str | None, typer.Option(help="For an adapter trained on a local folder: where its base was pushed to.")
    ] = None,
    base_revision: Annotated[str | None, typer.Option(help="Commit of that base.")] = None,
) -> None:
    """Check in the clean room, then publish weights, code and card in one commit.

    Example: `qwen-grafts push outputs/tiny me/perceiver-tiny --private`
    """
    from .hub_cards import push_repository, set_adapter_base, write_card

    if base_repo_id is not None:
        set_adapter_base(directory, base_repo_id, base_revision)
        write_card(directory, repo_id=repo_id)
    info = push_repository(
        directory, repo_id, private=private, revision=revision, commit_message=commit_message, create_pr=create_pr
    )
    console.print(f"Pushed to {info.pr_url or info.commit_url}")


@app.command()
def card(
    directory: Annotated[Path, typer.Argument(help="A trained or exported folder.", exists=True, file_okay=False)],
    repo_id: Annotated[str | None, typer.Option(help="OWNER/NAME for the snippet.")] = None,
) -> None:
    """Write the model card (README.md) from the configuration and `training_meta.json`.

    Example: `qwen-grafts card outputs/stage1 --repo-id me/perceiver-8b`
    """
    from .hub_cards import write_card

    console.print(f"Wrote {write_card(directory, repo_id=repo_id)}")


@app.command()
def info(
    name_or_dir: Annotated[str, typer.Argument(help="Preset, folder or repository id.")],
    recipe: Annotated[
        Path | None, typer.Option(help="Estimate for this YAML; default: what is new, or all of a recursive model.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Parameters by part, what an image, a document or a token takes, and memory of weights, gradients and optimizer.

    Example: `qwen-grafts info perceiver-vlm-8b --json`
    """
    from transformers import AutoConfig

    from . import modeling  # noqa: F401  registers the grafts with the Auto classes
    from .configuration import PRESETS, preset_config
    from .recipes.graft_sft import parse
    from .recipes.memory_estimate import describe  # a recipe for a GPU must parse on a laptop: `use_cpu` below

    if name_or_dir in PRESETS:
        config = preset_config(name_or_dir)
    elif "/" in name_or_dir or Path(name_or_dir).is_dir():
        config = AutoConfig.from_pretrained(name_or_dir, trust_remote_code=True)
    else:
        raise ValueError(f"{name_or_dir!r} is neither a preset ({', '.join(PRESETS)}) nor a folder or repository id.")
    described = describe(config, *(parse(["--config", str(recipe), "--use_cpu", "true"]) if recipe else ()))
    if as_json:
        typer.echo(json.dumps(described, indent=2))
        return
    table = Table(title=name_or_dir, title_justify="left")
    for column in ("part", "parameters", "trained"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part, counts in described["parameters"]["parts"].items():
        table.add_row(part, f"{counts['total']:,}", f"{counts['trained']:,}")
    table.add_row("all", f"{described['parameters']['total']:,}", f"{described['parameters']['trained']:,}")
    console.print(table)
    memory = ", ".join(f"{name} {size / 2**30:.2f} GiB" for name, size in described["memory_bytes"].items())
    area, fixed, depth = described["pixels_per_image_token"], described["tokens_per_image"], described["depth"]
    if (passage := described["passage"]) is not None:
        console.print(f"A passage of {passage['tokens']:,} tokens takes {passage['cache_bytes']:,} bytes of KV cache.")
        for row in passage["compressed"]:
            console.print(
                f"At rate {row['rate']} it is {row['latents']:,} latents: {row['latent_bytes']:,} bytes to keep, "
                f"{row['cache_bytes']:,} bytes of KV cache.",
                soft_wrap=True,
            )
        console.print(f"Memory without activations: {memory}.")
        return
    if depth is not None:
        for name, what in (("layer_evaluations", "layer evaluations"), ("cache_bytes_per_token", "bytes of KV cache")):
            configured, stock = depth["configured"][name], depth["stock"][name]
            console.print(f"A token takes {configured:,} {what}; the stock model's {stock:,}.")
        console.print(f"Memory without activations: {memory}.")
        return
    tokens = f"One token for every {area} pixels of an image" if area else f"{fixed} tokens an image"
    console.print(f"{tokens}. Memory without activations: {memory}.")


@app.command()
def ask(
    repository: Annotated[str, typer.Argument(help="A vision graft: folder or repository id.")],
    question: Annotated[str, typer.Argument(help="What to ask.")],
    image: Annotated[list[Path] | None, typer.Option(help="An image file; give it again for more of them.")] = None,
    thinking: Annotated[
        bool | None,
        typer.Option("--thinking/--no-thinking", help="Open a thought, or an empty one; default: the model decides."),
    ] = None,
    thinking_budget: Annotated[int | None, typer.Option(help="Most tokens of the thought.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of thought and answer together.")] = 512,
) -> None:
    """Ask a vision graft about images; the thought streams in grey, then the answer.

    Example: `qwen-grafts ask outputs/vision-bridge-4b-phase1 "How many?" --image photo.png --thinking`
    """
    from .ask import ask as ask_repository

    ask_repository(
        repository,
        question,
        image or [],
        enable_thinking=thinking,
        max_thinking_tokens=thinking_budget,
        max_new_tokens=max_new_tokens,
        console=console,
    )


@app.command()
def inference(
    repository: Annotated[str, typer.Argument(help="A recursive model: folder or repository id.")],
    prompt: Annotated[str, typer.Argument(help="A user's turn, or with --raw a text to go on with.")],
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens.")] = 256,
    num_cycles: Annotated[int | None, typer.Option(help="Most cycles of a token; default: the model's.")] = None,
    L_cycles: Annotated[int | None, typer.Option("--L-cycles", help="Low steps of a cycle.")] = None,
    halt_threshold: Annotated[
        float | None, typer.Option(help="How sure a token must be to stop early; 1: never. Default: the model's.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Of sampling; 0 takes the likeliest token.")] = 0.0,
    rollouts: Annotated[
        int, typer.Option(help="Answers to sample; the one that the halting head is surest of is shown.")
    ] = 1,
    raw: Annotated[bool, typer.Option("--raw", help="Go on with the prompt as it stands, no chat template.")] = False,
    no_color: Annotated[bool, typer.Option("--no-color", help="Print without colours.")] = False,
) -> None:
    """Ask a recursive model; each token streams in the colour of the cycles it took, then what halting saved.

    Example: `qwen-grafts inference outputs/recursive-0.6b "Why is the sky blue?" --num-cycles 6 --halt-threshold 0.9`
    """
    from .inference import inference as answer

    answer(
        repository,
        prompt,
        max_new_tokens=max_new_tokens,
        num_cycles=num_cycles,
        L_cycles=L_cycles,
        halt_threshold=halt_threshold,
        temperature=temperature,
        rollouts=rollouts,
        raw=raw,
        console=Console(no_color=True) if no_color else console,
    )


@app.command()
def index(
    repository: Annotated[str, typer.Argument(help="A CLaRa model: folder or repository id.")],
    documents: Annotated[str, typer.Argument(help=".txt, JSON, CSV or Parquet file, folder, Hub id; ids in `id`.")],
    directory: Annotated[Path, typer.Argument(help="Folder of the index.")],
    rate: Annotated[int | None, typer.Option(help="Compression rate; default: the model's first.")] = None,
    text_key: Annotated[str, typer.Option(help="Column of the text.")] = "text",
    add: Annotated[bool, typer.Option("--add", help="Add to an index that is there.")] = False,
    num_processes: Annotated[int, typer.Option(help="Processes that build this index, each by this command.")] = 1,
    process_index: Annotated[int, typer.Option(help="Which of them this one is, from 0.")] = 0,
) -> None:
    """Compress documents once, into an index to search and to answer from; started again, it goes on.

    Example: `qwen-grafts index outputs/clara-4b documents.jsonl outputs/index`
    """
    from .document_commands import index as build

    if add and (rate is not None or num_processes > 1):
        raise ValueError(
            "`--add` takes the rate of the index and one process; leave out `--rate` and `--num-processes`."
        )
    settings = {"compression_rate": rate, "num_processes": num_processes, "process_index": process_index}
    build(repository, documents, directory, text_key=text_key, add=add, console=console, **settings)


@app.command()
def answer(
    repository: Annotated[str, typer.Argument(help="A CLaRa model: folder or repository id.")],
    question: Annotated[str, typer.Argument(help="What to ask.")],
    document: Annotated[list[Path] | None, typer.Option(help="A text file; give it again for more of them.")] = None,
    index: Annotated[Path | None, typer.Option(help="Or: the folder of an index.")] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Answer from that many; default: all files, or the model's.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of the answer.")] = 128,
) -> None:
    """Answer a question from compressed documents, and show which.

    Example: `qwen-grafts answer outputs/clara-4b "Who built the lighthouse?" --index outputs/index --top-k 5`
    """
    from .document_commands import answer as answer_question

    answer_question(
        repository, question, document or [], index, top_k=top_k, max_new_tokens=max_new_tokens, console=console
    )


@app.command()
def demo(
    graft: Annotated[
        str, typer.Argument(help="`perceiver-vlm`, `vision-bridge`, `qwen3-vl-sft`, `recursive` or `clara`.")
    ] = "perceiver-vlm",
    directory: Annotated[
        Path | None,
        typer.Option("--dir", help="Where everything is written; default: demo, or a folder in it."),
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Ask about this image instead.", dir_okay=False)] = None,
    question: Annotated[str | None, typer.Option(help="What to ask about it.")] = None,
    thinking: Annotated[bool, typer.Option("--thinking", help="With --image: let the model think first.")] = False,
    repo_id: Annotated[str | None, typer.Option(help="Also publish to the Hub as OWNER/NAME.")] = None,
    seed: Annotated[int, typer.Option(help="Of data, weights and training.")] = 0,
) -> None:
    """The whole way once: pretrain, graft, train, evaluate, publish, load in a clean process, ask.

    Example: `qwen-grafts demo vision-bridge --image photo.png --question "Which digit is it?" --thinking`
    """
    from .demo import ask, run, show_reply

    if (image is None) != (question is None) or (thinking and image is None):
        raise ValueError("Give `--image FILE` and `--question TEXT` together, and `--thinking` only with them.")
    if image is not None:
        show_reply(ask(graft, directory, image, question, thinking=thinking), console)
    else:
        run(graft, directory, repo_id=repo_id, seed=seed, console=console)


def main() -> None:
    """Entry point: an expected error is one line with its remedy, `--debug` shows where it came from."""
    debug = "--debug" in sys.argv[1:]
    try:
        app()
    except (ValueError, OSError, HfHubHTTPError) as error:
        if debug:
            raise
        shown = escape(str(error).strip())  # what is in brackets is no colour
        Console(stderr=True, soft_wrap=True).print(f"[bold red]Error:[/] {shown}", highlight=False)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
