"""What an endpoint has answered, kept so that no question is paid for twice: one SQLite file beside the output.

A row is the hash of a request and the answer to it. An answer is on the disk before `store` returns (write-ahead log,
a flush each), one writer at a time, so a killed run loses no answer that it had stored. A check sum tells a row that
the disk has changed. What is damaged is refused and never half believed: the answers in it were paid for, so the user
decides. The folder must be on a disk of this machine: SQLite's log does not work over a network file system.
"""

import json
import sqlite3
import threading
import zlib
from pathlib import Path
from typing import Any

# Says whose file it is, and in which layout.
APPLICATION_ID = 0x51474143
LAYOUT = 1
_BUSY_SECONDS = 60.0  # how long to wait for another process that writes


class AnswerCache:
    """Answers by the hash of their request; safe to use from several threads, and from several processes.

    Args:
        path: the file; made, with its folder, if it is not there.

    Raises:
        ValueError: the file is damaged, of another layout, or no cache.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        except sqlite3.OperationalError as error:
            raise ValueError(f"The cache {path.name} cannot be opened: {error}.") from error
        try:
            self._open()
        except sqlite3.OperationalError as error:
            self._database.close()
            raise ValueError(f"The cache {path.name} cannot be opened: {error}.") from error
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise self._damaged(str(error)) from error
        except ValueError:
            self._database.close()
            raise

    def _open(self) -> None:
        tables = self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        owner = self._database.execute("PRAGMA application_id").fetchone()[0]
        layout = self._database.execute("PRAGMA user_version").fetchone()[0]
        if tables and owner != APPLICATION_ID:
            raise ValueError(f"{self.path.name} is a database of something else. Give the cache another name.")
        if tables and layout != LAYOUT:
            raise ValueError(
                f"The cache {self.path.name} has layout {layout}; this version reads and writes {LAYOUT}. Move it away "
                "to ask everything again, or go on with the version that wrote it."
            )
        if tables and (found := self._database.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise self._damaged(found)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        with self._database:
            self._database.execute("BEGIN IMMEDIATE")  # of two processes that begin, one makes the table
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS answers (request BLOB PRIMARY KEY, answer BLOB NOT NULL, checksum INTEGER "
                "NOT NULL) WITHOUT ROWID"
            )
            self._database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._database.execute(f"PRAGMA user_version = {LAYOUT}")

    def __len__(self) -> int:
        return self._query("SELECT count(*) FROM answers")[0][0]

    def find(self, request: bytes) -> dict[str, Any] | None:
        """The answer to a request, None where there is none.

        Raises:
            ValueError: the file is damaged.
        """
        rows = self._query("SELECT answer, checksum FROM answers WHERE request = ?", request)
        if not rows:
            return None
        answer, checksum = rows[0]
        if _checksum(request, answer) != checksum:
            raise self._damaged("an answer does not match its check sum")
        return json.loads(answer)

    def store(self, answers: dict[bytes, dict[str, Any]]) -> None:
        """Keep the answers to some requests, all or none; on the disk when this returns.

        Raises:
            ValueError: the file is damaged, or the disk is full.
        """
        rows = []
        for request, answer in answers.items():
            content = json.dumps(answer, ensure_ascii=False).encode()
            rows.append((request, content, _checksum(request, content)))
        with self._lock:
            try:
                self._database.execute("BEGIN IMMEDIATE")
                try:
                    self._database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", rows)
                    self._database.execute("COMMIT")
                except BaseException:
                    if self._database.in_transaction:
                        self._database.execute("ROLLBACK")
                    raise
            except sqlite3.OperationalError as error:
                raise ValueError(f"The cache {self.path.name} cannot be written: {error}.") from error
            except sqlite3.DatabaseError as error:
                raise self._damaged(str(error)) from error

    def close(self) -> None:
        """Close the file; twice is once."""
        with self._lock:
            self._database.close()

    def _query(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                return self._database.execute(statement, values).fetchall()
            except sqlite3.OperationalError as error:
                raise ValueError(f"The cache {self.path.name} cannot be read: {error}.") from error
            except sqlite3.DatabaseError as error:
                raise self._damaged(str(error)) from error

    def _damaged(self, detail: str) -> ValueError:
        return ValueError(
            f"The cache {self.path.name} is damaged ({detail}). Take it from a backup, or move it away to ask "
            "everything again."
        )


def _checksum(request: bytes, answer: bytes) -> int:
    return zlib.crc32(answer, zlib.crc32(request))


__all__ = ["LAYOUT", "AnswerCache"]
