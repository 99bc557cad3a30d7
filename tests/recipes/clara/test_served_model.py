"""The endpoint's client and the descriptions against `transformers serve`, and a real model behind it."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from served_model import served_model, taught_checkpoint
from tiny_qwen3_vl import qwen3_vl_checkpoint
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

from qwen_grafts.recipes.clara.chat_endpoint import (
    TRUNCATED,
    ChatEndpoint,
    EndpointError,
    EndpointSettings,
    UnusableAnswerError,
)
from qwen_grafts.recipes.clara.image_descriptions import describe_folder, folder_pictures
from qwen_grafts.recipes.clara.picture_describers import EndpointDescriber, open_picture
from qwen_grafts.recipes.clara.raw_knowledge import read_descriptions

CONVERSATIONS = [
    ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who built it?"}], "Nobody knows."),
    ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "When?"}], '{"year": 1843}'),
    ([{"role": "user", "content": "架构是什么?"}], "编码器和解码器。"),
]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def test_a_taught_model_answers(tmp_path):
    taught_checkpoint(tmp_path / "model", CONVERSATIONS)
    with served_model(tmp_path / "model", tmp_path / "log") as served:
        settings = EndpointSettings(served.model, served.base_url, max_concurrency=2)
        with ChatEndpoint(settings, tmp_path / "a.sqlite") as endpoint:
            work = lambda messages: endpoint.ask(messages, max_tokens=40, json_object=True)  # noqa: E731
            answers = list(endpoint.in_order(work, [messages for messages, _ in CONVERSATIONS]))
            assert answers == [answer for _, answer in CONVERSATIONS]
            assert endpoint.usage.requests == 3 and endpoint.usage.without_usage == 0
            assert endpoint.usage.completion_tokens == sum(len(text.encode()) + 1 for _, text in CONVERSATIONS)
            with pytest.raises(UnusableAnswerError, match=TRUNCATED) as caught:
                endpoint.ask(CONVERSATIONS[0][0], max_tokens=6)
            assert caught.value.text == "Nobody"
        told = pytest.raises(EndpointError, match=r"400: Server is pinned to .* requested 'another'")
        with ChatEndpoint(EndpointSettings("another", served.base_url), tmp_path / "a.sqlite") as endpoint, told:
            endpoint.ask(CONVERSATIONS[0][0], max_tokens=6)


def teach_pictures(folder: Path, rows: list[tuple[Image.Image, str, str]]) -> None:
    """Have a tiny stock Qwen3-VL learn what to say to (picture, prompt, answer)."""
    qwen3_vl_checkpoint(folder)
    processor = AutoProcessor.from_pretrained(folder)
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder).train()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.08) if parameter.ndim > 1 else torch.nn.init.ones_(parameter)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    batches = []
    for picture, prompt, answer in rows:
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        turn = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(turn, add_generation_prompt=True)
        start = processor(text=text, images=picture, return_tensors="pt")["input_ids"].shape[1]
        batch = processor(text=f"{text}{answer}<|im_end|>", images=picture, return_tensors="pt")
        batches.append(batch | {"labels": batch["input_ids"].clone().index_fill_(1, torch.arange(start), -100)})
    for _ in range(300):
        losses = [model(**batch).loss for batch in batches]
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
        if max(losses) < 0.02:
            break
    assert max(losses) < 0.02
    model.eval().save_pretrained(folder)


@pytest.mark.slow
def test_a_served_model_looks_at_pictures(tmp_path):
    """A stock Qwen3-VL; `transformers serve` of 5.23 takes no architecture that comes with its repository."""
    colours = {"red": "A red plane.", "blue": "A blue plane.", "green": "Grass."}
    (tmp_path / "raw_data").mkdir()
    rows = []
    for colour in colours:
        Image.new("RGB", (64, 48), colour).save(tmp_path / f"raw_data/{colour}.png")
        rows.append({"id": colour, "source_type": "image", "text": "", "image": f"raw_data/{colour}.png"})
    (tmp_path / "raw_knowledge.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pictures = list(folder_pictures(tmp_path))
    lessons = zip(pictures, colours.values(), strict=True)
    lessons = [(open_picture(tmp_path, picture.image), picture.prompt(), answer) for picture, answer in lessons]
    teach_pictures(tmp_path / "model", lessons)
    with served_model(tmp_path / "model", tmp_path / "log") as served:
        settings = EndpointSettings(served.model, served.base_url, max_concurrency=2)
        with ChatEndpoint(settings, tmp_path / "a.sqlite") as endpoint:
            counts = describe_folder(tmp_path, EndpointDescriber(endpoint, 40), show_progress=False)
            assert (counts.described, counts.missing) == (3, {})
    described = read_descriptions(tmp_path / "image_descriptions.jsonl")
    assert described == {f"raw_data/{colour}.png": answer for colour, answer in colours.items()}
