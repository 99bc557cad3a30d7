"""`qwen-grafts data describe` as a user sees it: what it prints, and what it says when something is wrong."""

import json
import sys
from pathlib import Path

import pytest
from distinct_export import export_distinct
from PIL import Image
from scripted_endpoint import FAULTS, ScriptedEndpoint

from qwen_grafts.cli import main

KEY = "sk-test-0123456789abcdef"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "extracted_assets").mkdir()
    Image.new("RGB", (64, 48), "red").save(tmp_path / "extracted_assets/a.png")
    text = "架构设计如下 [IMAGE_REF: extracted_assets/a.png]"
    row = {"id": "1", "source_type": "text", "text": text}
    (tmp_path / "raw_knowledge.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path


@pytest.fixture
def describe(folder, capsys, monkeypatch):
    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["qwen-grafts", "data", "describe", str(folder), *map(str, words)])
        with pytest.raises(SystemExit) as exit:
            main()
        captured = capsys.readouterr()
        return exit.value.code, captured.out, captured.err

    return run


def look(request) -> str:
    assert "架构设计如下" in request.text and "请用中文" in request.text
    return "左侧是编码器, 右侧是解码器。"


def test_describe_and_again(describe, folder):
    with ScriptedEndpoint(look) as server:
        words = ("--model", "eyes", "--base-url", server.base_url, "--input-price", 2, "--output-price", 6)
        code, out, err = describe(*words, "--dry-run")
        assert (code, len(server.calls)) == (0, 0), err
        assert "at most" in out and "cost" in out and not (folder / "endpoint_answers.sqlite").exists()
        code, out, err = describe(*words)
        assert code == 0, err
        assert "1 requests, 0 answers from the cache, 0 retries" in out and "cost 0.0000." in out
        assert "1 pictures: 1 described, 0 described before." in out
        line = json.loads((folder / "image_descriptions.jsonl").read_text())
        assert line == {"image": "extracted_assets/a.png", "description": "左侧是编码器, 右侧是解码器。"}
        code, out, _ = describe(*words)
        assert "1 pictures: 0 described, 1 described before." in out
        assert len(server.calls) == 1


def test_the_environment_says_where_and_with_which_key(describe, monkeypatch, folder):
    with ScriptedEndpoint(look, key=KEY) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        code, _, err = describe("--model", "eyes")
        assert (code, "OPENAI_API_KEY is not set; put the server's key into it." in err) == (1, True)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-key")
        code, _, err = describe("--model", "eyes")
        assert (code, "Put a valid key into the environment variable OPENAI_API_KEY." in err) == (1, True)
        assert "sk-wrong-key" not in err and "[key]" in err
        assert not (folder / "image_descriptions.jsonl").read_text()
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        code, out, err = describe("--model", "eyes")
        assert (code, "1 described" in out, KEY in out + err) == (0, True, False)
    for path in folder.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path


def test_what_cannot_work_is_one_line(describe, folder):
    for words, told in (
        ((), "Give exactly one of `--model NAME`, of an endpoint, and `--graft REPOSITORY`."),
        (("--model", "m", "--graft", "g"), "Give exactly one"),
        (("--graft", "g", "--dry-run"), "are of an endpoint"),
        (("--model", "m"), "give `--base-url` or set OPENAI_BASE_URL"),
        (("--model", "m", "--base-url", "127.0.0.1:1"), "should read http://HOST:PORT/v1"),
        (("--model", "m", "--base-url", "http://127.0.0.1:9/v1"), "cannot be reached"),
        (("--model", "m", "--base-url", "http://h/v1", "--concurrency", 0), "`max_concurrency` is 0"),
        (("--model", "m", "--base-url", "http://h/v1", "--input-price", 1), "Give both prices"),
        (("--graft", folder / "nowhere"), "nowhere"),
    ):
        code, _, err = describe(*words)
        assert (code, err.count("Error:")) == (1, 1), words
        assert told in err and "Traceback" not in err, words
    with ScriptedEndpoint(look, models=("eyes", "other")) as server:
        code, _, err = describe("--model", "ears", "--base-url", server.base_url)
        assert code == 1
        assert "404: The model `ears` does not exist. Check the name of the model, and the base URL" in err
        page = ScriptedEndpoint(FAULTS["404"])
        with page:
            code, _, err = describe("--model", "eyes", "--base-url", page.base_url)
        assert (code, "404" in err) == (1, True)
    (folder / "endpoint_answers.sqlite").write_bytes(b"broken" * 1000)
    code, _, err = describe("--model", "m", "--base-url", "http://127.0.0.1:9/v1")
    assert (code, "is damaged" in err and "move it away" in err) == (1, True)
    (folder / "raw_knowledge.jsonl").unlink()
    code, _, err = describe("--model", "m", "--base-url", "http://127.0.0.1:9/v1")
    assert (code, "Make it with: qwen-grafts data collect" in err) == (1, True)


def test_an_empty_picture_is_no_error(describe, folder):
    (folder / "extracted_assets/a.png").write_bytes(b"")
    with ScriptedEndpoint(look) as server:
        code, out, err = describe("--model", "eyes", "--base-url", server.base_url)
        assert code == 0, err
        assert "1 without a description: 1 truncated or corrupt." in out
        assert not server.calls


def test_a_graft(describe, folder, tmp_path_factory):
    export = export_distinct(tmp_path_factory.mktemp("graft"), "perceiver-vlm-tiny")
    code, out, err = describe("--graft", export, "--max-tokens", 12)
    assert code == 0, err
    assert "1 pictures:" in out and "Wrote" in out


def test_help(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["qwen-grafts", "data", "describe", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert "Example:" in capsys.readouterr().out
