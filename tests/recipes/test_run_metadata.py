"""What a run's metadata tells others."""

import pytest

from qwen_grafts.recipes.run_metadata import repeat_command


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
