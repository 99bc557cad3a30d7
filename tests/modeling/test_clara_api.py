"""CLaRa from texts: what comes out is what the tensors give, whatever it is done together with, before or after."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clara_checkpoint import clara_checkpoint, tiny_clara, tiny_processor
from contracts.model_contract import assert_close
from tiny_clara import LENGTH, RATES
from transformers import AutoModel, AutoModelForCausalLM

from qwen_grafts.modeling import Answer, ClaraQwen3ForCausalLM, ClaraQwen3Model

# A document of one token, of one full passage, of several, and two that share a beginning.
DOCUMENTS = ["x", "twelve bytes", "The lens is in use.", "The lens was built in 1871, on the cape.", "北角的灯塔"]
QUESTIONS = ["Who?", "When was the lens built?", "Where, then, is it?"]
LONG = "word " * 20_000  # 10^5 tokens


@pytest.fixture(scope="module")
def model() -> ClaraQwen3ForCausalLM:
    """Not to be changed."""
    return tiny_clara().eval()


@pytest.fixture
def own() -> ClaraQwen3ForCausalLM:
    """The same, to be changed."""
    return tiny_clara().eval()


@pytest.fixture
def compressed(model: ClaraQwen3ForCausalLM, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Passages of each call that compresses."""
    calls, compress_ids = [], model.model.compress_ids
    monkeypatch.setattr(model.model, "compress_ids", lambda ids: calls.append(len(ids)) or compress_ids(ids))
    return calls


@torch.no_grad()
def one_by_one(model: ClaraQwen3ForCausalLM, document: str, rate: int | None = None) -> torch.Tensor:
    """Latents of a document's passages (N, M, D), each computed alone."""
    pieces = model.processor.passages(document)
    rows = [model.processor.compressor_inputs([piece], rate) for piece in pieces]
    return torch.cat([model.model.compress_ids(row)[0] for row in rows])


def cosine(query: torch.Tensor, passages: torch.Tensor) -> float:
    """Of a question (M, D) and the best of a document's passages (N, M, D), in float64."""
    left = query.double().numpy().ravel()
    rows = passages.double().numpy().reshape(len(passages), -1)
    return max(float(left @ row / np.linalg.norm(left) / np.linalg.norm(row)) for row in rows)


# Compressing.


@pytest.mark.parametrize("rate", [None, *RATES])
@pytest.mark.parametrize("tokens_per_batch", [1, 45, 16_384])
def test_documents_compress_as_alone_and_in_order(
    model: ClaraQwen3ForCausalLM, rate: int | None, tokens_per_batch: int
) -> None:
    found = model.compress(DOCUMENTS, compression_rate=rate, tokens_per_batch=tokens_per_batch)
    assert [len(latents) for latents in found] == [1, 1, 2, 4, 2]
    for latents, document in zip(found, DOCUMENTS, strict=True):
        assert latents.shape[1:] == (LENGTH // (rate or RATES[0]), 64)
        assert_close(latents, one_by_one(model, document, rate), 1e-5)


def test_tokens_a_batch_bound_what_is_computed_at_once(
    model: ClaraQwen3ForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes, compress_ids = [], model.model.compress_ids
    monkeypatch.setattr(model.model, "compress_ids", lambda ids: shapes.append(ids.shape) or compress_ids(ids))
    model.compress([*DOCUMENTS, "seventy bytes. " * 5], tokens_per_batch=45)
    assert sum(rows for rows, _ in shapes) == 17
    assert all(rows * width <= 45 for rows, width in shapes)
    # Passages of like length together: the longest first, and hardly anything is padding.
    assert [width for _, width in shapes] == sorted((width for _, width in shapes), reverse=True)


def test_no_documents_have_no_latents(model: ClaraQwen3ForCausalLM) -> None:
    assert model.compress([]) == []


def test_nothing_is_live_and_nothing_stays(own: ClaraQwen3ForCausalLM) -> None:
    """In training mode, with dropout: no graph, no dropout, and the mode comes back, also after an error."""
    for module in own.modules():
        if hasattr(module, "role_up"):
            module.dropout = 0.5
    own.train()
    results = [
        (own.compress(DOCUMENTS[3:4])[0], own.encode_query(QUESTIONS), own.answer(QUESTIONS[0], DOCUMENTS).text)
        for _ in range(2)
    ]
    for first, second in zip(*(result[:2] for result in results), strict=True):
        assert torch.equal(first, second) and not first.requires_grad
    assert results[0][2] == results[1][2]
    with pytest.raises(ValueError, match="context"):
        own.answer("Who? " * 200)
    assert all(module.training for module in own.modules())
    assert torch.is_grad_enabled()
    own.eval()
    own.compress(DOCUMENTS)
    assert not any(module.training for module in own.modules())


def test_a_low_precision_model_gives_latents_of_its_own_dtype(own: ClaraQwen3ForCausalLM) -> None:
    exact = own.compress(DOCUMENTS)
    for found, wanted in zip(own.bfloat16().compress(DOCUMENTS), exact, strict=True):
        assert found.dtype == torch.bfloat16
        assert_close(found, wanted, 0.1)


@pytest.mark.slow
def test_a_document_of_a_million_tokens_is_compressed(model: ClaraQwen3ForCausalLM) -> None:
    document = "".join(f"{number:06d} is a number. " for number in range(50_500))
    pieces = model.processor.passages(document)
    latents = model.compress([document])[0]
    assert len(pieces) == len(latents) > 83_333
    for place in (0, 1, len(pieces) // 2, len(pieces) - 1):
        alone = model.model.compress_ids(model.processor.compressor_inputs([pieces[place]]))[0]
        assert_close(latents[place], alone[0], 1e-5)


# Retrieving.


@pytest.mark.parametrize("rate", [None, *RATES])
def test_questions_are_read_in_their_own_role(model: ClaraQwen3ForCausalLM, rate: int | None) -> None:
    found = model.encode_query(QUESTIONS, compression_rate=rate)
    for latents, question in zip(found, QUESTIONS, strict=True):
        ids = model.processor.query_inputs(question, rate)
        with torch.no_grad():
            hidden = model.model.language_model(input_ids=ids, role="query_reasoner").last_hidden_state
        assert_close(latents, hidden[0, -LENGTH // (rate or RATES[0]) :], 1e-5)
        assert_close(model.encode_query(question, compression_rate=rate)[0], latents, 1e-5)
        compressed = model.compress([question], compression_rate=rate)[0]
        assert (compressed[0] - latents).abs().max() > 0.1


@pytest.mark.parametrize("rate", [None, 3])
def test_retrieval_against_the_definition(model: ClaraQwen3ForCausalLM, rate: int | None) -> None:
    """Cosines of flattened latents; a document is as good as its best passage."""
    latents = [one_by_one(model, document, rate) for document in DOCUMENTS]
    queries = model.encode_query(QUESTIONS, compression_rate=rate)
    wanted = torch.tensor([[cosine(query, passages) for passages in latents] for query in queries])
    found = model.retrieve(QUESTIONS, DOCUMENTS, top_k=4, compression_rate=rate)
    assert found.scores.shape == found.indices.shape == (3, 4)
    assert_close(found.scores, wanted.sort(dim=1, descending=True).values[:, :4].float(), 1e-5)
    assert torch.equal(found.indices, wanted.argsort(dim=1, descending=True)[:, :4])
    assert (wanted.max(dim=1).values - wanted.min(dim=1).values).min() > 0.02
    given = model.compress(DOCUMENTS, compression_rate=rate)
    again = model.retrieve(QUESTIONS, given, top_k=4, compression_rate=rate)
    assert torch.equal(again.indices, found.indices) and torch.equal(again.scores, found.scores)


def test_all_documents_are_ranked_where_there_are_few(model: ClaraQwen3ForCausalLM) -> None:
    """`num_retrieved` is 5; only a number that is asked for is refused."""
    assert model.retrieve("Who?", DOCUMENTS[:2]).indices.shape == (1, 2)
    assert model.retrieve("Who?", [*DOCUMENTS, "another", "and another"]).indices.shape == (1, 5)


# Answering.


def test_an_answer_is_what_generate_writes(model: ClaraQwen3ForCausalLM) -> None:
    """From latents and a prompt that are put together by hand."""
    latents = [one_by_one(model, document).flatten(0, 1) for document in DOCUMENTS]
    inputs = model.processor(QUESTIONS[1], placeholders=[[len(part) for part in latents]])
    first = model.config.document_token_id
    barred = list(range(first, first + 1 + model.config.num_new_embeddings))
    written = model.generate(
        **inputs, memory=latents, do_sample=False, max_new_tokens=9, min_new_tokens=9, suppress_tokens=barred
    )
    text = model.processor.tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    answer = model.answer(QUESTIONS[1], DOCUMENTS, max_new_tokens=9, min_new_tokens=9)
    assert isinstance(answer, Answer) and answer.text == text.strip() != ""
    assert [document.text for document in answer.documents] == DOCUMENTS
    assert [document.id for document in answer.documents] == ["0", "1", "2", "3", "4"]
    query = model.encode_query(QUESTIONS[1])[0]
    scores = [cosine(query, one_by_one(model, document)) for document in DOCUMENTS]
    assert [document.score for document in answer.documents] == pytest.approx(scores, abs=1e-5)
    other = model.answer(QUESTIONS[1], DOCUMENTS[::-1], max_new_tokens=9, min_new_tokens=9)
    assert other.text != answer.text


def test_no_documents_and_no_memory(model: ClaraQwen3ForCausalLM) -> None:
    """The generator alone; an empty list says the same as none."""
    inputs = model.processor("Who?")
    written = model.generate(**inputs, do_sample=False, max_new_tokens=9)[0, inputs["input_ids"].shape[1] :]
    text = model.processor.tokenizer.decode(written, skip_special_tokens=True).strip()
    for documents in (None, []):
        assert model.answer("Who?", documents, max_new_tokens=9) == Answer(text, ())
    assert [answer.text for answer in model.answer(["Who?"], max_new_tokens=9)] == [text]
    assert model.answer([]) == model.answer([], []) == []


@pytest.mark.parametrize(
    ("written", "thought", "text"),
    [
        ("Built of \namber.</think>\n\nAmber. ", "Built of \namber.", "Amber."),
        ("Amber, I th", "Amber, I th", ""),
    ],
    ids=["finished", "cut off"],
)
def test_a_thought_stands_beside_the_answer(own: ClaraQwen3ForCausalLM, written: str, thought: str, text: str) -> None:
    """What the model writes is laid into its hand; the prompt opens the thought."""
    tokens = iter([*own.processor.tokenizer(written)["input_ids"], own.config.text_config.eos_token_id])

    def next_token(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.full_like(scores, -1e9).index_fill(1, torch.tensor(next(tokens)), 0.0)

    answer = own.answer("Of what?", DOCUMENTS, enable_thinking=True, logits_processor=[next_token])
    assert (answer.text, answer.reasoning_content) == (text, thought)
    assert own.answer("Of what?", DOCUMENTS).reasoning_content is None


def test_ragged_questions_are_answered_as_alone(model: ClaraQwen3ForCausalLM, compressed: list[int]) -> None:
    """None to twenty documents, in batches of two; each text is compressed once for all of them."""
    many = [f"Number {index} is {index} m." for index in range(20)]
    documents = [[], many, [DOCUMENTS[3], many[7]], [many[7]], DOCUMENTS[:2]]
    questions = [*QUESTIONS, "Seven?", "x"]
    settings = {"max_new_tokens": 6, "min_new_tokens": 6}
    with pytest.raises(ValueError, match=r"has .* tokens and 6 are to be written, and the context holds 512"):
        model.answer(questions, [[], many * 7, [], [], []], **settings)
    assert compressed == []
    together = model.answer(questions, documents, batch_size=2, **settings)
    texts = {text for given in documents for text in given}
    assert sum(compressed) == sum(len(model.processor.passages(text)) for text in texts)
    for answer, question, given in zip(together, questions, documents, strict=True):
        alone = model.answer(question, given, **settings)
        assert answer.text == alone.text != ""
        assert [document.text for document in answer.documents] == given
        wanted = [document.score for document in alone.documents]
        assert [document.score for document in answer.documents] == pytest.approx(wanted, abs=1e-5)


def test_an_answer_from_the_best_documents(model: ClaraQwen3ForCausalLM) -> None:
    """The best first, as `retrieve` finds them, and the same as from these documents alone."""
    found = model.retrieve(QUESTIONS, DOCUMENTS, top_k=2)
    answers = model.answer(QUESTIONS, [DOCUMENTS] * 3, top_k=2, max_new_tokens=7, min_new_tokens=7)
    for answer, question, indices in zip(answers, QUESTIONS, found.indices.tolist(), strict=True):
        assert [document.id for document in answer.documents] == [str(index) for index in indices]
        chosen = [DOCUMENTS[index] for index in indices]
        assert [document.text for document in answer.documents] == chosen
        assert answer.text == model.answer(question, chosen, max_new_tokens=7, min_new_tokens=7).text


def test_documents_in_other_words(model: ClaraQwen3ForCausalLM) -> None:
    """Nothing is asked, so all documents are used and none has a score; beside questions, too."""
    settings = {"max_new_tokens": 7, "min_new_tokens": 7}
    counts = [len(one_by_one(model, document).flatten(0, 1)) for document in DOCUMENTS]
    inputs = model.processor("", placeholders=[counts])
    memory = [one_by_one(model, document).flatten(0, 1) for document in DOCUMENTS]
    first = model.config.document_token_id
    barred = list(range(first, first + 1 + model.config.num_new_embeddings))
    written = model.generate(**inputs, memory=memory, do_sample=False, suppress_tokens=barred, **settings)
    written = written[0, inputs["input_ids"].shape[1] :]
    again, asked = model.answer(["", QUESTIONS[0]], [DOCUMENTS, DOCUMENTS], **settings)
    assert again.text == model.processor.tokenizer.decode(written, skip_special_tokens=True).strip()
    assert [(document.text, document.score) for document in again.documents] == [(text, None) for text in DOCUMENTS]
    assert asked == model.answer(QUESTIONS[0], DOCUMENTS, **settings)


def test_calls_leave_nothing_behind(own: ClaraQwen3ForCausalLM) -> None:
    """Sampling that a checkpoint asks for, another rate, number or length: the next call knows of none of it."""
    own.generation_config.do_sample, own.generation_config.temperature = True, 3.0
    before = own.config.to_dict(), own.generation_config.to_dict()
    calls = [
        lambda: own.answer(QUESTIONS[1], DOCUMENTS),
        lambda: own.answer(QUESTIONS, [DOCUMENTS] * 3, top_k=2, compression_rate=3, max_new_tokens=5),
        lambda: own.answer(QUESTIONS[2], DOCUMENTS[:1], enable_thinking=True),
        lambda: own.answer(QUESTIONS[2], DOCUMENTS[:1]),
        lambda: own.retrieve(QUESTIONS, DOCUMENTS, top_k=1).indices.tolist(),
    ]
    forward = [call() for call in calls]
    assert forward[2] != forward[3]
    assert [call() for call in reversed(calls)] == forward[::-1]
    assert (own.config.to_dict(), own.generation_config.to_dict()) == before
    with torch.random.fork_rng():
        assert len({own.answer(QUESTIONS[1], DOCUMENTS, do_sample=True).text for _ in range(3)}) > 1


def test_no_answer_holds_a_token_of_a_document(own: ClaraQwen3ForCausalLM) -> None:
    """A head that likes nothing better than a placeholder would ask for one more document."""
    with torch.no_grad():
        first = own.config.document_token_id
        own.lm_head.weight[first : first + 9].mul_(50)
    for answer in own.answer(QUESTIONS, [DOCUMENTS] * 3, max_new_tokens=12, min_new_tokens=12):
        ids = own.processor.tokenizer(answer.text, add_special_tokens=False)["input_ids"]
        assert ids and max(ids) < first


@pytest.mark.parametrize("rate", RATES)
def test_latents_at_hand_answer_the_same(model: ClaraQwen3ForCausalLM, rate: int) -> None:
    """As the card shows it: compress once, ask for ever."""
    latents = model.compress(DOCUMENTS, compression_rate=rate)
    counts = [part.shape[0] * part.shape[1] for part in latents]
    inputs = model.processor("Who?", placeholders=[counts])
    output = model.generate(**inputs, memory=[part.flatten(0, 1) for part in latents], max_new_tokens=8)
    text = model.processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text.strip() == model.answer("Who?", DOCUMENTS, compression_rate=rate, max_new_tokens=8).text


# What tells compressors apart.


def trained(model: ClaraQwen3ForCausalLM, *ends: str) -> ClaraQwen3ForCausalLM:
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            if name.endswith(ends):
                parameter.mul_(1.1)
    return changed


def test_a_fingerprint_is_the_compressor_s(model: ClaraQwen3ForCausalLM, tmp_path: Path) -> None:
    """Saved, loaded, in bfloat16 and behind another generator it is the same; of anything a latent is made from not."""
    own = model.model.fingerprint()
    assert len(own) == 64 and own == model.model.fingerprint(RATES[0]) == tiny_clara().train().model.fingerprint()
    model.save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        assert ClaraQwen3ForCausalLM.from_pretrained(tmp_path, dtype=dtype).model.fingerprint() == own
        assert ClaraQwen3Model.from_pretrained(tmp_path, dtype=dtype).fingerprint() == own
    assert trained(model, ".generator", ".query_reasoner").model.fingerprint() == own
    others = {
        "rate": model.model.fingerprint(RATES[1]),
        "compressor": trained(model, "layers.1.mlp.up_proj.role_up.compressor").model.fingerprint(),
        "memory": trained(model, ".memory").model.fingerprint(),
        "base": trained(model, "layers.0.self_attn.k_proj.weight").model.fingerprint(),
        "norm": trained(model, "language_model.norm.weight").model.fingerprint(),
        "scale": tiny_clara(lora_alpha=8.0).model.fingerprint(),
        "rope": tiny_clara({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}).model.fingerprint(),
        "norms": tiny_clara({"rms_norm_eps": 1e-4}).model.fingerprint(),
        "order of rates": tiny_clara(compression_rates=RATES[::-1]).model.fingerprint(RATES[0]),
    }
    assert len({own, *others.values()}) == 1 + len(others)


# Where the processor comes from.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clara_checkpoint(tmp_path_factory.mktemp("clara"))


def test_the_processor_lies_beside_the_weights(model: ClaraQwen3ForCausalLM, folder: Path) -> None:
    """The backbone alone compresses and retrieves; it has no head to answer with."""
    loaded, backbone = (auto.from_pretrained(folder).eval() for auto in (AutoModelForCausalLM, AutoModel))
    assert type(backbone) is ClaraQwen3Model and not hasattr(backbone, "answer")
    wanted = model.retrieve(QUESTIONS, DOCUMENTS)
    for found in (loaded.retrieve(QUESTIONS, DOCUMENTS), backbone.retrieve(QUESTIONS, DOCUMENTS)):
        assert torch.equal(found.indices, wanted.indices) and torch.equal(found.scores, wanted.scores)
    assert loaded.answer("Who?", DOCUMENTS) == model.answer("Who?", DOCUMENTS)
    assert loaded.processor is loaded.processor is loaded.model.processor


def test_a_processor_that_is_set_is_used(folder: Path) -> None:
    loaded, chosen = ClaraQwen3ForCausalLM.from_pretrained(folder), tiny_processor()
    loaded.processor = chosen
    assert loaded.processor is chosen is loaded.model.processor


def test_a_graft_takes_the_processor_and_the_settings_of_its_own_folder(folder: Path, tmp_path: Path) -> None:
    """Not those of the model it was trained on."""
    model = ClaraQwen3ForCausalLM.from_pretrained(folder)
    config = model.config
    config.graft_only, config.num_retrieved, config.retrieval_temperature = True, 2, 0.5
    config.base_models = {"language": {"repo_id": str(folder), "revision": "main"}}
    kept = {name: tensor for name, tensor in model.state_dict().items() if model.is_new(name)}
    model.save_pretrained(tmp_path / "graft", state_dict=kept)
    processor = tiny_processor()
    processor.tokenizer.chat_template = "{{ messages[0].content }}!"
    processor.chat_template = None
    processor.save_pretrained(tmp_path / "graft")
    loaded = ClaraQwen3ForCausalLM.from_pretrained(tmp_path / "graft")
    assert loaded.processor.tokenizer.decode(loaded.processor("Who?")["input_ids"][0]) == "Who?!"
    assert (loaded.config.num_retrieved, loaded.config.retrieval_temperature) == (2, 0.5)
    assert loaded.retrieve("Who?", DOCUMENTS).indices.shape == (1, 2)
    assert loaded.config.lora_alpha == 7.0 and loaded.config.compression_rates == list(RATES)


def test_a_model_from_nowhere_asks_for_a_processor() -> None:
    model = ClaraQwen3ForCausalLM(tiny_clara().config)
    with pytest.raises(ValueError, match=r"not loaded from a repository; set `model\.processor` first"):
        model.compress(["lens"])


# Refusals.


def calls(model: ClaraQwen3ForCausalLM) -> Iterator[tuple[Any, str]]:
    yield lambda: model.compress("a text"), "`documents` is one text; give a list of documents"
    yield lambda: model.compress(["lens", " "]), r"A document is empty \(0 tokens\)"
    yield lambda: model.compress(["lens"], compression_rate=5), "`compression_rate` is 5; this checkpoint knows 2: 4, 3"
    yield lambda: model.encode_query(["Who?", ""]), "1 of 2 questions are empty; nothing can be retrieved"
    yield lambda: model.encode_query("Who? " * 200), "A question with its memory tokens has 1003 tokens .* holds 512"
    yield lambda: model.encode_query("Who?", compression_rate=5), "`compression_rate` is 5"
    yield lambda: model.retrieve("Who?", DOCUMENTS, top_k=6), "`top_k` is 6, and there are 5 documents; choose 1 to"
    yield lambda: model.retrieve("Who?", DOCUMENTS, top_k=0), "`top_k` is 0, and there are 5 documents"
    yield lambda: model.retrieve("Who?", []), "there are 0 documents"
    yield lambda: model.retrieve("Who?", "a text"), "`documents` is one text"
    yield lambda: model.retrieve("", DOCUMENTS), "1 of 1 questions are empty"
    yield (
        lambda: model.retrieve("Who?", model.compress(DOCUMENTS, compression_rate=3)),
        "A question has 3 latents and a passage 4: compress both at one rate",
    )
    yield lambda: model.answer("Who?", DOCUMENTS, index=object()), "Give `documents` or an `index`, and not both"
    yield lambda: model.answer("Who?", "a text"), "1 of 1 questions have a text in place of a list of documents"
    yield lambda: model.answer(["Who?", "When?"], DOCUMENTS), "5 of 2 questions have a text in place of a list"
    yield lambda: model.answer(["Who?", "When?"], [DOCUMENTS]), "There are 2 questions and 1 lists of documents"
    yield lambda: model.answer("Who?", [*DOCUMENTS, ""]), r"A document is empty \(0 tokens\)"
    yield lambda: model.answer("Who?", DOCUMENTS, compression_rate=5), "`compression_rate` is 5"
    yield lambda: model.answer("", DOCUMENTS, top_k=2), "1 of 1 questions are empty; nothing can be retrieved"
    yield lambda: model.answer(" "), "neither a question nor a document"
    yield (
        lambda: model.answer(QUESTIONS[:2], [DOCUMENTS, ["lens"]], top_k=2),
        "`top_k` is 2, and 1 of 2 questions have fewer documents, the fewest 1; choose 1 to that many",
    )
    yield lambda: model.answer("Who? " * 200), "A prompt with its documents has .* and 64 are to be written"
    yield lambda: model.answer("Who?", DOCUMENTS, max_new_tokens=450), "and 450 are to be written.* holds 512"
    yield lambda: model.answer("Who?", [LONG]), "A prompt with its documents has 25056 tokens and 64 are to be written"
    yield lambda: model.answer("Who?", [LONG, LONG + "x"], top_k=1), "has 25056 tokens"


@pytest.mark.parametrize("index", range(len(list(calls(None)))))
def test_refused_before_anything_is_compressed(model: ClaraQwen3ForCausalLM, compressed: list[int], index: int) -> None:
    call, message = list(calls(model))[index]
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
    assert sum(compressed) <= 10  # the latents that a call was given


def test_a_choice_that_is_too_long_is_refused_when_it_is_known(model: ClaraQwen3ForCausalLM) -> None:
    """One of the two documents fits and the other does not; which is the better one, only the latents tell."""
    words = "word " * 500
    for question, places in (("Who?", [0]), (QUESTIONS[1], [1])):
        assert model.retrieve(question, [words, "lens"], top_k=1).indices.tolist() == [places]
    answer = model.answer(QUESTIONS[1], [words, "lens"], top_k=1)
    assert [document.text for document in answer.documents] == ["lens"]
    with pytest.raises(ValueError, match=r"has .* tokens and 64 are to be written, and the context holds 512"):
        model.answer("Who?", [words, "lens"], top_k=1)
