"""What writing the rows of some chunks will take, before the first request; embeddings have their own price."""

import numpy as np

from .chunk_store import ChunkStore
from .request_cost import CostEstimate, PlannedRequests, Range, count_prompt_tokens, estimate, rough_tokens
from .row_writing import WritingSettings, prompt_language
from .writing_prompts import messages, writing_messages

# Tokens of a question with its answer, and of a verdict; the least, what to expect.
_PAIR, _VERDICT = (20, 60), (20, 45)
# How often a task is done, until enough is good; a verdict that cannot be read is asked for again.
_EXPECTED_ROUNDS, _TRIES = 1.5, 3


def writing_cost(
    store: ChunkStore, settings: WritingSettings, input_price: float | None, output_price: float | None
) -> CostEstimate:
    """Tokens of texts are estimated by their bytes."""
    chunks = np.flatnonzero(store.usable)
    prompts = np.zeros(4, np.int64)
    asked, length = "x" * 4 * _PAIR[1], 0
    for chunk in chunks:
        text = store.text(chunk)
        language = prompt_language(text)
        empty = {"chunk": text, "taken": [], "problems": []}
        conversations = (
            writing_messages(language, text, "", settings.questions_per_chunk),
            messages("verify", language, chunk=text, question=asked, answer=""),
            messages("paraphrase", language, **empty),
            messages("compare", language, chunk=text, paraphrase=text),
        )
        prompts += [count_prompt_tokens(conversation, rough_tokens) for conversation in conversations]
        length += rough_tokens(text)
    questions, paraphrases = settings.questions_per_chunk, settings.paraphrases_per_chunk
    most, count = settings.max_tokens, len(chunks)
    mean = length / max(1, count)
    verdict = Range(*(min(tokens, most) for tokens in _VERDICT), most)
    rounds = Range(1, min(_EXPECTED_ROUNDS, settings.max_rounds), settings.max_rounds)
    checks = Range(rounds.low, rounds.expected, _TRIES * rounds.high)
    pairs = Range(*(min(tokens * questions, most) for tokens in _PAIR), most)
    planned = [
        PlannedRequests("questions", count, int(prompts[0]), pairs, rounds),
        PlannedRequests("their verification", questions * count, int(questions * prompts[1]), verdict, checks),
        PlannedRequests(
            "paraphrases", paraphrases * count, int(paraphrases * prompts[2]), Range(mean / 2, mean, most), rounds
        ),
        PlannedRequests("their verification", paraphrases * count, int(paraphrases * prompts[3]), verdict, checks),
    ]
    return estimate(planned, input_price, output_price)


__all__ = ["writing_cost"]
