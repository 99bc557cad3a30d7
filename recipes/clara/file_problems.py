"""Why a file gives no document: one error with a reason that can be counted and a detail that can be looked at."""

EMPTY = "empty file"
ENCRYPTED = "encrypted"
BROKEN = "broken"
ENCODING = "not readable as text"
TOO_LARGE = "too large"
BOMB = "decompression bomb"
UNKNOWN_TYPE = "unknown kind of file"
OUTSIDE = "leads out of the folder"
UNREADABLE = "cannot be opened"
NO_REGULAR_FILE = "no regular file"
BAD_NAME = "name is no text"
SAME_ID = "same id as another file"
NOTHING_IN_IT = "neither text nor picture"
# Nothing is wrong with these, and nothing is lost.
HIDDEN = "hidden"
LINK_WITHIN = "link to another file of the folder"
OF_A_DOCUMENT = "picture of a document"
REPEATED_PICTURE = "the same picture as another file"
TINY = "tiny or of one colour"
PASSED_OVER = (HIDDEN, LINK_WITHIN, OF_A_DOCUMENT, REPEATED_PICTURE, TINY)
# Of pictures in documents, beside `ImageProblem`'s.
REMOTE = "on another machine"


class FileProblem(ValueError):  # noqa: N818
    """A file that cannot be used.

    Attributes:
        reason: one of this module's, or of `ImageProblem`'s.
        detail: what was seen, where that says more than the reason.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason} ({self.detail})" if self.detail else self.reason


__all__ = [
    "BAD_NAME",
    "BOMB",
    "BROKEN",
    "EMPTY",
    "ENCODING",
    "ENCRYPTED",
    "HIDDEN",
    "LINK_WITHIN",
    "NOTHING_IN_IT",
    "NO_REGULAR_FILE",
    "OF_A_DOCUMENT",
    "OUTSIDE",
    "PASSED_OVER",
    "REMOTE",
    "REPEATED_PICTURE",
    "SAME_ID",
    "TINY",
    "TOO_LARGE",
    "UNKNOWN_TYPE",
    "UNREADABLE",
    "FileProblem",
]
