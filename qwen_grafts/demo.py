"""`qwen-grafts demo`: one promise of this package once, offline, on two CPU cores.

What a demo does, step by step, is in its own file: `demo_perceiver_vlm.py`, `demo_vision_bridge.py`,
`demo_qwen3_vl_sft.py`, `demo_recursive.py`, `demo_clara.py`. What they share is in `demo_steps.py` and
`demo_results.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from . import demo_clara, demo_perceiver_vlm, demo_qwen3_vl_sft, demo_recursive, demo_vision_bridge
from .demo_steps import ask_clean, show_reply
from .processing.guarded_images import open_image


@dataclass(frozen=True)
class Demo:
    """One demo.

    Attributes:
        run: does everything and returns the report's path.
        directory: where it writes by default.
        command: what a user types.
        thinks: whether the model has a switch for thinking.
        sees: whether the model answers questions about images.
    """

    run: Callable[..., Path]
    directory: Path
    command: str
    thinks: bool
    sees: bool = True


DEMOS = {
    "perceiver-vlm": Demo(demo_perceiver_vlm.run, Path("demo"), "qwen-grafts demo", thinks=False),
    "vision-bridge": Demo(
        demo_vision_bridge.run, Path("demo", "vision-bridge"), "qwen-grafts demo vision-bridge", thinks=True
    ),
    "qwen3-vl-sft": Demo(
        demo_qwen3_vl_sft.run, Path("demo", "qwen3-vl-sft"), "qwen-grafts demo qwen3-vl-sft", thinks=False
    ),
    "recursive": Demo(
        demo_recursive.run, Path("demo", "recursive"), "qwen-grafts demo recursive", thinks=False, sees=False
    ),
    "clara": Demo(demo_clara.run, Path("demo", "clara"), "qwen-grafts demo clara", thinks=False, sees=False),
}


def run(graft: str, directory: Path | None, *, repo_id: str | None, seed: int, console: Console) -> Path:
    """Run a demo; returns the report's path.

    Args:
        graft: name of a demo.
        directory: where everything is written; default: the demo's own.
        repo_id: also push the result to this repository of the Hub.
        seed: of data, weights and training.

    Raises:
        ValueError: no such demo.
    """
    demo = _demo(graft)
    report = demo.run(directory or demo.directory, repo_id=repo_id, seed=seed, console=console)
    if demo.sees:
        console.print(f"Ask about an image of yours: {demo.command} --image FILE --question TEXT")
    return report


def ask(graft: str, directory: Path | None, image: Path, question: str, *, thinking: bool = False) -> dict[str, str]:
    """The published demo model's reply about one image: {"thought", "answer"}.

    Raises:
        ValueError: no such demo, it has not run yet, its model does not think, or the file is no usable image.
    """
    demo = _demo(graft)
    published = (directory or demo.directory) / "published"
    if not demo.sees:
        command = "answer" if graft == "clara" else "inference"
        raise ValueError(f"The model of {graft} reads no images; `qwen-grafts {command} {published} TEXT` asks it.")
    if thinking and not demo.thinks:
        raise ValueError(f"The model of {graft} was not taught to think; `qwen-grafts demo vision-bridge` has one.")
    if not (published / "model.safetensors").is_file():
        raise ValueError(f"There is no trained model in {published} yet; run `{demo.command}` first.")
    open_image(image.name, image.parent)
    switch = thinking if demo.thinks else None
    return ask_clean(published, [{"image": image, "question": question, "enable_thinking": switch}])[0]


def _demo(graft: str) -> Demo:
    if graft not in DEMOS:
        raise ValueError(f"There is no demo of {graft!r}; demos: {', '.join(DEMOS)}.")
    return DEMOS[graft]


__all__ = ["DEMOS", "Demo", "ask", "run", "show_reply"]
