"""A run that goes on sees when a picture that a document links to came, went or changed; the document did not."""

import json
from pathlib import Path

import pytest
from real_files import CHINA, FLOWER, encoded
from tiny_latents import contents

from qwen_grafts.recipes.clara.knowledge_folder import JOURNAL, collect


@pytest.fixture
def stopped(tmp_path: Path) -> tuple[Path, Path]:
    """A folder whose last file stops every run, and what the first run left."""
    folder, directory = tmp_path / "files", tmp_path / "knowledge"
    folder.mkdir()
    (folder / "a.md").write_text("A design: ![plan](plan.png)", encoding="utf-8")
    (folder / "b.md").write_text("Another: ![plan](plan.png)", encoding="utf-8")
    (folder / "empty.txt").touch()
    with pytest.raises(ValueError, match="1 of 3 files"):
        collect(folder, directory)
    return folder, directory


def texts(directory: Path) -> list[str]:
    lines = (directory / "raw_knowledge.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def same_as_new(folder: Path, directory: Path) -> None:
    """As if nobody had stopped."""
    new = directory.with_name("new")
    collect(folder, new, on_bad_file="skip")
    assert contents(directory) == contents(new)


def test_a_picture_came(stopped: tuple[Path, Path]) -> None:
    folder, directory = stopped
    (folder / "plan.png").write_bytes(encoded(CHINA))
    report = collect(folder, directory, on_bad_file="skip")
    assert report.pictures == {"new": 1, "repeated": 1} and not report.lost_pictures
    assert all("[IMAGE_REF: extracted_assets/a-" in text for text in texts(directory))
    same_as_new(folder, directory)


def test_a_picture_changed_and_went(stopped: tuple[Path, Path]) -> None:
    folder, directory = stopped
    for pixels in (CHINA, FLOWER):
        (folder / "plan.png").write_bytes(encoded(pixels))
        with pytest.raises(ValueError, match="1 of 4 files"):
            collect(folder, directory)
    (folder / "plan.png").unlink()
    report = collect(folder, directory, on_bad_file="skip")
    assert report.lost_pictures == {"missing": 2}
    assert texts(directory) == ["A design: plan", "Another: plan"]
    assert not list(directory.glob("extracted_assets/*"))
    same_as_new(folder, directory)


def test_nothing_changed(stopped: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal is taken as it is."""
    folder, directory = stopped
    before = (directory / JOURNAL).read_bytes()
    with pytest.raises(ValueError, match="1 of 3 files"):
        collect(folder, directory)
    assert (directory / JOURNAL).read_bytes() == before
    monkeypatch.setattr("qwen_grafts.recipes.clara.file_records.convert", None)  # nothing is read again
    collect(folder, directory, on_bad_file="skip")
    assert texts(directory) == ["A design: plan", "Another: plan"]
