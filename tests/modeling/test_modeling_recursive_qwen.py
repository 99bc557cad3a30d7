"""Recursive Qwen: the shared contracts for both families of layers, then what is its own."""

import itertools
from typing import Any

import pytest
import torch
from contracts.full_model_contract import FullModelContract
from contracts.model_contract import Inputs, ModelContract, assert_close, generator, randomize
from tiny_recursive import SIZES, recursive_config
from torch import nn
from transformers import (
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    StaticCache,
)

from qwen_grafts.configuration import RecursiveQwenConfig
from qwen_grafts.modeling import RecursiveCache, RecursiveQwenForCausalLM, RecursiveQwenModel
from qwen_grafts.modeling.recurrence import Halting

STOCK = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}


def stock_model(model: PreTrainedModel) -> PreTrainedModel:
    """The stock model with the weights of a recursive one."""
    config_class, model_class = STOCK[model.config.layer_family]
    stock = model_class(config_class(**{name: getattr(model.config, name) for name in SIZES})).eval()
    shared = {n: t for n, t in model.state_dict().items() if n in stock.state_dict()}
    stock.load_state_dict(shared)
    stock.generation_config = model.generation_config
    return stock


class RecursiveContract(ModelContract):
    """How a tiny recursive Qwen is built and fed."""

    model_class = RecursiveQwenForCausalLM
    base_model_class = RecursiveQwenModel
    trained_part = "recurrence"
    item_counts = (0, 0, 0)
    lora_targets = r".*layers\.[12]\..*\.(q_proj|v_proj)"

    def build_config(self) -> RecursiveQwenConfig:
        return recursive_config()

    def build_model(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
        """Gates of order one would let nine runs amplify rounding; trained ones lie between 0 and 1."""
        model = super().build_model(dtype, seed)
        for name, parameter in model.model.recurrence.named_parameters():
            if "gate" in name:
                parameter.data = 0.5 + 0.3 * torch.tanh(parameter.data - 1.0)
        return model

    def degenerate(self, model: PreTrainedModel) -> PreTrainedModel:
        """One cycle of one step from states that start at nothing."""
        for state in ("H_init", "L_init"):
            getattr(model.model.recurrence, state).data.zero_()
        return model.at_depth(1, 1)

    def layer_evaluations(self, model: PreTrainedModel) -> int:
        return model.config.layer_evaluations()

    def new_cache(self, model: PreTrainedModel) -> RecursiveCache:
        return RecursiveCache()

    def stock_equivalent(self, model: PreTrainedModel) -> PreTrainedModel:
        return stock_model(model)

    def row(self, model: PreTrainedModel, items: int = 0, seed: int = 0) -> Inputs:
        ids = torch.randint(2, 160, (1, 14 + seed), generator=generator(seed))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class TestQwen3(RecursiveContract, FullModelContract):
    """Prelude, core and coda of a Qwen3."""


class TestQwen2(RecursiveContract):
    """Biases on queries, keys and values; the core begins with the first layer and there is no coda."""

    def build_config(self) -> RecursiveQwenConfig:
        sizes = {"num_hidden_layers": 2, "head_dim": 16, "tie_word_embeddings": False}
        return recursive_config(layer_family="qwen2", core_range=[0, 2], **sizes)

    def stock_equivalent(self, model: PreTrainedModel) -> PreTrainedModel:
        stock = stock_model(model)
        assert stock.model.layers[0].self_attn.q_proj.bias is not None
        return stock


class TestLoopLoRA(RecursiveContract):
    """Low-rank terms for two of three cycles."""

    def build_config(self) -> RecursiveQwenConfig:
        return recursive_config(loop_lora_rank=3, loop_lora_cycles=2)

    def build_model(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
        model = super().build_model(dtype, seed)
        for name, parameter in model.named_parameters():
            if "loop_" in name:
                parameter.data *= 0.1
        return model

    def degenerate(self, model: PreTrainedModel) -> PreTrainedModel:
        for name, parameter in model.named_parameters():
            if name.endswith("loop_up"):
                parameter.data.zero_()
        return super().degenerate(model)


class TestHalting(RecursiveContract):
    """Tokens halt after very different numbers of cycles."""

    def build_config(self) -> RecursiveQwenConfig:
        return recursive_config(H_cycles=8, L_cycles=1, halt_threshold=0.5, halt_patience=2)

    def build_model(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
        """States that keep moving, so that not all tokens halt at once or never."""
        model = super().build_model(dtype, seed)
        for state in "HL":
            getattr(model.model.recurrence, f"update_gate_{state}").data += 0.6
        return model

    def layer_evaluations(self, model: PreTrainedModel) -> int:
        """As long as the slowest token of the row thinks."""
        with torch.no_grad():
            used = int(model(**self.row(model)).cycles_used.max())
        return model.config.num_hidden_layers + (2 * used - 1) * model.config.L_layers

    def test_gradient_is_the_slope_of_the_loss(self, model: PreTrainedModel) -> None:
        model.config.halt_threshold = None  # the slope is measured in evaluation mode
        super().test_gradient_is_the_slope_of_the_loss(model)

    def test_tokens_halt_at_different_depths(self, model: PreTrainedModel) -> None:
        inputs = self.batch(model, self.rows(model))
        kept = inputs["attention_mask"].bool()
        with torch.no_grad():
            used = model(**inputs).cycles_used
        assert len(used[kept].unique()) >= 4 and used[kept].min() == 2
        assert used[~kept].eq(1).all()  # padding need not think

    def test_a_cache_remembers_the_same_depths(self, model: PreTrainedModel) -> None:
        """Chunks, rows in a batch, beams: a token's depth depends on what stands before it and nothing else."""
        inputs = self.batch(model, self.rows(model))
        kept = inputs["attention_mask"].bool()
        cache = RecursiveCache()
        positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        with torch.no_grad():
            full = model(**inputs, position_ids=positions)
            for start, end in ((0, 5), (5, 6), (6, 11), (11, kept.shape[1])):
                piece = {"attention_mask": inputs["attention_mask"][:, :end], "position_ids": positions[:, start:end]}
                model(inputs["input_ids"][:, start:end], **piece, past_key_values=cache)
        assert torch.equal(cache.cycles_used[kept], full.cycles_used[kept])
        out = self.generate(model, inputs, do_sample=True, return_dict_in_generate=True, num_return_sequences=2)
        with torch.no_grad():
            for index, sequence in enumerate(out.sequences):
                sequence = sequence[(inputs["attention_mask"][index // 2] == 0).sum() :]
                again = model(sequence[None]).cycles_used[0, :-1]
                assert torch.equal(out.past_key_values.cycles_used[index, -len(again) :], again)

    def test_a_threshold_of_one_halts_nothing(self, model: PreTrainedModel) -> None:
        row = self.row(model)
        with torch.no_grad():
            never = model(**row, halt_threshold=1.0)
            model.config.halt_threshold = None
            assert never.cycles_used is None
            assert torch.equal(never.logits, model(**row).logits)

    def test_halted_tokens_rest(self, model: PreTrainedModel) -> None:
        """More cycles change nothing for who has halted before: neither what it says nor what others read of it."""
        row = self.row(model)
        with torch.no_grad():
            model.model.q_head.bias.data.fill_(100.0)
            few, many = model(**row, num_cycles=2), model(**row, num_cycles=9)
        assert few.cycles_used.eq(2).all() and many.cycles_used.eq(2).all()
        assert torch.equal(few.logits, many.logits)
        assert many.halt_logits.shape[-1] == 2, "the core goes on though no token needs it"

    def test_supervised_tokens_think_to_the_end(self, model: PreTrainedModel) -> None:
        """In evaluation mode as well: who is supervised at a cycle has made it."""
        row = self.row(model)
        with torch.no_grad():
            supervised = model(**row, supervised_cycles=[3])
            assert supervised.cycles_used is None
            assert_close(supervised.logits, model(**row, halt_threshold=1.0).logits, 1e-5)


@pytest.fixture
def model() -> PreTrainedModel:
    return TestQwen3().build_model()


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize("depth", [(1, 1), (1, 2), (2, 1), (3, 3), (8, 2)])
def test_closed_gates_are_the_source_at_any_depth(family: str, depth: tuple[int, int]) -> None:
    sizes = {"head_dim": 16} if family == "qwen2" else {}
    model = RecursiveQwenForCausalLM(recursive_config(layer_family=family, **sizes)).eval()
    fresh = {name: parameter.clone() for name, parameter in model.model.recurrence.named_parameters()}
    randomize(model)
    model.model.recurrence.load_state_dict(fresh)
    ids = torch.randint(2, 160, (2, 13), generator=generator(1))
    with torch.no_grad():
        logits = model(ids, num_cycles=depth[0], L_cycles=depth[1]).logits
        sizes = {"tie_word_embeddings": True} | sizes
        assert torch.equal(logits, stock_model(model)(ids).logits)


def test_closed_gates_learn_from_the_first_step() -> None:
    model = RecursiveQwenForCausalLM(recursive_config()).train()
    fresh = {name: parameter.clone() for name, parameter in model.model.recurrence.named_parameters()}
    randomize(model)
    model.model.recurrence.load_state_dict(fresh)
    ids = torch.randint(2, 160, (2, 13), generator=generator(1))
    model(ids, labels=ids).loss.backward()
    recurrence = model.model.recurrence
    for name in ("update_gate_H", "update_gate_L", "H_init", "L_init"):
        assert (getattr(recurrence, name).grad.abs() > 1e-6).float().mean() > 0.9, name


def test_recurrence_equals_the_formula(model: PreTrainedModel) -> None:
    """Written out with stock layers, no cache and no mask function."""
    ids = torch.randint(2, 160, (1, 9), generator=generator(2))
    backbone, r = model.model, model.model.recurrence
    positions = torch.arange(9)[None]
    mask = torch.full((9, 9), float("-inf")).triu(1)[None, None]

    def run(layers: Any, states: torch.Tensor) -> torch.Tensor:
        for layer in layers:
            rotary = backbone.rotary_emb(states, positions)
            states = layer(states, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
        return states

    with torch.no_grad():
        e = run(backbone.layers[:1], backbone.embed_tokens(ids))
        high, low, first = e + r.H_init, r.L_init.expand_as(e), True
        for _ in range(4):
            for _ in range(3):
                u = e + r.input_gate_H * (high - e) + r.input_gate_L * low
                ran = run(backbone.layers[1:3], u)
                low = ran if first else low + r.update_gate_L * (ran - low)
                first = False
            u = e + r.input_gate_H * (high - e) + r.input_gate_L * low
            high = low + r.update_gate_H * (run(backbone.layers[1:3], u) - low)
        expected = model.lm_head(backbone.norm(run(backbone.layers[3:], high)))
        assert_close(model(ids, num_cycles=4, L_cycles=3).logits, expected, 1e-5)


def test_depth_at_load_at_forward_and_at_generate(model: PreTrainedModel, tmp_path: Any) -> None:
    model.save_pretrained(tmp_path)
    row = {"input_ids": torch.randint(2, 160, (1, 9), generator=generator(2))}
    options = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    loaded = RecursiveQwenForCausalLM.from_pretrained(tmp_path, num_cycles=5, L_cycles=1)
    assert (loaded.config.H_cycles, loaded.config.L_cycles) == (5, 1)
    with torch.no_grad():
        expected = loaded(**row).logits
        assert torch.equal(model(**row, num_cycles=5, L_cycles=1).logits, expected)
        assert torch.equal(model.at_depth(5, 1)(**row).logits, expected)
        assert (model(**row).logits - expected).abs().max() > 0.1
    expected = torch.stack(loaded.generate(**row, **options).logits)
    asked = torch.stack(model.generate(**row, **options, num_cycles=5, L_cycles=1).logits)
    assert torch.equal(asked, expected)
    own = torch.stack(model.generate(**row, **options).logits)
    model.generation_config = GenerationConfig(num_cycles=5, L_cycles=1, eos_token_id=None, pad_token_id=0)
    assert torch.equal(torch.stack(model.generate(**row, **options).logits), expected)
    assert torch.equal(torch.stack(model.generate(**row, **options, num_cycles=3, L_cycles=2).logits), own)
    model.save_pretrained(tmp_path)
    again = RecursiveQwenForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(torch.stack(again.generate(**row, **options).logits), expected)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_offloaded_weights_are_there_when_they_are_used(family: str, tmp_path: Any) -> None:
    model = RecursiveQwenForCausalLM(recursive_config(layer_family=family, halt_threshold=0.6, halt_patience=1)).eval()
    randomize(model)
    model.save_pretrained(tmp_path / "model")
    places = {f"model.layers.{index}": "disk" if index in (1, 4) else "cpu" for index in range(5)}
    places |= {f"model.{name}": "cpu" for name in ("embed_tokens", "norm", "rotary_emb")} | {"lm_head": "cpu"}
    offloaded = RecursiveQwenForCausalLM.from_pretrained(
        tmp_path / "model",
        device_map=places | {"model.recurrence": "disk", "model.q_head": "disk"},
        offload_folder=tmp_path / "offload",
    )
    assert offloaded.model.layers[1].self_attn.q_proj.weight.is_meta
    assert offloaded.model.recurrence.H_init.is_meta
    ids = torch.randint(2, 160, (2, 7), generator=generator(2))
    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    assert torch.equal(offloaded.generate(ids, **settings), model.generate(ids, **settings))
    with torch.no_grad():
        assert torch.equal(offloaded(ids).logits, model(ids).logits)
        assert torch.equal(offloaded(ids).cycles_used, model(ids).cycles_used)


def test_at_depth_shares_every_tensor(model: PreTrainedModel) -> None:
    shallow = model.at_depth(1)
    assert shallow.config.H_cycles == 1 and model.config.H_cycles == 3
    ours, theirs = dict(model.named_parameters()), dict(shallow.named_parameters())
    assert all(theirs[name] is parameter for name, parameter in ours.items())
    shallow.generation_config.num_cycles = 2
    assert not hasattr(model.generation_config, "num_cycles")


@pytest.mark.parametrize("halting", [False, True])
def test_shallow_draft_gives_the_same_tokens(halting: bool) -> None:
    contract = TestHalting() if halting else TestQwen3()
    model = contract.build_model()
    row = contract.row(model)
    draft = model.at_depth(1)
    asked: dict[bool, set[int | None]] = {True: set(), False: set()}
    draft.model.register_forward_pre_hook(
        lambda module, _, kwargs: asked[module is draft.model].add(kwargs["num_cycles"]), with_kwargs=True
    )
    for options in ({}, {"num_cycles": 4}):
        plain = contract.generate(model, row, max_new_tokens=12, **options)
        assisted = contract.generate(model, row, max_new_tokens=12, assistant_model=draft, **options)
        assert torch.equal(assisted, plain)
    assert asked == {True: {None}, False: {None, 4}}, "the draft has a depth of its own"


def test_causality(model: PreTrainedModel) -> None:
    for settings in ({}, {"halt_threshold": 0.5}):
        ids = torch.randint(2, 160, (1, 15), generator=generator(3))
        changed = ids.clone()
        changed[0, 9] = (changed[0, 9] + 1) % 160
        with torch.no_grad():
            before, after = model(ids, **settings).logits[0], model(changed, **settings).logits[0]
        assert torch.equal(before[:9], after[:9])
        assert (before[9:] - after[9:]).abs().amax(-1).min() > 0.05


@pytest.mark.parametrize("gradient_cycles", [None, 1, 2])
def test_deep_supervision_equals_separate_segments(model: PreTrainedModel, gradient_cycles: int | None) -> None:
    """Each supervised state is what a run of that depth gives, and its gradient ends at the state before it."""
    model.train()
    ids = torch.randint(2, 160, (2, 9), generator=generator(4))
    target = torch.randn(2, 9, 64, generator=generator(5))
    supervision = {"num_cycles": 5, "supervised_cycles": [2, 4], "gradient_cycles": gradient_cycles}
    for index, (depth, length) in enumerate(((2, 2), (4, 2), (5, 1))):
        outputs = model.model(ids, **supervision)
        assert len(outputs.cycle_hidden_states) == 3 and outputs.halt_logits.shape == (2, 9, 3)
        assert torch.equal(outputs.last_hidden_state, outputs.cycle_hidden_states[-1])
        assert outputs.past_key_values is None
        alone = model.model(ids, num_cycles=depth, gradient_cycles=min(length, gradient_cycles or length))
        assert_close(outputs.cycle_hidden_states[index], alone.last_hidden_state, 1e-5)
        gradients = []
        for state in (outputs.cycle_hidden_states[index], alone.last_hidden_state):
            model.zero_grad()
            (state * target).sum().backward()
            gradients.append(model.model.recurrence.update_gate_H.grad.clone())
        assert_close(*gradients, 1e-5)


def test_supervised_logits_are_those_of_the_kept_positions(model: PreTrainedModel) -> None:
    ids = torch.randint(2, 160, (2, 9), generator=generator(4))
    with torch.no_grad():
        outputs = model(ids, num_cycles=3, supervised_cycles=[1], logits_to_keep=2)
        for logits, depth in zip(outputs.cycle_logits, (1, 3), strict=True):
            assert_close(logits, model(ids, num_cycles=depth).logits[:, -2:], 1e-5)
    assert torch.equal(outputs.logits, outputs.cycle_logits[-1])


def test_gates_of_another_precision() -> None:
    """Gates can be trained in float32 on layers in bfloat16; the layers' precision is the model's."""
    model = RecursiveQwenForCausalLM(recursive_config()).eval()
    randomize(model)
    ids = torch.randint(2, 160, (2, 7), generator=generator(3))
    model.to(torch.bfloat16)
    model.model.recurrence.float()
    mixed = model(ids, labels=ids)
    mixed.loss.backward()
    assert mixed.logits.dtype == torch.bfloat16
    assert model.model.recurrence.update_gate_H.grad.dtype == torch.float32
    assert torch.equal(mixed.logits, model.to(torch.bfloat16)(ids).logits)


def test_truncated_backpropagation(model: PreTrainedModel) -> None:
    model.train()
    ids = torch.randint(2, 160, (2, 9), generator=generator(4))
    gradients = []
    for cycles in (1, 2, 5, None):
        model.zero_grad()
        outputs = model.model(ids, num_cycles=5, gradient_cycles=cycles)
        outputs.last_hidden_state.square().mean().backward()
        gradients.append(model.model.layers[1].mlp.up_proj.weight.grad.clone())
    assert torch.equal(gradients[2], gradients[3])
    assert all((a - b).abs().max() > 1e-6 for a, b in itertools.pairwise(gradients[:3]))


@pytest.mark.parametrize("sharing", ["last", "average", "first"])
@pytest.mark.parametrize("halting", [False, True])
def test_shared_keys_and_values(sharing: str, halting: bool) -> None:
    """One set a layer: exact within a call, and of earlier calls what the policy says, here written out."""
    model = (TestHalting() if halting else TestQwen3()).build_model()
    model.config.kv_sharing = sharing
    split = 2 if halting else 7  # where one row has halted long before the other
    ids = torch.randint(2, 160, (2, 10), generator=generator(6))
    cache = RecursiveCache()
    with torch.no_grad():
        exact = model(ids, use_cache=False).logits
        assert_close(model(ids[:, :split], past_key_values=cache).logits, exact[:, :split], 1e-5)
        assert len(cache.layers) == 5 and {layer.get_seq_length() for layer in cache.layers} == {split}
        if halting:
            assert cache.cycles_used.tolist() == [[8, 8], [2, 2]]
        else:
            every = RecursiveCache()
            model.config.kv_sharing = "none"
            model(ids[:, :split], past_key_values=every)
            runs = torch.stack([every.layers[slot].keys for slot in (1, *range(5, 21, 2))])
            assert len(every.layers) == 21
            expected = {"last": runs[-1], "first": runs[0], "average": runs.mean(0)}[sharing]
            assert_close(cache.layers[1].keys, expected, 1e-5)
            model.config.kv_sharing = sharing
        alone = [RecursiveCache(), RecursiveCache()]
        batched = model(ids[:, split:], past_key_values=cache).logits
        for row, own in enumerate(alone):
            model(ids[row : row + 1, :split], past_key_values=own)
            assert_close(model(ids[row : row + 1, split:], past_key_values=own).logits[0], batched[row], 1e-4)
        assert (batched - exact[:, split:]).abs().max() > 1e-3  # an approximation


def test_a_mask_made_beforehand(model: PreTrainedModel) -> None:
    """As transformers' mask functions make it, in the dictionary that it hands to models of several kinds of layers."""
    ids, mask = torch.randint(2, 160, (2, 9), generator=generator(4)), torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    seen = torch.ones(9, 9, dtype=torch.bool).tril() & mask.bool()[:, None, None, :]
    with torch.no_grad():
        expected = model(ids, attention_mask=mask, position_ids=positions).logits
        logits = model(ids, attention_mask={"full_attention": seen}, position_ids=positions).logits
    assert_close(logits[mask.bool()], expected[mask.bool()], 1e-5)


def test_user_caches(model: PreTrainedModel) -> None:
    """A cache that makes slots when asked works, a fixed one of the right depth too."""
    row = {"input_ids": torch.randint(2, 160, (1, 9), generator=generator(2))}
    options = {"max_new_tokens": 5, "do_sample": False}
    plain = model.generate(**row, **options)
    for cache in (DynamicCache(), RecursiveCache()):
        assert torch.equal(model.generate(**row, **options, past_key_values=cache), plain)
    with torch.no_grad():
        assert model(**row, past_key_values=RecursiveCache(), use_cache=False).past_key_values is None
    deeper = options | {"num_cycles": 4, "L_cycles": 3}
    static = model.generate(**row, **deeper, cache_implementation="static", disable_compile=True)
    assert torch.equal(static, model.generate(**row, **deeper))
    again = model.generate(**row, **options, return_dict_in_generate=True)
    longer = model.generate(again.sequences, max_new_tokens=3, do_sample=False, past_key_values=again.past_key_values)
    assert torch.equal(longer, model.generate(**row, max_new_tokens=8, do_sample=False))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_cycles": 0}, "`num_cycles` is 0; the core runs a whole number of cycles, 1 or more"),
        ({"num_cycles": -2}, "`num_cycles` is -2"),
        ({"num_cycles": 1.5}, "`num_cycles` is 1.5"),
        ({"L_cycles": 0}, "`L_cycles` is 0"),
        ({"halt_threshold": 0.0}, "more than 0 and at most 1"),
        ({"halt_threshold": 1.2}, "`halt_threshold` is 1.2"),
        ({"gradient_cycles": 0}, "`gradient_cycles` is 0"),
        ({"num_cycles": 3, "supervised_cycles": [0, 2]}, r"asks for \[0\]; this call makes cycles 1 to 3"),
        ({"num_cycles": 3, "supervised_cycles": [1, 4]}, r"asks for \[4\]; this call makes cycles 1 to 3"),
    ],
)
def test_bad_depths_are_refused(model: PreTrainedModel, options: dict[str, Any], message: str) -> None:
    ids = torch.randint(2, 160, (1, 9), generator=generator(2))
    with pytest.raises(ValueError, match=message):
        model(ids, **options)
    if not {"supervised_cycles", "gradient_cycles"} & options.keys():
        with pytest.raises(ValueError, match=message):
            model.generate(ids, max_new_tokens=2, **options)


def test_caches_of_another_depth_are_refused(model: PreTrainedModel) -> None:
    ids = torch.randint(2, 160, (1, 9), generator=generator(2))
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        for depth in (2, 5):
            with pytest.raises(
                ValueError, match=f"holds 9 tokens computed with 9 runs of the core, and this call makes {3 * depth}"
            ):
                model(ids[:, :1], past_key_values=cache, num_cycles=depth)
        small = StaticCache(config=model.config, max_cache_len=20)
        with pytest.raises(ValueError, match="has 5 slots and 9 runs of the core need 21"):
            model(ids, past_key_values=small)
        with pytest.raises(ValueError, match="has 5 slots"):
            model(ids, past_key_values=DynamicCache(config=model.config))


def test_sharing_needs_a_cache_that_grows() -> None:
    model = RecursiveQwenForCausalLM(recursive_config(kv_sharing="last")).eval()
    ids = torch.randint(2, 160, (1, 9), generator=generator(2))
    with pytest.raises(ValueError, match="needs a cache that grows, and this StaticCache does not"):
        model.generate(ids, max_new_tokens=2, cache_implementation="static")


def test_depths_follow_the_rows_of_a_cache() -> None:
    cache = RecursiveCache()
    for slot in (0, 1):
        cache.update(torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 4), slot)
    depths = torch.arange(15).view(3, 5)
    cache.record_cycles(depths[:, :2])
    cache.record_cycles(depths[:, 2:])
    cache.crop(-2)
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    cache.batch_select_indices(torch.tensor([0, 2]))
    cache.batch_repeat_interleave(2)
    assert torch.equal(cache.cycles_used, depths[:, :3][[2, 2, 0, 0]])
    assert cache.layers[0].keys.shape == (4, 2, 3, 4)
    cache.reset()
    assert cache.cycles_used is None and cache.get_seq_length() == 0


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_loop_terms_of_one_cycle_merge_into_the_weights(family: str) -> None:
    settings = {"layer_family": family, "head_dim": 16}
    looped = RecursiveQwenForCausalLM(recursive_config(loop_lora_rank=3, loop_lora_alpha=6.0, **settings)).eval()
    randomize(looped)
    tensors = looped.state_dict()
    for name in [name for name in tensors if name.endswith("loop_up")]:
        up, down = tensors.pop(name), tensors.pop(name.replace("loop_up", "loop_down"))
        up *= 0.05
        weight = name.replace("loop_up", "weight")
        tensors[weight] = tensors[weight] + 6.0 / 3 * up[0] @ down[0]
    plain = RecursiveQwenForCausalLM(recursive_config(**settings)).eval()
    plain.load_state_dict(tensors)
    ids = torch.randint(2, 160, (1, 9), generator=generator(2))
    with torch.no_grad():
        assert_close(looped(ids, num_cycles=2).logits, plain(ids, num_cycles=2).logits, 1e-4)


def test_loop_terms_belong_to_their_cycle() -> None:
    """Cycle one has the first terms, cycle two and all later ones the second."""
    model = TestLoopLoRA().build_model()
    ids = torch.randint(2, 160, (1, 9), generator=generator(2))
    with torch.no_grad():
        for kind in ("loop_up", "loop_down"):
            one, two = model(ids, num_cycles=1).logits, model(ids, num_cycles=2).logits
            factors = [parameter for name, parameter in model.named_parameters() if name.endswith(kind)]
            assert len(factors) == 14
            for factor in factors:
                factor[1] += 0.05 * torch.randn(factor[1].shape, generator=generator(3))
            assert torch.equal(model(ids, num_cycles=1).logits, one)
            assert (model(ids, num_cycles=2).logits - two).abs().max() > 1e-2
        longer = RecursiveQwenForCausalLM(recursive_config(loop_lora_rank=3, loop_lora_cycles=4)).eval()
        tensors = model.state_dict()
        repeated = {name: tensor[[0, 1, 1, 1]] for name, tensor in tensors.items() if ".loop_" in name}
        longer.load_state_dict(tensors | repeated)
        assert torch.equal(model(ids, num_cycles=4).logits, longer(ids, num_cycles=4).logits)


def test_halting_head_reads_the_direction_of_a_state(model: PreTrainedModel) -> None:
    states = torch.randn(2, 3, 64, generator=generator(8))
    head = model.model.q_head
    with torch.no_grad():
        assert_close(head(states), head(40 * states), 1e-5)
        expected = states / states.pow(2).mean(-1, keepdim=True).sqrt() @ head.weight[0] + head.bias
        assert_close(head(states), expected, 1e-5)


def test_confidence_is_the_halting_heads(model: PreTrainedModel) -> None:
    """At the last cycle, in left-padded batches as alone."""
    ids = torch.randint(2, 160, (2, 9), generator=generator(1))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    with torch.no_grad():
        sure = model.confidence(ids, mask, num_cycles=2)
        halting = model(ids[:1], num_cycles=2, halt_threshold=0.999)
    assert sure.shape == (2, 9)
    assert_close(sure[:1], halting.halt_logits[..., -1].sigmoid(), 1e-5)
    assert_close(sure[1, 3:], model.confidence(ids[1:, 3:], num_cycles=2)[0], 1e-4)
    assert (model.confidence(ids) - model.confidence(ids, num_cycles=1)).abs().max() > 1e-3


def test_patience_is_of_sure_cycles_in_a_row() -> None:
    """A token that doubts in between begins anew; the last one is padding."""
    sure_CS = torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 0, 0], [1, 0, 1, 1, 0], [1, 0, 0, 0, 0], [1, 1, 0, 1, 0]])
    padding = torch.tensor([[False, False, False, False, True]])
    halting = Halting(padding, cycles=5, threshold=0.7, patience=2)
    done = [halting.step(4.0 * sure[None] - 2.0, cycle) for cycle, sure in enumerate(sure_CS)]
    assert halting.used.tolist() == [[4, 2, 3, 5, 1]]
    assert halting.halted.tolist() == [[True, True, True, False, True]] and not any(done)
    assert halting.step(torch.full((1, 5), 2.0), 5)


def test_new_models_never_halt() -> None:
    model = RecursiveQwenForCausalLM(recursive_config(H_cycles=5, halt_threshold=0.1)).eval()
    with torch.no_grad():
        used = model(torch.randint(2, 160, (2, 9), generator=generator(1))).cycles_used
    assert used.eq(5).all()
    assert isinstance(model.model.q_head, nn.Linear)
