"""Questions to practise on, as many as wanted: for a model from random weights, what `topic_task` has is too little.

    missing, next   those of `topic_task`, about any words, whether they tell one passage from the others or not
    words           Which text has the words “cycle”, “weakref” and “finalizer”?

They teach which passage a piece of text is from: word by word, and not by whole pieces alone.

    topic           What is the text about?      the name by which `help()` knows the passage

The question says nothing of its document, so nothing but the document can answer it.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence

from .topic_documents import TopicDocument, bare_words
from .topic_task import BLANK, TopicQuestion

PRACTICE_KINDS = ("missing", "next", "words", "words")  # as often as they stand here
TOPIC_WORDINGS = ("What is the text about?", "Which topic is the text from?", "Name the topic of the text.")
NEW_WORDING = "What does the text explain?"
QUOTED = 4
_FEWEST_WORDS, _MOST_WORDS = 6, 12
_FEWEST_NAMED, _MOST_NAMED = 2, 6


def practice_batches(
    documents: Sequence[TopicDocument],
    held_out: Sequence[TopicQuestion] = (),
    *,
    seed: int = 0,
    batches: int,
    batch_documents: int = 40,
    per_document: int = 5,
) -> list[TopicQuestion]:
    """Questions batch by batch: several about each of some documents, so that a document is compressed for all of them.

    Args:
        held_out: no question about the same document quotes `QUOTED` words in a row of one of them.
        seed: of documents, words and pieces.
        batches, batch_documents, per_document: how many of each; questions that quote a held-out one are left out.
    """
    rng = random.Random(seed)
    secret: defaultdict[int, set[tuple[str, ...]]] = defaultdict(set)
    for question in held_out:
        secret[question.document] |= _runs(question.question)
    words = {document.id: bare_words(document.text.lower()) for document in documents}
    count = Counter(word for found in words.values() for word in set(found))
    questions = []
    for _ in range(batches):
        for document in rng.sample(documents, min(batch_documents, len(documents))):
            for _ in range(per_document):
                question = _question(document, words[document.id], count, rng)
                if secret[document.id].isdisjoint(_runs(f"{question.question} {question.answer}")):
                    questions.append(question)
    return questions


def _runs(question: str) -> set[tuple[str, ...]]:
    """All runs of `QUOTED` words within the quotation marks of a question."""
    words = question.split("“", 1)[1].replace("”", " ").replace("?", " ").lower().split()
    return {tuple(words[start : start + QUOTED]) for start in range(len(words) - QUOTED + 1)}


def _question(document: TopicDocument, words: Sequence[str], count: Counter[str], rng: random.Random) -> TopicQuestion:
    kind = rng.choice(PRACTICE_KINDS)
    if kind == "words":
        # Rare words more often than those that stand everywhere.
        weights = [count[word] ** -0.5 for word in words]
        drawn = rng.choices(words, weights, k=rng.randint(_FEWEST_NAMED, _MOST_NAMED))
        first, *others = dict.fromkeys(drawn)
        named = ", ".join(f"“{word}”" for word in (first, *others))
        return TopicQuestion(document.id, kind, f"Which text has the words {named}?", first)
    text = document.text.split()
    length = rng.randint(_FEWEST_WORDS, _MOST_WORDS)
    start = rng.randrange(len(text) - length)
    piece, answer = text[start : start + length], text[start + length]
    asked = "Which word comes behind"
    if kind == "missing":
        place = rng.randrange(1, length - 1)
        piece[place], answer = BLANK, piece[place]
        asked = "Which word is missing in"
    return TopicQuestion(document.id, kind, f"{asked} “{' '.join(piece)}”?", answer)


def name_questions(documents: Sequence[TopicDocument], wordings: Sequence[str] = TOPIC_WORDINGS) -> list[TopicQuestion]:
    """What each document is about, in every wording."""
    return [
        TopicQuestion(document.id, "topic", wording, document.topic) for document in documents for wording in wordings
    ]


__all__ = ["NEW_WORDING", "PRACTICE_KINDS", "QUOTED", "TOPIC_WORDINGS", "name_questions", "practice_batches"]
