"""CLaRa on Qwen3: the shared contracts, then what is its own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.full_model_contract import FullModelContract
from contracts.model_contract import Inputs, assert_close, generator, randomize
from contracts.soft_token_contract import SoftTokenContract
from tiny_clara import DOCUMENT_ID, clara_config
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel, Qwen3ForCausalLM

from qwen_grafts.configuration import ClaraQwen3Config, preset_config
from qwen_grafts.configuration.configuration_clara_qwen3 import ROLES
from qwen_grafts.modeling import ClaraQwen3ForCausalLM, ClaraQwen3Model
from qwen_grafts.modeling.role_lora import copy_role, load_role_tensors, reset_role, role_tensors

WORDS = (2, DOCUMENT_ID)


def passage(config: ClaraQwen3Config, length: int, rate: int | None = None, seed: int = 0) -> torch.Tensor:
    """(1, length + M) tokens of a passage and its memory tokens."""
    ids = torch.randint(*WORDS, (1, length), generator=generator(seed))
    return torch.cat([ids, torch.tensor([list(config.memory_token_ids(rate))])], dim=1)


def right_padded(rows: list[torch.Tensor]) -> torch.Tensor:
    width = max(row.shape[1] for row in rows)
    return torch.cat([functional.pad(row, (0, width - row.shape[1]), value=0) for row in rows])


class ClaraContract(SoftTokenContract):
    """How a tiny CLaRa is built and fed; every passage has a length of its own."""

    model_class = ClaraQwen3ForCausalLM
    base_model_class = ClaraQwen3Model
    trained_part = ""
    item_name = "Document"
    item_inputs = ("document_input_ids",)
    item_output = "memory"
    constant_at_first = "role_up"

    def build_model(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
        """Terms of trained size: as large as the weights, they would make every document the same."""
        model = super().build_model(dtype, seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "role_" in name:
                    parameter.mul_(0.2)
        return model

    def in_part(self, name: str) -> bool:
        return name.endswith((".compressor", ".generator", ".memory"))

    def degenerate(self, model: PreTrainedModel) -> PreTrainedModel:
        """A generator that was not trained."""
        for name, parameter in model.named_parameters():
            if "role_up" in name:
                parameter.data.zero_()
        return model

    def stock_equivalent(self, model: PreTrainedModel) -> PreTrainedModel:
        stock = Qwen3ForCausalLM(model.config.text_config)
        weights = model.model.language_model.state_dict()
        stock.model.load_state_dict({name: t for name, t in weights.items() if not model.is_new(name)})
        stock.lm_head.load_state_dict(model.lm_head.state_dict())
        return stock

    def placeholder_ids(self, model: PreTrainedModel) -> list[int]:
        """All new tokens: a stock model has other embeddings for them."""
        return list(range(DOCUMENT_ID, DOCUMENT_ID + 1 + model.config.num_new_embeddings))

    def encoder(self, model: PreTrainedModel) -> nn.Module:
        raise NotImplementedError  # the encoder is the language model

    def encode(self, model: PreTrainedModel, inputs: Inputs) -> Any:
        return model.model.compress_ids(inputs["document_input_ids"])[0]

    def encoded_inputs(self, model: PreTrainedModel, inputs: Inputs) -> dict[str, Any]:
        rest = {name: value for name, value in inputs.items() if name not in self.item_inputs}
        return rest | {"memory": self.encode(model, inputs)}

    def graph_inputs(self, model: PreTrainedModel, inputs: Inputs) -> Inputs:
        """How many memory tokens a passage has depends on its ids; the graph begins at the latents."""
        return self.encoded_inputs(model, inputs)

    def collate_items(self, name: str, tensors: list[torch.Tensor]) -> torch.Tensor:
        return right_padded([row[None] for tensor in tensors for row in tensor])

    def row(self, model: PreTrainedModel, items: int = 1, seed: int = 0) -> Inputs:
        config, source = model.config, generator(seed)
        passages = [passage(config, 5 + (3 * seed + 5 * index) % 8, seed=10 * seed + index) for index in range(items)]
        ids: list[int] = torch.randint(*WORDS, (3,), generator=source).tolist()
        for _ in passages:
            ids += [DOCUMENT_ID] * config.num_memory_tokens() + [config.separator_token_id]
        ids += torch.randint(*WORDS, (14 + seed,), generator=source).tolist()
        row = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        return row | ({"document_input_ids": right_padded(passages)} if items else {})

    # What the shared contract asks of images, asked of documents.

    test_token_types_change_nothing = None  # no processor offers them for documents

    def test_items_matter(self, model: PreTrainedModel) -> None:
        row = self.row(model, 2)
        other = row["document_input_ids"].clone()
        other[0, 0] += 1
        with torch.no_grad():
            logits = model(**row).logits[0, -1]
            for changed in (other, row["document_input_ids"].flip(0)):
                assert (model(**(row | {"document_input_ids": changed})).logits[0, -1] - logits).abs().max() > 0.1

    def test_generate_encodes_items_once(self, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        calls, compress_ids = [], model.model.compress_ids
        monkeypatch.setattr(model.model, "compress_ids", lambda ids: calls.append(1) or compress_ids(ids))
        inputs = self.batch(model, self.rows(model))
        for options in ({}, {"use_cache": False}, {"num_beams": 2}):
            calls.clear()
            self.generate(model, inputs, **options)
            assert len(calls) == 1, f"compressed {len(calls)} times with {options}"

    def test_frozen_encoder_runs_without_a_graph(self, model: PreTrainedModel) -> None:
        """Also where gradient checkpointing makes the embeddings' output require gradients."""
        row = self.labelled(self.row(model), 4)
        model.requires_grad_(False)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith(".generator"))
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": True})
        model.train()
        assert not self.encode(model, row).requires_grad
        _, gradients = self.loss_and_gradients(model, row)
        assert gradients and all(name.endswith(".generator") for name in gradients)

    def test_frozen_encoder_is_the_same_in_training(self, model: PreTrainedModel) -> None:
        """Dropout belongs to roles that train."""
        for module in model.modules():
            if hasattr(module, "role_up"):
                module.dropout = 0.5
        row = self.row(model, 2)
        with torch.no_grad():
            before = self.encode(model, row)
            model.train()
            assert not torch.equal(self.encode(model, row), before)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(not name.endswith(".compressor"))
            assert torch.equal(self.encode(model, row), before)

    def test_trainable_encoder_gets_gradients(self, model: PreTrainedModel) -> None:
        """A loss behind the answer reaches the compressor alone, where it alone trains."""
        model.requires_grad_(False)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith(".compressor"))
        _, gradients = self.loss_and_gradients(model, self.labelled(self.row(model), 4))
        reached = [name for name, gradient in gradients.items() if gradient.any()]
        assert len(reached) == sum(parameter.requires_grad for parameter in model.parameters())

    def test_gradient_reaches_raw_items_through_a_frozen_encoder(self, model: PreTrainedModel) -> None:
        """Documents are ids; a gradient reaches latents that are given in their place."""
        model.requires_grad_(False)
        inputs = self.encoded_inputs(model, self.labelled(self.row(model), 4))
        inputs["memory"] = inputs["memory"].clone().requires_grad_(True)
        model(**inputs).loss.backward()
        assert inputs["memory"].grad.abs().max() > 0

    def test_items_come_back_with_the_output(self, model: PreTrainedModel) -> None:
        row = self.row(model, 2)
        with torch.no_grad():
            outputs, encoded = model(**row), self.encode(model, row)
        assert torch.equal(torch.stack(outputs.memory), encoded)
        assert model(**self.row(model, 0)).memory is None


class TestTiedHead(ClaraContract, FullModelContract):
    """As published: the head is the embedding."""

    def build_config(self) -> ClaraQwen3Config:
        return clara_config()


class TestOwnHead(ClaraContract):
    """A head of its own, and the other rate first."""

    def build_config(self) -> ClaraQwen3Config:
        return clara_config({"tie_word_embeddings": False}, compression_rates=(3, 4))


# What is its own.


@pytest.fixture
def model() -> PreTrainedModel:
    return TestTiedHead().build_model()


def prompt(config: ClaraQwen3Config, latents: list[int], answer: int = 5, seed: int = 0) -> Inputs:
    """A row for passages with that many latents each, the last tokens supervised."""
    ids = [7, 8]
    for count in latents:
        ids += [DOCUMENT_ID] * count + [config.separator_token_id]
    ids += torch.randint(*WORDS, (8 + seed,), generator=generator(seed)).tolist()
    labels = [-100] * (len(ids) - answer) + ids[-answer:]
    return {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "labels": torch.tensor([labels]),
    }


def stage_inputs(config: ClaraQwen3Config, stage: int) -> Inputs:
    """A row of a stage: one document, three, or five of which two are chosen."""
    count = {1: 1, 2: 3, 3: 5}[stage]
    documents = right_padded([passage(config, 4 + 2 * index, seed=index) for index in range(count)])
    if stage < 3:
        return prompt(config, [3] * count) | {"document_input_ids": documents}
    question = passage(config, 6, seed=9)
    return prompt(config, [3, 3]) | {"document_input_ids": documents, "query_input_ids": question, "top_k": 2}


TRAINED = {1: ("compressor", "generator", "memory"), 2: ("compressor", "generator", "memory")}
TRAINED[3] = ("query_reasoner", "generator")


def train_only(model: PreTrainedModel, parts: tuple[str, ...]) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(model.is_new(name) and name.endswith(parts))


def gradients(model: PreTrainedModel, inputs: Inputs) -> Inputs:
    """Of cross-entropy and, where something is compressed, the alignment loss."""
    model.train()
    model.zero_grad()
    outputs = model(**inputs)
    (outputs.loss + outputs.alignment_loss.mean()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_gradient_in_any_stage(model: PreTrainedModel, stage: int, reentrant: bool) -> None:
    """Three roles take turns in one step; each layer that is recomputed has to be in the role it ran in."""
    train_only(model, TRAINED[stage])
    inputs = stage_inputs(model.config, stage)
    model.enable_input_require_grads()
    plain = gradients(model, inputs)
    assert {name.rsplit(".", 1)[-1] for name in plain} == set(TRAINED[stage])
    assert all(gradient.any() for gradient in plain.values())
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for name, gradient in gradients(model, inputs).items():
        assert_close(gradient, plain[name], 1e-5)


def test_calls_leave_nothing_behind(model: PreTrainedModel) -> None:
    """Any call in between, of another role, depth of retrieval or mode, changes nothing of the next one."""
    inputs = stage_inputs(model.config, 2)
    choice = stage_inputs(model.config, 3)
    with torch.no_grad():
        first = model(**inputs).logits
        for other in (choice, choice | {"top_k": 1, **prompt(model.config, [3])}, inputs | {"role": None}):
            model(**other)
            model.model.encode_query_ids(choice["query_input_ids"])
            assert torch.equal(model(**inputs).logits, first)


def test_roles_differ_and_none_is_stock(model: PreTrainedModel) -> None:
    row = prompt(model.config, [])
    del row["labels"]
    stock = TestTiedHead().stock_equivalent(model).eval()
    with torch.no_grad():
        logits = [model(**row, role=role).logits for role in (*ROLES, None)]
        assert torch.equal(logits[3], stock(**row).logits)
        for index, one in enumerate(logits):
            assert all((one - other).abs().max() > 0.1 for other in logits[:index])


@pytest.mark.parametrize("rate", [4, 3])
def test_passages_of_any_length_compress_as_alone(model: PreTrainedModel, rate: int) -> None:
    """Padding behind the memory tokens is read by nobody."""
    alone = [passage(model.config, length, rate, seed=length) for length in (1, 12, 3, 7)]
    with torch.no_grad():
        together, losses = model.model.compress_ids(right_padded(alone))
        assert together.shape == (4, 12 // rate, model.config.text_config.hidden_size)
        for index, ids in enumerate(alone):
            latents, loss = model.model.compress_ids(ids)
            assert_close(together[index], latents[0], 1e-5)
            assert_close(losses[index], loss[0], 1e-5)


def test_latents_are_the_hidden_states_of_the_memory_tokens(model: PreTrainedModel) -> None:
    """Against the definition: the backbone's last hidden states, and the distance of the two means."""
    ids = passage(model.config, 9)
    with torch.no_grad():
        latents, loss = model.model.compress_ids(ids)
        hidden = model.model.language_model(input_ids=ids, role="compressor").last_hidden_state[0]
    assert_close(latents[0], hidden[9:], 1e-6)
    assert_close(loss[0], functional.mse_loss(hidden[:9].mean(0), hidden[9:].mean(0)), 1e-6)


@pytest.mark.parametrize("count", [0, 1, 20])
def test_ragged_numbers_of_documents_equal_one_by_one(model: PreTrainedModel, count: int) -> None:
    contract = TestTiedHead()
    rows = [contract.row(model, items, seed) for seed, items in enumerate((count, 2, 0))]
    inputs = contract.batch(model, rows)
    with torch.no_grad():
        logits = model(**inputs).logits
        for index, row in enumerate(rows):
            alone = model(**row).logits[0]
            assert_close(logits[index, -len(alone) :], alone, 1e-4)
            assert torch.equal(contract.generate(model, inputs)[index], contract.generate(model, row)[0])


def test_the_chosen_documents_are_what_is_answered_from(model: PreTrainedModel) -> None:
    """In the forward pass retrieval is the hard choice: the same logits as from the chosen latents."""
    inputs = stage_inputs(model.config, 3)
    with torch.no_grad():
        outputs = model(**inputs)
        latents = model.model.compress_ids(inputs["document_input_ids"])[0]
        query = model.model.encode_query_ids(inputs["query_input_ids"])
        cosines = functional.cosine_similarity(query.flatten(1)[:, None], latents.flatten(1)[None], dim=-1)
        assert_close(outputs.retrieval_scores, cosines, 1e-5)
        best = cosines[0].topk(2).indices
        assert torch.equal(outputs.retrieved[0], best)
        row = {name: inputs[name] for name in ("input_ids", "attention_mask", "labels")}
        assert_close(outputs.logits, model(**row, memory=latents[best]).logits, 1e-6)
        scores = model(query_input_ids=inputs["query_input_ids"], document_input_ids=inputs["document_input_ids"])
        assert scores.logits is None and torch.equal(scores.retrieval_scores, outputs.retrieval_scores)


def test_candidates_bound_the_choice(model: PreTrainedModel) -> None:
    """Two questions, of which the second may choose from one passage only: its prompt holds one."""
    config = model.config
    rows = [prompt(config, [3, 3]), prompt(config, [3], seed=3)]
    inputs = TestTiedHead().batch(model, rows)
    documents = right_padded([passage(config, 4 + index, seed=index) for index in range(4)])
    questions = right_padded([passage(config, 6, seed=8), passage(config, 4, seed=9)])
    candidates = torch.tensor([[True, True, False, True], [False, False, True, False]])
    with torch.no_grad():
        outputs = model(
            **inputs, document_input_ids=documents, query_input_ids=questions, candidates=candidates, top_k=2
        )
    assert outputs.retrieved[1].tolist() == [2, -1]
    assert 2 not in outputs.retrieved[0].tolist() and len(outputs.memory) == 3


def test_a_choice_that_would_have_been_better_raises_its_score(model: PreTrainedModel) -> None:
    """The gradient of the answer's loss reaches the question also through the documents that were not taken."""
    train_only(model, ("query_reasoner",))
    found = gradients(model, stage_inputs(model.config, 3))
    assert found and all(gradient.any() for gradient in found.values())


def test_roles_are_copied_and_made_new(model: PreTrainedModel) -> None:
    language = model.model.language_model
    copy_role(model, "compressor", "query_reasoner")
    copied, own = role_tensors(language, "query_reasoner"), role_tensors(language, "compressor")
    assert all(torch.equal(copied[name], own[name]) for name in own)
    with torch.no_grad():
        next(iter(copied.values())).add_(1)  # a copy, not the same tensor
    assert not torch.equal(*(next(iter(role_tensors(language, r).values())) for r in ("compressor", "query_reasoner")))
    reset_role(model, "generator")
    row = prompt(model.config, [])
    with torch.no_grad():
        assert torch.equal(model(**row).logits, model(**row, role=None).logits)


def test_a_role_takes_tensors_that_fit_and_no_others(model: PreTrainedModel) -> None:
    language = model.model.language_model
    tensors = {name: torch.randn_like(t) for name, t in role_tensors(language, "generator").items()}
    load_role_tensors(language, "generator", tensors)
    assert all(torch.equal(t, tensors[name]) for name, t in role_tensors(language, "generator").items())
    name = next(iter(tensors))
    for wrong in (tensors | {"more": tensors[name]}, tensors | {name: tensors[name][:-1]}):
        with pytest.raises(ValueError, match="does not fit the role 'generator': 1 of 28"):
            load_role_tensors(language, "generator", wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_terms_in_float32_on_a_lower_base(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """What trains is in float32 whatever the base is; the output keeps the base's dtype."""
    model = TestTiedHead().build_model(dtype)
    train_only(model, TRAINED[1])
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    found = gradients(model, stage_inputs(model.config, 1))
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    assert model(**stage_inputs(model.config, 1)).logits.dtype == dtype


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"document_input_ids": torch.tensor([[5, 6, 7]])}, "Of 1 passages or questions 1 have no memory tokens"),
        ({"memory": torch.zeros(1, 3, 64)}, "Give documents once"),
        ({"document_input_ids": None}, "no documents"),
        ({"top_k": 6}, "`top_k` is 6, and there are 5 documents"),
        ({"top_k": 0}, "`top_k` is 0"),
    ],
)
def test_bad_input(model: PreTrainedModel, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**(stage_inputs(model.config, 3) | change))


def test_two_rates_in_one_call_are_refused(model: PreTrainedModel) -> None:
    both = right_padded([passage(model.config, 5, 4), passage(model.config, 5, 3)])
    with pytest.raises(ValueError, match=r"the others \[3, 4\]"):
        model.model.compress_ids(both)


def test_published_sizes() -> None:
    """33 million parameters a role at rank 16 on Qwen3-4B, and 91 new embeddings, in rows that Qwen3 leaves unused."""
    config = preset_config("clara-4b")
    with torch.device("meta"):
        model = ClaraQwen3ForCausalLM(config)
    new = {name: p.numel() for name, p in model.named_parameters() if model.is_new(name)}
    for role in ROLES:
        assert sum(count for name, count in new.items() if name.endswith(role)) == 33_030_144
    assert new["model.language_model.embed_tokens.memory"] == (1 + 8 + 64 + 16 + 2) * 2560
    assert sum(p.numel() for p in model.parameters()) - sum(new.values()) == 4_022_468_096
    assert config.separator_token_id + config.num_new_embeddings <= 151_936


def test_a_graft_only_checkpoint_holds_what_was_trained(model: PreTrainedModel, tmp_path: Path) -> None:
    """Two roles and the new embeddings; the third role and the base come from where training started."""
    model.save_pretrained(tmp_path / "start")
    trained = TestTiedHead().build_model(seed=0)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if name.endswith((".compressor", ".generator", ".memory")):
                parameter.mul_(1.5)
    config = trained.config
    config.graft_only, config.stored_roles = True, ["compressor", "generator"]
    config.base_models = {"language": {"repo_id": str(tmp_path / "start"), "revision": "main"}}
    kept = {name: tensor for name, tensor in trained.state_dict().items() if trained.is_stored(name, config)}
    count = sum(tensor.numel() for tensor in kept.values())
    trained.save_pretrained(tmp_path / "checkpoint", state_dict=kept)
    loaded = ClaraQwen3ForCausalLM.from_pretrained(tmp_path / "checkpoint")
    expected = trained.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    size = (tmp_path / "checkpoint" / "model.safetensors").stat().st_size
    assert size < 1.1 * 4 * count + 2**14  # and a header that names 58 tensors


def test_random_weights_are_finite(tmp_path: Path) -> None:
    """A new model, and one that only a base was loaded into."""
    model = ClaraQwen3ForCausalLM(clara_config())
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    stock = Qwen3ForCausalLM(model.config.text_config)
    randomize(stock)
    stock.save_pretrained(tmp_path)
    settings = {name: getattr(model.config, name) for name in ("doc_max_length", "compression_rates", "lora_rank")}
    grafted = ClaraQwen3ForCausalLM.from_qwen_pretrained(str(tmp_path), document_token_id=DOCUMENT_ID, **settings)
    assert all(parameter.isfinite().all() for parameter in grafted.parameters())
    row = prompt(grafted.config, [])
    with torch.no_grad():
        assert torch.equal(grafted(**row).logits, stock.eval()(**row).logits)
    assert grafted.config.base_models is None  # a folder means nothing to others
    with pytest.raises(ValueError, match="the vocabulary ends at 160: 2 too many"):
        ClaraQwen3ForCausalLM.from_qwen_pretrained(str(tmp_path), document_token_id=153, **settings)


def test_the_vocabulary_is_not_cut_below_the_memory_tokens(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="up to id 148, and 145 rows would cut 4"):
        model.resize_token_embeddings(145)
