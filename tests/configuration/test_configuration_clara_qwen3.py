"""CLaRa's configuration: where its tokens stand, how many there are at a rate, what it refuses."""

from pathlib import Path
from typing import Any

import pytest
from tiny_clara import DOCUMENT_ID, clara_config
from transformers import AutoConfig, LlamaConfig, Qwen3Config

from qwen_grafts.configuration import ClaraQwen3Config

BASE = {"language": {"repo_id": "owner/qwen", "revision": "main"}}


def test_defaults_stand_behind_the_tokens_of_qwen3() -> None:
    """Qwen3's tokenizer ends at id 151668; its embeddings have 267 rows more."""
    config = ClaraQwen3Config()
    assert (config.document_token_id, config.separator_token_id) == (151669, 151670)
    assert list(config.memory_token_ids()) == list(range(151671, 151679))
    assert (config.doc_max_length, config.compression_rates, config.num_new_embeddings) == (256, [32], 9)
    assert (config.lora_rank, config.lora_alpha, config.lora_dropout) == (16, 32, 0.1)
    assert (config.num_retrieved, config.retrieval_temperature) == (5, 0.02)
    assert config.get_text_config() is config.text_config


def test_tokens_of_all_rates_stand_side_by_side() -> None:
    """12 tokens a passage: three memory tokens at rate 4, two at rate 5 (a remainder is left out), twelve at rate 1."""
    config = clara_config(compression_rates=(4, 5, 1), document_token_id=120)
    places = {rate: list(config.memory_token_ids(rate)) for rate in (4, 5, 1)}
    assert places == {4: [122, 123, 124], 5: [125, 126], 1: list(range(127, 139))}
    assert config.memory_token_ids() == config.memory_token_ids(4)
    assert [config.num_memory_tokens(rate) for rate in (None, 4, 5, 1)] == [3, 3, 2, 12]
    assert config.num_new_embeddings == 1 + 3 + 2 + 12
    assert config.separator_token_id == 121


@pytest.mark.parametrize("rate", [0, 2, 8, -4])
def test_a_rate_that_the_checkpoint_has_not(rate: int) -> None:
    for ask in (clara_config().memory_token_ids, clara_config().num_memory_tokens):
        with pytest.raises(ValueError, match=rf"`compression_rate` is {rate}; this checkpoint knows 2: 4, 3\."):
            ask(rate)


def test_saved_and_loaded(tmp_path: Path) -> None:
    config = clara_config({"tie_word_embeddings": False}, lora_alpha=7.5, base_models=BASE, stored_roles=["generator"])
    assert config.tie_word_embeddings is False
    config.save_pretrained(tmp_path)
    for loaded in (ClaraQwen3Config.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is ClaraQwen3Config
        assert type(loaded.text_config) is Qwen3Config
        assert loaded.to_diff_dict() == config.to_diff_dict()
        assert loaded.compression_rates == [4, 3]
        assert loaded.memory_token_ids(3) == config.memory_token_ids(3)


def test_as_many_tokens_as_the_vocabulary_has_rows() -> None:
    """A separator and seven memory tokens behind the placeholder: the last id is the last row."""
    config = clara_config(document_token_id=160 - 9)
    assert config.memory_token_ids(3)[-1] == 159
    with pytest.raises(
        ValueError, match=r"need 9 new tokens from id 152 on, and the vocabulary ends at 160: 1 too many"
    ):
        clara_config(document_token_id=152)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.language_model.layers.0.mlp.up_proj.role_down.compressor", "compressor"),
        ("language_model.layers.1.self_attn.q_proj.role_up.generator", "generator"),
        ("language_model.embed_tokens.memory", "memory_tokens"),
        ("language_model.embed_tokens.weight", None),
        ("lm_head.weight", None),
    ],
)
def test_parts_by_name(name: str, part: str | None) -> None:
    assert clara_config().parameter_part(name) == part


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"compression_rates": []}, r"`compression_rates` is \[\]; give one or more, each once"),
        ({"compression_rates": [4, 4]}, r"`compression_rates` is \[4, 4\]; give one or more, each once"),
        ({"compression_rates": [4, 13]}, r"rates \[13\] are out of range: a passage of 12 tokens .* from 1 to 12"),
        ({"compression_rates": [0, 4, -1]}, r"rates \[0, -1\] are out of range"),
        ({"lora_rank": 0}, "`lora_rank` is 0 and `lora_dropout` 0.0; the rank is 1 or more"),
        ({"lora_dropout": 1.0}, "`lora_dropout` 1.0; .* less than 1"),
        ({"lora_dropout": -0.1}, "`lora_dropout` -0.1"),
        ({"num_retrieved": 0}, "`num_retrieved` is 0 and `retrieval_temperature` 0.02; the first is 1 or more"),
        ({"retrieval_temperature": 0}, "`retrieval_temperature` 0; .* more than 0"),
        ({"stored_roles": ["reader", "generator"]}, "`stored_roles` names reader; the roles are compressor, query_"),
        ({"document_token_id": -1}, "`document_token_id`=-1 is outside .* vocabulary of 160 rows"),
        ({"document_token_id": 160}, "`document_token_id`=160 is outside"),
        ({"document_token_id": DOCUMENT_ID + 15}, "fewer or higher rates, or a shorter `doc_max_length`"),
        ({"graft_only": True}, "`graft_only` needs `base_models` with a language repository"),
        ({"graft_only": True, "base_models": {"vision": {}}}, "`graft_only` needs `base_models`"),
    ],
)
def test_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clara_config(**values)


def test_another_language_model_is_refused() -> None:
    for text in (LlamaConfig(), {"model_type": "qwen3_moe"}):
        with pytest.raises(ValueError, match="the language model must be a dense Qwen3"):
            ClaraQwen3Config(text_config=text)


@pytest.mark.parametrize("wrong", [{"doc_max_length": "256"}, {"lora_rank": 1.5}, {"compression_rates": 32}])
def test_wrong_types_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=next(iter(wrong))):
        ClaraQwen3Config(**wrong)
