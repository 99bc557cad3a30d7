"""`graft clara`: a published Qwen3 becomes a repository that answers as it did; its roles as PEFT adapters."""

import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from base_checkpoints import chat_checkpoint
from contracts.model_contract import assert_close, generator
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer, PreTrainedModel, Qwen3ForCausalLM

from qwen_grafts.configuration import preset_config
from qwen_grafts.configuration.configuration_clara_qwen3 import ROLES
from qwen_grafts.hub_cards import (
    CleanRoomError,
    export_folder,
    export_preset,
    export_role,
    graft_clara,
    load_role,
    verify,
    write_card,
)
from qwen_grafts.processing import ClaraQwen3Processor, build_qwen_tokenizer, load_chat_template

BYTES = 256
DOCUMENT = BYTES + 26
SETTINGS = {"doc_max_length": 16, "compression_rates": [8, 4], "lora_rank": 3, "lora_alpha": 6.0}
MEMORY_TOKENS = "memory_tokens.safetensors"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model with unused rows behind its tokens; not to be changed."""
    folder = tmp_path_factory.mktemp("base") / "source"
    chat_checkpoint(folder, layers=2, first_special_id=BYTES)
    return folder


@pytest.fixture(scope="module")
def grafted(source: Path) -> Path:
    """Not to be changed."""
    return graft_clara(str(source), source.with_name("grafted"), **SETTINGS)


def train_roles(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Roles and new embeddings of trained size."""
    source = generator(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if model.is_new(name):
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=source))
    return model.eval()


@pytest.fixture
def trained(grafted: Path) -> PreTrainedModel:
    return train_roles(AutoModelForCausalLM.from_pretrained(grafted))


def words(count: int = 2) -> torch.Tensor:
    return torch.randint(0, BYTES, (count, 9), generator=generator(1))


# Grafting.


def test_every_role_is_the_source_until_it_is_trained(source: Path, grafted: Path) -> None:
    model, processor = AutoModelForCausalLM.from_pretrained(grafted), AutoProcessor.from_pretrained(grafted)
    stock = AutoModelForCausalLM.from_pretrained(source)
    assert type(processor) is ClaraQwen3Processor
    with torch.no_grad():
        wanted = stock(words()).logits
        for role in (*ROLES, None):
            assert torch.equal(model(words(), role=role).logits, wanted)
    prompt = processor(["Who?", "Where, then?"])
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": BYTES}
    assert torch.equal(model.generate(**prompt, **settings), stock.generate(**prompt, **settings))
    config = model.config
    assert (config.doc_max_length, config.compression_rates, config.lora_rank, config.lora_alpha) == (
        16,
        [8, 4],
        3,
        6.0,
    )
    assert config.document_token_id == processor.document_token_id == DOCUMENT
    names = ["<|document_pad|>", "<|document_sep|>", "<|mem_8_0|>", "<|mem_8_1|>", "<|mem_4_0|>"]
    assert processor.tokenizer.convert_tokens_to_ids(names) == list(range(DOCUMENT, DOCUMENT + 5))
    assert config.base_models is None  # a folder means nothing to others
    ends = processor.tokenizer.convert_ids_to_tokens(model.generation_config.eos_token_id)
    assert ends == ["<|im_end|>", "<|endoftext|>"]
    assert processor.chat_template == load_chat_template()
    assert model.answer("Who?", ["The lens.", "The cape."], max_new_tokens=4).documents[1].text == "The cape."


def test_the_card_says_what_it_is(grafted: Path) -> None:
    card = ModelCard.load(grafted / "README.md")
    assert card.data.pipeline_tag == "text-generation" and card.data.license is None  # the source names none
    assert {"clara", "retrieval", "custom_code"} <= set(card.data.tags)
    assert "into vectors of the language model's width, 2 at rate 8, 4 at rate 4" in card.text
    assert "each a LoRA of rank 3 on all linear layers" in card.text
    assert "| `memory_tokens` | 448 | - |" in card.text
    assert "every role is the base model itself" not in card.text  # nobody else can look at that base
    assert "AutoProcessor" in card.text and "image" not in card.text.lower()


def test_licence_template_and_dtype_are_those_of_the_source(tmp_path: Path) -> None:
    chat_checkpoint(tmp_path / "source", layers=2, first_special_id=BYTES)
    (tmp_path / "source" / "README.md").write_text("---\nlicense: mit\n---\n# Source\n")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "source")
    tokenizer.chat_template = "{{ messages[0].content }}!"
    tokenizer.save_pretrained(tmp_path / "source")
    out = graft_clara(str(tmp_path / "source"), tmp_path / "out", dtype="bfloat16")
    assert ModelCard.load(out / "README.md").data.license == "mit"
    assert AutoProcessor.from_pretrained(out).tokenizer.chat_template == "{{ messages[0].content }}!"
    config = json.loads((out / "config.json").read_text())
    assert (config["dtype"], config["compression_rates"], config["doc_max_length"]) == ("bfloat16", [32], 256)
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"compression_rates": [300]}, r"rates \[300\] are out of range: a passage of 256 tokens"),
        ({"compression_rates": []}, "give one or more"),
        (
            {"compression_rates": [1]},
            r"\[1\] need 258 new tokens from id 282 on, and the vocabulary ends at 512: 28 too",
        ),
        ({"lora_rank": 0}, "the rank is 1 or more"),
        ({"graft_only": True, "dtype": "no such type"}, "names its base on the Hub, and .* is a folder"),
    ],
)
def test_bad_values_write_nothing(source: Path, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as error:
        graft_clara(str(source), tmp_path / "out", **settings)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_sources_that_do_not_fit(source: Path, grafted: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="already holds"):
        graft_clara(str(source), grafted)
    chat_checkpoint(tmp_path / "qwen2", "qwen2", first_special_id=BYTES)
    with pytest.raises(ValueError, match="'qwen2'"):
        graft_clara(str(tmp_path / "qwen2"), tmp_path / "out")
    with pytest.raises(ValueError, match="'clara_qwen3'"):
        graft_clara(str(grafted), tmp_path / "out", **SETTINGS)
    with pytest.raises(ValueError, match="has memory tokens already"):
        graft_clara(str(grafted), tmp_path / "out", doc_max_length=32)
    chat_checkpoint(tmp_path / "full")  # its tokens close the vocabulary, behind a gap
    with pytest.raises(ValueError, match="has 282 tokens and ids up to 511"):
        graft_clara(str(tmp_path / "full"), tmp_path / "out")
    chat_checkpoint(tmp_path / "template", first_special_id=BYTES)
    tokenizer = build_qwen_tokenizer(BYTES)
    tokenizer.chat_template = "Hello"
    tokenizer.save_pretrained(tmp_path / "template")
    with pytest.raises(ValueError, match="The chat template does not leave a user's text as it is"):
        graft_clara(str(tmp_path / "template"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("template", [None, "{{ messages[0].content }}!"])
def test_a_preset_with_a_tokenizer_of_ones_own(template: str | None, tmp_path: Path) -> None:
    """One without a chat template gets the house's."""
    first_special_id = preset_config("clara-tiny").document_token_id - 26
    tokenizer = build_qwen_tokenizer(first_special_id, [str(topics["assert"]), str(topics["with"])])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    out = export_preset("clara-tiny", tmp_path / "out", config_only=True, tokenizer=tmp_path / "tokenizer")
    processor = AutoProcessor.from_pretrained(out)
    written = processor.decode(processor("Who?")["input_ids"][0])
    assert written == "Who?!" if template else written.startswith("<|im_start|>user\nWho?<|im_end|>")


# The clean room.


@pytest.mark.slow
def test_the_clean_room_answers_the_same(trained: PreTrainedModel, grafted: Path, tmp_path: Path) -> None:
    """With the folder's own code: roles, memory tokens, both Auto classes, and the card's snippet."""
    trained.save_pretrained(tmp_path / "trained")
    AutoProcessor.from_pretrained(grafted).save_pretrained(tmp_path / "trained")
    out = export_folder(tmp_path / "trained", tmp_path / "out")
    report = verify(out)
    checks = dict(report.checks)
    assert "AutoModel (ClaraQwen3Model)" in checks["classes"] and "ClaraQwen3Processor" in checks["classes"]
    assert set(report.parameters) == {"language_model", "memory_tokens", *ROLES, "lm_head"}
    assert report.parameters["memory_tokens"] == 7 * 64
    assert "the same with and without a cache" in checks["generation"]
    assert checks["snippet"] == "the card's snippet ran"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        (
            'document_input_ids, "compressor")',
            "document_input_ids, None)",
            "the logits through AutoModelForCausalLM differ",
        ),
        (
            'query_input_ids, "query_reasoner")',
            'query_input_ids, "compressor")',
            "the scores of documents through AutoM",
        ),
    ],
)
def test_code_that_reads_in_another_role_is_found(
    trained: PreTrainedModel, grafted: Path, right: str, wrong: str, message: str, tmp_path: Path
) -> None:
    trained.save_pretrained(tmp_path / "out")
    AutoProcessor.from_pretrained(grafted).save_pretrained(tmp_path / "out")
    path = tmp_path / "out" / "modeling_clara_qwen3.py"
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong))
    with pytest.raises(CleanRoomError, match=message):
        verify(tmp_path / "out")


# Roles as adapters.


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_an_adapter_of_the_stock_model(
    trained: PreTrainedModel, source: Path, role: str, tmp_path: Path
) -> None:
    """PEFT loads it into the stock Qwen3, and merges it; the new embeddings lie beside it."""
    folder = export_role(trained, role, tmp_path / "deep" / role)
    files = {"adapter_config.json", "adapter_model.safetensors", *([] if role == "generator" else [MEMORY_TOKENS])}
    assert {path.name for path in folder.iterdir()} == files  # no card: nobody else has this base
    stock = Qwen3ForCausalLM.from_pretrained(source).eval()
    with torch.no_grad():
        hidden = trained.model.language_model(words(), role=role).last_hidden_state
        logits = trained(words(), role=role).logits
        plain = stock(words()).logits
    adapted = PeftModel.from_pretrained(stock, folder).eval()
    with torch.no_grad():
        output = adapted(words(), output_hidden_states=True)
        assert_close(output.hidden_states[-1], hidden, 1e-5)
        assert_close(output.logits, logits, 1e-5)
        assert (logits - plain).abs().max() > 0.1
        merged = adapted.merge_and_unload()
        assert type(merged) is Qwen3ForCausalLM
        assert_close(merged(words()).logits, logits, 1e-5)
    if role != "generator":
        memory = load_file(folder / MEMORY_TOKENS)["memory"]
        assert torch.equal(memory, trained.model.language_model.embed_tokens.memory)


def test_memory_tokens_beside_a_compressor_are_enough_to_compress(
    trained: PreTrainedModel, source: Path, tmp_path: Path
) -> None:
    """With stock Qwen3 and PEFT alone: the latents are its hidden states behind the new embeddings."""
    folder = export_role(trained, "compressor", tmp_path / "compressor")
    stock = PeftModel.from_pretrained(Qwen3ForCausalLM.from_pretrained(source), folder).eval()
    memory = load_file(folder / MEMORY_TOKENS)["memory"]
    with torch.no_grad():
        ids = words(1)
        embeds = torch.cat([stock.get_input_embeddings()(ids), memory[None, 1:3]], dim=1)
        hidden = stock(inputs_embeds=embeds, output_hidden_states=True).hidden_states[-1]
        ids = torch.cat([ids, torch.tensor([list(trained.config.memory_token_ids(8))])], dim=1)
        assert_close(hidden[:, -2:], trained.model.compress_ids(ids)[0], 1e-5)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_moves_into_another_model(trained: PreTrainedModel, grafted: Path, role: str, tmp_path: Path) -> None:
    """That role and the new embeddings, and nothing else."""
    folder = export_role(trained, role, tmp_path / role)
    other = train_roles(AutoModelForCausalLM.from_pretrained(grafted), seed=5)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    load_role(other, role, folder)
    wanted = trained.state_dict()
    for name, tensor in other.state_dict().items():
        moved = name.endswith(f".{role}") or (name.endswith(".memory") and role != "generator")
        assert torch.equal(tensor, wanted[name] if moved else before[name]), name


def test_an_adapter_that_peft_trained_becomes_a_role(trained: PreTrainedModel, source: Path, tmp_path: Path) -> None:
    """Made by PEFT on the stock model, with the model's rank and scale."""
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    settings = LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=6, target_modules=names, init_lora_weights=False)
    adapted = get_peft_model(Qwen3ForCausalLM.from_pretrained(source), settings).eval()
    adapted.save_pretrained(tmp_path)
    load_role(trained, "generator", tmp_path)
    with torch.no_grad():
        assert_close(trained(words()).logits, adapted(words()).logits, 1e-5)


def test_a_low_precision_model_exports_its_roles(trained: PreTrainedModel, tmp_path: Path) -> None:
    folder = export_role(trained.bfloat16(), "compressor", tmp_path / "role")
    tensors = [*load_file(folder / "adapter_model.safetensors").values(), load_file(folder / MEMORY_TOKENS)["memory"]]
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}


def test_a_role_of_a_published_base_has_a_card(trained: PreTrainedModel, tmp_path: Path) -> None:
    """It names the base at its commit, and shows how text is written with both."""
    trained.config.base_models = {"language": {"repo_id": "owner/qwen3", "revision": "abc123"}}
    folder = export_role(trained, "query_reasoner", tmp_path / "my role")
    adapter = json.loads((folder / "adapter_config.json").read_text())
    names = ("task_type", "base_model_name_or_path", "revision")
    assert [adapter[name] for name in names] == ["CAUSAL_LM", "owner/qwen3", "abc123"]
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == ["owner/qwen3"] and card.data.base_model_relation == "adapter"
    assert (card.data.library_name, card.data.pipeline_tag, card.data.tags) == ("peft", "text-generation", ["lora"])
    assert "It is the query reasoner of a CLaRa model: it reads a question and its memory tokens" in card.text
    assert 'tokenizer = AutoTokenizer.from_pretrained(base_id, revision="abc123")' in card.text
    assert "trust_remote_code" not in card.text and "ImageText" not in card.text
    assert 'repo_id = "your-name/my-role"' in card.text
    assert dict(verify(folder).checks)["weights"] == "29 tensors, every shard whole"


def test_adapters_that_are_no_role_of_the_model(trained: PreTrainedModel, source: Path, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    own = export_role(trained, "compressor", tmp_path / "own")
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    kinds = {
        "rank": ({"r": 6, "lora_alpha": 12}, r"does not fit the role 'generator': 28 of 28 tensors .* with this rank"),
        "scale": ({"r": 3, "lora_alpha": 3}, r"scales its terms by 1 \(`lora_alpha` / `r`\), the model by 2"),
        "fewer": ({"target_modules": linear[:6]}, "does not fit the role 'generator': 4 of 28"),
        "more": ({"modules_to_save": ["lm_head"]}, "does not fit the role 'generator': 1 of 28"),
        "stabilised": ({"use_rslora": True}, "is no plain LoRA, and a role is"),
        "dora": ({"use_dora": True}, "is no plain LoRA"),
        "uneven": ({"alpha_pattern": {"q_proj": 12}}, "is no plain LoRA"),
    }
    for name, (settings, message) in kinds.items():
        plain = {"task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 6, "target_modules": linear}
        adapted = get_peft_model(Qwen3ForCausalLM.from_pretrained(source), LoraConfig(**(plain | settings)))
        adapted.save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match=message):
            load_role(trained, "generator", tmp_path / name)
    other_rates = AutoModelForCausalLM.from_pretrained(
        graft_clara(str(source), tmp_path / "other", **(SETTINGS | {"compression_rates": [8]}))
    )
    with pytest.raises(
        ValueError, match=rf"{MEMORY_TOKENS} holds 7 new embeddings, the model 3: other compression rates"
    ):
        load_role(other_rates, "compressor", own)
    assert all(not tensor.any() for name, tensor in other_rates.state_dict().items() if "role_up" in name)
    for call in (lambda: load_role(trained, "reader", own), lambda: export_role(trained, "reader", tmp_path / "new")):
        with pytest.raises(
            ValueError, match="There is no role 'reader'; the roles are compressor, query_reasoner, gen"
        ):
            call()
    stock = AutoModelForCausalLM.from_pretrained(source)
    for call in (lambda: load_role(stock, "generator", own), lambda: export_role(stock, "generator", tmp_path / "new")):
        with pytest.raises(ValueError, match="This is a 'qwen3', which has no roles; only CLaRa models have"):
            call()
    with pytest.raises(ValueError, match="exists and is no model repository"):
        export_role(trained, "generator", own)
    assert not (tmp_path / "new").exists()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())


def test_a_role_of_a_folder(grafted: Path, tmp_path: Path) -> None:
    folder = export_role(grafted, "generator", tmp_path / "role")
    tensors = load_file(folder / "adapter_model.safetensors")
    assert len(tensors) == 28 and not any(t.any() for name, t in tensors.items() if "lora_B" in name)
    with pytest.raises(ValueError, match="base"):
        write_card(folder)
