"""Reading a part of a checkpoint: only what is needed, all of it, and in no more memory than it takes."""

import io
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from base_checkpoints import (
    INDEX,
    LAYOUTS,
    qwen2_5_vl_checkpoint,
    qwen2_5_vl_config,
    tower_shards,
    weight_map,
    write_shards,
)
from contracts.model_contract import generator, randomize
from huggingface_hub import HfApi, constants
from loopback_hub import LoopbackHub, environment
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_vision_bridge import tower_config
from tqdm import tqdm
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen3ForCausalLM
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.utils import logging

from qwen_grafts.configuration.presets import tiny_qwen3_text_config
from qwen_grafts.modeling import checkpoint_tensors
from qwen_grafts.modeling.checkpoint_tensors import commit_of, load_part, read_tensors

TOWER = {"prefixes": ("model.visual.", "visual.", ""), "part": "vision"}


def vl_checkpoint(folder: Path, layout: str = "old", shards: int = 5) -> Qwen2_5_VLForConditionalGeneration:
    return qwen2_5_vl_checkpoint(folder, tower_config(), layout, shards)


def load_tower(folder: Path | str, **options: Any) -> Qwen2_5_VisionTransformerPretrainedModel:
    tensors = read_tensors(str(folder), **TOWER, **options)
    config = tower_config()
    return load_part(Qwen2_5_VisionTransformerPretrainedModel, config, tensors, part="vision", name=str(folder))


def assert_same_weights(model: torch.nn.Module, expected: torch.nn.Module) -> None:
    """Buffers that are not saved included, such as rotary frequencies."""
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = dict(getattr(model, kind)()), dict(getattr(expected, kind)())
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype
            assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("shards", [1, 6], ids=["single", "sharded"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tower_is_the_stock_one(layout: str, shards: int, tmp_path: Path) -> None:
    expected = vl_checkpoint(tmp_path, layout, shards).model.visual
    tower = load_tower(tmp_path)
    assert not tower.training
    assert_same_weights(tower, expected)
    pixels, grid = torch.randn(32, 3 * 2 * 4 * 4, generator=generator(1)), torch.tensor([[1, 4, 8]])
    with torch.no_grad():
        assert torch.equal(tower(pixels, grid).pooler_output, expected(pixels, grid).pooler_output)


def test_checkpoints_as_transformers_saves_them(tmp_path: Path) -> None:
    model = Qwen2_5_VLForConditionalGeneration(qwen2_5_vl_config(tower_config())).eval()
    randomize(model)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert_same_weights(load_tower(tmp_path), model.model.visual)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_language_model_is_the_stock_one(tied: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    config = tiny_qwen3_text_config(hidden_size=64, tie_word_embeddings=tied)
    source = Qwen3ForCausalLM._from_config(config, dtype=dtype)
    randomize(source)
    source.save_pretrained(tmp_path, max_shard_size="100KB")
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32
    ids = torch.randint(0, 160, (2, 9), generator=generator(1))
    for asked, result in ((None, dtype), (other, other)):
        tensors = read_tensors(str(tmp_path), part="language", dtype=asked)
        model = load_part(Qwen3ForCausalLM, config, tensors, part="language", name=str(tmp_path))
        stock = Qwen3ForCausalLM.from_pretrained(tmp_path, dtype=result)
        assert model.dtype == model.config.dtype == result
        assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
        assert_same_weights(model, stock)
        with torch.no_grad():
            assert torch.equal(model(ids).logits, stock(ids).logits)


def test_tied_head_in_the_checkpoint(tmp_path: Path) -> None:
    """Some tied checkpoints hold the head, too."""
    source = Qwen3ForCausalLM(tiny_qwen3_text_config(hidden_size=64))
    tensors = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    assert "lm_head.weight" in tensors
    write_shards(tmp_path, tensors, 3)
    model = load_part(
        Qwen3ForCausalLM, source.config, read_tensors(str(tmp_path), part="language"), part="language", name="x"
    )
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert_same_weights(model, source)


def test_integers_keep_their_type(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(3), "steps": torch.tensor([7])}, tmp_path / "model.safetensors")
    tensors = read_tensors(str(tmp_path), part="vision", dtype=torch.bfloat16)
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "weight": torch.bfloat16,
        "steps": torch.int64,
    }


def test_first_prefix_that_occurs_is_the_layout(tmp_path: Path) -> None:
    write_shards(
        tmp_path, {name: torch.ones(1) for name in ("visual.visual.a", "model.visual.b", "c", "not.visual.d")}, 2
    )
    for prefixes, names in (
        (("model.visual.", "visual."), {"b"}),
        (("visual.", "model.visual."), {"visual.a"}),
        (("tower.", "visual."), {"visual.a"}),
        (("tower.", ""), {"visual.visual.a", "model.visual.b", "c", "not.visual.d"}),
    ):
        assert set(read_tensors(str(tmp_path), part="vision", prefixes=prefixes)) == names


@pytest.mark.parametrize("what", ["garbage", "removed"])
def test_other_shards_do_not_matter(what: str, tmp_path: Path) -> None:
    expected = vl_checkpoint(tmp_path).model.visual
    others = set(weight_map(tmp_path).values()) - set(tower_shards(tmp_path))
    assert len(others) > 1
    for shard in others:
        (tmp_path / shard).unlink() if what == "removed" else (tmp_path / shard).write_bytes(b"\x13" * 5000)
    assert_same_weights(load_tower(tmp_path), expected)


def test_shards_are_opened_once_and_other_tensors_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vl_checkpoint(tmp_path)
    opened, touched = Counter(), Counter()

    class Recorder:
        def __init__(self, file: str, **options: Any) -> None:
            opened[Path(file).name] += 1
            self.file = safe_open(file, **options)

        def __enter__(self) -> "Recorder":
            return self

        def __exit__(self, *error: object) -> None:
            self.file.__exit__(*error)

        def get_tensor(self, name: str) -> torch.Tensor:
            touched[name] += 1
            return self.file.get_tensor(name)

    monkeypatch.setattr(checkpoint_tensors, "safe_open", Recorder)
    read_tensors(str(tmp_path), **TOWER)
    shards = tower_shards(tmp_path)
    assert opened == dict.fromkeys(shards, 1)
    assert touched == {name: 1 for name in weight_map(tmp_path) if name.startswith("visual.")}
    assert any(weight_map(tmp_path)[name] == shards[-1] for name in weight_map(tmp_path) if name not in touched)


def test_progress_is_shown(tmp_path: Path) -> None:
    vl_checkpoint(tmp_path)
    bars = []

    def hook(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        bars.append(tqdm(*args, **kwargs, file=io.StringIO()))  # whatever the environment says of bars
        return bars[-1]

    previous = logging.set_tqdm_hook(hook)
    try:
        read_tensors(str(tmp_path), **TOWER)
    finally:
        logging.set_tqdm_hook(previous)
    count = sum(name.startswith("visual.") for name in weight_map(tmp_path))
    assert [(bar.desc, bar.n, bar.total) for bar in bars] == [("Reading the vision tensors", count, count)]


def test_the_file_may_change_after_reading(tmp_path: Path) -> None:
    """As it does where a model is saved into the folder of its own base; mapped tensors would change with it."""
    vl_checkpoint(tmp_path, shards=1)
    file = tmp_path / "model.safetensors"
    expected = {name.removeprefix("visual."): tensor.clone() for name, tensor in load_file(file).items()}
    tensors = read_tensors(str(tmp_path), **TOWER)
    with file.open("r+b") as handle:
        handle.write(b"\0" * file.stat().st_size)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())


# What is refused.


def cut(path: Path) -> None:
    with path.open("r+b") as handle:
        handle.truncate(path.stat().st_size - 100)


def test_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(
        ValueError,
        match=r"vision checkpoint .* has neither model\.safetensors nor its index.*pytorch_model\.bin become",
    ):
        read_tensors(str(tmp_path), **TOWER)


@pytest.mark.parametrize(
    "text", ['{"weight_map": {"a": ', "{}", "[1]", '{"weight_map": 3}', "\xff"], ids=["cut", "empty", "list", "3", "ff"]
)
def test_broken_index(text: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"index\.json of the vision checkpoint .* is broken: .*download it again"):
        read_tensors(str(tmp_path), **TOWER)


@pytest.mark.parametrize(
    ("damage", "why"),
    [(Path.unlink, "does not appear to have a file named"), (cut, "incomplete metadata"), (Path.touch, "too small")],
    ids=["missing", "cut", "empty"],
)
def test_damaged_shard(damage: Callable[[Path], None], why: str, tmp_path: Path) -> None:
    vl_checkpoint(tmp_path)
    shard = tower_shards(tmp_path)[1]
    if damage is Path.touch:
        (tmp_path / shard).write_bytes(b"")
    else:
        damage(tmp_path / shard)
    concerned = [name for name, file in weight_map(tmp_path).items() if file == shard and name.startswith("visual.")]
    with pytest.raises(ValueError, match=rf"{shard}.* cannot be read: .*{why}.*Nothing was assembled") as error:
        read_tensors(str(tmp_path), **TOWER)
    assert concerned[0] in str(error.value)
    assert f"({len(concerned)} in all)" in str(error.value)


def test_every_shard_is_there_before_one_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vl_checkpoint(tmp_path)
    (tmp_path / tower_shards(tmp_path)[-1]).unlink()
    monkeypatch.setattr(checkpoint_tensors, "safe_open", lambda *_, **__: pytest.fail("read a shard"))
    with pytest.raises(ValueError, match=tower_shards(tmp_path)[-1]):
        read_tensors(str(tmp_path), **TOWER)


def test_damaged_single_file(tmp_path: Path) -> None:
    vl_checkpoint(tmp_path, shards=1)
    cut(tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"model\.safetensors of the vision checkpoint .* cannot be read: .*incomplete"
    ):
        read_tensors(str(tmp_path), **TOWER)


def test_tensor_that_only_the_index_knows(tmp_path: Path) -> None:
    vl_checkpoint(tmp_path)
    shard = tower_shards(tmp_path)[0]
    tensors = load_file(tmp_path / shard)
    gone = sorted(tensors)[2]
    save_file({name: tensor for name, tensor in tensors.items() if name != gone}, tmp_path / shard)
    with pytest.raises(ValueError, match=rf"{shard}.* cannot be read: File does not contain tensor {gone}"):
        read_tensors(str(tmp_path), **TOWER)


def test_checkpoint_without_the_part(tmp_path: Path) -> None:
    Qwen3ForCausalLM(tiny_qwen3_text_config()).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"holds no tensor whose name starts with 'model\.visual\.' or 'visual\.', but model\."
    ):
        read_tensors(str(tmp_path), part="vision", prefixes=("model.visual.", "visual."))


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    vl_checkpoint(tmp_path)
    shard = tmp_path / tower_shards(tmp_path)[0]
    tensors = load_file(shard)
    tensors["visual.blocks.0.norm1.weight"] = torch.ones(31)
    tensors["visual.blocks.0.norm3.weight"] = tensors.pop("visual.blocks.0.norm2.weight")
    save_file(tensors, shard)
    index = {name: file for name, file in weight_map(tmp_path).items() if "0.norm2" not in name}
    index["visual.blocks.0.norm3.weight"] = shard.name
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": index}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"vision checkpoint .* does not fit Qwen2_5_VisionTransformer") as error:
        load_tower(tmp_path)
    for words in (
        "it lacks 1 of the model's tensors: blocks.0.norm2.weight; ",
        "it has 1 that the model does not know: blocks.0.norm3.weight; ",
        "it has 1 of another shape: blocks.0.norm1.weight [31] (the model has [32]). Nothing was assembled",
    ):
        assert words in str(error.value)


# In processes of their own.


def child(code: str, *arguments: str, variables: dict[str, str] | None = None) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (variables or {}),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


FROM_HUB = """
import json, sys
from qwen_grafts.modeling.checkpoint_tensors import read_tensors
def read(name, revision):
    try:
        tensors = read_tensors(name, part="vision", prefixes=("model.visual.", "visual."), revision=revision)
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return sum(tensor.double().sum().item() for tensor in tensors.values())
print(json.dumps([read(name, sys.argv[1]) for name in sys.argv[2:]]))
"""


def test_from_a_hub_only_the_needed_shards_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own: the client reads the address of the Hub when it is imported."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    model = vl_checkpoint(tmp_path / "whole")
    shards = tower_shards(tmp_path / "whole")
    vl_checkpoint(tmp_path / "partial")
    (tmp_path / "partial" / shards[1]).unlink()
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "pytorch_model.bin").write_bytes(b"0")
    with LoopbackHub(tmp_path / "hub", token="hf_loopback") as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        for name in ("whole", "partial", "none"):
            api.create_repo(f"owner/{name}")
            api.upload_folder(repo_id=f"owner/{name}", folder_path=tmp_path / name)
            api.create_tag(f"owner/{name}", tag="v1")
        api.delete_files("owner/whole", [INDEX, "*.safetensors"])  # main moves on
        hub.requests.clear()
        names = [f"owner/{name}" for name in ("whole", "partial", "none", "absent")]
        whole, partial, none, absent = child(FROM_HUB, "v1", *names, variables=environment(hub, tmp_path / "home"))
        fetched = [path.rsplit("/", 1)[1] for method, path in hub.requests if method == "GET" and "/resolve/" in path]
        assert whole == sum(tensor.double().sum().item() for tensor in model.model.visual.state_dict().values())
        assert sorted(name for name in fetched if name.endswith(".safetensors")) == sorted([*shards, shards[0]])
        assert not any(name.endswith(".bin") for name in fetched)
    assert partial.startswith(f"ValueError: {shards[1]}, with visual.")
    assert "does not appear to have a file named" in partial
    assert "has neither model.safetensors nor its index" in none
    assert absent.startswith("OSError: owner/absent is not a local folder and is not a valid model identifier")


MEMORY = """
import json, sys
from pathlib import Path
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from qwen_grafts.modeling.checkpoint_tensors import commit_of, load_part, read_tensors
torch.set_num_threads(1)
def memory(key):
    return int(Path("/proc/self/status").read_text().split(key + ":")[1].split()[0]) * 1024
config = Qwen3Config.from_pretrained(sys.argv[1])
with torch.device("meta"):
    Qwen3ForCausalLM(config)  # imports what building a model imports
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
before = memory("VmRSS")
tensors = read_tensors(sys.argv[1], part="language", dtype=getattr(torch, sys.argv[2]))
model = load_part(Qwen3ForCausalLM, config, tensors, part="language", name="x")
del tensors
sum(parameter.sum() for parameter in model.parameters())
weights = sum(parameter.nbytes for parameter in model.parameters())
print(json.dumps([memory("VmHWM") - before, weights]))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads peak memory from /proc")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_peak_memory_is_that_of_the_weights(dtype: str, tmp_path: Path) -> None:
    config = tiny_qwen3_text_config(
        vocab_size=8000, hidden_size=1024, intermediate_size=4096, num_hidden_layers=5, num_attention_heads=8
    )
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Qwen3ForCausalLM(config).model.named_parameters()}
    tensors = {f"model.{name}": torch.ones(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    write_shards(tmp_path, tensors, 3)
    config.save_pretrained(tmp_path)
    peak, weights = child(MEMORY, str(tmp_path), dtype)
    assert weights > (140e6 if dtype == "bfloat16" else 280e6)
    assert peak < 1.15 * weights + 10e6, f"{peak / 1e6:.0f} MB at the peak for weights of {weights / 1e6:.0f} MB"


def test_a_folder_without_a_configuration_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"has no config\.json"):
        commit_of(str(tmp_path), "main")
    (tmp_path / "config.json").write_text("{}")
    assert commit_of(str(tmp_path), "main") is None
