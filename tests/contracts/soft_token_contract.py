"""What every graft must hold that splices soft tokens into Qwen3's stream: images or documents, here "items"."""

from typing import Any

import pytest
import torch
from contracts.model_contract import Inputs, ModelContract, generator
from torch import nn
from transformers import PreTrainedModel, Qwen3ForCausalLM


class SoftTokenContract(ModelContract):
    """Mix in before the other contracts.

    Attributes:
        item_name: how the errors call an item, and its key in `mm_encoder_outputs` in lower case.
        item_inputs: names of the inputs that hold items; the first one holds the raw values.
        item_output: name of the output that gives the soft tokens back, one tensor an item.
    """

    item_name = "Image"
    item_inputs: tuple[str, ...] = ("pixel_values",)
    item_output = "image_hidden_states"

    def stock_equivalent(self, model: PreTrainedModel) -> PreTrainedModel:
        stock = Qwen3ForCausalLM(model.config.text_config)
        stock.model.load_state_dict(model.model.language_model.state_dict())
        stock.lm_head.load_state_dict(model.lm_head.state_dict())
        return stock

    def placeholder_ids(self, model: PreTrainedModel) -> list[int]:
        return [model.config.image_token_id]

    def encoder(self, model: PreTrainedModel) -> nn.Module:
        """The frozen module that reads raw items."""
        return model.base_model.vision_tower

    def encode(self, model: PreTrainedModel, inputs: Inputs) -> Any:
        """Encoded items, as `mm_encoder_outputs` holds them."""
        return model.get_image_features(**{name: inputs[name] for name in self.item_inputs}, return_dict=True)

    def encoded_inputs(self, model: PreTrainedModel, inputs: Inputs) -> dict[str, Any]:
        """The same inputs with encoded in place of raw items."""
        rest = {name: value for name, value in inputs.items() if name not in self.item_inputs}
        return rest | {"mm_encoder_outputs": {self.item_name.lower(): self.encode(model, inputs)}}

    def test_items_matter(self, model: PreTrainedModel) -> None:
        """Guards the other tests: another image must give other logits, and so must another order."""
        row, raw = self.row(model, 2), self.item_inputs[0]
        other = row | {raw: torch.randn(row[raw].shape, generator=generator(9))}
        swapped = row | {name: row[name].flip(0) for name in self.item_inputs}
        with torch.no_grad():
            logits = model(**row).logits[0, -1]
            for changed in (other, swapped):
                assert (model(**changed).logits[0, -1] - logits).abs().max() > 1

    def test_generate_encodes_items_once(self, model: PreTrainedModel) -> None:
        calls = []
        self.encoder(model).register_forward_hook(lambda *_: calls.append(1))
        inputs = self.batch(model, self.rows(model))
        for options in ({}, {"use_cache": False}, {"num_beams": 2}):
            calls.clear()
            self.generate(model, inputs, **options)
            assert len(calls) == 1, f"encoded {len(calls)} times with {options}"

    def test_encoded_items_equal_raw_ones(self, model: PreTrainedModel) -> None:
        inputs = self.batch(model, self.rows(model))
        with torch.no_grad():
            encoded = self.encoded_inputs(model, inputs)
            raw_output, encoded_output = model(**inputs), model(**encoded)
        assert torch.equal(encoded_output.logits, raw_output.logits)
        assert torch.equal(self.generate(model, encoded), self.generate(model, inputs))

    def test_raw_and_encoded_items_together_are_refused(self, model: PreTrainedModel) -> None:
        inputs = self.row(model)
        with torch.no_grad(), pytest.raises(ValueError, match="both"):
            model(**(inputs | self.encoded_inputs(model, inputs)))

    def test_wrong_number_of_placeholders_is_refused(self, model: PreTrainedModel) -> None:
        row = self.row(model, 2)
        placeholder = self.placeholder_ids(model)[0]
        positions = (row["input_ids"][0] == placeholder).nonzero().squeeze(-1)
        features = len(positions)
        without = row["input_ids"].clone()
        without[0, positions] = 7
        missing, surplus = row["input_ids"].clone(), row["input_ids"].clone()
        missing[0, positions[-1]] = 7
        surplus[0, 0] = placeholder
        for ids, tokens in ((missing, features - 1), (surplus, features + 1), (without, 0)):
            expected = (
                f"{self.item_name} features and {self.item_name.lower()} tokens do not match, "
                f"tokens: {tokens}, features: {features} "
            )
            with pytest.raises(ValueError, match=expected):
                model(**(row | {"input_ids": ids}))
            with pytest.raises(ValueError, match=expected):
                model.generate(**(row | {"input_ids": ids}), max_new_tokens=1)

    def test_items_with_embeddings_in_place_of_ids(self, model: PreTrainedModel) -> None:
        inputs = self.batch(model, self.rows(model))
        embedded = {name: value for name, value in inputs.items() if name != "input_ids"}
        with torch.no_grad():
            embedded["inputs_embeds"] = model.get_input_embeddings()(inputs["input_ids"])
            assert torch.equal(model(**embedded).logits, model(**inputs).logits)

    def test_conversation_continues_on_the_cache(self, model: PreTrainedModel) -> None:
        """A second turn with a new item gives only that item; the first is in the cache."""
        first, second = self.row(model, 1, seed=0), self.row(model, 1, seed=1)
        answer = self.generate(model, first, return_dict_in_generate=True)
        ids = torch.cat([answer.sequences, second["input_ids"]], dim=1)
        turn = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        both = {name: self.collate_items(name, [first[name], second[name]]) for name in self.item_inputs}
        new = {name: second[name] for name in self.item_inputs}
        continued = self.generate(model, turn | new | {"past_key_values": answer.past_key_values})
        assert torch.equal(continued, self.generate(model, turn | both))

    def test_token_types_change_nothing(self, model: PreTrainedModel) -> None:
        """Processors offer them to every multimodal model."""
        row = self.row(model)
        types = torch.isin(row["input_ids"], torch.tensor(self.placeholder_ids(model))).long()
        with torch.no_grad():
            assert torch.equal(model(**row, mm_token_type_ids=types).logits, model(**row).logits)
        assert torch.equal(self.generate(model, row | {"mm_token_type_ids": types}), self.generate(model, row))

    def test_frozen_encoder_runs_without_a_graph(self, model: PreTrainedModel) -> None:
        """Also where PEFT and gradient checkpointing make the patch embedding's output require gradients."""
        self.freeze_all_but_part(model)
        row = self.labelled(self.row(model), 4)
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": True})
        model.train()
        encoded = self.encode(model, row)
        assert not encoded.last_hidden_state.requires_grad
        assert all(item.requires_grad for item in encoded.pooler_output)
        _, gradients = self.loss_and_gradients(model, row)
        assert gradients and all(self.trained_part in name for name in gradients)

    def test_frozen_encoder_is_the_same_in_training(self, model: PreTrainedModel) -> None:
        """Batch statistics, running statistics and dropout belong to training, and the encoder does not train."""
        self.freeze_all_but_part(model)
        row = self.row(model, 2)
        with torch.no_grad():
            before = self.encode(model, row).last_hidden_state
            model.train()
            assert torch.equal(self.encode(model, row).last_hidden_state, before)
            model.eval()
            assert torch.equal(self.encode(model, row).last_hidden_state, before)

    def test_trainable_encoder_gets_gradients(self, model: PreTrainedModel) -> None:
        self.freeze_all_but_part(model)
        self.encoder(model).requires_grad_(True)
        _, gradients = self.loss_and_gradients(model, self.labelled(self.row(model), 4))
        reached = [name for name, p in self.encoder(model).named_parameters() if p.grad is not None and p.grad.any()]
        assert len(reached) > 0.9 * len(list(self.encoder(model).parameters()))  # key biases have none
        assert not any("language_model" in name for name in gradients)

    def test_gradient_reaches_raw_items_through_a_frozen_encoder(self, model: PreTrainedModel) -> None:
        model.requires_grad_(False)
        row = self.labelled(self.row(model), 4)
        raw = row[self.item_inputs[0]].clone().requires_grad_(True)
        model(**(row | {self.item_inputs[0]: raw})).loss.backward()
        assert raw.grad.abs().max() > 0

    def test_items_come_back_with_the_output(self, model: PreTrainedModel) -> None:
        row = self.row(model, 2)
        with torch.no_grad():
            outputs = model(**row)
            encoded = self.encode(model, row).pooler_output
        assert len(encoded) == 2
        for given, returned in zip(encoded, getattr(outputs, self.item_output), strict=True):
            assert torch.equal(returned, given)
        assert getattr(model(**self.row(model, 0)), self.item_output) is None
