"""The folder of rows that `data write` leaves, and how a run that is killed goes on in it.

    data_meta.json               what the rows were asked for, what became of what; says whether they are finished
    README.md                    the data card
    compression/                 train.jsonl, and test.jsonl about documents held out
    instruction/
    end_to_end/
    work/                        what is under way; gone at the end

The work is done in phases. A phase writes its own folder under a partial name and gets its name when it is whole, so a
phase is there or it is not; one that is not begins anew, and what it asks is answered from the endpoint's cache.
"""

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..whole_files import partial_of, write_json

META = "data_meta.json"
_WORK, _LOCK = "work", "lock"


class RowsFolder:
    """A folder to write rows into, claimed for one set of settings.

    Args:
        settings: everything that the rows depend on, as JSON has it.

    Raises:
        ValueError: the folder holds something else, or rows of other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, json.loads(json.dumps(settings))
        self.work = path / _WORK
        there = [entry.name for entry in path.iterdir()] if path.is_dir() else []
        if there == [partial_of(path / META).name]:  # killed at the very beginning
            there = []
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file. Name a folder for the rows.")
        if there and META not in there:
            raise ValueError(
                f"{path} holds {len(there)} files that are no rows of this command ({sorted(there)[0]} is one). Give a "
                "new folder."
            )
        if there and (self.is_finished or self._has_phases()):  # else nothing was made of them yet
            found = self.meta()["settings"]
            changed = [
                f"{name} was {found.get(name)!r} and is {self.settings.get(name)!r}"
                for name in sorted(found.keys() | self.settings.keys())
                if found.get(name) != self.settings.get(name)
            ]
            if changed:
                raise ValueError(
                    f"{path} holds rows that were asked for otherwise: {'; '.join(changed)}. Ask as then to go on with "
                    "them, or give a new folder: what was answered already is not asked again there either."
                )

    @property
    def is_finished(self) -> bool:
        """Whether all rows are there."""
        return (self.path / META).is_file() and self.meta()["finished"]

    def meta(self) -> dict[str, Any]:
        """What `data_meta.json` says."""
        return json.loads((self.path / META).read_text(encoding="utf-8"))

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Work in it, alone.

        Raises:
            ValueError: another process does.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / META).is_file():
            self._write_claim()
        self.work.mkdir(exist_ok=True)
        with (self.work / _LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"Another process writes rows into {self.path}. Let it end first.") from None
            if self.meta()["settings"] != self.settings:
                self._write_claim()
            yield

    def phase(self, name: str, make: Callable[[Path], None]) -> Path:
        """The folder of a phase; `make` fills it where it is not there yet."""
        path = self.work / name
        if not path.is_dir():
            partial = partial_of(path)
            if partial.exists():
                shutil.rmtree(partial)
            partial.mkdir()
            make(partial)
            partial.replace(path)
        return path

    def _write_claim(self) -> None:
        write_json(self.path / META, {"finished": False, "settings": self.settings})

    def _has_phases(self) -> bool:
        return self.work.is_dir() and any(
            entry.is_dir() and entry != partial_of(entry.with_suffix("")) for entry in self.work.iterdir()
        )

    def publish(self, finished: Path) -> None:
        """Give the files of the last phase their place; `data_meta.json`, which says that they are there, last."""
        for entry in sorted(finished.iterdir(), key=lambda entry: (entry.name == META, entry.name)):
            entry.replace(self.path / entry.name)
        self.clean()

    def clean(self) -> None:
        """Remove what was under way, of rows that are finished."""
        if self.work.exists():
            shutil.rmtree(self.work)


__all__ = ["META", "RowsFolder"]
