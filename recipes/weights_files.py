"""Whether a file of weights is whole: asked before resuming, after saving and before publishing."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open


def read_shard(path: Path) -> tuple[str | None, set[str]]:
    """What is wrong with a safetensors file, None if nothing, and the names of its tensors.

    The header tells where each tensor ends, so a file that is cut short is recognised without reading it.

    Raises:
        OSError: the file is not there or not readable.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        header = file.read(header_size) if header_size < size else b""
    try:
        entries = json.loads(header)
    except ValueError:
        return f"{path.name} is cut short or no safetensors file: its header of {size} bytes cannot be read", set()
    ends = {
        name: 8 + header_size + entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"
    }
    cut = sorted((end, name) for name, end in ends.items() if end > size)
    if cut:
        problem = (
            f"{path.name} is cut short: {size} of {max(ends.values())} bytes, so {len(cut)} of {len(ends)} tensors "
            f"are not whole, the first of them {cut[0][1]}; save or download it again"
        )
        return problem, set(ends)
    try:
        with safe_open(path, framework="pt") as shard:
            return None, set(shard.keys())
    except SafetensorError as error:
        return f"{path.name} cannot be read: {error}; save or download it again", set()
