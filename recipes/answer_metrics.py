"""Answers in words against gold answers, and retrieved documents against the right ones.

Texts are compared as in SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250): lower case, no punctuation, no articles,
single spaces. Beyond that:
- Unicode's compatibility form comes first and all its punctuation goes, so that full-width digits and typographic
  quotation marks do not count;
- each Chinese or Japanese character is a word, as in MLQA (Lewis et al. 2020, arXiv 1910.07475): no spaces part them;
- a text of which nothing would be left (“The”, “+”) is kept.

Every measure of an answer takes the best over its gold answers.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

# Han with its extensions, hiragana and katakana; Korean has spaces.
_CJK = "\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_WORDS = re.compile(rf"[{_CJK}]|[^\s{_CJK}]+")
_CJK_RUNS = re.compile(rf"[{_CJK}]+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        """about after all also am and any are as at be because been before being both but by can could did do does
        each for from had has have he her him his how i if in into is it its may me might more most my no nor not of on
        only or other our out over shall she should so some such than that their them then there these they this those
        through to too under up us very was we were what when where which while who whom whose why will with would yes
        you your""",
    )
)


def normalise_answer(text: str) -> str:
    """The text as it is compared: see the module."""
    text = unicodedata.normalize("NFKC", text).lower()
    bare = "".join(character for character in text if not _is_punctuation(character))
    return " ".join(_ARTICLES.sub(" ", bare).split()) or " ".join(text.split())


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def answer_words(text: str) -> list[str]:
    """The words of the text as it is compared; a Chinese or Japanese character is one."""
    return _WORDS.findall(normalise_answer(text))


def exact_match(prediction: str, golds: Sequence[str]) -> bool:
    """Whether the words are those of a gold answer (SQuAD's EM)."""
    words = answer_words(prediction)
    return any(words == gold for gold in _gold_words(golds))


def cover_exact_match(prediction: str, golds: Sequence[str]) -> bool:
    """Whether the words of a gold answer stand in the prediction, side by side and in order."""
    words = answer_words(prediction)
    return any(
        words[start : start + len(gold)] == gold for gold in _gold_words(golds) for start in range(len(words)) if gold
    )


def cover_words(prediction: str, golds: Sequence[str]) -> bool:
    """Whether every word of a gold answer stands somewhere in the prediction.

    CLaRa's released evaluation counts it so (of several gold answers, the first alone), which makes this the measure to
    hold against the cover-EM of its paper. It is never lower than `cover_exact_match`.
    """
    words = set(answer_words(prediction))
    return any(gold and words.issuperset(gold) for gold in _gold_words(golds))


def token_f1(prediction: str, golds: Sequence[str]) -> float:
    """Harmonic mean of the shares of predicted and of wanted words that agree, repeats counted (SQuAD's F1)."""
    return max(_overlap_f1(answer_words(prediction), gold) for gold in _gold_words(golds))


def _overlap_f1(words: list[str], gold: list[str]) -> float:
    if not words or not gold:
        return float(words == gold)
    common = (Counter(words) & Counter(gold)).total()
    return 2 * common / (len(words) + len(gold))


def _gold_words(golds: Sequence[str]) -> list[list[str]]:
    if isinstance(golds, str) or not golds:
        raise ValueError(f"Gold answers are a list of at least one text, got {golds!r}.")
    return [answer_words(gold) for gold in golds]


def faithfulness(answer: str, documents: Sequence[str]) -> float | None:
    """Share of the answer's different content words that occur in any of the documents; None if it has none.

    Content words are all but articles, pronouns, auxiliaries, prepositions and the like; of Chinese and Japanese, pairs
    of neighbouring characters. It is the K-Precision of Adlakha et al. (2024, arXiv 2307.16877) without function words
    and repeats. It finds names and numbers that come from nowhere. It is no judgement of what is claimed: an answer
    that denies what the documents say, or mixes up who did it, may have 1.0, and a good paraphrase less.
    """
    wanted = _content_words(answer)
    if not wanted:
        return None
    found = set().union(*map(_content_words, documents))
    return len(wanted & found) / len(wanted)


def _content_words(text: str) -> set[str]:
    text = normalise_answer(text)
    words = set(_CJK_RUNS.sub(" ", text).split()) - _FUNCTION_WORDS
    for run in _CJK_RUNS.findall(text):
        words |= {run[start : start + 2] for start in range(max(1, len(run) - 1))}
    return words


def score_answers(
    predictions: Sequence[str], golds: Sequence[Sequence[str]], documents: Sequence[Sequence[str]] | None = None
) -> dict[str, float]:
    """Means over all answers.

    Args:
        golds: of each prediction the gold answers.
        documents: of each prediction those it should rest on.

    Returns:
        `exact_match`, `cover_exact_match`, `cover_words`, `token_f1` and `rows`; with documents also `faithfulness`,
        over the answers with content words, where there are any.

    Raises:
        ValueError: no predictions, or not one entry for each.
    """
    counts = {"predictions": len(predictions), "gold answers": len(golds)}
    if documents is not None:
        counts["documents"] = len(documents)
    if not predictions or len(set(counts.values())) > 1:
        found = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise ValueError(f"Scoring needs at least one prediction and one entry for each, got {found}.")
    scores = {
        measure.__name__: sum(map(measure, predictions, golds)) / len(predictions)
        for measure in (exact_match, cover_exact_match, cover_words, token_f1)
    }
    if documents is not None:
        shares = [share for share in map(faithfulness, predictions, documents) if share is not None]
        if shares:
            scores["faithfulness"] = sum(shares) / len(shares)
    return scores | {"rows": len(predictions)}


def recall_at_k(retrieved: Sequence[Sequence[int]], positives: Sequence[Sequence[int]], k: int) -> dict[str, float]:
    """What the first `k` retrieved documents hold of the right ones, over the queries that have right ones.

    Args:
        retrieved: of each query document ids, the best first.
        positives: of each query the ids of the right documents, in any order.

    Returns:
        `hit_rate@k`, the share of queries with at least one right document found; `recall@k`, the mean share of a
        query's right documents found (the Recall@k of CLaRa's paper, whose code counts queries without right documents
        as 0); `queries`, those that have right documents.

    Raises:
        ValueError: `k` below 1, lists of different length, or no query with a right document.
    """
    if k < 1:
        raise ValueError(f"`k` must be at least 1, got {k}.")
    if len(retrieved) != len(positives):
        raise ValueError(
            f"Every query needs both lists, got {len(retrieved)} retrieved and {len(positives)} right ones."
        )
    shares = [
        len(set(found[:k]) & set(right)) / len(set(right))
        for found, right in zip(retrieved, positives, strict=True)
        if right
    ]
    if not shares:
        raise ValueError(f"None of {len(positives)} queries has a right document; recall needs one.")
    return {
        f"hit_rate@{k}": sum(share > 0 for share in shares) / len(shares),
        f"recall@{k}": sum(shares) / len(shares),
        "queries": len(shares),
    }


__all__ = [
    "answer_words",
    "cover_exact_match",
    "cover_words",
    "exact_match",
    "faithfulness",
    "normalise_answer",
    "recall_at_k",
    "score_answers",
    "token_f1",
]
