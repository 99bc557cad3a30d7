"""The checks of a graft that take seconds: beams and samples, compilation and export, adapters."""

from pathlib import Path

import torch
from contracts.model_contract import Inputs, ModelContract, assert_close
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel


class FullModelContract(ModelContract):
    """Mix in in place of `ModelContract` for one variant of a model.

    Attributes:
        lora_targets: regular expression on the modules that LoRA adapts, beside which `trained_part`, if it
            is a module, is trained whole.
    """

    lora_targets = r".*language_model.*\.(q_proj|v_proj)"

    def graph_inputs(self, model: PreTrainedModel, inputs: Inputs) -> Inputs:
        """What one unbroken graph can be traced from; override where an encoder's shapes depend on the data."""
        return inputs

    def test_beam_search_equals_each_row(self, model: PreTrainedModel) -> None:
        rows = self.rows(model)
        generated = self.generate(model, self.batch(model, rows), num_beams=3, length_penalty=0.0)
        for index, row in enumerate(rows):
            assert torch.equal(generated[index], self.generate(model, row, num_beams=3, length_penalty=0.0)[0])

    def test_several_samples_keep_their_items(self, model: PreTrainedModel) -> None:
        """Sampling from one candidate is greedy, so every sample must be its own row's greedy answer."""
        inputs = self.batch(model, self.rows(model))
        greedy = self.generate(model, inputs)
        samples = self.generate(model, inputs, do_sample=True, top_k=1, num_return_sequences=2)
        assert torch.equal(samples, greedy.repeat_interleave(2, dim=0))
        assert self.generate(model, inputs, do_sample=True, num_return_sequences=2).shape == samples.shape

    def test_static_cache_equals_dynamic(self, model: PreTrainedModel) -> None:
        inputs = self.batch(model, self.rows(model))
        static = self.generate(model, inputs, cache_implementation="static", disable_compile=True)
        assert torch.equal(static, self.generate(model, inputs))

    def test_compile_without_graph_breaks(self, model: PreTrainedModel) -> None:
        inputs = self.batch(model, self.rows(model))
        torch.compiler.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            traced = self.graph_inputs(model, inputs)
            assert_close(compiled(**traced, use_cache=False).logits, model(**inputs).logits, 1e-5)
        torch.compiler.reset()

    def test_compiled_training_step(self, model: PreTrainedModel) -> None:
        self.freeze_all_but_part(model)
        inputs = self.batch(model, [self.labelled(row, 4) for row in self.rows(model)])
        loss, gradients = self.loss_and_gradients(model, inputs)
        torch.compiler.reset()
        model.compile(fullgraph=True, backend="aot_eager")
        traced = self.graph_inputs(model, inputs)
        again, compiled = self.loss_and_gradients(model, traced | {"use_cache": False})
        torch.compiler.reset()
        assert_close(again, loss, 1e-5)
        for name, gradient in gradients.items():
            assert_close(compiled[name], gradient, 1e-5)

    def test_export(self, model: PreTrainedModel) -> None:
        inputs = self.batch(model, self.rows(model))
        with torch.no_grad():
            traced = self.graph_inputs(model, inputs)
            program = torch.export.export(model, (), traced | {"use_cache": False}, strict=False)
            exported = program.module()(**traced, use_cache=False)
            assert_close(exported.logits, model(**inputs).logits, 1e-5)

    def test_lora_train_merge_save_and_load(self, model: PreTrainedModel, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path / "base")
        inputs = self.batch(model, [self.labelled(row, 4) for row in self.rows(model)])
        lora = LoraConfig(
            task_type="CAUSAL_LM",
            r=4,
            target_modules=self.lora_targets,
            modules_to_save=[self.trained_part] if self.trained_part else None,
        )
        adapted = get_peft_model(model, lora)
        trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
        assert all("lora_" in name or "modules_to_save" in name for name in trained)
        assert any("lora_" in name for name in trained)
        assert any("modules_to_save" in name for name in trained) == bool(self.trained_part)
        optimizer = torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=1e-3)
        # More than one step: LoRA's B starts at zero, so A has its first gradient in the second.
        losses = [self._step(adapted, optimizer, inputs) for _ in range(3)]
        assert losses[2] < losses[0]
        adapted.eval()
        adapted.save_pretrained(tmp_path / "adapter")
        with torch.no_grad():
            logits = adapted(**inputs).logits
            base = self.model_class.from_pretrained(tmp_path / "base")
            assert (base(**inputs).logits - logits).abs().max() > 0.1
            loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
            assert torch.equal(loaded(**inputs).logits, logits)
            merged = adapted.merge_and_unload()
            assert type(merged) is self.model_class
            assert_close(merged(**inputs).logits, logits, 1e-5)
            merged.save_pretrained(tmp_path / "merged")
            again = self.model_class.from_pretrained(tmp_path / "merged")
            assert torch.equal(again(**inputs).logits, merged(**inputs).logits)

    def _step(self, model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Inputs) -> float:
        model.train()
        optimizer.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        return loss.item()
