"""What goes into a latent index: documents, the passages they were cut into, and each passage's latents; all checked.

Shapes: B queries, P passages of a document, R passages of all documents, M memory tokens, D hidden size of the model.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from datasets import Features, List, Value

DTYPES = {"float16": torch.float16, "float32": torch.float32}
_SHOWN = 3


@dataclass(frozen=True)
class LatentSettings:
    """What all latents of an index have in common.

    Attributes:
        fingerprint: of the compressor; latents of another one mean something else.
        compression_rate: tokens of a document for one memory token.
        num_memory_tokens: M, memory tokens of a passage.
        hidden_size: D.
        dtype: "float16" or "float32", how latents are stored.

    Raises:
        ValueError: no fingerprint, a size below one, or another dtype.
    """

    fingerprint: str
    compression_rate: int
    num_memory_tokens: int
    hidden_size: int
    dtype: str = "float16"

    def __post_init__(self) -> None:
        if not self.fingerprint:
            raise ValueError("An index needs the fingerprint of the compressor that made its latents; it is empty.")
        for name in ("compression_rate", "num_memory_tokens", "hidden_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it has to be 1 or more.")
        if self.dtype not in DTYPES:
            raise ValueError(f"`dtype` is {self.dtype!r}; latents are stored as {' or '.join(DTYPES)}.")

    @property
    def features(self) -> Features:
        """Columns of a row, which is one passage.

        Latents are (M, D), though only D is part of the type: Arrow (26.0 at least) selects other rows than it is asked
        for from a part of a column of fixed-size lists of fixed-size lists.
        """
        latents = List(List(Value(self.dtype), length=self.hidden_size))
        return Features({"id": Value("string"), "passage": Value("int32"), "text": Value("string"), "latents": latents})

    def check_same(self, other: "LatentSettings", name: str) -> None:
        """Refuse latents that cannot stand beside these.

        Args:
            other: settings of the other latents.
            name: what holds them, as the message calls it.

        Raises:
            ValueError: they differ, with both values of each setting that does.
        """
        pairs = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        differing = [f"{key} is {own!r} here and {its!r} there" for key, (own, its) in pairs.items() if own != its]
        if differing:
            raise ValueError(
                f"{name} was made with other settings: {'; '.join(differing)}. Latents of different settings cannot be "
                "compared; compress the documents again with one model, into one index."
            )


class Document(NamedTuple):
    """A document before it is cut into passages."""

    id: str
    text: str


def read_documents(documents: Iterable[str | Mapping[str, Any]], first: int = 0) -> list[Document]:
    """Documents with their ids; one that has none is called by a hash of its text.

    Args:
        documents: texts, or mappings with "text" and perhaps "id", a string.
        first: number of the first one, for the message.

    Raises:
        ValueError: documents without text or with an id that is no string, counted.
    """
    problems: list[str] = []
    read = list(_read_good(documents, first, problems))
    _refuse(problems, len(read))
    return read


def check_documents(documents: Iterable[str | Mapping[str, Any]]) -> None:
    """Look at all documents without keeping their texts.

    Raises:
        ValueError: as `read_documents`, or ids that come more than once.
    """
    problems: list[str] = []
    names = [document.id for document in _read_good(documents, 0, problems)]
    _refuse(problems, len(names))
    check_unique(names)


def _read_good(documents: Iterable[str | Mapping[str, Any]], first: int, problems: list[str]) -> Iterator[Document]:
    """The documents that can be taken; what is wrong with the others goes to `problems`."""
    for position, document in enumerate(documents, start=first):
        try:
            yield _read_document(document)
        except ValueError as error:  # UnicodeEncodeError is one: half of a surrogate pair, as broken JSON has it
            problems.append(f"number {position}: {error}")


def _refuse(problems: list[str], good: int) -> None:
    if problems:
        raise ValueError(
            f"{len(problems)} of {len(problems) + good} documents cannot be taken, {_few(problems)}. Leave them out or "
            "correct them."
        )


def _read_document(document: str | Mapping[str, Any]) -> Document:
    values = {"text": document} if isinstance(document, str) else document
    if not isinstance(values, Mapping):
        raise ValueError(f"a {type(document).__name__} is neither a text nor a mapping with `text`")
    text, name = values.get("text"), values.get("id")
    if not isinstance(text, str) or not text.strip():
        raise ValueError("there is no text in it")
    content = text.encode()
    if name is None:
        name = hashlib.sha256(content).hexdigest()[:32]
    elif not isinstance(name, str) or not name:
        raise ValueError(f"its id is {name!r}, not a string")
    name.encode()
    return Document(name, text)


def check_unique(ids: Iterable[str]) -> None:
    """Refuse ids that come more than once.

    Raises:
        ValueError: there are some, counted.
    """
    counts = Counter(ids)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise ValueError(
            f"{len(repeated)} of {len(counts)} ids come more than once, {_few(map(repr, repeated))}. Leave the "
            "repeated documents out, or give them ids of their own (without an id, equal texts have the same one)."
        )


def passage_batch(
    settings: LatentSettings,
    documents: Sequence[Document],
    passages: Sequence[Sequence[str]],
    latents: Sequence[torch.Tensor],
) -> pa.RecordBatch:
    """The rows of some documents.

    bfloat16 latents lose nothing in float16, which has more digits, unless they are beyond its 65,504 or below 6e-5.

    Args:
        settings: of the index.
        documents: at least one.
        passages: the texts of each document's passages.
        latents: (P, M, D) of each document, of any floating dtype and on any device.

    Raises:
        ValueError: counts or shapes that do not fit, or values that are not finite in the index's dtype; counted.
    """
    if not len(documents) == len(passages) == len(latents):
        raise ValueError(
            f"{len(documents)} documents came with the passages of {len(passages)} and the latents of {len(latents)}. "
            "Give each document its own."
        )
    size = (settings.num_memory_tokens, settings.hidden_size)
    misfits = [
        f"{document.id!r}: {tuple(latent.shape)} for {len(texts)} passages"
        for document, texts, latent in zip(documents, passages, latents, strict=True)
        if not texts or tuple(latent.shape) != (len(texts), *size)
    ]
    if misfits:
        raise ValueError(
            f"The latents of {len(misfits)} of {len(documents)} documents do not fit, {_few(misfits)}. A document has "
            f"one passage or more, and this index takes latents of (passages, {size[0]}, {size[1]})."
        )
    values_RMD = torch.cat([latent.detach().to("cpu", torch.float32) for latent in latents])
    owners = [document.id for document, texts in zip(documents, passages, strict=True) for _ in texts]
    _check_finite(values_RMD, owners, "are not finite. Look for a model that overflows, perhaps one run in float16")
    values_RMD = values_RMD.to(DTYPES[settings.dtype])
    _check_finite(values_RMD, owners, 'are beyond the largest number of float16. Create the index with dtype="float32"')
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values_RMD.flatten().numpy()), settings.hidden_size)
    starts = pa.array(range(0, len(vectors) + 1, settings.num_memory_tokens), pa.int32())
    columns = [
        pa.array(owners, pa.string()),
        pa.array([number for texts in passages for number in range(len(texts))], pa.int32()),
        pa.array([text for texts in passages for text in texts], pa.string()),
        pa.ListArray.from_arrays(starts, vectors),
    ]
    return pa.record_batch(columns, schema=settings.features.arrow_schema)


def query_vectors(settings: LatentSettings, queries: torch.Tensor) -> np.ndarray:
    """Queries (B, M, D), of any floating dtype and on any device, as float32 vectors (B, M * D).

    Raises:
        ValueError: another shape, no query, or values that are not finite, counted.
    """
    size = (settings.num_memory_tokens, settings.hidden_size)
    if queries.ndim != 3 or tuple(queries.shape[1:]) != size or not len(queries):
        raise ValueError(
            f"The queries have the shape {tuple(queries.shape)}; this index takes (queries, {size[0]}, {size[1]}), one "
            "query or more."
        )
    vectors = queries.detach().to("cpu", torch.float32).flatten(1)
    broken = int((~torch.isfinite(vectors)).any(1).sum())
    if broken:
        raise ValueError(
            f"{broken} of {len(queries)} queries hold values that are not finite. Look for a model that overflows, "
            "perhaps one run in float16."
        )
    return vectors.numpy()


def _check_finite(values_RMD: torch.Tensor, owners: Sequence[str], remedy: str) -> None:
    """Refuse latents with infinite or undefined values, naming their documents."""
    bad_R = (~torch.isfinite(values_RMD)).flatten(1).sum(1)
    if not bad_R.any():
        return
    named = list(dict.fromkeys(owners[row] for row in bad_R.nonzero().flatten().tolist()))
    raise ValueError(
        f"{int(bad_R.sum())} of {values_RMD.numel()} values in the latents of {len(named)} documents "
        f"({_few(map(repr, named))}) {remedy}."
    )


def _few(items: Iterable[str]) -> str:
    """The first of some things, with a sign that there are more."""
    listed = list(items)
    return ", ".join(listed[:_SHOWN]) + (", …" if len(listed) > _SHOWN else "")


__all__ = [
    "DTYPES",
    "Document",
    "LatentSettings",
    "check_documents",
    "check_unique",
    "passage_batch",
    "query_vectors",
    "read_documents",
]
