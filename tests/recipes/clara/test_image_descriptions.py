"""Pictures of a knowledge folder, described by a real server and by a real graft."""

import base64
import io
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from distinct_export import export_distinct
from loopback_http import Reply
from PIL import Image
from scripted_endpoint import ChatRequest, ScriptedEndpoint, endpoint_process, refusal
from sklearn.datasets import load_sample_images

from qwen_grafts.data_commands import ANSWERS
from qwen_grafts.processing.guarded_images import CORRUPT, MISSING, NOT_AN_IMAGE, OUTSIDE_ROOT
from qwen_grafts.recipes.clara import request_limits
from qwen_grafts.recipes.clara.chat_endpoint import ChatEndpoint, EndpointError, EndpointSettings
from qwen_grafts.recipes.clara.graft_describer import GraftDescriber
from qwen_grafts.recipes.clara.image_descriptions import (
    DescriptionCounts,
    describe_folder,
    description_cost,
    folder_pictures,
)
from qwen_grafts.recipes.clara.picture_context import language_of
from qwen_grafts.recipes.clara.picture_describers import (
    NAMES_FILE,
    NO_WORDS,
    REFUSED,
    TOO_SMALL,
    EndpointDescriber,
    checked_description,
    data_uri,
    open_picture,
)
from qwen_grafts.recipes.clara.request_cost import UsageCounts

COLOURS = ["red", "green", "blue", "black", "white", "yellow", "purple", "orange"]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(request_limits, "_FIRST_WAIT", 0.01)


def save(folder: Path, image: str, colour: str = "red", size: tuple[int, int] = (40, 30)) -> None:
    path = folder / image
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def document(number: int, text: str) -> dict[str, Any]:
    return {"id": str(number), "source_type": "text", "text": text}


def standalone(number: int, image: str) -> dict[str, Any]:
    return {"id": str(number), "source_type": "image", "text": "", "image": image}


def knowledge(folder: Path, *documents: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in documents]
    (folder / "raw_knowledge.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def colour_seen(request: ChatRequest) -> str:
    """Looks at the picture that was sent."""
    pixel = Image.open(io.BytesIO(request.images[0])).getpixel((5, 5))
    names = {Image.new("RGB", (1, 1), name).getpixel((0, 0)): name for name in COLOURS}
    return f"A plane of {names[pixel]}."


def describe(folder: Path, server: Any, **settings: Any) -> tuple[DescriptionCounts, UsageCounts]:
    with ChatEndpoint(EndpointSettings("eyes", server.base_url, **settings), folder / ANSWERS) as endpoint:
        return describe_folder(folder, EndpointDescriber(endpoint, 99), show_progress=False), endpoint.usage


def written(folder: Path) -> list[tuple[str, str]]:
    lines = (folder / "image_descriptions.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["image"], row["description"]) for row in map(json.loads, lines)]


def test_embedded_and_standalone_pictures_in_order(tmp_path):
    images = [f"extracted_assets/{colour}.png" for colour in COLOURS[:4]]
    for image, colour in zip(images, COLOURS, strict=False):
        save(tmp_path, image, colour)
    save(tmp_path, "raw_data/photo.png", "orange")
    knowledge(
        tmp_path,
        document(1, f"架构设计如下 [IMAGE_REF: {images[2]}] 其中包括 [IMAGE_REF: {images[0]}]"),
        standalone(2, "raw_data/photo.png"),
        document(3, f"Seen before: [IMAGE_REF: {images[2]}]. New: [IMAGE_REF: {images[1]}]."),
        document(4, "No picture."),
        standalone(5, "raw_data/photo.png"),
    )
    with ScriptedEndpoint(colour_seen) as server:
        counts, usage = describe(tmp_path, server)
        assert written(tmp_path) == [
            (images[2], "A plane of blue."),
            (images[0], "A plane of red."),
            ("raw_data/photo.png", "A plane of orange."),
            (images[1], "A plane of green."),
        ]
        assert (counts.pictures, counts.described, counts.there, counts.missing) == (4, 4, 0, Counter())
        assert (len(server.chats), usage.requests) == (4, 4)
        assert server.chats[0].body["max_tokens"] == 99
        assert str(counts) == "4 pictures: 4 described, 0 described before."
        counts, usage = describe(tmp_path, server)
        assert (counts.described, counts.there, usage.requests + usage.cached, len(server.chats)) == (0, 4, 0, 4)


def test_prompts_follow_the_document(tmp_path):
    """Language and context of each picture; no marker, no path and no text of other pictures' files in a prompt."""
    filler = "word " * 400
    knowledge(
        tmp_path,
        document(1, "架构设计如下 [IMAGE_REF: extracted_assets/a_1.png] 其中 Transformer Encoder 负责编码。"),
        document(
            2, f"{filler}Here it is: [IMAGE_REF: extracted_assets/b_1.png] and [IMAGE_REF: extracted_assets/b_2.png]"
        ),
        document(3, f"全文是中文。 [IMAGE_REF: extracted_assets/c_1.png]{filler}"),
        document(4, "[IMAGE_REF: extracted_assets/d_1.png]"),
        standalone(5, "raw_data/e_1.png"),
        document(6, "One more in English."),
        document(8, f"表格如下{'1 ' * 500}[IMAGE_REF: extracted_assets/f_1.png]"),
    )
    pictures = {picture.image: picture for picture in folder_pictures(tmp_path)}
    assert [picture.language for picture in pictures.values()] == ["zh", "en", "en", "en", "en", "en", "zh"]
    first = pictures["extracted_assets/a_1.png"]
    assert (first.before, first.after) == ("架构设计如下", "其中 Transformer Encoder 负责编码。")
    assert "请用中文" in first.prompt() and "图片之前的文字:\n架构设计如下" in first.prompt()
    second = pictures["extracted_assets/b_1.png"]
    assert second.after == "and"
    assert second.before.endswith("word Here it is:") and second.before.startswith("word word")
    assert 700 < len(second.before) <= 800
    third = pictures["extracted_assets/c_1.png"]
    assert 300 < len(third.after) <= 400 and third.after.endswith("word")
    assert "Text before it" not in pictures["extracted_assets/d_1.png"].prompt()
    for picture in pictures.values():
        for attempt in range(3):
            assert not any(
                word in picture.prompt(attempt) for word in ("IMAGE_REF", "extracted", "raw_data", "_1", "_2")
            )
        assert picture.prompt(1) != picture.prompt(0)


def test_pictures_without_text_follow_most_documents(tmp_path):
    rows = [
        document(1, "[IMAGE_REF: a.png]"),
        standalone(2, "b.png"),
        document(3, "一份中文文档。"),
        document(4, "另一份。"),
    ]
    knowledge(tmp_path, *rows, document(5, "One in English."))
    assert [picture.language for picture in folder_pictures(tmp_path)] == ["zh", "zh"]
    knowledge(tmp_path, *rows, document(5, "One in English."), document(6, "Two."))
    assert [picture.language for picture in folder_pictures(tmp_path)] == ["en", "en"]


def test_languages():
    assert language_of("架构设计如下, 使用 Transformer Encoder") == "zh"
    assert language_of("The word 架构 means architecture.") == "en"
    assert language_of("これは日本語の文章です") == "en"
    assert language_of("1234 -- ...") is None
    assert language_of("") is None


@pytest.mark.parametrize(
    ("text", "image", "reason"),
    [
        ("  \n", "a.png", NO_WORDS),
        ("... 123 !", "a.png", NO_WORDS),
        ("This is chart.png in the folder.", "a.png", NAMES_FILE),
        ("The file name is not known.", "a.png", NAMES_FILE),
        ("图片文件名为架构图。", "a.png", NAMES_FILE),
        ("It lies in extracted_assets.", "a.png", NAMES_FILE),
        ("The picture Report_P3 shows a bar.", "extracted_assets/report_p3.png", NAMES_FILE),
        ("[IMAGE_REF: x]", "a.png", NAMES_FILE),
    ],
)
def test_descriptions_that_are_none(text, image, reason):
    assert checked_description(text, image) == (None, reason)


def test_descriptions_that_are():
    assert checked_description("Two\n\n bars,\t one red.", "red.png") == ("Two bars, one red.", "")
    assert checked_description("The architecture has parts.", "architecture.png")[0] is not None
    assert checked_description("左侧是编码器。", "a.png") == ("左侧是编码器。", "")


def test_a_bad_description_is_asked_for_again_and_then_counted(tmp_path):
    """Green gets better at the third attempt, blue never; the next run pays for none of it again."""
    for colour in COLOURS[:3]:
        save(tmp_path, f"extracted_assets/{colour}.png", colour)
    knowledge(tmp_path, *(document(n, f"[IMAGE_REF: extracted_assets/{c}.png]") for n, c in enumerate(COLOURS[:3])))
    asked: Counter[str] = Counter()

    def script(request: ChatRequest) -> str | Reply:
        seen = colour_seen(request)
        asked[seen] += 1
        if "green" in seen and asked[seen] < 3:
            return "" if asked[seen] == 1 else "The file green.png."
        return "It is image_0001.jpg" if "blue" in seen else seen

    with ScriptedEndpoint(script) as server:
        counts, _ = describe(tmp_path, server)
        assert [colour for colour, _ in written(tmp_path)] == ["extracted_assets/red.png", "extracted_assets/green.png"]
        assert counts.missing == {NAMES_FILE: 1}
        assert "1 without a description: 1 described by its file" in str(counts)
        assert sorted(asked.values()) == [1, 3, 3]
        heats = sorted(chat.body["temperature"] for chat in server.chats)
        assert heats == [0, 0, 0, 0.7, 0.7, 0.7, 0.7]
        counts, usage = describe(tmp_path, server)
        assert (counts.there, counts.described, counts.missing) == (2, 0, {NAMES_FILE: 1})
        assert (usage.requests, usage.cached, len(server.chats)) == (0, 3, 7)


def test_broken_pictures_are_counted_by_reason_and_never_sent(tmp_path):
    outside = tmp_path / "outside.png"
    save(tmp_path, "outside.png")
    folder = tmp_path / "knowledge"
    save(folder, "extracted_assets/fine.png")
    assets = folder / "extracted_assets"
    (assets / "zero.png").write_bytes(b"")
    (assets / "half.png").write_bytes((assets / "fine.png").read_bytes()[:60])
    (assets / "text.png").write_text("OPENAI_API_KEY=sk-secret")
    (assets / "link.png").symlink_to(outside)
    save(folder, "extracted_assets/pixel.png", size=(1, 1))
    save(folder, "extracted_assets/line.png", size=(4000, 10))
    names = ["zero.png", "half.png", "text.png", "link.png", "pixel.png", "line.png", "gone.png", "fine.png"]
    images = [f"extracted_assets/{name}" for name in names]
    knowledge(folder, *(standalone(number, image) for number, image in enumerate(images)))
    with ScriptedEndpoint(colour_seen) as server:
        counts, _ = describe(folder, server)
        assert counts.missing == {CORRUPT: 2, NOT_AN_IMAGE: 1, OUTSIDE_ROOT: 1, TOO_SMALL: 2, MISSING: 1}
        assert written(folder) == [("extracted_assets/fine.png", "A plane of red.")]
        assert len(server.chats) == 1
        for path in ("../outside.png", str(outside), "a/../../outside.png", "%2e%2e/outside.png"):
            knowledge(folder, document(1, f"See [IMAGE_REF: {path}]"))
            with pytest.raises(ValueError, match=r"raw_knowledge\.jsonl, line 1: `text`: .* the knowledge folder"):
                describe(folder, server)
        assert len(server.chats) == 1


def test_a_refused_picture_is_counted_and_an_endpoint_without_eyes_is_told(tmp_path):
    for colour in COLOURS:
        save(tmp_path, f"raw_data/{colour}.png", colour)
    knowledge(tmp_path, *(standalone(number, f"raw_data/{colour}.png") for number, colour in enumerate(COLOURS)))

    def script(request: ChatRequest) -> str | Reply:
        seen = colour_seen(request)
        return refusal(400, "Invalid image.") if "red" in seen or "green" in seen else seen

    with ScriptedEndpoint(script) as server:
        counts, _ = describe(tmp_path, server)
        assert (counts.described, counts.missing) == (6, {REFUSED: 2})
        assert "Invalid image." in str(counts)
    (tmp_path / "image_descriptions.jsonl").unlink()
    (tmp_path / ANSWERS).unlink()
    blind = lambda request: refusal(400, "eyes is not a multimodal model")  # noqa: E731
    with ScriptedEndpoint(blind) as server:
        with pytest.raises(EndpointError, match="eyes is not a multimodal model"):
            describe(tmp_path, server, max_concurrency=1)
        assert len(server.chats) <= 5


def test_what_is_sent(tmp_path):
    """Upright, RGB, within the limits: a photograph twelve times as large, a turned one, a transparent one, noise."""
    photograph = Image.fromarray(load_sample_images().images[0])
    (tmp_path / "a").mkdir()
    photograph.resize((4000, 3000)).save(tmp_path / "a/large.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph.save(tmp_path / "a/turned.jpg", exif=exif)
    Image.new("RGBA", (50, 40), (255, 0, 0, 0)).save(tmp_path / "a/clear.png")
    Image.effect_noise((3000, 2900), 90).save(tmp_path / "a/noise.png")
    sizes = {"large": (1024, 768), "turned": (427, 640), "clear": (50, 40), "noise": (1024, 990)}
    for name, size in sizes.items():
        picture = open_picture(tmp_path, f"a/{next((tmp_path / 'a').glob(f'{name}.*')).name}")
        kind, _, data = data_uri(picture).partition(";base64,")
        assert len(data) <= 2_000_000
        sent = Image.open(io.BytesIO(base64.b64decode(data)))
        assert (sent.size, sent.mode, kind) == (size, "RGB", f"data:image/{sent.format.lower()}")
        assert not sent.getexif()
    assert open_picture(tmp_path, "a/clear.png").getpixel((0, 0)) == (255, 255, 255)


def colourful(folder: Path) -> None:
    for number in range(40):
        save(folder, f"raw_data/{number:02}.png", COLOURS[number % 8], (40 + number, 30))
    knowledge(folder, *(standalone(number, f"raw_data/{number:02}.png") for number in range(40)))


def test_kill_and_run_again(tmp_path):
    """The same file as without the kill, byte for byte, and no answered request twice."""
    colourful(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    with endpoint_process(tmp_path, "slow_look", "--fault-share", "0.1") as server:
        command = [sys.executable, "-m", "qwen_grafts.cli", "data", "describe", "--model", "eyes", "--concurrency", "4"]
        command += ["--max-tokens", "99", "--base-url", server.base_url, tmp_path / "killed"]
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while len(server.lines("answered")) < 15:
            assert child.poll() is None
            time.sleep(0.05)
        child.kill()
        child.wait()
        path = tmp_path / "killed/image_descriptions.jsonl"
        assert 0 < len(written(tmp_path / "killed")) < 40
        with path.open("a") as lines:
            lines.write('{"image": "raw_data/39.p')
        describe(tmp_path / "killed", server)
        asked = server.lines("asked")
        describe(tmp_path / "whole", server)
    files = [tmp_path / name / "image_descriptions.jsonl" for name in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert len(written(tmp_path / "whole")) == 40
    good = Counter(line["digest"] for line in asked if line["fault"] is None)
    assert len(good) == 40 and good.total() - 40 <= 4


def test_order_after_a_failure_and_descriptions_of_others_stay(tmp_path):
    colourful(tmp_path)
    path = tmp_path / "image_descriptions.jsonl"
    kept = [("elsewhere.png", "Somebody's own."), ("raw_data/07.png", "Mine, without an end of line.")]
    path.write_text("\n".join(json.dumps({"image": image, "description": text}) for image, text in kept))
    with ScriptedEndpoint(colour_seen, faults=dict.fromkeys(range(1, 60), "filter")) as server:
        counts, _ = describe(tmp_path, server)
        assert counts.missing.total() + counts.described + counts.there == 40
    (tmp_path / ANSWERS).unlink()
    with ScriptedEndpoint(colour_seen) as server:
        describe(tmp_path, server)
    names = [image for image, _ in written(tmp_path)]
    assert names == [f"raw_data/{number:02}.png" for number in range(40)] + ["elsewhere.png"]
    assert dict(written(tmp_path))["raw_data/07.png"] == "Mine, without an end of line."


def test_a_folder_without_documents(tmp_path):
    with pytest.raises(ValueError, match=r"has no raw_knowledge\.jsonl\. Make it with: qwen-grafts data collect"):
        list(folder_pictures(tmp_path))


def test_cost(tmp_path):
    knowledge(tmp_path, *(standalone(number, f"raw_data/{number}.png") for number in range(10)))
    cost = description_cost(tmp_path, 400, 1.0, 2.0)

    assert cost.requests == (10, 10, 30)
    assert cost.completion_tokens == (400, 1500, 12_000)
    assert 10_000 < cost.prompt_tokens.low == cost.prompt_tokens.expected < 13_000
    (tmp_path / "image_descriptions.jsonl").write_text('{"image": "raw_data/3.png", "description": "Mine."}\n{"ima')
    assert description_cost(tmp_path, 400, 1.0, 2.0).requests == (9, 9, 27)


def test_a_graft_describes_what_generate_writes(tmp_path):
    """In batches that do not divide the pictures, with a broken one among them; against one picture at a time."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    export = str(export_distinct(tmp_path, "vision-bridge-tiny"))
    folder = tmp_path / "knowledge"
    noise = Image.open(tmp_path / "image.png")
    (folder / "raw_data").mkdir(parents=True)
    for number in range(5):
        noise.rotate(90 * number, expand=True).resize((56 + 28 * number, 56)).save(folder / f"raw_data/{number}.png")
    (folder / "raw_data/2.png").write_bytes(b"")
    knowledge(folder, *(standalone(number, f"raw_data/{number}.png") for number in range(5)))
    counts = describe_folder(folder, GraftDescriber(export, 12, 2), show_progress=False)
    assert counts.missing.total() + counts.described == 5 and counts.missing[CORRUPT] == 1
    found = dict(written(folder))
    assert found
    processor = AutoProcessor.from_pretrained(export)
    model = AutoModelForImageTextToText.from_pretrained(export, dtype="auto").eval()
    for picture in folder_pictures(folder):
        if picture.image == "raw_data/2.png":
            continue
        image = Image.open(folder / picture.image).convert("RGB")
        for attempt in range(2):
            content = [{"type": "image"}, {"type": "text", "text": picture.prompt(attempt)}]
            turn = [{"role": "user", "content": content}]
            prompt = processor.apply_chat_template(turn, add_generation_prompt=True, enable_thinking=False)
            inputs = processor(text=prompt, images=image, return_tensors="pt")
            with torch.no_grad():
                ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
            text = processor.decode(ids, skip_special_tokens=True)
            wanted, _ = checked_description(text, picture.image)
            if wanted is not None:
                break
        assert found.get(picture.image) == wanted
