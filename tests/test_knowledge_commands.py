"""`data collect` and `data clean` as the shell sees them."""

import json
import sys
from pathlib import Path

import pytest
from real_files import CHINA, write_docx

from qwen_grafts.cli import main


@pytest.fixture
def command(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["qwen-grafts", "data", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            main()
        captured = capsys.readouterr()
        return exit.value.code, " ".join((captured.out + captured.err).split())

    return run


def test_collect(command, tmp_path: Path) -> None:
    files, knowledge = tmp_path / "files", tmp_path / "knowledge"
    files.mkdir()
    write_docx(files / "a.docx", "Words ", CHINA)
    (files / "b.md").write_text("More ![x](no.png)")
    (files / "[c].xyz").write_text("?")
    code, text = command("collect", files, knowledge)
    assert code == 1
    assert "1 of 3 files cannot be read: 1 unknown kind of file. The first 1: '[c].xyz'" in text
    code, text = command("collect", files, knowledge, "--on-bad-file", "skip")
    assert code == 0
    assert "raw_knowledge.jsonl: 2 texts with 1 pictures (1 different ones) and 0 images, from 3 files." in text
    for row in ("picture lost │ missing │ 1", "refused │ unknown kind of file │ 1"):
        assert row in text
    assert len((knowledge / "raw_knowledge.jsonl").read_text().splitlines()) == 2
    code, text = command("collect", files, knowledge)
    assert (code, "is finished" in text) == (1, True)


def test_clean(command, tmp_path: Path) -> None:
    rows, cleaned = tmp_path / "rows.jsonl", tmp_path / "cleaned.jsonl"
    row = {"question": "What is shown?", "docs": ["A boat [IMAGE_REF: raw_data/a.png]."], "gold_answer": "A boat."}
    rows.write_text(json.dumps(row) + "\n")
    code, text = command("clean", rows, cleaned)
    assert code == 0
    assert "1 of 1 rows kept, 1 of them changed; taken out: 1 marker" in text
    assert json.loads(cleaned.read_text())["docs"] == ["A boat."]
    code, text = command("clean", rows, cleaned)
    assert code == 1
    assert "is there already" in text
