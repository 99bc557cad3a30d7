"""Bytes to text: what can be read is read right, what cannot is refused with the byte."""

import random

import pytest

from qwen_grafts.recipes.clara.text_encodings import EncodingProblem, decode_text

# Article 1 of the Universal Declaration of Human Rights, with what else these languages write.
TEXTS = {
    "zh": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de "
    "conscience. L’été, créée à Noël « déjà » ; œuvre.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren und sollen einander im Geist der "
    "Brüderlichkeit begegnen. Größe, Straße, Übermaß, ÄÖÜ.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón y "
    "conciencia, deben comportarse fraternalmente. ¿Qué? ¡Sí! Año.",
    "pt": "Todos os seres humanos nascem livres e iguais em dignidade. São dotados de razão e de consciência.",
    "sv": "Alla människor är födda fria och lika i värde och rättigheter. De är utrustade med förnuft och samvete.",
}

# Articles 1 to 3.
KOREAN = (
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 인간은 천부적으로 이성과 양심을 부여받"
    "았으며 서로 형제애의 정신으로 행동하여야 한다.\n모든 사람은 인종, 피부색, 성, 언어, 종교, 정치적 또는 기타의"
    " 견해, 민족적 또는 사회적 출신, 재산, 출생 또는 기타의 신분과 같은 어떠한 종류의 차별이 없이, 이 선언에 규정"
    "된 모든 권리와 자유를 향유할 자격이 있다.\n모든 사람은 생명과 신체의 자유와 안전에 대한 권리를 가진다."
)
JAPANESE = (
    "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。人間は、理性と良心とを授"
    "けられており、互いに同胞の精神をもって行動しなければならない。\nすべて人は、人種、皮膚の色、性、言語、宗教、"
    "政治上その他の意見、国民的若しくは社会的出身、財産、門地その他の地位又はこれに類するいかなる事由による差別を"
    "も受けることなく、この宣言に掲げるすべての権利と自由とを享有することができる。\nすべて人は、生命、自由及び身"
    "体の安全に対する権利を有する。"
)


@pytest.mark.parametrize("language", TEXTS)
def test_short_pieces_of_six_languages(language: str) -> None:
    text, encoding = TEXTS[language], "gb18030" if language == "zh" else "cp1252"
    pieces = [text[start : start + length] for start in range(len(text) - 6) for length in (6, 12, 24, 60)]
    for piece in pieces:
        content = piece.encode(encoding)
        assert decode_text(content) == (piece, "utf-8" if content.isascii() else encoding)


def test_no_chinese_is_taken_for_japanese_or_korean() -> None:
    """Rows of every length, of characters that EUC-KR reads as Hangul as often as any text has them."""
    rng = random.Random(0)
    common = [bytes((lead, trail)).decode("gb18030") for lead in range(0xB0, 0xD8) for trail in range(0xA1, 0xF0)]
    for length in (19, 20, 21, 40, 200):
        for _ in range(300):
            text = "".join(rng.choices(common, k=length)) + "。"
            assert decode_text(text.encode("gb18030")) == (text, "gb18030")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("text", [*TEXTS.values(), "a\r\nb", ""])
def test_unicode(text: str, encoding: str) -> None:
    assert decode_text(text.encode(encoding))[0] == text


def test_big_endian() -> None:
    assert decode_text(b"\xfe\xff" + "架构".encode("utf-16-be")) == ("架构", "utf-16")


@pytest.mark.parametrize(
    ("text", "encoding"), [(KOREAN, "cp949"), (KOREAN, "euc-kr"), (JAPANESE, "shift_jis"), (JAPANESE, "euc_jp")]
)
def test_some_sentences_of_korean_and_japanese(text: str, encoding: str) -> None:
    named = {"euc-kr": "cp949", "shift_jis": "cp932"}.get(encoding, encoding)
    assert decode_text(text.encode(encoding)) == (text, named)
    assert decode_text(f"Annex 1: {text.replace(chr(10), chr(13) + chr(10))}".encode(encoding))[1] == named
    for start in range(len(text) - 80):
        piece = text[start : start + 80]
        assert decode_text(piece.encode(encoding)) == (piece, named)


def test_what_only_looks_korean_or_japanese() -> None:
    """Of GB18030 Japanese has the same bytes for hiragana as of EUC-JP, and letters of Korean have them, too."""
    with pytest.raises(EncodingProblem):
        decode_text(JAPANESE.encode("gb18030"))
    chatty = KOREAN.replace(". ", " ㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋㅎㅎㅎㅎㅎㅎㅠㅠㅠㅠㅠㅠ. ")
    assert decode_text(chatty.encode("cp949")) == (chatty, "cp949")
    with pytest.raises(EncodingProblem, match="mixed"):
        decode_text(KOREAN.encode("cp949") + "架构设计如下".encode())


def test_a_few_words_are_no_reason_to_guess() -> None:
    """They are read as they always were, and what is cut within a character is not read as Korean."""
    assert decode_text("안녕하세요".encode("cp949"))[1] == decode_text("日本語".encode("euc_jp"))[1] == "gb18030"
    assert decode_text("日本語".encode("shift_jis"))[1] == "cp1252"
    with pytest.raises(EncodingProblem, match="neither UTF-8 nor gb18030"):
        decode_text(KOREAN.removesuffix(".").encode("cp949")[:-1])


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [("gb2312", "gb18030"), ("ISO-8859-1", "cp1252"), ("shift_jis", "shift_jis"), ("euc-kr", "euc-kr")],
)
def test_what_a_file_declares(declared: str, encoding: str) -> None:
    text = {"gb18030": "镕基", "cp1252": "L’été", "shift_jis": "こんにちは", "euc-kr": "안녕하세요"}[encoding]
    assert decode_text(text.encode(encoding), declared)[0] == text


@pytest.mark.parametrize("declared", ["no such", "hex", "utf-8", "utf-16", "idna", ""])
def test_declarations_that_cannot_be_true(declared: str) -> None:
    content = TEXTS["zh"].encode("gb18030")
    assert decode_text(content, declared) == (TEXTS["zh"], "gb18030")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "人人生而自由".encode() + "在尊严".encode("gb18030"),
            r"byte 18 \(0xd4\) is no UTF-8, .* mixed",
        ),
        ((TEXTS["zh"] * 9).encode("gb18030") + "三层组成".encode(), r"byte 0 \(0xc8\) is no UTF-8, .* mixed"),
        ((TEXTS["de"] * 2).encode("cp1252") + "Größe, Straße".encode(), r"byte 39 \(0xfc\) is no UTF-8, .* mixed"),
        ("L’été".encode() * 3 + "é".encode("cp1252"), r"byte 27 \(0xe9\) .* mixed"),
        (b"\xef\xbb\xbfabc\xff", r"byte 6 is no utf-8-sig"),
        ("架构".encode("utf-16") + b"\x00", r"byte 6 is no utf-16"),
        (b"plain \x81\x20", r"byte 6 \(0x81\) is neither UTF-8 nor cp1252"),
        (TEXTS["zh"].encode("gb18030")[:-1], r"byte 84 \(0xa1\) is neither UTF-8 nor gb18030"),
        (b"plain\x00text", r"byte 5 is the control character '\\x00'"),
        ("架\x01".encode(), r"byte 3 is the control character"),
        ("架\x01".encode("utf-16"), r"byte 4 is the control character"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", r"byte 6 is the control character"),
        (b"%PDF-1.4\n%\x93\x8c\x8b\x9e\x00", r"byte 13 \(0x9d\)|control character"),
    ],
)
def test_what_is_no_text_is_refused_with_the_byte(content: bytes, message: str) -> None:
    with pytest.raises(EncodingProblem, match=message):
        decode_text(content)
