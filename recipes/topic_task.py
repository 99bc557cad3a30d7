"""Questions about real English passages, made by rule: what CLaRa's demo is trained on and measured by.

Every question is about one passage of `topic_documents`, says enough to find it among all, and has one word of it as
its answer: a word that stands in five passages at most, and never in the question. There are three kinds:

    missing    Which word is missing in “it is useful to ___ the last item”?
    next       Which word comes behind “if the left operand of the”?
    initial    Which word beginning with “ga” is in the text with “cycle”, “weakref” and “finalizer”?

Without the passage a model that starts from random weights can hardly guess the answer; a pretrained one may have read
Python's documentation. No question to train on holds the answer to one that was held out about the same passage.

`topic_rows` writes them as CLaRa's published data are written, so `load_document_rows` reads them.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .document_row_checks import DATA_TYPES, STAGES, Stage
from .topic_documents import TopicDocument, bare_words, topic_documents

KINDS = ("missing", "next", "initial")
# Documents beside a question, the one with its answer among them: CLaRa's numbers.
CANDIDATES = {"instruction": 5, "end_to_end": 20, "retrieval": 20}
BLANK = "___"

# An answer stands in few passages; a word that helps to tell them apart may stand in more.
_ANSWER_PASSAGES, _TELLING_PASSAGES = 5, 25
_FEWEST_WORDS, _MOST_WORDS = 6, 12


@dataclass(frozen=True)
class TopicQuestion:
    """A question.

    Attributes:
        document: id of the passage that it is about.
        kind: one of `KINDS`.
        answer: as it is written in the passage.
    """

    document: int
    kind: str
    question: str
    answer: str


@dataclass(frozen=True)
class TopicSplit:
    """Questions to train on and two kinds of questions to measure by.

    Attributes:
        train: questions about `train_documents`.
        new_questions: others about `train_documents`.
        new_documents: questions about `held_out_documents`.
        train_documents: passages that may be trained on.
        held_out_documents: passages that are never seen in training, as candidates neither.
    """

    train: list[TopicQuestion]
    new_questions: list[TopicQuestion]
    new_documents: list[TopicQuestion]
    train_documents: list[TopicDocument]
    held_out_documents: list[TopicDocument]


class _Passages:
    """Words of all passages, lower case and bare, and where they are."""

    def __init__(self, documents: Sequence[TopicDocument]) -> None:
        self.words = {document.id: bare_words(document.text.lower()) for document in documents}
        self.holding: defaultdict[str, set[int]] = defaultdict(set)
        for document, words in self.words.items():
            for word in words:
                self.holding[word].add(document)

    def is_rare(self, word: str, most: int = _ANSWER_PASSAGES) -> bool:
        """Whether a bare word says much: in few passages, and a number, a name or a word of four letters or more."""
        plain = word.replace("_", "").replace(".", "").replace("-", "")
        if not plain.isalnum() or (len(plain) < 4 and not plain.isdecimal()):
            return False
        return len(self.holding[word.lower()]) <= most

    def holding_all(self, words: Sequence[str]) -> set[int]:
        """Passages that all of the words stand in."""
        return set.intersection(*(self.holding[word] for word in words))

    def places(self, pattern: Sequence[str | None]) -> int:
        """How often the words stand one behind the other in all passages; None is any word."""
        found = 0
        for document in self.holding_all([word for word in pattern if word is not None]):
            words = self.words[document]
            for start in range(len(words) - len(pattern) + 1):
                part = words[start : start + len(pattern)]
                found += all(wanted in (None, word) for wanted, word in zip(pattern, part, strict=True))
        return found


def topic_questions(
    documents: Sequence[TopicDocument], *, seed: int = 0, per_document: int = 12, kinds: Sequence[str] = KINDS
) -> list[TopicQuestion]:
    """Questions about each document, its kinds in turn, as many as it gives, up to a number.

    Args:
        documents: all there are: a question says enough to tell its own from the others.
        seed: of what is asked.
        per_document: most questions about a document.
        kinds: of `KINDS`.

    Raises:
        ValueError: a kind that there is not.
    """
    if unknown := [kind for kind in kinds if kind not in _MAKERS]:
        raise ValueError(f"Kinds of questions are {', '.join(KINDS)}, got {', '.join(map(repr, unknown))}.")
    passages = _Passages(documents)
    questions: list[TopicQuestion] = []
    for document in documents:
        rng = random.Random(f"{seed} {document.id}")
        makers = {kind: _MAKERS[kind](passages, document, rng) for kind in kinds}
        about: list[TopicQuestion] = []
        while makers and len(about) < per_document:
            for kind in list(makers):
                made = next((asked for asked in makers[kind] if _fits(asked, about)), None)
                if made is None:
                    del makers[kind]
                elif len(about) < per_document:
                    about.append(TopicQuestion(document.id, kind, *made))
        questions += about
    return questions


def _fits(asked: tuple[str, str], others: Sequence[TopicQuestion]) -> bool:
    """Whether the question does not hold its own answer, and no other has the same."""
    question, answer = (text.lower() for text in asked)
    return answer not in question and all(answer != other.answer.lower() for other in others)


def _pieces(passages: _Passages, document: TopicDocument, rng: random.Random) -> Iterator[tuple[list[str], int]]:
    """Words of a sentence and the place of one among them that could be an answer, in random order."""
    found = [
        (words, place)
        for sentence in document.sentences
        for words in [[word for word in sentence.split() if bare_words(word)]]
        for place, word in enumerate(words)
        if passages.is_rare(*bare_words(word))
    ]
    rng.shuffle(found)
    yield from found


def _missing(passages: _Passages, document: TopicDocument, rng: random.Random) -> Iterator[tuple[str, str]]:
    for words, place in _pieces(passages, document, rng):
        length = min(rng.randint(_FEWEST_WORDS, _MOST_WORDS), len(words))
        first, last = max(0, place - length + 2), min(place - 1, len(words) - length)
        if length < _FEWEST_WORDS or first > last:  # too short, or the word is the first or the last
            continue
        start = rng.randint(first, last)
        piece = words[start : start + length]
        (answer,) = bare_words(words[place])
        piece[place - start] = words[place].replace(answer, BLANK)
        pattern = [None if word == piece[place - start] else bare_words(word.lower())[0] for word in piece]
        if passages.places(pattern) == 1:
            yield f"Which word is missing in “{' '.join(piece)}”?", answer


def _next(passages: _Passages, document: TopicDocument, rng: random.Random) -> Iterator[tuple[str, str]]:
    for words, place in _pieces(passages, document, rng):
        piece = words[max(0, place - rng.randint(_FEWEST_WORDS, _MOST_WORDS)) : place]
        if len(piece) >= _FEWEST_WORDS and passages.places([bare_words(word.lower())[0] for word in piece]) == 1:
            yield f"Which word comes behind “{' '.join(piece)}”?", *bare_words(words[place])


def _initial(passages: _Passages, document: TopicDocument, rng: random.Random) -> Iterator[tuple[str, str]]:
    written = {word.lower(): word for word in bare_words(document.text)}
    begins = Counter(word[:2] for word in written)
    answers = [word for word in written if begins[word[:2]] == 1 and word[:2].isalpha() and passages.is_rare(word)]
    telling = [word for word in written if passages.is_rare(word, _TELLING_PASSAGES)]
    for answer in rng.sample(answers, len(answers)) if len(telling) >= 3 else ():
        named = rng.sample(telling, 3)
        if passages.holding_all(named) == {document.id}:
            start, shown = written[answer][:2], [f"“{written[word]}”" for word in named]
            yield (
                f"Which word beginning with “{start}” is in the text with {', '.join(shown[:-1])} and {shown[-1]}?",
                written[answer],
            )


_Maker = Callable[[_Passages, TopicDocument, random.Random], Iterator[tuple[str, str]]]
_MAKERS: dict[str, _Maker] = dict(zip(KINDS, (_missing, _next, _initial), strict=True))


def split_topic_questions(
    documents: Sequence[TopicDocument],
    questions: Sequence[TopicQuestion],
    *,
    seed: int = 0,
    new_documents: float = 0.1,
    new_questions: float = 0.1,
) -> TopicSplit:
    """Hold out documents with all their questions, and of the others single questions.

    Args:
        seed: of what is held out.
        new_documents: share of the documents.
        new_questions: share of the questions about the other documents. Each keeps at least one; of the others, those
            that hold an answer held out are in no part.

    Raises:
        ValueError: shares that are none, or that leave nothing to train on.
    """
    if not (0 <= new_documents < 1 and 0 <= new_questions < 1):
        raise ValueError(f"Shares must be at least 0 and below 1, got {new_documents} and {new_questions}.")
    rng = random.Random(seed)
    held_out = {document.id for document in rng.sample(documents, round(new_documents * len(documents)))}
    seen = [question for question in questions if question.document not in held_out]
    kept: defaultdict[int, list[TopicQuestion]] = defaultdict(list)
    for question in seen:
        kept[question.document].append(question)
    new: set[TopicQuestion] = set()
    for question in rng.sample(seen, len(seen)):
        rest = [other for other in kept[question.document] if not gives_away(other, question)]
        if len(new) < round(new_questions * len(seen)) and question in kept[question.document] and rest:
            kept[question.document] = rest
            new.add(question)
    split = TopicSplit(
        train=[question for document in kept.values() for question in document],
        new_questions=[question for question in seen if question in new],
        new_documents=[question for question in questions if question.document in held_out],
        train_documents=[document for document in documents if document.id not in held_out],
        held_out_documents=[document for document in documents if document.id in held_out],
    )
    if not split.train:
        raise ValueError(
            f"{len(questions)} questions about {len(documents)} documents leave none to train on; hold out fewer."
        )
    return split


def gives_away(question: TopicQuestion, held_out: TopicQuestion) -> bool:
    """Whether a question about the same document, or its answer, holds the other one's answer; or it is that one."""
    return held_out.answer.lower() in f"{question.question} {question.answer}".lower()


def topic_rows(
    stage: Stage,
    questions: Sequence[TopicQuestion],
    documents: Sequence[TopicDocument],
    *,
    seed: int = 0,
    candidates: int | None = None,
    data_types: Sequence[str] = DATA_TYPES,
) -> list[dict[str, Any]]:
    """Rows of a stage as its JSON lines hold them; `document_row_checks` says what is in them.

    In the first stage a row is a document with all its questions, and there is a paraphrase of it: no more than its own
    words, since no other wording is at hand. In the others a row is a question, and the documents beside the right one
    are hard to tell from it: they are of its topic or share rare words with it. None of them holds the answer.

    Args:
        questions: about some of the documents.
        documents: those that may be in rows. In training, leave out the ones held out; later, all are candidates.
        seed: of the order of candidates.
        candidates: documents in a row, the right one among them; None for `CANDIDATES`.
        data_types: of the first stage's rows.

    Raises:
        ValueError: no such stage or type, a question about another document, or fewer documents than candidates.
    """
    if stage not in STAGES:
        raise ValueError(f"`stage` must be {', '.join(STAGES[:-1])} or {STAGES[-1]}, got {stage!r}.")
    known = {document.id: document for document in documents}
    if missing := sum(question.document not in known for question in questions):
        raise ValueError(
            f"{missing} of {len(questions)} questions are about documents that are not among the {len(documents)} "
            "given."
        )
    if stage not in CANDIDATES:
        return _first_stage_rows(questions, known, data_types)
    count = CANDIDATES[stage] if candidates is None else candidates
    if count < 1:
        raise ValueError(f"`candidates` must be at least 1, got {count}.")
    return _candidate_rows(questions, known, count, random.Random(seed))


def _first_stage_rows(
    questions: Sequence[TopicQuestion], documents: dict[int, TopicDocument], data_types: Sequence[str]
) -> list[dict[str, Any]]:
    if unknown := [name for name in data_types if name not in DATA_TYPES]:
        raise ValueError(f"Types of rows are {' and '.join(DATA_TYPES)}, got {', '.join(map(repr, unknown))}.")
    about: defaultdict[int, list[TopicQuestion]] = defaultdict(list)
    for question in questions:
        about[question.document].append(question)
    rows = []
    for document, asked in about.items():
        text = documents[document].text
        texts = {"qa": [question.question for question in asked], "paraphrase": []}
        answers = {"qa": [question.answer for question in asked], "paraphrase": [text]}
        rows += [
            {"data_type": name, "question": texts[name], "answers": answers[name], "docs": [text]}
            for name in data_types
        ]
    return rows


def _candidate_rows(
    questions: Sequence[TopicQuestion], documents: dict[int, TopicDocument], candidates: int, rng: random.Random
) -> list[dict[str, Any]]:
    nearest = _nearest(documents)
    lower_case = {document.id: document.text.lower() for document in documents.values()}
    rows = []
    for question in questions:
        answer = question.answer.lower()
        others = [document for document in nearest[question.document] if answer not in lower_case[document]]
        if len(others) + 1 < candidates:
            raise ValueError(
                f"Of {len(documents)} documents, {len(others)} do not hold the answer {question.answer!r}, too few for "
                f"{candidates} candidates with the right one. Give more documents or fewer `candidates`."
            )
        topic = documents[question.document].topic
        alike = [document for document in others if documents[document].topic == topic][: candidates // 2]
        rest = [document for document in others if document not in alike][: candidates - 1 - len(alike)]
        row = [question.document, *alike, *rest]
        rng.shuffle(row)
        rows.append(
            {
                "question": question.question,
                "docs": [documents[document].text for document in row],
                "gold_answer": question.answer,
                "answer": question.answer,
                "pos_index": [row.index(question.document)],
            }
        )
    return rows


def _nearest(documents: dict[int, TopicDocument]) -> dict[int, list[int]]:
    """Of each document the others, those first that share the most and rarest words with it.

    A word weighs log(documents / documents with it); compared is the cosine.
    """
    passages = _Passages(list(documents.values()))
    ids, columns = list(documents), {word: column for column, word in enumerate(passages.holding)}
    weights_DV = np.zeros((len(ids), len(columns)))
    for row, document in enumerate(ids):
        for word in set(passages.words[document]):
            weights_DV[row, columns[word]] = np.log(len(ids) / len(passages.holding[word]))
    weights_DV /= np.maximum(np.linalg.norm(weights_DV, axis=1, keepdims=True), 1e-12)
    # Rounded, so that the order does not hang on the machine's last bits.
    order_DD = np.argsort(-np.round(weights_DV @ weights_DV.T, 9), axis=1, kind="stable")
    return {document: [ids[place] for place in order_DD[row] if place != row] for row, document in enumerate(ids)}


__all__ = [
    "BLANK",
    "CANDIDATES",
    "KINDS",
    "TopicDocument",
    "TopicQuestion",
    "TopicSplit",
    "split_topic_questions",
    "topic_documents",
    "topic_questions",
    "topic_rows",
]
