"""Why something that an endpoint wrote is not kept: for the counts, and in the words in which it is told in Chinese."""

MALFORMED = "no JSON of the form asked for"
REFUSED = "refused to answer"
TRUNCATED_ANSWER = "cut off at its longest"
EMPTY_ANSWER = "empty"
TOO_FEW = "fewer were written than asked for"
NOTHING_LEFT = "the text says nothing more to ask about"
TOO_SHORT = "the text says too little to ask about"

FORM = "of no usable form"
LANGUAGE = "in another language than the text"
REPEATED = "a question asked already"
NUMBER = "a number that the text does not have"
UNANSWERABLE = "the text does not answer the question"
WRONG = "the answer is not what the text says"
NO_QUOTATION = "no words of the text support it"
UNVERIFIED = "the check gave no usable verdict"

LEFTOVER = "holds a mark of the conversion"
PATH = "names a path"
FILE_NAME = "names a file"
ASSET_URL = "holds the address of a file"
ASKS_FOR_NAME = "asks for the name or place of a file"
CONTAINER = "speaks of the document or the picture, not of its subject"

LENGTH = "much longer or shorter than the text"
COPY = "copies a long run of words"
FACT_LOST = "leaves out numbers or names"
NAME_ADDED = "a name that the text does not have"
INCOMPLETE = "leaves out what the text says"
ADDED = "says what the text does not say"

CHINESE = {
    MALFORMED: "不是所要求格式的 JSON",
    REFUSED: "拒绝回答",
    TRUNCATED_ANSWER: "太长，被截断",
    EMPTY_ANSWER: "空白",
    FORM: "格式不可用",
    LANGUAGE: "与这段文字的语言不同",
    REPEATED: "问题已经问过",
    NUMBER: "含有这段文字里没有的数字",
    UNANSWERABLE: "这段文字没有回答这个问题",
    WRONG: "答案与这段文字不符",
    NO_QUOTATION: "这段文字里没有支持它的原话",
    UNVERIFIED: "无法核实",
    LEFTOVER: "含有转换留下的标记",
    PATH: "写出了路径",
    FILE_NAME: "写出了文件名",
    ASSET_URL: "写出了文件的网址",
    ASKS_FOR_NAME: "问的是文件的名称或位置",
    CONTAINER: "说的是文档或图片本身，而不是其中的内容",
    LENGTH: "比原文长太多或短太多",
    COPY: "照抄了一长串原文",
    FACT_LOST: "漏掉了数字或名称",
    NAME_ADDED: "含有原文没有的名称",
    INCOMPLETE: "漏掉了原文的内容",
    ADDED: "说了原文没有的内容",
}


def told_words(reason: str, language: str) -> str:
    """A reason in the language in which the next round is asked."""
    return CHINESE[reason] if language == "zh" else reason


__all__ = [
    "ADDED",
    "ASKS_FOR_NAME",
    "ASSET_URL",
    "CHINESE",
    "CONTAINER",
    "COPY",
    "EMPTY_ANSWER",
    "FACT_LOST",
    "FILE_NAME",
    "FORM",
    "INCOMPLETE",
    "LANGUAGE",
    "LEFTOVER",
    "LENGTH",
    "MALFORMED",
    "NAME_ADDED",
    "NOTHING_LEFT",
    "NO_QUOTATION",
    "NUMBER",
    "PATH",
    "REFUSED",
    "REPEATED",
    "TOO_FEW",
    "TOO_SHORT",
    "TRUNCATED_ANSWER",
    "UNANSWERABLE",
    "UNVERIFIED",
    "WRONG",
    "told_words",
]
