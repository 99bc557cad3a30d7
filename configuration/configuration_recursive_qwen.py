"""Configuration of the recursive Qwen: a dense Qwen2 or Qwen3, some of whose layers, the core, are used many times.

    layers 0 … a-1      prelude   once
    layers a … b-1      core      H_cycles x (L_cycles + 1) times
    layers b … N-1      coda      once

All layers of the source keep their index, so the weights of a Qwen checkpoint need no new names. Sources: HRM (arXiv
2506.21734), TRM (arXiv 2510.04871), Huginn (arXiv 2502.05171), Qwen2 (arXiv 2407.10671), Qwen3 (arXiv 2505.09388).
"""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import Qwen3Config

from .layer_selection import select_layers

KVSharing = Literal["none", "last", "average", "first"]


@strict
class RecursiveQwenConfig(Qwen3Config):
    """Configuration of `RecursiveQwenModel` and `RecursiveQwenForCausalLM`; what is not named here is Qwen3's.

    Args:
        layer_family: whose decoder layers these are, `"qwen2"` or `"qwen3"`.
        core_range: first layer of the core and the one after its last; default the middle half.
        H_cycles: how often the high state is updated. `num_cycles` is another name for it.
        L_cycles: how often the low state is updated before each update of the high state.
        update_gate_init: how far a new model's states follow a further run of the core, 0 (not at all: the model is its
            source at any depth) to 1 (all the way: for training from random weights).
        input_gate_init: how much of the two states is added to the prelude's output before the core runs.
        halt_threshold: a token stops thinking when the halting head is this sure, `halt_patience` cycles in a row;
            None: every token takes all cycles.
        halt_patience: see `halt_threshold`.
        kv_sharing: which keys and values of a finished token the cache keeps: `"none"`, those of every run of the core,
            exact; `"last"`, `"average"` or `"first"`, one set for all runs, an approximation.
        loop_lora_rank: rank of the low-rank terms that each cycle adds to the core's linear layers; 0: none.
        loop_lora_alpha: they are scaled by `loop_lora_alpha / loop_lora_rank`.
        loop_lora_cycles: how many cycles have terms of their own; later cycles use the last ones.
        base_models: where the weights came from: "language" -> {"repo_id", "revision"}.

    Raises:
        ValueError: cycles, thresholds, ranks or a core out of range, or layers with a sliding window.
    """

    model_type = "recursive_qwen"
    attribute_map = {"num_cycles": "H_cycles"}

    layer_family: Literal["qwen2", "qwen3"] = "qwen3"
    core_range: list[int] | tuple[int, ...] | None = None
    H_cycles: int = 3
    L_cycles: int = 3
    update_gate_init: float = 0.0
    input_gate_init: float = 0.5
    halt_threshold: float | None = None
    halt_patience: int = 3
    kv_sharing: KVSharing = "none"
    loop_lora_rank: int = 0
    loop_lora_alpha: float = 16.0
    loop_lora_cycles: int = 1
    base_models: dict[str, dict[str, str]] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        layers = self.num_hidden_layers
        if self.core_range is None:
            self.core_range = select_layers(layers)[1]
        self.core_range = [int(bound) for bound in self.core_range]
        # Not in transformers' `validate_*`, whose errors are no ValueErrors.
        if len(self.core_range) != 2 or not 0 <= self.core_range[0] < self.core_range[1] <= layers:
            raise ValueError(
                f"`core_range` is {self.core_range}; it names the core's first layer and the one after its last, "
                f"0 <= first < last <= {layers}."
            )
        check_cycles(self.H_cycles, self.L_cycles)
        check_halting(self.halt_threshold, self.halt_patience)
        if self.loop_lora_rank < 0 or self.loop_lora_cycles < 1:
            raise ValueError(
                f"`loop_lora_rank` is {self.loop_lora_rank} and `loop_lora_cycles` {self.loop_lora_cycles}; the rank "
                "is 0 (none) or more, the cycles 1 or more."
            )
        if windowed := sum(kind != "full_attention" for kind in self.layer_types):
            raise ValueError(
                f"{windowed} of {layers} layers attend within a sliding window; the core's cache holds full attention "
                "only. Choose a checkpoint with `use_sliding_window: false`."
            )

    @property
    def L_layers(self) -> int:  # noqa: N802  HRM's name
        """Layers of the core."""
        return self.core_range[1] - self.core_range[0]

    def core_runs(self, num_cycles: int | None = None, L_cycles: int | None = None) -> int:
        """How often the core runs on a token.

        One cycle of one step is a single pass through all layers, as in the source: the high update of it would be
        read by nothing but its own gate.
        """
        high, low = num_cycles or self.H_cycles, L_cycles or self.L_cycles
        return 1 if high == low == 1 else high * (low + 1)

    def layer_evaluations(self, num_cycles: int | None = None, L_cycles: int | None = None) -> int:
        """Layers that a token passes, and slots its keys and values fill: the depth of the unrolled model."""
        return self.num_hidden_layers + (self.core_runs(num_cycles, L_cycles) - 1) * self.L_layers

    def cache_slots(self, num_cycles: int | None = None, L_cycles: int | None = None) -> int:
        """Layers' worth of keys and values that the cache keeps of a token; a stock model keeps `num_hidden_layers`."""
        return self.layer_evaluations(num_cycles, L_cycles) if self.kv_sharing == "none" else self.num_hidden_layers

    def parameter_part(self, name: str) -> str | None:
        """Which part a layer's parameter, by its name in the backbone, is of: `"prelude"`, `"core"`, `"coda"`."""
        module, _, rest = name.partition(".")
        if module != "layers":
            return None
        (first, last), index = self.core_range, int(rest.partition(".")[0])
        return "prelude" if index < first else "core" if index < last else "coda"


def check_cycles(num_cycles: Any, L_cycles: Any) -> None:
    """Whether a depth can be computed.

    Raises:
        ValueError: a number of cycles that is no whole number of at least 1.
    """
    for name, value in (("num_cycles", num_cycles), ("L_cycles", L_cycles)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}` is {value!r}; the core runs a whole number of cycles, 1 or more.")


def check_halting(threshold: float | None, patience: int) -> None:
    """Whether a halting rule can be applied.

    Raises:
        ValueError: a threshold outside (0, 1], or a patience below 1.
    """
    if threshold is not None and not 0 < threshold <= 1:
        raise ValueError(
            f"`halt_threshold` is {threshold}; it is a probability, more than 0 and at most 1 (never halt)."
        )
    if patience < 1:
        raise ValueError(f"`halt_patience` is {patience}; a token halts after 1 or more sure cycles in a row.")


__all__ = ["RecursiveQwenConfig", "check_cycles", "check_halting"]
