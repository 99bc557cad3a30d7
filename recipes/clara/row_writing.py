"""Questions with answers, and paraphrases, of one chunk: written by an endpoint, checked, and written anew if refused.

    writer = RowWriter(endpoint.ask, WritingSettings(questions_per_chunk=4))
    written = writer.write(chunk, context="Design of the gateway")
    written.pairs[0].question, written.pairs[0].answer, written.pairs[0].quote

A round asks for what is still missing and tells what was refused and why (`row_verification` says what is refused).
After `max_rounds` rounds what is missing is dropped, and counted by the last reason. The first round asks for the
likeliest answer; the others leave more to chance, or a model would say the same again.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ..llava_data import CONTROL_TOKENS
from .answer_parsing import UnusableError, parse_object, parse_pairs
from .refusal_reasons import NOTHING_LEFT, TOO_FEW, TOO_SHORT, told_words
from .row_verification import (
    Ask,
    ask_usable,
    check_pair,
    check_paraphrase,
    verify_pair,
    verify_paraphrase,
)
from .text_facts import content_letters, writing_of
from .writing_prompts import Language, messages, writing_messages

# Letters, an ideograph as three: a ruler or the frame of a table says less.
FEWEST_LETTERS = 12
_LATER_TEMPERATURE = 0.7
_PARAPHRASE = "paraphrase: "
# Of what was refused, so many are told in the next round.
_TOLD = 6
_TOLD_CHARACTERS = 300


@dataclass(frozen=True)
class WrittenPair:
    """A question with its answer.

    Attributes:
        quote: words of the chunk that support the answer, as they stand there.
        stands_alone: whether the question can be asked over many texts.
    """

    question: str
    answer: str
    quote: str
    stands_alone: bool


@dataclass
class WrittenChunk:
    """What was written of a chunk.

    Attributes:
        dropped: pairs and paraphrases that were asked for and are not there, by the last reason; those of paraphrases
            begin with "paraphrase: ".
        refused: all that was refused on the way, made good or not, by reason. A whole answer that cannot be read counts
            once.
    """

    pairs: list[WrittenPair] = field(default_factory=list)
    paraphrases: list[str] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class WritingSettings:
    """How much is written.

    Attributes:
        max_rounds: the first one included.
        max_tokens: of each answer of the endpoint, a thought included.
    """

    questions_per_chunk: int = 4
    paraphrases_per_chunk: int = 1
    max_rounds: int = 10
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        least_values = {"questions_per_chunk": 0, "paraphrases_per_chunk": 0, "max_rounds": 1, "max_tokens": 1}
        for name, least in least_values.items():
            if (value := getattr(self, name)) < least:
                raise ValueError(f"`{name}` is {value}; give {least} or more.")
        if not self.questions_per_chunk + self.paraphrases_per_chunk:
            raise ValueError("`questions_per_chunk` and `paraphrases_per_chunk` are both 0: nothing would be written.")


class RowWriter:
    """Writes and checks; has no state of its own, so that threads may share it.

    Args:
        ask: `ChatEndpoint.ask`.
    """

    def __init__(self, ask: Ask, settings: WritingSettings) -> None:
        self._ask, self.settings = ask, settings

    def write(self, chunk: str, context: str = "") -> WrittenChunk:
        """Pairs and paraphrases of a chunk.

        Args:
            context: what the chunk is part of, as the title of its document, for questions that stand alone.

        Raises:
            EndpointError: the endpoint gives no answer.
        """
        written = WrittenChunk()
        if content_letters(chunk) < FEWEST_LETTERS:
            written.dropped[TOO_SHORT] += self.settings.questions_per_chunk
            written.dropped[_PARAPHRASE + TOO_SHORT] += self.settings.paraphrases_per_chunk
            written.dropped = +written.dropped  # without those of which none was asked for
            return written
        language = prompt_language(chunk)
        self._write_pairs(written, chunk, context, language)
        self._write_paraphrases(written, chunk, language)
        return written

    def _write_pairs(self, written: WrittenChunk, chunk: str, context: str, language: Language) -> None:
        problems: list[str] = []
        reasons: list[str] = []
        rest = TOO_FEW  # why there is none where none was refused
        for attempt in range(self.settings.max_rounds):
            missing = self.settings.questions_per_chunk - len(written.pairs)
            if not missing:
                return
            taken = [pair.question for pair in written.pairs]
            conversation = writing_messages(language, chunk, context, missing, taken, problems)
            problems, reasons, rest = [], [], TOO_FEW
            try:
                candidates = parse_pairs(self._written(conversation, attempt))
            except UnusableError as error:
                written.refused[error.reason] += 1
                problems, rest = [told_words(error.reason, language)], error.reason
                continue
            if not candidates:
                rest = NOTHING_LEFT
                break
            for candidate in candidates[:missing]:
                try:
                    written.pairs.append(self._checked(candidate, chunk, language, written.pairs))
                except UnusableError as error:
                    written.refused[error.reason] += 1
                    reasons.append(error.reason)
                    problems.append(_told(candidate.get("question"), error, language))
            problems = problems[:_TOLD]
        missing = self.settings.questions_per_chunk - len(written.pairs)
        written.dropped.update((reasons + [rest] * missing)[:missing])

    def _checked(
        self, candidate: dict[str, Any], chunk: str, language: Language, pairs: list[WrittenPair]
    ) -> WrittenPair:
        question, answer = check_pair(candidate, chunk, [pair.question for pair in pairs])
        verdict = verify_pair(self._ask, question, answer, chunk, language, self.settings.max_tokens)
        return WrittenPair(question, answer, verdict.quote, verdict.stands_alone)

    def _write_paraphrases(self, written: WrittenChunk, chunk: str, language: Language) -> None:
        for _ in range(self.settings.paraphrases_per_chunk):
            problems: list[str] = []
            reason = ""
            for attempt in range(self.settings.max_rounds):
                conversation = messages(
                    "paraphrase", language, chunk=chunk, taken=written.paraphrases, problems=problems
                )
                try:
                    found = parse_object(self._written(conversation, attempt), "paraphrase")
                    text = check_paraphrase(found["paraphrase"], chunk, written.paraphrases)
                    verify_paraphrase(self._ask, text, chunk, language, self.settings.max_tokens)
                except UnusableError as error:
                    reason = _PARAPHRASE + error.reason
                    written.refused[reason] += 1
                    problems = [_told(None, error, language)]
                else:
                    written.paraphrases.append(text)
                    break
            else:
                written.dropped[reason] += 1

    def _written(self, conversation: list[dict[str, str]], attempt: int) -> str:
        temperature = _LATER_TEMPERATURE if attempt else 0.0
        return ask_usable(self._ask, conversation, self.settings.max_tokens, temperature=temperature, attempt=attempt)


def prompt_language(chunk: str) -> Language:
    """The language to ask in."""
    return "zh" if writing_of(chunk) == "Chinese" else "en"


def _told(subject: Any, error: UnusableError, language: Language) -> str:
    """What was refused and why, on one line that can be sent."""
    told = told_words(error.reason, language) + (f" ({error.detail})" if error.detail else "")
    if isinstance(subject, str):
        subject = " ".join(subject.split())
        told = f"{subject[:_TOLD_CHARACTERS]}: {told}"
    return CONTROL_TOKENS.sub("", told).encode("utf-8", "replace").decode()


__all__ = [
    "FEWEST_LETTERS",
    "RowWriter",
    "WritingSettings",
    "WrittenChunk",
    "WrittenPair",
    "prompt_language",
]
