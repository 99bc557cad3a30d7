"""`qwen-grafts data write` as a user sees it: what it prints, killed and started again, and what trains on its rows."""

import json
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import sentence_writer
from raw_documents import read_lines, start_write, write_knowledge, write_lines, write_tokenizer, write_words
from scripted_endpoint import ScriptedEndpoint, endpoint_process
from served_model import served_model, taught_checkpoint
from tiny_latents import contents

from qwen_grafts.cli import main
from qwen_grafts.hub_cards import export_preset
from qwen_grafts.recipes.clara.stage_rows import SETS
from qwen_grafts.recipes.clara.synthesis_settings import doc_max_length_of
from qwen_grafts.recipes.graft_sft import main as train
from qwen_grafts.recipes.graft_sft import parse

TESTS = Path(__file__).parent
RECIPE = TESTS.parent / "recipes" / "clara" / "tiny.yaml"


@pytest.fixture
def command(capsys, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def run(words: list[str]) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["qwen-grafts", *words])
        with pytest.raises(SystemExit) as exit:
            main()
        captured = capsys.readouterr()
        return exit.value.code, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_write_and_again(command, tokenizer, tmp_path):
    knowledge, rows = write_knowledge(tmp_path / "knowledge", 6), tmp_path / "rows"
    with ScriptedEndpoint(sentence_writer.good) as server:
        words = write_words(knowledge, rows, tokenizer, server.base_url, "--rounds", 2, "--eval-ratio", 0.2)
        code, out, err = command([*words, "--dry-run", "--input-price", 2, "--output-price", 6])
        assert code == 0, err
        assert "of 8 documents to ask about" in out and "at most" in out and "cost" in out
        code, out, err = command([*words, "--dry-run"])
        assert (code, err) == (0, "") and "cost" not in out
        assert not server.calls and not rows.exists() and not list(knowledge.glob("*.sqlite"))
        code, out, err = command(words)
        assert code == 0, err
        assert f"{len(server.chats):,} requests, 0 answers from the cache" in out and "end_to_end" in out
        assert "Dropped chunks: 1 control token, 1 no words" in out
        meta, asked = json.loads((rows / "data_meta.json").read_text()), len(server.chats)
        assert meta["asked"]["requests"] == asked
        before = contents(rows)
        code, out, _ = command(words)
        assert code == 0 and "0 requests" in out and contents(rows) == before
        code, _, err = command([*words, "--seed", "7"])
        assert code == 1 and "seed was 42 and is 7" in err and "Ask as then" in err
        code, out, _ = command(
            [word if word != str(rows) else str(tmp_path / "other") for word in words] + ["--seed", "7"]
        )
        assert code == 0 and "0 requests" in out and len(server.chats) == asked
    card = (rows / "README.md").read_text()
    assert "| standalone images | 2 |" in card and "| `seed` | 42 |" in card and "```json" in card
    assert str(tmp_path) not in card + json.dumps(meta)


def test_wrong_words_are_told_before_anything_is_asked(command, tokenizer, tmp_path):
    knowledge = write_knowledge(tmp_path / "knowledge", 6)
    with ScriptedEndpoint(sentence_writer.good) as server:
        words = write_words(knowledge, tmp_path / "rows", tokenizer, server.base_url)
        for more, message in (
            (["--rounds", "0"], "`max_rounds` is 0"),
            (["--rounds", "11"], "`max_rounds` is 11; give 1 to 10"),
            (["--target-top-k", "3"], "`target_top_k` is 3 and `instruction_docs` 5"),
            (["--eval-ratio", "1"], "`eval_ratio` must be"),
            (["--questions", "0", "--paraphrases", "0"], "nothing would be written"),
            (["--input-price", "1"], "Give both prices"),
        ):
            code, _, err = command([*words, *more])
            assert code == 1 and message in err, err
        for name, content, message in (
            ("raw_knowledge.jsonl", '{"id": "1", "source_type": "text"}\n', "line 1: `text` is missing"),
            ("image_descriptions.jsonl", "{\n", "image_descriptions.jsonl, line 1 is no JSON"),
        ):
            broken = write_knowledge(tmp_path / f"broken {name}", 3)
            right = (broken / name).read_text()
            (broken / name).write_text(content)
            words_there = write_words(broken, tmp_path / "repaired rows", tokenizer, server.base_url)
            code, _, err = command(words_there)
            assert code == 1 and message in err, err
            assert not server.calls
        (broken / name).write_text(right)
        code, _, err = command([*words_there, "--rounds", "1"])  # the folder is not taken for the broken file's
        assert code == 0, err
        asked = len(server.calls)
        (knowledge / "raw_knowledge.jsonl").unlink()
        code, _, err = command(words)
        assert code == 1 and "raw_knowledge.jsonl" in err
        assert len(server.calls) == asked


def test_chunks_are_as_long_as_the_model_reads(tokenizer, tmp_path):
    assert doc_max_length_of(str(tokenizer)) == 256
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clara_qwen3", "doc_max_length": 96}))
    assert doc_max_length_of(str(tmp_path)) == 96


@pytest.mark.slow
@pytest.mark.parametrize("script", ["slow", "bad"])
def test_killed_runs_go_on_where_they_were(command, tokenizer, tmp_path, script):
    """`kill -9` again and again while it asks: same files as a run that went through, and nothing is asked again."""
    knowledge = write_knowledge(tmp_path / "knowledge", 10)
    other = write_knowledge(tmp_path / "other", 10)
    more = ("--rounds", 3, "--eval-ratio", 0.2, "--concurrency", 3, "--target-top-k", 6)
    with endpoint_process(tmp_path, f"sentence_writer:{script}") as server:
        code, _, err = command(write_words(other, tmp_path / "whole", tokenizer, server.base_url, *more))
        assert code == 0, err
        whole = Counter(line["digest"] for line in server.lines("answered"))
        first = len(server.lines("asked"))
        words = write_words(knowledge, tmp_path / "rows", tokenizer, server.base_url, *more)
        rng = random.Random(0)
        for wanted in (0.03, 0.3, 0.6, 0.9):
            child = start_write(words)
            while len(server.lines("answered")) - first < wanted * whole.total():
                assert child.poll() is None, child.stdout.read()
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.05))
            child.send_signal(signal.SIGKILL)
            child.communicate()
            time.sleep(0.3)  # what it had asked is answered to nobody
            assert not json.loads((tmp_path / "rows" / "data_meta.json").read_text())["finished"]
        child = start_write(words)
        output, _ = child.communicate(timeout=120)
        assert child.returncode == 0, output
        assert contents(tmp_path / "rows") == contents(tmp_path / "whole")
        asked = Counter(line["digest"] for line in server.lines("asked")[first:])
        # At most those under way at a kill, three each time.
        assert (asked - whole).total() <= 12
        assert not whole - asked


@pytest.mark.slow
def test_rows_train_all_stages(command, tmp_path):
    """With the trainer as it is, from the command's folder as it is."""
    model = export_preset("clara-tiny", tmp_path / "model")
    rows = tmp_path / "rows"
    with ScriptedEndpoint(sentence_writer.good) as server:
        words = write_words(write_knowledge(tmp_path / "knowledge", 10), rows, model, server.base_url)
        place = words.index("--doc-max-length")
        del words[place : place + 2]
        code, _, err = command([*words, "--eval-ratio", "0.2", "--target-top-k", "8"])
        assert code == 0, err
    length = json.loads((model / "config.json").read_text())["doc_max_length"]
    assert json.loads((rows / "data_meta.json").read_text())["settings"]["doc_max_length"] == length
    for stage in (*SETS, "retrieval"):
        out = tmp_path / stage
        values = {
            "model_name_or_path": model,
            "document_data": rows / ("end_to_end" if stage == "retrieval" else stage),
            "stage": stage,
            "output_dir": out,
            "max_steps": 2,
            "save_steps": 2,
            "eval_steps": 2,
            "generative_eval_rows": 2,
            "warmup_steps": 1,
            "disable_tqdm": True,
            "use_cpu": True,
        }
        options = [word for name, value in values.items() for word in (f"--{name}", str(value))]
        trainer = train(*parse(["--config", str(RECIPE), *options]))
        assert trainer.state.global_step == 2
        metadata = json.loads((out / "training_meta.json").read_text())
        assert metadata["dataset"]["eval_rows"] > 0 and metadata["eval_loss_curve"]
        processor = trainer.model.processor if hasattr(trainer.model, "processor") else trainer.processing_class
        texts = {text for line in read_lines(rows / stage / "train.jsonl") for text in line["docs"]}
        assert all(len(processor.passages(text)) == 1 for text in texts)


@pytest.mark.slow
def test_a_real_model_that_writes_nothing_of_use(command, tokenizer, tmp_path):
    """Everything is dropped with its reasons, and the command says so."""
    knowledge = tmp_path / "knowledge"
    knowledge.mkdir()
    text = "The first bridge was built of stone, and the second one of wood and iron, a hundred years later."
    write_lines(
        knowledge / "raw_knowledge.jsonl",
        [{"id": str(n), "source_type": "text", "text": f"{text} {n}"} for n in (1, 2)],
    )
    taught_checkpoint(tmp_path / "model", [([{"role": "user", "content": "Hello"}], "No.")])
    with served_model(tmp_path / "model", tmp_path / "log") as served:
        words = write_words(knowledge, tmp_path / "rows", tokenizer, served.base_url, "--max-tokens", 24, "--rounds", 2)
        words[words.index("scripted")] = served.model
        code, _, err = command([*words, "--eval-ratio", "0"])
    assert code == 1 and "Nothing survived of" in err and "Ask a model that follows instructions better" in err, err
    assert not json.loads((tmp_path / "rows" / "data_meta.json").read_text())["finished"]
