"""Keys and values of layers that run several times on a token.

A stock layer asks its cache for the slot of its `layer_idx`. A layer of the core has one slot for every run of the
core, so a token attends to earlier tokens at the same run. Slots of N layers, the core being `first` … `last - 1`:

    0 … N-1                  every layer, the core's at its first run: up to here, the cache of a stock model
    N + (run-1) K + j-first  layer j of the K in the core, at run 1, 2, …

Any cache of transformers works that has that many slots or makes them when they are asked for. The layers of the model
are stock; what they are given in place of the cache, a `SlotsOfRun` or a `CoreRun`, knows the run.

Shapes: B batch, H key-value heads, S tokens of this call, T tokens before it, C width of a head.
"""

from typing import Any

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

KeysAndValues = tuple[torch.Tensor, torch.Tensor]


class RecursiveCache(DynamicCache):
    """A cache whose slots appear when they are asked for, and which remembers how deep each token thought.

    Attributes:
        cycles_used: (B, tokens) cycles that each cached token took; None as long as no token could halt early.
    """

    def __init__(self, offloading: bool = False) -> None:
        Cache.__init__(self, layer_class_to_replicate=DynamicLayer, offloading=offloading)
        self.cycles_used: torch.Tensor | None = None

    def record_cycles(self, cycles_BS: torch.Tensor) -> None:
        """Append the depth of new tokens."""
        self.cycles_used = cycles_BS if self.cycles_used is None else torch.cat([self.cycles_used, cycles_BS], dim=1)

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        if self.cycles_used is not None and tokens_to_remove:
            self.cycles_used = self.cycles_used[:, : -abs(tokens_to_remove)]

    def reset(self) -> None:
        super().reset()
        self.cycles_used = None

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self._select_rows(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self._select_rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        if self.cycles_used is not None:
            self.cycles_used = self.cycles_used.repeat_interleave(repeats, dim=0)

    def _select_rows(self, rows: torch.Tensor) -> None:
        if self.cycles_used is not None:
            self.cycles_used = self.cycles_used[rows.to(self.cycles_used.device)]


class CoreCache:
    """Keys and values of the core during one call of the model.

    Args:
        cache: of the whole model; None without one, where `hold` makes halted tokens work all the same.
        core_range, num_layers: which of the model's layers are the core.
        runs: how often the core runs in this call at most.
        runs_per_cycle: runs of a cycle; a halted token keeps, run by run, the keys and values of its last cycle.
        sharing: the policy of `RecursiveQwenConfig.kv_sharing`.
        hold: keep this call's keys and values, so that tokens can halt.
    """

    def __init__(
        self,
        cache: Cache | None,
        core_range: tuple[int, int],
        num_layers: int,
        runs: int,
        runs_per_cycle: int,
        sharing: str,
        hold: bool,
    ) -> None:
        self.cache, self.num_layers, self.runs, self.runs_per_cycle = cache, num_layers, runs, runs_per_cycle
        self.first, self.last = core_range
        self.sharing, self.hold = sharing, hold
        self.held: dict[tuple[int, int], KeysAndValues] = {}
        self.shared: dict[int, KeysAndValues] = {}

    def slot(self, run: int, layer_idx: int) -> int:
        """Where a layer of the core keeps its keys and values of a run."""
        if run == 0 or self.sharing != "none":
            return layer_idx
        return self.num_layers + (run - 1) * (self.last - self.first) + layer_idx - self.first

    def check(self) -> None:
        """Whether the cache has all the slots, filled with the same tokens.

        Raises:
            ValueError: it has too few slots, or its tokens were computed with another number of runs.
        """
        if self.cache is None:
            return
        layers = self.cache.layers
        if self.sharing != "none":
            if any(not isinstance(layer, DynamicLayer) for layer in layers):
                raise ValueError(
                    f"`kv_sharing={self.sharing!r}` needs a cache that grows, and this {type(self.cache).__name__} "
                    "does not. Leave `cache_implementation` out."
                )
            return
        slots = self.num_layers + (self.runs - 1) * (self.last - self.first)
        if self.cache.layer_class_to_replicate is None and len(layers) < slots:
            raise ValueError(
                f"The cache has {len(layers)} slots and {self.runs} runs of the core need {slots}. Make it for that "
                "depth: leave `past_key_values` out, or pass `RecursiveCache()`."
            )
        if self.cache.is_compileable:
            return  # lengths are tensors there, and asking them would break the graph
        filled = self.cache.get_seq_length(self.first)
        deepest, beyond = self.slot(self.runs - 1, self.first), self.slot(self.runs, self.first)
        lengths = [layers[slot].get_seq_length() if slot < len(layers) else 0 for slot in (deepest, beyond)]
        if lengths[0] != filled or (filled and lengths[1]):
            runs = sum(
                slot < len(layers) and layers[slot].get_seq_length() > 0
                for slot in (self.slot(run, self.first) for run in range(len(layers) + 1))
            )
            raise ValueError(
                f"The cache holds {filled} tokens computed with {runs} runs of the core, and this call makes "
                f"{self.runs}. Go on with the same `num_cycles` and `L_cycles`, or start with a new cache."
            )

    def run(self, run: int, halted_BS: torch.Tensor | None = None) -> "CoreRun | SlotsOfRun | None":
        """What the core's layers get as their cache at a run; None if they need none."""
        if self.hold or (self.cache is not None and self.sharing != "none"):
            return CoreRun(self, run, halted_BS)
        return None if self.cache is None else SlotsOfRun(self.cache, self.slot(run, self.first) - self.first)

    def update(
        self, run: int, layer_idx: int, keys: torch.Tensor, values: torch.Tensor, halted_BS: torch.Tensor | None
    ) -> KeysAndValues:
        """Store a run's (B, H, S, C) keys and values; returns those to attend to, (B, H, T + S, C)."""
        if self.hold:
            before = self.held.get((run % self.runs_per_cycle, layer_idx))
            if halted_BS is not None and before is not None:
                mask = halted_BS[:, None, :, None].to(keys.device)
                keys, values = torch.where(mask, before[0], keys), torch.where(mask, before[1], values)
            self.held[run % self.runs_per_cycle, layer_idx] = keys, values
        if self.cache is None:
            return keys, values
        if self.sharing == "none":
            return self.cache.update(keys, values, self.slot(run, layer_idx))
        self._share(run, layer_idx, keys, values, halted_BS)
        layers = self.cache.layers
        if layer_idx >= len(layers) or layers[layer_idx].get_seq_length() == 0:
            return keys, values
        layer = layers[layer_idx]
        return torch.cat([layer.keys, keys], dim=-2), torch.cat([layer.values, values], dim=-2)

    def finish(self, runs_made: int) -> None:
        """After the last run: fill the slots of runs that no token needed any more, or store the shared set."""
        if self.cache is None:
            return
        for layer_idx, (keys, values) in self.shared.items():
            self.cache.update(keys, values, layer_idx)
        if self.sharing == "none":
            for run in range(runs_made, self.runs):
                for layer_idx in range(self.first, self.last):
                    self.cache.update(*self.held[run % self.runs_per_cycle, layer_idx], self.slot(run, layer_idx))

    def _share(
        self, run: int, layer_idx: int, keys: torch.Tensor, values: torch.Tensor, halted_BS: torch.Tensor | None
    ) -> None:
        if run == 0 or self.sharing == "last":
            self.shared[layer_idx] = keys, values
        elif self.sharing == "average":
            means = [
                mean + (new - mean) / (run + 1)
                for mean, new in zip(self.shared[layer_idx], (keys, values), strict=True)
            ]
            if halted_BS is not None:  # over the runs a token made, whoever else is in the batch
                mask = halted_BS[:, None, :, None].to(keys.device)
                means = [torch.where(mask, old, new) for old, new in zip(self.shared[layer_idx], means, strict=True)]
            self.shared[layer_idx] = means[0], means[1]


class SlotsOfRun:
    """The cache as the core's layers see it at one run, where nothing but their slots differs."""

    def __init__(self, cache: Cache, offset: int) -> None:
        self.cache, self.offset = cache, offset

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> KeysAndValues:
        """As `Cache.update`, of the slot of this run."""
        return self.cache.update(key_states, value_states, layer_idx + self.offset, *args, **kwargs)


class CoreRun:
    """The cache as the core's layers see it at one run, where tokens halt or runs share their keys and values."""

    def __init__(self, core_cache: CoreCache, run: int, halted_BS: torch.Tensor | None) -> None:
        self.core_cache, self.run_index, self.halted_BS = core_cache, run, halted_BS

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> KeysAndValues:
        """As `Cache.update`, of the slot of this run."""
        return self.core_cache.update(self.run_index, layer_idx, key_states, value_states, self.halted_BS)


__all__ = ["CoreCache", "RecursiveCache"]
