"""Experiment trackers of a run: wandb, trackio and TensorBoard, chosen by `report_to`.

transformers sends them losses, its own arguments and the model's configuration. Here stands what a run of this package
needs beside that: a missing package is told at once, the answers before and after training land in the same run as the
losses, and with them what the run is: recipe, data, parameters and versions.
"""

import json
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.integrations import (
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
    get_available_reporting_integrations,
)

RECORD = "training_meta"
# Curves tell it, or the end of the run.
_KNOWN_LATER = ("steps", "epochs", "duration_seconds", "metrics", "confusion", "loss_curve", "eval_loss_curve")


def check_trackers(report_to: list[str]) -> None:
    """See that what `report_to` names is installed, before data are read and a model is loaded.

    Raises:
        ValueError: it is not, or is no tracker that transformers knows.
    """
    available = get_available_reporting_integrations()
    if missing := [name for name in report_to if name not in available]:
        raise ValueError(
            f"`report_to` names {', '.join(missing)}: not installed, or no tracker that transformers knows. Install it "
            f"(`pip install {' '.join(missing)}`), or set `report_to: none`."
        )


class _Recorded:
    """Put before a callback of transformers: it knows the run's record."""

    def __init__(self, record: dict[str, Any]) -> None:
        super().__init__()
        self.record = record


class _RecordedConfig(_Recorded):
    """The record goes into the configuration of the tracker's run.

    Attributes:
        tracker: the package, which has the run that is open as its `config`.
    """

    tracker: str

    def setup(self, args: Any, state: Any, model: Any, **kwargs: Any) -> None:
        """Open the run; trackio opens it once more after training, under the same name."""
        super().setup(args, state, model, **kwargs)
        if state.is_world_process_zero:
            import_module(self.tracker).config.update({RECORD: self.record}, allow_val_change=True)


class RecordedWandb(_RecordedConfig, WandbCallback):
    """transformers' callback, with the run's record in the configuration of its run."""

    tracker = "wandb"


class RecordedTrackio(_RecordedConfig, TrackioCallback):
    """The same for trackio, which sends the configuration with the first values of a run and never again."""

    tracker = "trackio"


class RecordedTensorBoard(_Recorded, TensorBoardCallback):
    """The same for TensorBoard, as text, in one folder below `output_dir`.

    The stock callback opens its files in the working folder if something is logged before training begins.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the arguments and the record."""
        self._choose_folder(args)
        super().on_train_begin(args, state, control, **kwargs)
        if self.tb_writer is not None:
            self.tb_writer.add_text(RECORD, json.dumps(self.record, indent=2, ensure_ascii=False))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write values, also before training."""
        self._choose_folder(args)
        super().on_log(args, state, control, logs=logs, **kwargs)

    def _choose_folder(self, args: Any) -> None:
        if self.logging_dir is None:
            self.logging_dir = str(Path(args.output_dir) / "runs" / Path(args.run_name).name)


_RECORDED = {
    WandbCallback: RecordedWandb,
    TrackioCallback: RecordedTrackio,
    TensorBoardCallback: RecordedTensorBoard,
}


def record_run(trainer: Trainer, metadata: dict[str, Any]) -> None:
    """Give the trackers of a trainer the record of the run, before anything is logged.

    Args:
        metadata: what `training_metadata` has before the first step.
    """
    args = trainer.args
    if args.run_name is None:  # trackio would take the answers after training for another run
        args.run_name = f"{Path(args.output_dir).name}-{datetime.now():%Y%m%d-%H%M%S}"
    record = {name: value for name, value in metadata.items() if name not in _KNOWN_LATER}
    for stock, recorded in _RECORDED.items():
        if trainer.pop_callback(stock) is not None:
            trainer.add_callback(recorded(record))


__all__ = ["RECORD", "RecordedTensorBoard", "RecordedTrackio", "RecordedWandb", "check_trackers", "record_run"]
