"""Which layers of a Qwen a recursive model keeps, and which of them it uses again and again."""

from typing import Literal

LayerSelection = Literal["all", "sandwich", "even"]


def select_layers(
    num_layers: int,
    selection: LayerSelection = "all",
    *,
    core_range: tuple[int, int] | list[int] | None = None,
    L_layers: int | None = None,
) -> tuple[list[int], tuple[int, int]]:
    """Choose layers of a source.

    Args:
        num_layers: of the source.
        selection: `"all"` keeps every layer, and with closed gates the source's function. `"sandwich"` keeps those
            before and behind `core_range`, and of the core `L_layers` spread evenly over it. `"even"` keeps `L_layers`
            spread evenly over the whole source and nothing else: all of them are the core.
        core_range: first layer of the core in the source and the one after its last; default the middle half.
        L_layers: layers of the new core, for `"sandwich"` and `"even"`; default 4.

    Returns:
        The layers kept, and the core's range among them.

    Raises:
        ValueError: a selection that does not exist, a core outside the layers, or arguments that do not go together.
    """
    if selection not in ("all", "sandwich", "even"):
        raise ValueError(f"The layer selection {selection!r} is none of all, sandwich and even.")
    if selection == "even" and core_range is not None:
        raise ValueError("The layer selection 'even' makes all kept layers the core; leave `core_range` out.")
    if selection == "all" and L_layers is not None:
        raise ValueError("The layer selection 'all' keeps the core's layers; give `core_range` in place of `L_layers`.")
    first, last = core_range or (num_layers // 4, max(num_layers // 4 + 1, num_layers - num_layers // 4))
    if not 0 <= first < last <= num_layers:
        raise ValueError(f"The core {first}:{last} is not within the source's {num_layers} layers, 0 <= first < last.")
    if selection == "all":
        return list(range(num_layers)), (first, last)
    if selection == "even":
        first, last = 0, num_layers
    count = 4 if L_layers is None else L_layers
    if not 1 <= count <= last - first:
        raise ValueError(
            f"`L_layers` is {count}; of the layers {first} to {last - 1}, 1 to {last - first} can be kept."
        )
    step = (last - first - 1) / max(1, count - 1)
    core = [first + round(index * step) for index in range(count)]
    return [*range(first), *core, *range(last, num_layers)], (first, first + count)


__all__ = ["LayerSelection", "select_layers"]
