"""What every graft must hold, whatever it grafts. A test file per model subclasses these and says how to build one.

`ModelContract` is the part that is worth running for every variant of a model; `FullModelContract`
(`full_model_contract.py`) adds what takes seconds and runs for one variant. Grafts that splice soft tokens add
`SoftTokenContract` (`soft_token_contract.py`).

All weights are random and asymmetric, norms and biases included: zeros, ones and small numbers hide a swapped key and
value, a forgotten bias or a lost residual. What a row's soft tokens stand for (images, documents) is an "item".

Shapes: B batch, S sequence, D width, V vocabulary.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel

from qwen_grafts.configuration import GRAFTS
from qwen_grafts.configuration.code_files import code_set

Inputs = dict[str, torch.Tensor]


def generator(seed: int) -> torch.Generator:
    """Random numbers that no other test can shift."""
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> None:
    """Give every parameter and running statistic random values of real variance, no two alike.

    Linear and convolution weights get the variance that keeps activations of order one and attention uneven;
    embeddings and raw parameters unit variance; norm weights and biases lie around 1 and 0.1, well spread.
    """
    source = generator(seed)
    done: set[int] = set()
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in done:  # tied
                continue
            done.add(id(parameter))
            noise = torch.randn(parameter.shape, generator=source)
            if name.endswith("bias"):
                values = 0.1 + 0.4 * noise
            elif parameter.ndim == 1:
                values = 1.0 + 0.4 * noise
            elif isinstance(module, nn.Linear | nn.Conv2d):
                gain = 6.0 if path.endswith("lm_head") else 1.5
                values = gain * noise / parameter[0].numel() ** 0.5
            else:
                values = noise
            parameter.copy_(values)
        for name, buffer in module.named_buffers(recurse=False):
            if name == "running_mean":
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=source))
            elif name == "running_var":
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=source))


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Largest difference below `tolerance` times the largest value."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} is not {tuple(expected.shape)}"
    difference = (actual.float() - expected.float()).abs().max().item()
    allowed = tolerance * max(1.0, expected.float().abs().max().item())
    assert difference <= allowed, f"differs by {difference:.2e}, allowed {allowed:.2e}"


def rewrite_weights(folder: Path, change: Any) -> None:
    """Apply `change` to the tensors of a saved model, in place."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def _vocab_size(model: nn.Module) -> int:
    return model.config.get_text_config().vocab_size


class ModelContract:
    """Subclass it with a class whose name starts with `Test`.

    Attributes:
        model_class: the class with a head.
        base_model_class: the backbone, which lies in the model under `base_model_prefix`.
        trained_part: name, in the backbone, of the module that the graft adds and stage 1 trains.
        item_counts: items in the rows of a mixed batch; `(0, 0)` for a graft without soft tokens.
        gradient_free: ends of parameter names in `trained_part` whose gradient is zero by mathematics.
        constant_at_first: part of the names of matrices that a new model has at zero.
    """

    model_class: type[PreTrainedModel]
    base_model_class: type[PreTrainedModel]
    trained_part: str
    item_counts: tuple[int, ...] = (0, 1, 2)
    gradient_free: tuple[str, ...] = ()
    constant_at_first: str = ""

    # What a subclass says.

    def build_config(self) -> PreTrainedConfig:
        """A tiny configuration; called afresh for every model."""
        raise NotImplementedError

    def stock_equivalent(self, model: PreTrainedModel) -> PreTrainedModel:
        """A stock `Qwen3ForCausalLM` with the weights of `model`'s language model."""
        raise NotImplementedError

    def row(self, model: PreTrainedModel, items: int = 1, seed: int = 0) -> Inputs:
        """Inputs of one unpadded row with `items` items, if the graft has any; each `seed` has a length of its own."""
        raise NotImplementedError

    def degenerate(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model with what it grafts switched off, for a graft that is not off by its inputs alone."""
        return model

    def layer_evaluations(self, model: PreTrainedModel) -> int:
        """How many layers a token passes."""
        return model.config.get_text_config().num_hidden_layers

    def new_cache(self, model: PreTrainedModel) -> Cache:
        """An empty cache for `model`."""
        return DynamicCache(config=model.config.get_text_config())

    def placeholder_ids(self, model: PreTrainedModel) -> list[int]:
        """Ids that stand for soft tokens: a random model must be kept from writing them."""
        return []

    def collate_items(self, name: str, tensors: list[torch.Tensor]) -> torch.Tensor:
        """Join an item input of several rows; override where items have sizes of their own."""
        return torch.cat(tensors)

    # What it gets.

    def build_model(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
        """A random model in evaluation mode that never ends a generation early.

        Not `model.to(dtype)`, which would round the rotary frequencies as no loaded model has them.
        """
        model = self.model_class._from_config(self.build_config(), dtype=dtype)
        randomize(model, seed)
        model.generation_config.eos_token_id = None
        return model.eval()

    @pytest.fixture
    def model(self) -> PreTrainedModel:
        return self.build_model()

    def rows(self, model: PreTrainedModel) -> list[Inputs]:
        """Rows as unlike as `item_counts` says."""
        return [self.row(model, items, seed) for seed, items in enumerate(self.item_counts)]

    def batch(self, model: PreTrainedModel, rows: list[Inputs]) -> Inputs:
        """Rows left-padded to one batch; items concatenated in reading order."""
        width = max(row["input_ids"].shape[1] for row in rows)
        padding = {"input_ids": model.config.get_text_config().pad_token_id, "attention_mask": 0, "labels": -100}
        batch: Inputs = {}
        for name in dict.fromkeys(name for row in rows for name in row):
            tensors = [row[name] for row in rows if name in row]
            if name in padding:
                value = padding[name]
                tensors = [nn.functional.pad(t, (width - t.shape[1], 0), value=value) for t in tensors]
                batch[name] = torch.cat(tensors)
            else:
                batch[name] = self.collate_items(name, tensors)
        return batch

    def generate(self, model: PreTrainedModel, inputs: Inputs, **options: Any) -> Any:
        """Greedy generation of six tokens; returns the new tokens, or the whole output if a dict was asked for."""
        options = {"max_new_tokens": 6, "do_sample": False} | options
        if "suppress_tokens" not in options:
            options["suppress_tokens"] = self.placeholder_ids(model) or None
        output = model.generate(**inputs, **options)
        return output if options.get("return_dict_in_generate") else output[:, inputs["input_ids"].shape[1] :]

    def in_part(self, name: str) -> bool:
        """Whether a parameter of the model belongs to the trained part; override where the part is no one module."""
        return f".{self.trained_part}." in name

    def part_parameters(self, model: PreTrainedModel) -> dict[str, nn.Parameter]:
        """Those of the trained part."""
        return {name: parameter for name, parameter in model.named_parameters() if self.in_part(name)}

    def freeze_all_but_part(self, model: PreTrainedModel) -> None:
        """Stage 1."""
        model.requires_grad_(False)
        for parameter in self.part_parameters(model).values():
            parameter.requires_grad_(True)

    def labelled(self, row: Inputs, answer_tokens: int) -> Inputs:
        """The row with its last tokens supervised."""
        labels = torch.full_like(row["input_ids"], -100)
        labels[:, -answer_tokens:] = row["input_ids"][:, -answer_tokens:]
        return row | {"labels": labels}

    def loss_and_gradients(self, model: PreTrainedModel, inputs: Inputs) -> tuple[torch.Tensor, Inputs]:
        """One backward pass in training mode."""
        model.train()
        model.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return loss.detach(), gradients

    # Equal to stock Qwen3.

    def test_without_items_equals_stock_qwen3(self, model: PreTrainedModel) -> None:
        inputs = self.batch(model, [self.row(model, 0, seed) for seed in (0, 1)])
        inputs["attention_mask"][0, :3] = 0
        model = self.degenerate(model)
        stock = self.stock_equivalent(model).eval()
        with torch.no_grad():
            ours = model(**inputs, output_hidden_states=True)
            theirs = stock(**inputs, output_hidden_states=True)
        assert torch.equal(ours.logits, theirs.logits)
        assert len(ours.hidden_states) == len(theirs.hidden_states)
        assert all(torch.equal(a, b) for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True))
        stock.generation_config = model.generation_config
        never = self.placeholder_ids(model) or None
        assert torch.equal(self.generate(model, inputs), self.generate(stock, inputs, suppress_tokens=never))

    def test_position_ids_are_heeded(self, model: PreTrainedModel) -> None:
        """Not shifted ones, which rotary positions cannot tell from the default, but stretched ones."""
        model = self.degenerate(model)
        inputs = self.row(model, 0)
        stretched = inputs | {"position_ids": 3 * torch.arange(inputs["input_ids"].shape[1])[None]}
        with torch.no_grad():
            logits = model(**stretched).logits
            assert torch.equal(logits, self.stock_equivalent(model).eval()(**stretched).logits)
            assert (logits - model(**inputs).logits).abs().max() > 0.1

    def test_tokens_matter(self, model: PreTrainedModel) -> None:
        """Guards the other tests: with weak weights everything would be close to everything."""
        row = self.row(model, max(self.item_counts))
        changed = copy.deepcopy(row)
        changed["input_ids"][0, 0] += 1
        with torch.no_grad():
            before, after = model(**row).logits[0, -1], model(**changed).logits[0, -1]
        assert before.std() > 1
        assert (before - after).abs().max() > 0.1

    # Generation.

    def test_generate_with_cache_equals_without(self, model: PreTrainedModel) -> None:
        inputs = self.batch(model, self.rows(model))
        options = {"output_logits": True, "return_dict_in_generate": True}
        cached = self.generate(model, inputs, use_cache=True, **options)
        uncached = self.generate(model, inputs, use_cache=False, **options)
        assert torch.equal(cached.sequences, uncached.sequences)
        assert_close(torch.stack(cached.logits), torch.stack(uncached.logits), 1e-4)

    def test_left_padded_batch_equals_each_row(self, model: PreTrainedModel) -> None:
        rows = self.rows(model)
        inputs = self.batch(model, rows)
        generated = self.generate(model, inputs)
        assert len({tuple(tokens) for tokens in generated.tolist()}) == len(rows)  # else they could be mixed up
        with torch.no_grad():
            logits = model(**inputs).logits
            for index, row in enumerate(rows):
                alone = model(**row).logits[0]
                assert_close(logits[index, -len(alone) :], alone, 1e-4)
                assert torch.equal(generated[index], self.generate(model, row)[0])

    def test_chunked_prefill_equals_full_forward(self, model: PreTrainedModel) -> None:
        """Items go with the first chunk, the text after them follows three tokens at a time."""
        row = self.row(model, max(self.item_counts))
        ids = row["input_ids"]
        placeholders = torch.isin(ids[0], torch.tensor(self.placeholder_ids(model), dtype=ids.dtype)).nonzero()
        first = int(placeholders[-1]) + 1 if len(placeholders) else 4
        assert first + 4 < ids.shape[1]
        cache = self.new_cache(model)
        pieces = []
        with torch.no_grad():
            full = model(**row).logits
            chunk = row | {"input_ids": ids[:, :first], "attention_mask": row["attention_mask"][:, :first]}
            pieces.append(model(**chunk, past_key_values=cache).logits)
            for start in range(first, ids.shape[1], 3):
                end = min(start + 3, ids.shape[1])
                mask = row["attention_mask"][:, :end]
                pieces.append(model(ids[:, start:end], attention_mask=mask, past_key_values=cache).logits)
        assert_close(torch.cat(pieces, dim=1), full, 1e-5)

    def test_chunked_prefill_in_generate(self, model: PreTrainedModel) -> None:
        """Chunks of four end in the middle of an item."""
        row = self.row(model, max(self.item_counts))
        assert torch.equal(self.generate(model, row, prefill_chunk_size=4), self.generate(model, row))

    def test_logits_to_keep(self, model: PreTrainedModel) -> None:
        row = self.row(model, max(self.item_counts))
        with torch.no_grad():
            full = model(**row).logits
            assert full.shape == (*row["input_ids"].shape, _vocab_size(model))
            assert_close(model(**row, logits_to_keep=3).logits, full[:, -3:], 1e-5)
            kept = torch.tensor([1, 4, 2])
            assert_close(model(**row, logits_to_keep=kept).logits, full[:, kept], 1e-5)

    # Training.

    @pytest.mark.parametrize("everything", [False, True], ids=["part", "everything"])
    def test_gradient_checkpointing_changes_nothing(self, model: PreTrainedModel, everything: bool) -> None:
        if not everything:
            self.freeze_all_but_part(model)
        inputs = self.batch(model, [self.labelled(row, 4) for row in self.rows(model)])
        calls = []
        mlp = next(module for module in model.modules() if type(module).__name__ in ("Qwen2MLP", "Qwen3MLP"))
        mlp.register_forward_pre_hook(lambda *_: calls.append(1))
        loss, gradients = self.loss_and_gradients(model, inputs)
        plain_calls = len(calls)
        for reentrant in (False, True):
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            calls.clear()
            again, checkpointed = self.loss_and_gradients(model, inputs)
            assert len(calls) == 2 * plain_calls, "nothing was recomputed"
            assert_close(again, loss, 1e-6)
            assert gradients.keys() == checkpointed.keys()
            for name, gradient in gradients.items():
                assert_close(checkpointed[name], gradient, 1e-6)

    def test_gradient_reaches_every_trained_parameter(self, model: PreTrainedModel) -> None:
        self.freeze_all_but_part(model)
        _, gradients = self.loss_and_gradients(model, self.labelled(self.row(model), 4))
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert gradients.keys() == trained
        for name, gradient in gradients.items():
            assert gradient.isfinite().all(), name
            assert name.endswith(self.gradient_free) or gradient.abs().max() > 1e-5, f"no gradient: {name}"

    def test_gradient_is_the_slope_of_the_loss(self, model: PreTrainedModel) -> None:
        """A detach that cuts one of several paths leaves gradients that look well but are wrong."""
        self.freeze_all_but_part(model)
        inputs = self.labelled(self.row(model), 8)
        _, gradients = self.loss_and_gradients(model, inputs)
        for name, parameter in self.part_parameters(model).items():
            gradient = gradients[name]
            slope = gradient.norm()
            if name.endswith(self.gradient_free):
                continue
            step = min(4e-3, float(2e-3 / slope)) * gradient / slope
            losses = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.add_(sign * step)
                    losses.append(model(**inputs).loss.item())
                    parameter.sub_(sign * step)
            measured = (losses[0] - losses[1]) / (2 * step.norm())
            assert abs(measured - slope) < 0.03 * slope + 2e-3, f"{name}: slope {measured:.4f}, gradient {slope:.4f}"

    @pytest.mark.parametrize("answer_tokens", [3, 12])
    def test_accumulated_batches_equal_one_batch(self, model: PreTrainedModel, answer_tokens: int) -> None:
        """The second row has other answers than the first, so a mean of means would be another number."""
        self.freeze_all_but_part(model)
        assert model.accepts_loss_kwargs is True  # else Trainer does not pass `num_items_in_batch`
        assert model.loss_type == "ForCausalLM"  # else guessed from the class name, or a fallback with a warning
        rows = [self.labelled(row, n) for row, n in zip(self.rows(model)[-2:], (answer_tokens, 5), strict=True)]
        count = torch.tensor(answer_tokens + 5)
        loss, gradients = self.loss_and_gradients(model, self.batch(model, rows) | {"num_items_in_batch": count})
        single = [self.loss_and_gradients(model, row | {"num_items_in_batch": int(count)}) for row in rows]
        assert_close(sum(part for part, _ in single), loss, 1e-6)
        for name, gradient in gradients.items():
            assert_close(sum(part[name] for _, part in single), gradient, 5e-5)
        means = [self.loss_and_gradients(model, row)[0] for row in rows]
        assert (sum(means) / 2 - loss).abs() > 1e-3

    # Saving and loading.

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_save_and_load(self, dtype: torch.dtype, tmp_path: Path) -> None:
        model = self.build_model(dtype)
        model.save_pretrained(tmp_path)
        inputs = self.batch(model, self.rows(model))
        loaded, info = self.model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert loaded.dtype == dtype and not loaded.training
        theirs = loaded.state_dict()
        for name, tensor in model.state_dict().items():
            assert torch.equal(theirs[name], tensor), name
        backbone = self.base_model_class.from_pretrained(tmp_path)
        assert type(backbone) is self.base_model_class
        with torch.no_grad():
            logits = model(**inputs).logits
            assert torch.equal(loaded(**inputs).logits, logits)
            assert torch.equal(model.get_output_embeddings()(backbone(**inputs).last_hidden_state), logits)

    def test_configuration_round_trip(self, tmp_path: Path) -> None:
        config = self.build_config()
        config.save_pretrained(tmp_path)
        loaded = type(config).from_pretrained(tmp_path)
        assert type(loaded) is type(config)
        assert loaded.to_dict() == config.to_dict() | {"_name_or_path": loaded.to_dict().get("_name_or_path")}

    def test_auto_classes_and_code_beside_the_weights(self, model: PreTrainedModel, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path)
        graft = GRAFTS[model.config.model_type]
        assert code_set(graft).keys() <= {path.name for path in tmp_path.iterdir()}
        for auto, path in graft.auto_classes.items():
            if auto.startswith("AutoModel"):
                loaded = getattr(transformers, auto).from_pretrained(tmp_path)
                assert type(loaded).__name__ == path.rsplit(".", 1)[-1]

    def test_backbone_weights_load_under_a_tied_head(self, model: PreTrainedModel, tmp_path: Path) -> None:
        model.base_model.save_pretrained(tmp_path)
        if model.config.tie_word_embeddings:
            row = self.row(model)
            with torch.no_grad():
                assert torch.equal(self.model_class.from_pretrained(tmp_path)(**row).logits, model(**row).logits)
        else:
            with pytest.raises(ValueError, match=r"1 missing: lm_head\.weight"):
                self.model_class.from_pretrained(tmp_path)

    @pytest.mark.parametrize("loader", ["model_class", "base_model_class"])
    def test_damaged_checkpoints_are_refused(self, model: PreTrainedModel, loader: str, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path)
        weights = tmp_path / "model.safetensors"
        intact = weights.read_bytes()
        name = next(name for name in load_file(weights) if self.in_part(name))
        short_name = name.removeprefix(f"{model.base_model_prefix}.")
        damages = {
            "missing": (lambda tensors: tensors.pop(name), short_name),
            "wrong shape": (lambda tensors: tensors.update({name: tensors[name][:-1]}), short_name),
            "extra": (lambda tensors: tensors.update({"model.extra.weight": torch.ones(2)}), "extra.weight"),
        }
        for damage, named in damages.values():
            rewrite_weights(tmp_path, damage)
            with pytest.raises((ValueError, RuntimeError), match=named):
                getattr(self, loader).from_pretrained(tmp_path)
            weights.write_bytes(intact)

    def test_tied_embeddings_stay_tied(self, model: PreTrainedModel, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path)
        loaded = self.model_class.from_pretrained(tmp_path)
        for candidate in (model, loaded):
            tied = candidate.get_input_embeddings().weight is candidate.get_output_embeddings().weight
            assert tied == bool(model.config.tie_word_embeddings)
        stored = load_file(tmp_path / "model.safetensors")
        assert ("lm_head.weight" in stored) == (not model.config.tie_word_embeddings)

    def test_resize_token_embeddings(self, model: PreTrainedModel, tmp_path: Path) -> None:
        old_size = _vocab_size(model)
        row = self.row(model)
        with torch.no_grad():
            before = model(**row).logits
            model.resize_token_embeddings(old_size + 5)
            assert_close(model(**row).logits[..., :old_size], before, 1e-6)
        assert _vocab_size(model) == old_size + 5
        changed = self.labelled(row, 3)
        changed["labels"][0, -1] = old_size + 4
        assert model(**changed).loss.isfinite()
        tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        assert tied == bool(model.config.tie_word_embeddings)
        model.save_pretrained(tmp_path)
        with torch.no_grad():
            assert torch.equal(self.model_class.from_pretrained(tmp_path)(**row).logits, model(**row).logits)

    def test_every_parameter_of_the_part_is_initialised(self, model: PreTrainedModel) -> None:
        """Loading leaves missing tensors uninitialised and calls `_init_weights`: what it forgets stays garbage."""
        others = {name: t.clone() for name, t in model.state_dict().items() if not self.in_part(name)}
        part = self.part_parameters(model)
        for holder in (*model.modules(), *model.parameters()):
            holder._is_hf_initialized = True
        for name, parameter in part.items():
            parameter._is_hf_initialized = False
            parameter.data.fill_(float("nan"))
            while name := name.rpartition(".")[0]:  # the module that fills it may stand above
                model.get_submodule(name)._is_hf_initialized = False
        model.init_weights()
        for name, parameter in part.items():
            assert parameter.isfinite().all(), f"`_init_weights` forgets {name}"
            constant = parameter.ndim == 1 or self.constant_at_first in name.split(".")
            assert constant or parameter.std() > 0, f"{name} is constant"
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in others.items())

    # Numbers and attention.

    def test_bfloat16_forward_and_generate(self) -> None:
        model = self.build_model(torch.bfloat16)
        inputs = self.batch(model, self.rows(model))
        with torch.no_grad():
            logits = model(**inputs).logits
        assert logits.dtype == torch.bfloat16
        assert logits.isfinite().all()
        assert self.generate(model, inputs).shape == (len(self.item_counts), 6)

    def test_eager_attention_equals_sdpa(self, model: PreTrainedModel) -> None:
        inputs = self.batch(model, self.rows(model))
        configured = [m for m in model.modules() if isinstance(getattr(m, "config", None), PreTrainedConfig)]
        with torch.no_grad():
            sdpa = model(**inputs).logits
            assert {module.config._attn_implementation for module in configured} == {"sdpa"}
            model.set_attn_implementation("eager")
            assert {module.config._attn_implementation for module in configured} == {"eager"}
            kept = inputs["attention_mask"].bool()
            assert_close(model(**inputs).logits[kept], sdpa[kept], 1e-4)

    def test_hidden_states_and_attentions(self, model: PreTrainedModel) -> None:
        model.set_attn_implementation("eager")
        text = model.config.get_text_config()
        row = self.row(model)
        length = row["input_ids"].shape[1]
        with torch.no_grad():
            outputs = model(**row, output_hidden_states=True, output_attentions=True)
        assert len(outputs.hidden_states) == self.layer_evaluations(model) + 1
        assert {tuple(state.shape) for state in outputs.hidden_states} == {(1, length, text.hidden_size)}
        assert len(outputs.attentions) == self.layer_evaluations(model)
        for attention in outputs.attentions:
            assert attention.shape == (1, text.num_attention_heads, length, length)
            assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]), 1e-5)

    def test_tuple_output_equals_named_output(self, model: PreTrainedModel) -> None:
        row = self.labelled(self.row(model), 3)
        with torch.no_grad():
            named, plain = model(**row), model(**row, return_dict=False)
        assert isinstance(plain, tuple)
        assert torch.equal(plain[0], named.loss) and torch.equal(plain[1], named.logits)

    def test_ids_or_embeddings_and_not_both(self, model: PreTrainedModel) -> None:
        row = self.row(model, 0)
        embeddings = model.get_input_embeddings()(row["input_ids"])
        with torch.no_grad():
            assert torch.equal(model(inputs_embeds=embeddings).logits, model(row["input_ids"]).logits)
        for wrong in ({}, {"input_ids": row["input_ids"], "inputs_embeds": embeddings}):
            with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
                model(**wrong)
