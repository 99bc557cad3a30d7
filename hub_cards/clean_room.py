"""The clean-room check: does a folder work for somebody who has nothing of ours?

First what can be read off the files (`static_checks.py`); code that fails there is never run. Then a new process in
which this package cannot be imported, caches are empty and the Hub is out of reach (`clean_room_child.py`): it loads
the folder through each of its Auto classes, runs a fixed batch, generates with and without a cache, and runs the
card's own snippet. Logits and tokens must be those of the model that was exported. Nothing is pushed without this.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from ..configuration import GRAFTS
from ..configuration.code_files import PACKAGE
from .cards import card_snippet
from .clean_room_child import check_batch, greedy, logits_of, scores_of
from .graft_parts import Processor, graft_class, load_processor, parameter_table
from .static_checks import inspect

Reference: TypeAlias = PreTrainedModel | tuple[PreTrainedModel, Processor]

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-2}
TIMEOUT_SECONDS = 7200  # an 8B model on a few CPU cores takes most of an hour
# What a process needs to start at all; tokens and everything else of this machine stay outside.
KEPT_VARIABLES = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "PATH", "SYSTEMROOT")


class CleanRoomError(ValueError):
    """A folder is not fit to publish.

    Attributes:
        findings: everything that is wrong, a sentence each.
    """

    def __init__(self, directory: Path, findings: list[str]) -> None:
        self.findings = findings
        count = "one finding" if len(findings) == 1 else f"{len(findings)} findings"
        lines = "".join(f"\n  - {finding}" for finding in findings)
        super().__init__(f"{directory} is not fit to publish, {count}:{lines}")


@dataclass
class CleanRoomReport:
    """What a folder passed.

    Attributes:
        directory: the folder.
        checks: (name, detail) of every check, in order.
        parameters: part -> number of parameters as the clean room counted them; empty for an adapter.
        seconds: how long it took.
    """

    directory: Path
    checks: list[tuple[str, str]]
    parameters: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def __str__(self) -> str:
        lines = [f"{name}: {detail}" for name, detail in self.checks]
        return "\n".join([*lines, f"{self.directory} is fit to publish ({self.seconds:.0f} s)"])


@dataclass
class _Measured:
    """What came out of the child: its record, and its tensors by name."""

    record: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        return self.group("inputs")

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        return {name.split(".", 1)[1]: value for name, value in self.tensors.items() if name.startswith(f"{prefix}.")}


def verify(directory: str | os.PathLike, *, reference: Reference | None = None) -> CleanRoomReport:
    """Check that a folder is fit to publish.

    Args:
        directory: a model folder (with weights, or configuration only). Of a PEFT adapter and of a graft-only
            repository, whose bases lie elsewhere, only the files are checked.
        reference: the model that was exported, with its processor if at hand; otherwise, for a graft, the package's
            own classes loaded on the folder's weights.

    Raises:
        CleanRoomError: the folder is not fit; lists everything that was found.
        ValueError: no such folder.
    """
    started = time.monotonic()
    directory = Path(directory).resolve()
    if not directory.is_dir():
        raise ValueError(f"There is no folder {directory}. Export a model there first (`qwen-grafts export`).")
    checks, findings = inspect(directory)
    snippet, repo_id = card_snippet(directory / "README.md")
    if snippet is not None and repo_id is None:
        findings.append('README.md: the snippet does not say `repo_id = "owner/name"`, so it cannot be tried')
    if findings:
        raise CleanRoomError(directory, findings)
    report = CleanRoomReport(directory, checks)
    if not _needs_other_repositories(directory):
        weights = any(directory.glob("*.safetensors"))
        request = {"directory": str(directory), "weights": weights, "snippet": snippet, "repo_id": repo_id}
        measured = _run_child(directory, request)
        findings = _judge_classes(directory, measured, report)
        findings += _judge_weights(directory, measured, reference, report) if weights else []
        if findings:
            raise CleanRoomError(directory, findings)
        report.checks.append(("snippet", "the card's snippet ran" if snippet else "no card, so no snippet to run"))
    report.seconds = time.monotonic() - started
    return report


def _needs_other_repositories(directory: Path) -> bool:
    """An adapter or a graft-only repository: half a model, which the offline room cannot complete."""
    if (directory / "adapter_config.json").is_file():
        return True
    return bool(json.loads((directory / "config.json").read_text(encoding="utf-8")).get("graft_only"))


def _run_child(directory: Path, request: dict[str, Any]) -> _Measured:
    """Start the clean room and wait for it.

    Raises:
        CleanRoomError: the child died or took too long; names the stage it was in.
    """
    with tempfile.TemporaryDirectory(prefix="clean-room-") as folder:
        room = Path(folder)
        request_file, record_file = room / "request.json", room / "record.json"
        request_file.write_text(json.dumps(request | {"package": PACKAGE}), encoding="utf-8")
        environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        environment |= {
            "HOME": folder,
            "TMPDIR": folder,
            "HF_HOME": str(room / "hf"),
            "HF_MODULES_CACHE": str(room / "modules"),
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        child = Path(__file__).with_name("clean_room_child.py")
        command = [sys.executable, "-I", str(child), str(request_file)]
        options = {"cwd": folder, "env": environment, "capture_output": True, "text": True, "errors": "replace"}
        try:
            done = subprocess.run(command, timeout=TIMEOUT_SECONDS, check=False, **options)
        except subprocess.TimeoutExpired:
            stage = json.loads(record_file.read_text(encoding="utf-8"))["stage"]
            raise CleanRoomError(directory, [f"{stage} took more than {TIMEOUT_SECONDS} seconds"]) from None
        record = json.loads(record_file.read_text(encoding="utf-8")) if record_file.is_file() else {"stage": "starting"}
        if done.returncode != 0:
            raise CleanRoomError(
                directory, [f"{record['stage']} failed ({_how(done.returncode)}):\n{_tail(done.stderr)}"]
            )
        return _Measured(record, load_file(record_file.with_suffix(".safetensors")))


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return f"{signal.Signals(-code).name}{', out of memory?' if -code == signal.SIGKILL else ''}"


def _tail(text: str, lines: int = 15) -> str:
    return "\n".join(f"      {line}" for line in text.strip().splitlines()[-lines:])


def _judge_classes(directory: Path, measured: _Measured, report: CleanRoomReport) -> list[str]:
    """Whether each Auto class gave the class that the folder names, from the folder's code, with every weight."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    names = {auto: reference.split(".")[-1] for auto, reference in config.get("auto_map", {}).items()}
    findings = [
        f"{auto} gave {found} instead of {names[auto]}"
        for auto, found in measured.record["parts"].items()
        if found != names.get(auto, found)
    ]
    for auto, model in measured.record["models"].items():
        if auto in names and (model["class"] != names[auto] or not model["remote"]):
            findings.append(f"{auto} gave {model['class']} instead of {names[auto]} from the folder's own code")
        if missing := model.get("missing"):
            findings.append(f"{auto}: {len(missing)} tensors are missing from the weights, first {missing[0]}")
        # The backbone of a model whose head is not tied leaves the head aside: that is what was asked for.
        if unexpected := [
            name for name in model.get("unexpected", ()) if auto != "AutoModel" or not name.startswith("lm_head.")
        ]:
            findings.append(f"{auto}: {len(unexpected)} tensors of the weights have no place, first {unexpected[0]}")
    if not measured.record["models"]:
        findings.append("no Auto class for a model could be loaded; config.json must name one in `auto_map`")
        return findings
    report.parameters = next(iter(measured.record["models"].values()))["parameters"]
    if config.get("model_type") in GRAFTS:
        own = parameter_table(_own_config(directory))
        if report.parameters != own:
            findings.append(f"parameters differ from this package's model: {report.parameters} instead of {own}")
    loaded = measured.record["parts"] | {auto: model["class"] for auto, model in measured.record["models"].items()}
    autos = ", ".join(f"{auto} ({name})" for auto, name in loaded.items())
    counts = ", ".join(f"{part} {count:,}" for part, count in report.parameters.items())
    report.checks += [("classes", autos), ("parameters", f"{sum(report.parameters.values()):,}: {counts}")]
    return findings


def _judge_weights(
    directory: Path, measured: _Measured, reference: Reference | None, report: CleanRoomReport
) -> list[str]:
    """Whether the folder computes what the reference computes, and generates the same with and without a cache."""
    dtype = next(iter(measured.record["models"].values()))["dtype"]
    findings = [
        f"the logits through {auto} hold {int((~logits.isfinite()).sum())} values that are not finite"
        for auto, logits in measured.group("logits").items()
        if not logits.isfinite().all()
    ]
    if findings:
        return findings
    tolerance = TOLERANCE.get(dtype, TOLERANCE["bfloat16"])
    tokens, steps = measured.group("tokens"), measured.group("steps")
    if found := _disagreement(tokens["uncached"], tokens["cached"], steps["uncached"], tolerance):
        findings.append(f"greedy tokens with a cache differ from those without: {found}")
    model, processor = _reference(directory, reference)
    if model is None:
        report.checks.append(("logits", f"finite; nothing to compare with, `{dtype}`"))
        return findings
    if processor is not None:
        findings += _judge_processor(measured.inputs, check_batch(processor))
    training = model.training
    inputs = {name: tensor.to(model.device) for name, tensor in measured.inputs.items()}
    queries = {name: tensor.to(model.device) for name, tensor in measured.group("queries").items()}
    model.eval()
    wanted, (wanted_tokens, wanted_steps) = logits_of(model, inputs), greedy(model, inputs, use_cache=True)
    wanted_scores = scores_of(model, queries) if queries else None
    model.train(training)
    real = measured.inputs["attention_mask"].bool()
    allowed = tolerance * max(1.0, wanted[real].abs().max().item())
    worst = 0.0
    for auto, logits in measured.group("logits").items():
        difference = (logits - wanted)[real].abs().max().item()
        worst = max(worst, difference)
        if difference > allowed:
            findings.append(
                f"the logits through {auto} differ from the exported model's by {difference:.2e} ({allowed:.0e} is "
                "allowed); the code or the weights are not those of the model: export it again"
            )
    for auto, scores in measured.group("scores").items():
        if (difference := (scores - wanted_scores).abs().max().item()) > tolerance:
            findings.append(
                f"the scores of documents through {auto} differ from the exported model's by {difference:.2e} "
                f"({tolerance:.0e} is allowed); the query reasoner is not that of the model: export it again"
            )
    if found := _disagreement(wanted_tokens, tokens["cached"], wanted_steps, tolerance):
        findings.append(f"greedy tokens differ from the exported model's: {found}")
    report.checks += [
        ("logits", f"largest difference {worst:.1e} in {dtype} ({allowed:.0e} allowed)"),
        ("generation", f"{tokens['cached'].shape[1]} greedy tokens, left-padded, the same with and without a cache"),
    ]
    return findings


def _judge_processor(inputs: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> list[str]:
    """Whether the folder's processor makes the batch that the exported one makes."""
    if inputs.keys() != wanted.keys():
        return [f"the processor returns {sorted(inputs)} instead of {sorted(wanted)}"]
    return [
        f"the processor's `{name}` differs from the exported processor's; save the processor again"
        for name, tensor in wanted.items()
        if tensor.shape != inputs[name].shape or not torch.allclose(tensor.float(), inputs[name].float(), atol=1e-5)
    ]


def _reference(directory: Path, reference: Reference | None) -> tuple[PreTrainedModel | None, Processor | None]:
    if isinstance(reference, tuple):
        return reference
    if reference is not None:
        return reference, None
    graft = GRAFTS.get(json.loads((directory / "config.json").read_text(encoding="utf-8")).get("model_type"))
    if graft is None:
        return None, None
    model = graft_class(graft, "AutoModelForCausalLM").from_pretrained(directory)
    return model, load_processor(graft, directory)


def _own_config(directory: Path) -> Any:
    model_type = json.loads((directory / "config.json").read_text(encoding="utf-8"))["model_type"]
    return graft_class(GRAFTS[model_type], "AutoConfig").from_pretrained(directory)


def _disagreement(wanted: torch.Tensor, found: torch.Tensor, steps: torch.Tensor, tolerance: float) -> str | None:
    """Where two greedy runs part, unless their two candidates were within rounding of each other.

    Args:
        wanted: (B, N) tokens.
        found: (B, N) tokens.
        steps: (B, N, V) logits that `wanted` was chosen from.
        tolerance: relative to the largest logit.
    """
    for row in range(wanted.shape[0]):
        parted = (wanted[row] != found[row]).nonzero()
        if len(parted):
            step = int(parted[0])
            logits = steps[row, step]
            gap = (logits[wanted[row, step]] - logits[found[row, step]]).abs().item()
            if gap > tolerance * max(1.0, logits.abs().max().item()):
                return f"row {row}, token {step}: {int(found[row, step])} instead of {int(wanted[row, step])}"
    return None
