"""What writing rows will take, against counting it by hand."""

from pathlib import Path

import pytest

from qwen_grafts.processing import build_qwen_tokenizer
from qwen_grafts.recipes.clara.chunk_store import ChunkStore, write_chunks
from qwen_grafts.recipes.clara.enrichment import EnrichedDocument, EnrichmentCounts
from qwen_grafts.recipes.clara.request_cost import CostEstimate
from qwen_grafts.recipes.clara.row_writing import WritingSettings
from qwen_grafts.recipes.clara.synthesis_cost import writing_cost

TEXTS = (
    "The gateway hands each request to a worker.",
    "网关接收请求，并把请求转发给服务。",
    "A lighthouse stands here.",
)


@pytest.fixture
def cost(tmp_path: Path):
    documents = [EnrichedDocument(text[:5], text, None, (), "text") for text in TEXTS]
    write_chunks(tmp_path, documents, EnrichmentCounts(), build_qwen_tokenizer(256), 256, eval_ratio=0.0, seed=0)
    store = ChunkStore(tmp_path)
    yield lambda *values: writing_cost(store, WritingSettings(*values), 1.0, 1.0)
    store.close()


def test_requests_are_those_of_all_rounds(cost) -> None:
    """A chunk is written about once a round, each question and each paraphrase verified, a verdict asked for thrice."""
    requests = cost(3, 2, 5).requests
    assert requests.low == len(TEXTS) * (1 + 3 + 2 + 2)
    assert requests.expected == 1.5 * requests.low
    assert requests.high == len(TEXTS) * (5 + 5 * 3 * 3 + 5 * 2 + 5 * 3 * 2)
    once = cost(3, 2, 1).requests
    assert once.expected == once.low and once.high == len(TEXTS) * (1 + 3 * 3 + 2 + 3 * 2)


def test_tokens_grow_with_what_is_asked_for(cost) -> None:
    def added(fewer: CostEstimate, more: CostEstimate) -> tuple[float, float, float]:
        differences = ((getattr(more, name).low - getattr(fewer, name).low) for name in ("requests", "prompt_tokens"))
        return (*differences, more.completion_tokens.high - fewer.completion_tokens.high)

    questions = [cost(count, 1, 2) for count in (2, 3, 4)]
    assert added(*questions[:2]) == added(*questions[1:]) > (0, 0, 0)
    paraphrases = [cost(2, count, 2) for count in (0, 1, 2)]
    assert added(*paraphrases[:2]) == added(*paraphrases[1:]) > (0, 0, 0)
    assert questions[0].cost.low == (questions[0].prompt_tokens.low + questions[0].completion_tokens.low) / 1e6
