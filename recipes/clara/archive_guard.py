"""Looks at an archive (a DOCX is one) before a library unpacks it into memory, as if a stranger had made it.

First the directory is judged: how many members, how large they say they are together, how much smaller they are
packed, and whether a name leads out. A directory may lie, and members may share their bytes. So every member is then
unpacked once, piece by piece, and nothing is kept: `zipfile` gives no byte more than the directory says, and an error
where there are others. Behind this, a library that reads everything holds no more than `MAX_UNPACKED` bytes.
"""

import zipfile
import zlib
from pathlib import Path, PureWindowsPath

from .file_problems import BOMB, BROKEN, ENCRYPTED, OUTSIDE, FileProblem

MAX_UNPACKED = 256 * 2**20
# A converter takes 40 times as much memory (measured: 90 MB for 2.3); 16 MiB of Word are 11 million characters.
MAX_XML = 16 * 2**20
MAX_MEMBERS = 20_000
# Deflate reaches 1032; text and XML lie below 30, and what is small may be as regular as it likes.
MAX_RATIO = 100
_RATIO_MATTERS_FROM = 4 * 2**20
_XML = (".xml", ".rels")
_PIECE = 2**20


def check_archive(path: Path) -> None:
    """See that an archive can be unpacked.

    Raises:
        FileProblem: it cannot: broken, encrypted, a bomb, or with names that lead out of it.
    """
    packed = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MAX_MEMBERS:
                raise FileProblem(BOMB, f"{len(members):,} members, {MAX_MEMBERS:,} at most")
            for member in members:
                name = PureWindowsPath(member.filename)
                if name.drive or name.root or ".." in name.parts:
                    raise FileProblem(OUTSIDE, f"its member {member.filename!r}")
                if member.flag_bits & 1:
                    raise FileProblem(ENCRYPTED, f"its member {member.filename!r}")
            unpacked = sum(member.file_size for member in members)
            if unpacked > MAX_UNPACKED:
                raise FileProblem(BOMB, f"it unpacks to {unpacked:,} bytes, {MAX_UNPACKED:,} at most")
            if unpacked > _RATIO_MATTERS_FROM and unpacked > MAX_RATIO * packed:
                raise FileProblem(BOMB, f"{packed:,} bytes unpack to {unpacked:,}, {MAX_RATIO} times as many at most")
            xml = sum(member.file_size for member in members if member.filename.lower().endswith(_XML))
            if xml > MAX_XML:
                raise FileProblem(BOMB, f"{xml:,} bytes of XML, {MAX_XML:,} at most")
            for member in members:
                with archive.open(member) as stream:
                    while stream.read(_PIECE):
                        pass
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, RuntimeError, ValueError) as error:
        if isinstance(error, FileProblem):
            raise
        raise FileProblem(BROKEN, f"no whole archive: {error}") from error


__all__ = ["MAX_MEMBERS", "MAX_RATIO", "MAX_UNPACKED", "MAX_XML", "check_archive"]
