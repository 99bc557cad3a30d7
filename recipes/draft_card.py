"""The card of a checkpoint while its run goes on; `hub_cards` writes the finished one from the run's metadata."""

from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from .run_metadata import is_local

SHOWN_LOSSES = 10


def draft_card(
    *,
    name: str,
    base: str,
    revision: str,
    license: str | None,
    adapter: bool,
    task: str,
    tags: list[str],
    datasets: list[str],
    log_history: list[dict[str, Any]],
) -> ModelCard:
    """What can be said of a checkpoint before its run ends.

    Args:
        name: of the repository or of the folder.
        base: repository id that training started from; a folder of this machine is not named.
        revision: of that repository.
        license: the base's, as its card says; None where it is not known.
        adapter: the weights are a PEFT adapter.
        task: the Hub's name of what the model does.
        tags: the trainer's.
        datasets: ids on the Hub.
        log_history: of the trainer's state; the last losses are shown.
    """
    local = is_local(base)
    data = ModelCardData(
        license=license,
        library_name="peft" if adapter else "transformers",
        pipeline_tag=task,
        tags=tags,
        datasets=datasets or None,
        base_model=None if local else base,
        base_model_relation=None if local else "adapter" if adapter else "finetune",
    )
    source = "a local checkpoint" if local else f"[{base}](https://huggingface.co/{base}) at revision `{revision}`"
    lines = [
        f"# {name}",
        f"{'An adapter of' if adapter else 'Weights trained from'} {source}, saved while the training run went on. "
        "`qwen-grafts card` writes the finished card when the run has ended.",
    ]
    losses = [entry for entry in log_history if "loss" in entry][-SHOWN_LOSSES:]
    if losses:
        rows = [f"| {entry['step']:,} | {float(entry['loss']):.4f} |" for entry in losses]
        lines.append("\n".join(["| step | training loss |", "|---:|---:|", *rows]))
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(lines) + "\n")
