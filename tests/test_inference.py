"""`qwen-grafts inference`: the text is that of `generate`, and a token's depth that of the pass that chose it."""

import io
from pathlib import Path

import pytest
import torch
from distinct_export import export_distinct
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from qwen_grafts.hub_cards import export_preset
from qwen_grafts.inference import COLOURS, Answer, DepthStreamer, infer, inference, load
from qwen_grafts.modeling import RecursiveCache

PROMPT = "What is it?"


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose halting head is of different minds, with a patience of one cycle."""
    folder = export_distinct(tmp_path_factory.mktemp("inference"), "recursive-tiny")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model.config.halt_patience = 1
    model.model.q_head.bias.data.zero_()
    model.model.q_head.weight.data.mul_(2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def answered(export: Path, **options: object) -> Answer:
    return infer(*load(str(export)), PROMPT, **{"max_new_tokens": 12, "num_cycles": 6} | options)


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("halt_threshold", [None, 0.6])
def test_the_text_is_that_of_generate(export: Path, raw: bool, halt_threshold: float | None) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(export), AutoModelForCausalLM.from_pretrained(export)
    prompt = PROMPT
    if not raw:
        turn = [{"role": "user", "content": PROMPT}]
        prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    inputs = tokenizer(prompt, return_tensors="pt")
    options = {"max_new_tokens": 12, "num_cycles": 6, "halt_threshold": halt_threshold, "do_sample": False}
    written = model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
    answer = answered(export, raw=raw, halt_threshold=halt_threshold)
    assert [token.id for token in answer.tokens] == written.tolist()
    assert answer.text == tokenizer.decode(written, skip_special_tokens=True)


@pytest.mark.parametrize("L_cycles", [3, 1])
def test_depth_is_that_of_the_position_before(export: Path, L_cycles: int) -> None:
    """As one uncached pass over everything that was read finds it."""
    model, tokenizer = load(str(export))
    answer = answered(export, L_cycles=L_cycles, halt_threshold=0.6, raw=True)
    prompt = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    read = torch.cat([prompt, torch.tensor([[token.id for token in answer.tokens[:-1]]])], dim=1)
    with torch.no_grad():
        used = model(read, num_cycles=6, L_cycles=L_cycles, halt_threshold=0.6, use_cache=False).cycles_used[0]
    expected = used[prompt.shape[1] - 1 :].tolist()
    assert [token.cycles for token in answer.tokens] == expected
    assert 1 in expected and len(set(expected)) > 1  # or the colours would say nothing
    assert answer.adaptive and answer.mean_cycles == pytest.approx(sum(expected) / len(expected))
    layers, core, steps = 4, 2, L_cycles + 1  # a cycle is its low steps and a high one
    assert answer.layer_evaluations == sum(layers + (cycles * steps - 1) * core for cycles in expected)
    assert answer.fixed_layer_evaluations == len(expected) * model.config.layer_evaluations(6, L_cycles)


def test_a_fixed_depth(export: Path) -> None:
    for depth, evaluations in (((4, 2), 4 + 11 * 2), ((1, 1), 4)):
        answer = answered(export, num_cycles=depth[0], L_cycles=depth[1])
        assert {token.cycles for token in answer.tokens} == {depth[0]} and not answer.adaptive
        assert answer.layer_evaluations == answer.fixed_layer_evaluations == evaluations * len(answer.tokens)
    assert not answered(export, halt_threshold=1.0).adaptive
    assert {token.cycles for token in answered(export, num_cycles=None).tokens} == {3}  # the configuration's


def test_depth_of_the_generation_configuration(export: Path) -> None:
    model, tokenizer = load(str(export))
    model.generation_config.num_cycles, model.generation_config.halt_threshold = 5, 0.6
    answer = infer(model, tokenizer, PROMPT, max_new_tokens=8)
    assert (answer.num_cycles, answer.adaptive) == (5, True)
    assert infer(model, tokenizer, PROMPT, max_new_tokens=8, num_cycles=2).num_cycles == 2


def test_sampling_varies(export: Path) -> None:
    texts = set()
    for seed in range(3):
        torch.manual_seed(seed)
        texts.add(answered(export, temperature=2.0).text)
    assert len(texts) > 1


@pytest.mark.parametrize(("L_cycles", "halt_threshold"), [(3, 0.6), (1, None)])
def test_the_surest_of_several_answers_is_kept(export: Path, L_cycles: int, halt_threshold: float | None) -> None:
    """Each answer's confidence is the mean over its own tokens, up to the stop token, read alone and at full depth."""
    model, tokenizer = load(str(export))
    # A stop token in five, so that some answers are short.
    model.generation_config.eos_token_id = list(range(0, model.config.vocab_size, 5))
    depth = {"num_cycles": 6, "L_cycles": L_cycles}
    options = depth | {"halt_threshold": halt_threshold, "max_new_tokens": 12}
    inputs = tokenizer(PROMPT, return_tensors="pt")
    start = inputs["input_ids"].shape[1]
    torch.manual_seed(0)
    sampled = model.generate(**inputs, **options, do_sample=True, temperature=3.0, num_return_sequences=5)
    answers, expected = [], []
    for row in sampled[:, start:].tolist():
        stop = next((place for place, token in enumerate(row) if token % 5 == 0), len(row) - 1)
        answers.append(row[: stop + 1])
        read = torch.cat([inputs["input_ids"], torch.tensor([answers[-1]])], dim=1)
        with torch.no_grad():
            sure = model(read, **depth, halt_threshold=1.0, supervised_cycles=[6]).halt_logits[0, start - 1 : -1, -1]
        expected.append(sure.sigmoid().mean().item())
    assert len({len(answer) for answer in answers}) > 2 and len(set(expected)) == 5
    streamed = []
    torch.manual_seed(0)
    answer = infer(model, tokenizer, PROMPT, **options, temperature=3.0, rollouts=5, raw=True, on_token=streamed.append)
    kept = answers[expected.index(max(expected))]
    assert answer.confidences == pytest.approx(expected, abs=1e-5)
    assert [token.id for token in answer.tokens] == kept and streamed == answer.tokens
    assert answer.text == tokenizer.decode(kept, skip_special_tokens=True)
    read = torch.cat([inputs["input_ids"], torch.tensor([kept[:-1]])], dim=1)
    with torch.no_grad():
        used = model(read, **depth, halt_threshold=halt_threshold, use_cache=False).cycles_used
    cycles = [6] * len(kept) if used is None else used[0, start - 1 :].tolist()
    assert [token.cycles for token in answer.tokens] == cycles
    assert answer.fixed_layer_evaluations == len(kept) * model.config.layer_evaluations(6, L_cycles)


def test_a_character_comes_with_its_last_byte(tmp_path: Path) -> None:
    """Without merges a token is a byte, and the last character here never becomes whole."""
    export_preset("recursive-tiny", tmp_path / "tiny", config_only=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tiny")
    ids = [*tokenizer("aé日")["input_ids"][:-1], tokenizer.pad_token_id]
    cache, calls = RecursiveCache(), []
    streamer = DepthStreamer(tokenizer, cache, 3, calls.append)
    streamer.put(torch.tensor([[1, 2]]))
    for token in ids:
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert [token.text for token in streamer.tokens][:3] == ["a", "", "é"]
    assert "".join(token.text for token in calls) == tokenizer.decode(ids, skip_special_tokens=True) == "aé\ufffd"
    assert [token.id for token in streamer.tokens] == ids


def printed(export: Path, no_color: bool = False, **options: object) -> str:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, color_system="standard", width=60, no_color=no_color)
    inference(str(export), PROMPT, console=console, max_new_tokens=12, num_cycles=6, halt_threshold=0.6, **options)
    return output.getvalue()


def test_what_is_printed(export: Path) -> None:
    answer = answered(export, halt_threshold=0.6)
    plain, coloured = printed(export, no_color=True), printed(export)
    assert plain.startswith(answer.text)
    assert "Tokens by cycles  " in plain and f"mean cycles {answer.mean_cycles:.2f} of 6; " in plain
    saved = 1 - answer.layer_evaluations / answer.fixed_layer_evaluations
    assert f"{answer.layer_evaluations:,} layer evaluations, {saved:.0%} fewer than" in plain
    codes = {name: f"\x1b[{31 + index}m" for name, index in zip(COLOURS, (3, 5, 1, 2, 0), strict=True)}
    assert sum(code in coloured for code in codes.values()) > 1
    assert not any(code in plain for code in codes.values())
    assert "Confidence" not in plain


def test_what_is_printed_of_several_answers(export: Path) -> None:
    torch.manual_seed(0)
    text = printed(export, no_color=True, temperature=2.0, rollouts=3)
    torch.manual_seed(0)
    answer = answered(export, halt_threshold=0.6, temperature=2.0, rollouts=3)
    shares = [f"{share:.3f}{' (this one)' * (share == max(answer.confidences))}" for share in answer.confidences]
    assert text.startswith(answer.text)
    assert text.endswith(f"Confidence of 3 answers  {', '.join(shares)}\n") and text.count("(this one)") == 1


def test_what_cannot_be_asked(export: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`num_cycles` is 0"):
        answered(export, num_cycles=0)
    with pytest.raises(ValueError, match=r"`halt_threshold` is 1\.5"):
        answered(export, halt_threshold=1.5)
    with pytest.raises(ValueError, match="`rollouts` is 0; it is the number of answers"):
        answered(export, rollouts=0)
    with pytest.raises(ValueError, match="`rollouts` is 3, and at temperature 0 all of the answers are the same"):
        answered(export, rollouts=3)
    with pytest.raises(ValueError, match="The prompt is empty"):
        infer(*load(str(export)), "", raw=True)
    vision = export_preset("perceiver-vlm-tiny", tmp_path / "vision", config_only=True)
    with pytest.raises(ValueError, match="holds a 'qwen3_perceiver' model, whose tokens all take the same depth"):
        load(str(vision))
