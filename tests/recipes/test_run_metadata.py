"""What a run's metadata tells others."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qwen_grafts.recipes.resume import last_complete_checkpoint
from qwen_grafts.recipes.run_metadata import check_saved, repeat_command


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--config", "/home/me/recipes/x/tiny.yaml", "--seed", "3"], "recipes/x/tiny.yaml --seed 3"),
        (["--hub_token", "hf_abc", "--seed", "3"], "--seed 3"),
        (["--hub_token=hf_abc", "--seed", "3"], "--seed 3"),
        (["--seed", "3", "--hub_token", "hf_abc"], "--seed 3"),
        (["--generative_eval_tokens", "8"], "--generative_eval_tokens 8"),
        (["--output_dir", "/home/me/out"], "--output_dir out"),
    ],
)
def test_the_command_repeats_the_run_and_tells_no_secret(words: list[str], shown: str) -> None:
    command = repeat_command(["qwen-grafts train", *words])
    assert command == f"qwen-grafts train {shown}"


def test_a_file_of_weights_that_is_not_whole_is_told_after_saving_and_before_resuming(tmp_path: Path) -> None:
    """Cut short within a tensor or within its header; what is whole passes both."""
    weights = tmp_path / "checkpoint-2" / "adapter_model.safetensors"
    weights.parent.mkdir()
    save_file({"a": torch.ones(4), "b": torch.ones(64)}, weights)
    for name in ("processor_config.json", "tokenizer.json", "training_meta.json", "adapter_config.json"):
        (weights.parent / name).write_text("{}")
    (weights.parent / "trainer_state.json").write_text('{"global_step": 2}')
    (weights.parent / "optimizer.pt").touch()
    check_saved(weights.parent, adapter=True)
    assert last_complete_checkpoint(tmp_path) == str(weights.parent)
    content = weights.read_bytes()
    for size, problem in ((len(content) - 8, "1 of 2 tensors are not whole, the first of them b"), (20, "its header")):
        weights.write_bytes(content[:size])
        with pytest.raises(ValueError, match=rf"1 of the files .* adapter_model\.safetensors is cut short.*{problem}"):
            check_saved(weights.parent, adapter=True)
        assert last_complete_checkpoint(tmp_path) is None
