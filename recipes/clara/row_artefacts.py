r"""Questions and answers that speak of a file, a folder or a layout instead of what a text says.

Where the line is: whoever knows the subject, and has never seen the file that the text came in, can ask the question.
"Which module defines os.path?" and "What does open() return?" are of that kind. Refused are

    LEFTOVER        what the conversion wrote: IMAGE_REF, IMAGE DESCRIPTION, extracted_assets/, raw_data/
    ASSET_URL       https://…/a.png, data:image/…; other addresses may be what a text tells
    PATH            /usr/share/a, C:\a\b, a/b/c.png, whoever they belong to; "TCP/IP", "and/or", "km/h" are none
    FILE_NAME       report.pdf, image3.png, ".docx". A file of code (setup.py, __init__.py) may be the subject, where
                    the text itself names it; so may a module (os.path)
    ASKS_FOR_NAME   "What is the name of the file?", "In which folder is the picture stored?"
    CONTAINER       "the document", "the text above", "according to the passage", "in the image", "page 3", "Figure 2";
                    in Chinese 本文, 上文, 根据文档, 图中, 图2, 第3页. Other things of the same name go on otherwise:
                    "in the text file", "the document element", 论文中, 上下文, 文本文件, 发表3篇

It is on the strict side. A question refused in error costs one more request; one kept in error trains the model.
"""

import re

from .refusal_reasons import ASKS_FOR_NAME, ASSET_URL, CONTAINER, FILE_NAME, LEFTOVER, PATH

_ASSET = "png|jpe?g|gif|webp|bmp|tiff?|svg|ico|heic|pdf|docx?|pptx?|xlsx?|odt|rtf|epub|zip|tar|gz"
_DATA = rf"{_ASSET}|md|html?|txt|jsonl?|csv"
_CODE = "py|pyc|pyi|c|h|cpp|cc|js|ts|java|go|rs|rb|sh|cfg|ini|toml|ya?ml|xml|css|so|dll|exe"
_TEXT = "document|passage|excerpt|article|paragraph|snippet|chunk|text|source text"
_SHOWN = "image|picture|figure|diagram|chart|graph|photo(?:graph)?|illustration|screenshot"
_THING = "(?:images?|pictures?|figures?|documents?|photos?|diagrams?|files?|assets?|attachments?|screenshots?)"
_NAME = "(?:file ?names?|file ?paths?|folders?|folder names?|directory(?: name| path)|file extensions?)"
_SAYS = (
    "mentions?|says?|states?|describes?|discuss(?:es)?|provides?|explains?|lists?|refers?|indicates?|suggests?|gives?|"
    "talks?|specif(?:y|ies)|defines?|notes?"
)
_DRAWS = "shows?|depicts?|illustrates?|displays?|represents?|contains?"
_SAID = "mentioned|stated|described|discussed|shown|listed|provided|given"
# Behind "in the text" comes nothing more, or a verb.
_ENDS = rf"(?=\s*(?:[?.,;:!)\"”]|$|(?:{_SAYS}|{_DRAWS}|above|below|mainly|primarily|is|are|was|were|as|about)\b))"


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE | re.ASCII)


_LEFTOVER = _any(r"IMAGE[_ ]REF\b", r"\bIMAGE DESCRIPTION\b", "extracted_assets", r"\braw_data\b", r"\[图[像片]描述\]")
_ASSET_URL = _any(rf"\b(?:https?|ftp)://[^\s)>\]]*\.(?:{_ASSET})\b", r"\bfile://", r"\bdata:(?:image|application)/")
_URL = _any(r"\b(?:https?|ftp)://[^\s)>\]]+", r"\bwww\.[^\s)>\]]+")
_PATH = _any(
    r"(?<![\w/.:<])[~.]{0,2}/(?:[\w.@+-]+/)+[\w.@+-]*",  # /usr/share/a, ./a/b, ~/a/b
    r"(?<![\w/.:<])/(?:home|usr|etc|var|tmp|opt|mnt|root|bin|lib|dev|proc|Users)\b",
    r"\b[A-Za-z]:\\[\w .-]+\\[\w .\\-]*|\\\\[\w.-]+\\[\w.$-]+",  # C:\a\b, \\server\share
    rf"(?:[\w\u4e00-\u9fff.-]+[/\\])+[\w\u4e00-\u9fff-]+\.(?:{_DATA}|{_CODE})\b",  # a/b.png
    r"\b(?:[\w-]+/){3,}[\w-]*",
)
_FILE_NAME = _any(rf"(?<![\w.])[\w\u4e00-\u9fff-]+(?:\.[\w-]+)*\.(?P<kind>{_DATA}|{_CODE})\b(?![(\w])")
_DATA_KIND = _any(rf"(?:{_DATA})\Z")
_EXTENSION = _any(rf"(?<![\w.])\.(?:{_DATA})\b(?!\()")
_ASKS_FOR_NAME = _any(
    rf"\b(?:what|which) (?:is|are|was) (?:the |its )?(?:\w+ )?{_NAME}\b",
    rf"\b(?:what|which) {_NAME} (?:is|are|was|does|do|has|holds|contains)\b",
    r"\b(?:what|which) (?:is|are) (?:the )?(?:names?|paths?|locations?|urls?|links?) "
    rf"(?:of|to) (?:the|this) {_THING}\b",
    rf"\b(?:what|which) (?:is|are) (?:the|this) {_THING} (?:called|named)\b",
    r"\b(?:what|which) (?:file|image|picture|document) (?:contains|holds|shows|depicts|is referenced)\b",
    r"\b(?:what|which) (?:folder|directory|file)\b[^?]{0,60}\b(?:stored|located|saved|kept|placed)\b",
    rf"\bwhere (?:is|are) (?:the |this |these )?{_THING} (?:stored|located|saved|kept)\b",
    "(?:文件夹?|图[片像]|文档|资源|附件|截图)的?"
    "(?:文件名|名称|名字|路径|[存保]存?[放存]位置|链接|扩展名|后缀名?)(?:是|叫|为)",
    "(?:文件名|文件夹名?|扩展名|后缀名?|文件路径|目录)(?:是|叫|为)(?:什么|哪|啥)|什么(?:文件名|文件夹|扩展名|后缀)",
    "(?:存放|存储|保存|位于|放)(?:在|于)?(?:哪个|哪一个|什么)(?:文件|目录|路径)|哪个文件夹",
    "(?:图[片像]|截图)(?:存放|保存|位于)",
)
_CONTAINER = _any(
    rf"\b(?:in|from|by|of|per|within|throughout) (?:the|this) (?:{_TEXT}){_ENDS}",
    rf"\b(?:the|this) (?:{_TEXT}) (?:{_SAYS}|shows?|illustrates?|mainly|primarily|above|below)\b",
    rf"\b(?:the|this) (?:{_TEXT}) is (?:mainly |primarily )?about\b",
    rf"\b(?:does|do|did) (?:the|this) (?:{_TEXT}) (?:{_SAYS})\b",
    r"\b(?:above|following|given|provided|preceding|attached|quoted)(?:-mentioned)? "
    rf"(?:{_TEXT}|section|table|{_SHOWN})s?{_ENDS}",
    r"\b(?:according to|based on) (?:the|this) "
    rf"(?:{_TEXT}|context|section|table|{_SHOWN}|author|(?:image )?description){_ENDS}",
    rf"\b(?:in|by|on|from|of) (?:the|this) (?:{_SHOWN}|image description){_ENDS}",
    rf"\b(?:the|this) (?:{_SHOWN}) (?:{_DRAWS})\b|\b(?:does|do) (?:the|this) (?:{_SHOWN}) (?:{_DRAWS})\b",
    r"\b(?:figure|fig\.?|table|page|slide) ?\d+\b(?! ?(?:%|percent))|\bp\. ?\d+",
    rf"\b(?:see|refer to|(?:{_SAID}) in) (?:the )?(?:section|chapter|appendix)\b(?! \S+ of )",
    rf"\b(?:{_SAID}) (?:above|below|here)\b",
    "(?<![文样版脚基课剧])本文(?![件本字化档])|(?<![网线以晚])上文(?![件档字本章化])|(?<!上)下文(?![件档])",
    "(?<![论作英中散古语译日法德俄韩条全短长课])文中|(?<!纯)文本中|(?<![日英汉])原文",
    "(?:本|该|此|这份|这篇|这个)(?:文档|文章|段落|资料)|(?:本|此|这段)文本(?!框)|这[段篇](?:文字|话|文章|内容)",
    "(?:上述|上面的|以上|给定的?|所给的?|提供的)(?:文档|文本|文章|内容|段落|资料|材料|文字)",
    "根据(?:文档|文章|文本|段落|资料|材料)(?=[，,。？?]|中|里|内容|所)|段落[中里]",
    "(?:文档|文章)(?:中|里|提到|指出|说明|描述)",
    "(?:[如上下此该]|这张|这幅|这个)图(?![书像形灵标谱层片论])|(?:这张|这幅|该|此|上述|上面的|下面的)图[片像表]",
    "图[片像]?(?:显示|展示)|(?<![地意企试版蓝构流])图中|图[片像][中里]",
    r"(?<![地意企试版])图\s*\d+|(?<![发代外手钟仪报列填年师])表\s*\d+",
    r"第\s*[\d一二三四五六七八九十]+\s*(?:页|幅图|张图)|见第",
)


def artefact(text: str, source: str) -> str | None:
    """Why a question or an answer is not about its subject, None where it is.

    Args:
        source: the text it was written from, which may speak of files of code.
    """
    if _LEFTOVER.search(text):
        return LEFTOVER
    if _ASSET_URL.search(text):
        return ASSET_URL
    text = _URL.sub(" ", text)
    if _PATH.search(text):
        return PATH
    for found in _FILE_NAME.finditer(text):
        if _DATA_KIND.match(found["kind"]) or found.group() not in source:
            return FILE_NAME
    if _EXTENSION.search(text):
        return FILE_NAME
    if _ASKS_FOR_NAME.search(text):
        return ASKS_FOR_NAME
    return CONTAINER if _CONTAINER.search(text) else None


def added_artefact(paraphrase: str, source: str) -> str | None:
    """The same of a paraphrase, which keeps what its text names: what the text has itself does not count.

    Args:
        source: the text that is said again.
    """
    if _LEFTOVER.search(paraphrase):
        return LEFTOVER
    for pattern, reason in ((_ASSET_URL, ASSET_URL), (_PATH, PATH), (_FILE_NAME, FILE_NAME)):
        if any(found.group() not in source for found in pattern.finditer(paraphrase)):
            return reason
    return CONTAINER if _CONTAINER.search(paraphrase) and not _CONTAINER.search(source) else None


__all__ = ["added_artefact", "artefact"]
