"""Whether a question with its answer, or a paraphrase, may train a model: first by looking, then by asking.

By looking, which costs nothing: form, language, technical artefacts, numbers. By asking: whether the text alone answers
the question as the answer does, and a quotation of the text to show it, which must be there letter by letter. Of a
paraphrase: whether it says all of its text and nothing else.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..document_row_checks import DocumentRowCheck
from .answer_parsing import UnusableError, is_refusal, parse_object, truth
from .chat_endpoint import EMPTY, FILTERED, TRUNCATED, UnusableAnswerError
from .enrichment import DESCRIBED
from .refusal_reasons import (
    ADDED,
    COPY,
    EMPTY_ANSWER,
    FACT_LOST,
    FORM,
    INCOMPLETE,
    LANGUAGE,
    LENGTH,
    MALFORMED,
    NAME_ADDED,
    NO_QUOTATION,
    NUMBER,
    REFUSED,
    REPEATED,
    TRUNCATED_ANSWER,
    UNANSWERABLE,
    UNVERIFIED,
    WRONG,
)
from .row_artefacts import added_artefact, artefact
from .text_facts import (
    content_letters,
    find_quotation,
    longest_common_run,
    names,
    names_missing,
    numbers,
    same_language,
    share_words,
    words,
)
from .writing_prompts import Language, messages

_QUESTION_CHARACTERS, _ANSWER_CHARACTERS = 400, 1500
# Letters, an ideograph as three: less is no quotation.
_FEWEST_QUOTED = 8
# Of its text, in letters.
_SHORTEST, _LONGEST = 0.5, 2.0
# Words in a row that a paraphrase may have from its text: half of them, or so many.
_LONGEST_RUN = 20
_KEPT_NUMBERS, _KEPT_NAMES = 0.9, 0.75
_TRIES = 3

_PAIR_FORM = DocumentRowCheck("end_to_end")
_PARAPHRASE_FORM = DocumentRowCheck("compression")

Ask = Callable[..., str]


@dataclass(frozen=True)
class Verdict:
    """Of a pair that is kept.

    Attributes:
        quote: words of the text that support the answer, as they stand there.
        stands_alone: whether the question can be asked over many texts.
    """

    quote: str
    stands_alone: bool


def ask_usable(ask: Ask, conversation: list[dict[str, str]], max_tokens: int, **options: Any) -> str:
    """An answer.

    Raises:
        UnusableError: it is cut off, withheld or empty.
        EndpointError: none came.
    """
    try:
        return ask(conversation, max_tokens=max_tokens, json_object=True, **options)
    except UnusableAnswerError as error:
        reason = {TRUNCATED: TRUNCATED_ANSWER, FILTERED: REFUSED, EMPTY: EMPTY_ANSWER}[error.reason]
        raise UnusableError(reason) from None


def check_pair(pair: dict[str, Any], chunk: str, taken: Iterable[str]) -> tuple[str, str]:
    """Question and answer of a candidate in which nothing is plainly wrong.

    Args:
        taken: questions that were asked already.

    Raises:
        UnusableError: why it is refused.
    """
    row = _PAIR_FORM({"question": pair.get("question"), "answer": pair.get("answer"), "docs": ["-"]})
    if row["reason"] is not None:
        raise UnusableError(FORM, row["detail"])
    question, answer = row["questions"][0], row["answers"][0]
    _check_encodable(question + answer)
    if len(question) > _QUESTION_CHARACTERS or len(answer) > _ANSWER_CHARACTERS:
        raise UnusableError(FORM, "too long")
    if content_letters(question) < 6 or not any(map(str.isalnum, answer)):
        raise UnusableError(FORM, "too short")
    if is_refusal(answer):
        raise UnusableError(REFUSED)
    if not (same_language(question, chunk) and same_language(answer, chunk)):
        raise UnusableError(LANGUAGE)
    for text in (question, answer):
        if (reason := artefact(text, chunk)) is not None:
            raise UnusableError(reason)
    if words(question) in [words(other) for other in taken]:
        raise UnusableError(REPEATED)
    if more := numbers(answer) - numbers(chunk):
        raise UnusableError(NUMBER, ", ".join(sorted(more)))
    return question, answer


def verify_pair(ask: Ask, question: str, answer: str, chunk: str, language: Language, max_tokens: int) -> Verdict:
    """Let the endpoint judge a pair by its text alone.

    Raises:
        UnusableError: it is not kept, or there is no verdict after some tries.
        EndpointError: no answer came.
    """
    conversation = messages("verify", language, chunk=chunk, question=question, answer=answer)
    verdict = _verdict(ask, conversation, max_tokens, ("answerable", "correct", "stands_alone"), "quote")
    if not verdict["answerable"]:
        raise UnusableError(UNANSWERABLE)
    if not verdict["correct"]:
        raise UnusableError(WRONG)
    quote = find_quotation(verdict["quote"], chunk)
    if quote is None or content_letters(quote) < _FEWEST_QUOTED:
        raise UnusableError(NO_QUOTATION)
    if not share_words(quote, f"{question} {answer}"):
        raise UnusableError(NO_QUOTATION, "it speaks of something else")
    return Verdict(quote, verdict["stands_alone"])


def check_paraphrase(text: Any, chunk: str, taken: Iterable[str]) -> str:
    """A candidate in which nothing is plainly wrong.

    Raises:
        UnusableError: why it is refused.
    """
    row = _PARAPHRASE_FORM({"data_type": "paraphrase", "answers": [text], "docs": ["-"]})
    if row["reason"] is not None:
        raise UnusableError(FORM, row["detail"])
    text = row["answers"][0]
    _check_encodable(text)
    if is_refusal(text) and not is_refusal(chunk):
        raise UnusableError(REFUSED)
    if not same_language(text, chunk):
        raise UnusableError(LANGUAGE)
    if not _SHORTEST <= content_letters(text) / content_letters(chunk) <= _LONGEST:
        raise UnusableError(LENGTH)
    if (reason := added_artefact(text, chunk)) is not None:
        raise UnusableError(reason)
    facts = chunk.replace(DESCRIBED, " ")  # the mark of a description is none, and has to go
    for other in (facts, *taken):
        if longest_common_run(text, other) > min(max(len(words(other)) // 2, 1), _LONGEST_RUN):
            raise UnusableError(COPY)
    here, there = numbers(text), numbers(facts)
    if more := here - there:
        raise UnusableError(NUMBER, ", ".join(sorted(more)))
    if more := names_missing(text, facts):
        raise UnusableError(NAME_ADDED, ", ".join(sorted(more)))
    lost_numbers, lost_names = there - here, names_missing(facts, text)
    all_names = names(facts)
    kept_numbers, kept_names = len(there) - len(lost_numbers), len(all_names) - len(lost_names)
    if kept_numbers < _KEPT_NUMBERS * len(there) or kept_names < _KEPT_NAMES * len(all_names):
        raise UnusableError(FACT_LOST, ", ".join([*sorted(lost_numbers), *sorted(lost_names)]))
    return text


def verify_paraphrase(ask: Ask, text: str, chunk: str, language: Language, max_tokens: int) -> None:
    """Let the endpoint judge a paraphrase.

    Raises:
        UnusableError: it is not kept, or there is no verdict after some tries.
        EndpointError: no answer came.
    """
    conversation = messages("compare", language, chunk=chunk, paraphrase=text)
    verdict = _verdict(ask, conversation, max_tokens, ("complete", "nothing_added"))
    if not verdict["nothing_added"]:
        raise UnusableError(ADDED)
    if not verdict["complete"]:
        raise UnusableError(INCOMPLETE)


def _verdict(
    ask: Ask, conversation: list[dict[str, str]], max_tokens: int, judgements: tuple[str, ...], *texts: str
) -> dict[str, Any]:
    for attempt in range(_TRIES):
        try:
            answer = ask_usable(ask, conversation, max_tokens, attempt=attempt)
            found = parse_object(answer, *judgements, *texts)
            verdict = {name: truth(found[name]) for name in judgements} | {name: found[name] for name in texts}
            if all(isinstance(verdict[name], str) for name in texts):
                return verdict
        except UnusableError:
            continue
    raise UnusableError(UNVERIFIED)


def _check_encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write
        raise UnusableError(MALFORMED) from None


__all__ = [
    "Ask",
    "Verdict",
    "ask_usable",
    "check_pair",
    "check_paraphrase",
    "verify_pair",
    "verify_paraphrase",
]
