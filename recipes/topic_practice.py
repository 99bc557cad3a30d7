"""Questions to practise on, as many as wanted: for a model from random weights, what `topic_task` has is too little.

    practice   the kinds of `topic_task`, about any words, whether they tell one passage from the others or not
    choice     Which of these words is in the text: generator, closure or bracket?

Practice teaches which passage a piece of text is from. A question of choice needs nothing but its document; without it,
a third of the answers are right by chance.
"""

import random
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence

from .topic_documents import TopicDocument, bare_words
from .topic_task import BLANK, TopicQuestion, gives_away

OFFERED = 3
CHOICE_CHANCE = 1 / OFFERED
# A word that stands in most passages is no choice; of pairs of document and word, one in five is held out.
_MOST_PASSAGES, _HELD_OUT_PAIRS = 15, 5
_FEWEST_WORDS, _MOST_WORDS = 6, 12


def practice_questions(
    documents: Sequence[TopicDocument],
    held_out: Sequence[TopicQuestion] = (),
    *,
    seed: int = 0,
    per_document: int = 40,
) -> list[TopicQuestion]:
    """Questions of the three kinds, in turn, about random words; repeats are possible.

    Args:
        held_out: none of their answers is in a question about the same document, nor is it its answer.
        seed: of words and pieces.
        per_document: how many to try; those that give something away are left out.
    """
    rng = random.Random(seed)
    secret: defaultdict[int, list[TopicQuestion]] = defaultdict(list)
    for question in held_out:
        secret[question.document].append(question)
    questions = []
    for document in documents:
        sentences = [words for sentence in document.sentences if len(words := sentence.split()) > _FEWEST_WORDS]
        known = sorted(set(bare_words(document.text)))
        for number in range(per_document if sentences and len(known) > OFFERED else 0):
            words = rng.choice(sentences)
            length = rng.randint(_FEWEST_WORDS, min(_MOST_WORDS, len(words) - 1))
            start = rng.randrange(len(words) - length)
            piece, behind = words[start : start + length], words[start + length]
            kind = ("missing", "next", "initial")[number % 3]
            if kind == "missing":
                place = rng.randrange(1, length - 1)
                piece[place], behind = BLANK, piece[place]
                asked = f"Which word is missing in “{' '.join(piece)}”?"
            elif kind == "next":
                asked = f"Which word comes behind “{' '.join(piece)}”?"
            else:
                behind, *told = rng.sample(known, 4)
                shown = f"“{told[0]}”, “{told[1]}” and “{told[2]}”"
                asked = f"Which word beginning with “{behind[:2]}” is in the text with {shown}?"
            question = TopicQuestion(document.id, kind, asked, " ".join(bare_words(behind)) or behind)
            if not any(gives_away(question, other) for other in secret[document.id]):
                questions.append(question)
    return questions


def choice_questions(
    documents: Sequence[TopicDocument],
    *,
    seed: int = 0,
    per_document: int = 12,
    held_out: bool = False,
    others: Sequence[TopicDocument] | None = None,
) -> list[TopicQuestion]:
    """Which of three words stands in a document; the other two stand in others.

    Args:
        seed: of words and their order.
        held_out: ask about the pairs of document and word that no question of training is about.
        others: where the wrong words come from; default `documents`.
    """
    rng = random.Random(seed)
    words = {document.id: set(bare_words(document.text.lower())) for document in [*documents, *(others or ())]}
    count = Counter(word for found in words.values() for word in found)
    fit = {
        document: sorted(word for word in found if len(word) >= 4 and word.isalpha() and count[word] <= _MOST_PASSAGES)
        for document, found in words.items()
    }
    sources = [document.id for document in others or documents]
    questions = []
    for document in documents:
        own = [word for word in fit[document.id] if _is_held_out(document.id, word) == held_out]
        for _ in range(per_document if own else 0):
            offered = [rng.choice(own)]
            while len(offered) < OFFERED:
                found = fit[rng.choice(sources)]
                if found and (word := rng.choice(found)) not in words[document.id] and word not in offered:
                    offered.append(word)
            answer = offered[0]
            rng.shuffle(offered)
            asked = f"Which of these words is in the text: {offered[0]}, {offered[1]} or {offered[2]}?"
            questions.append(TopicQuestion(document.id, "choice", asked, answer))
    return questions


def _is_held_out(document: int, word: str) -> bool:
    return zlib.crc32(f"{document} {word}".encode()) % _HELD_OUT_PAIRS == 0


__all__ = ["CHOICE_CHANCE", "OFFERED", "choice_questions", "practice_questions"]
