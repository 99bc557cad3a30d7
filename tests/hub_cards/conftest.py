"""One exported tiny model for all tests of the folder, and copies of it to break; a stock Qwen3-VL to train."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub
from tiny_qwen3_vl import query_rows, qwen3_vl_checkpoint

from qwen_grafts.hub_cards import export_preset

STOCK_RECIPE = Path(__file__).parents[2] / "recipes" / "qwen3_vl_sft" / "tiny.yaml"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of `perceiver-vlm-tiny`; not to be changed."""
    return export_preset("perceiver-vlm-tiny", tmp_path_factory.mktemp("export") / "tiny")


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny export, to be changed."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


@pytest.fixture
def edit() -> Callable[[Path, str, str], None]:
    """Replaces a piece of a file that must be there."""

    def replace(path: Path, old: str, new: str) -> None:
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    return replace


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    """A Hub on loopback that only knows what the test pushes, and was asked for nothing that it does not know."""
    with LoopbackHub(tmp_path / "hub", token="hf_loopback") as hub:
        yield hub
    assert hub.unknown_requests == []


@pytest.fixture(scope="session")
def stock_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen3_vl_checkpoint(tmp_path_factory.mktemp("stock") / "base")


@pytest.fixture(scope="session")
def query_rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    query_rows(12).to_parquet(path)
    return path


@pytest.fixture(scope="session")
def stock_words(stock_base: Path, query_rows_file: Path) -> Callable[..., list[str]]:
    """Arguments of a run of two steps."""

    def build(output_dir: Path, **overrides: object) -> list[str]:
        values = {
            "model_name_or_path": stock_base,
            "query_data": query_rows_file,
            "output_dir": output_dir,
            "max_steps": 2,
            "save_steps": 1,
            "generative_eval_rows": 3,
            "generative_eval_tokens": 6,
            "disable_tqdm": True,
            "use_cpu": True,
        } | overrides
        return [
            "--config",
            str(STOCK_RECIPE),
            *(w for name, value in values.items() for w in (f"--{name}", str(value))),
        ]

    return build
