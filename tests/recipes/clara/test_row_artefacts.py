"""What is refused as a technical artefact, and what is not because it is the subject."""

import re

import pytest

from qwen_grafts.recipes.clara import refusal_reasons as reasons
from qwen_grafts.recipes.clara.row_artefacts import added_artefact, artefact
from qwen_grafts.recipes.topic_documents import topic_documents

REFUSED = {
    reasons.LEFTOVER: [
        "What does [IMAGE_REF: extracted_assets/a.png] show?",
        "See IMAGE REF 3.",
        "[IMAGE DESCRIPTION] Three boxes.",
        "What lies in raw_data?",
        "[图像描述] 里有什么？",
    ],
    reasons.ASSET_URL: [
        "https://example.org/pictures/a.png",
        "What is at http://example.org/report.pdf?",
        "data:image/png;base64,AAAA",
        "file:///a",
        "见 https://example.org/图.png",
    ],
    reasons.PATH: [
        "What is stored under /usr/share/dict?",
        "/etc",
        "It lies in ./build/out.",
        r"C:\Users\public\a",
        r"\\server\share",
        "images/scan.png",
        "src/main.py",
        "资料/架构图.png 里是什么？",
        "a/b/c/d",
    ],
    reasons.FILE_NAME: [
        "What is in report.pdf?",
        "image3.png",
        "What does photo_01.JPG show?",
        "Open notes.md first.",
        "架构图.png 展示了什么？",
        "What is setup.py for?",
        "It ends in .docx.",
    ],
    reasons.ASKS_FOR_NAME: [
        "What is the file name of the diagram?",
        "Which folder contains the design?",
        "What is the name of the image?",
        "What is the path to the picture?",
        "What is the file called?",
        "In which directory is the picture stored?",
        "Where is the screenshot located?",
        "Which file contains the answer?",
        "What is the file extension?",
        "图片的文件名是什么？",
        "设计图存放在哪个目录？",
        "哪个文件夹包含设计？",
        "该文件的扩展名是什么？",
    ],
    reasons.CONTAINER: [
        "What does the document say of gateways?",
        "What is described in this passage?",
        "According to the text, what is a gateway?",
        "Based on the context, what is a gateway?",
        "What is the main topic of the article?",
        "What is the purpose of the document?",
        "What is stated in the text above?",
        "What does the following table list?",
        "What colour is the car in the image?",
        "What does the diagram show?",
        "What is on page 3?",
        "在page 3上有什么？",
        "What does Figure 2 show?",
        "Which values does Table 4 have?",
        "As mentioned above.",
        "It is described in section Calls.",
        "本文的主题是什么？",
        "根据文档，网关是什么？",
        "文中提到了什么？",
        "上文说明了什么？",
        "图中有什么颜色？",
        "图2展示了什么？",
        "表 3 列出了哪些值？",
        "第3页写了什么？",
        "第三张图是什么？",
        "该文档描述了什么？",
        "这张图片展示了什么？",
        "如图所示",
        "这段文字的主要内容是什么？",
    ],
}
KEPT = [
    "Which module defines os.path?",
    "What does open() return when a file cannot be read?",
    "What does os.path.join do with two directories?",
    "Which method of a file object closes it?",
    "Which function joins file paths?",
    "What does the document element of an XML tree hold?",
    "What is kept in the text file?",
    "Which encoding does the text editor use?",
    "What is TCP/IP, and what is km/h?",
    "Is it true and/or false?",
    "How fast is 1/2 of 3/4?",
    "What was released on 2024/05/04?",
    "What does str.format() do, and what does x.md() do?",
    "Which image format does the tower read, and how large is an image?",
    "How does a table of contents help a reader?",
    "What does the figure of speech mean?",
    "Which page size does the system use?",
    "What is 5 percent of table salt?",
    "What does the parser of Python 3.13 do?",
    "Which address serves https://example.org/help?",
    "Who wrote the given text encoding?",
    "What is in section 3.13 of the standard?",
    "网关接收什么？",
    "上下文管理器做什么？",
    "文本文件用什么编码？",
    "论文中使用了什么方法？",
    "他发表3篇论文用了多久？",
    "地图2公里外有什么？",
    "网上文章如何排序？",
    "图书馆何时开放？",
    "该材料的熔点是多少？",
    "例如图像处理用在哪里？",
    "哪个函数返回文件名？",
    "上图书馆借什么书？",
]


@pytest.mark.parametrize(("reason", "text"), [(reason, text) for reason, texts in REFUSED.items() for text in texts])
def test_refused(reason, text):
    assert artefact(text, "") == reason


@pytest.mark.parametrize("text", KEPT)
def test_kept(text):
    assert artefact(text, "") is None


def test_a_file_of_code_may_be_the_subject():
    """Where its text names it; a document's or a picture's name never is."""
    assert artefact("What does __init__.py mark?", "The file __init__.py marks a package.") is None
    assert artefact("What does __init__.py mark?", "The file marks a package.") == reasons.FILE_NAME
    assert artefact("What does plan.pdf hold?", "The file plan.pdf holds a plan.") == reasons.FILE_NAME


def test_real_prose_is_hardly_refused():
    """Of the sentences of Python's reference, what is refused points at other places in it."""
    sentences = [(sentence, found.text) for found in topic_documents() for sentence in found.sentences]
    refused = {sentence: reason for sentence, text in sentences if (reason := artefact(sentence, text)) is not None}
    assert len(sentences) > 1_500
    assert len(refused) < 0.025 * len(sentences)
    assert set(refused.values()) <= {reasons.CONTAINER}
    pointing = re.compile(r"section|above|below|following|here|documentation", re.IGNORECASE)
    assert [sentence for sentence in refused if not pointing.search(sentence)] == []


def test_a_paraphrase_keeps_what_its_text_names():
    source = "As Figure 2 shows, /usr/bin/env starts setup.py."
    assert added_artefact("setup.py is started by /usr/bin/env (Figure 2).", source) is None
    assert added_artefact("run.py is started.", source) == reasons.FILE_NAME
    assert added_artefact("/usr/bin/python starts it.", source) == reasons.PATH
    assert added_artefact("See https://example.org/a.png.", source) == reasons.ASSET_URL
    assert added_artefact("[IMAGE DESCRIPTION] A box.", "[IMAGE DESCRIPTION] A box.") == reasons.LEFTOVER
    assert added_artefact("The document shows a box.", "A box.") == reasons.CONTAINER
