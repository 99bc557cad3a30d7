"""Markers become descriptions, pictures documents, and what does not match is counted."""

from dataclasses import asdict

from qwen_grafts.recipes.clara.enrichment import EnrichedDocument, EnrichmentCounts, enrich
from qwen_grafts.recipes.clara.raw_knowledge import RawDocument


def enriched(text: str, descriptions: dict[str, str]) -> tuple[str | None, EnrichmentCounts]:
    counts = EnrichmentCounts()
    documents = list(enrich([RawDocument("a", "text", text)], descriptions, counts))
    return documents[0].text if documents else None, counts


def test_the_example() -> None:
    document = RawDocument("d", "text", "架构设计如下 [IMAGE_REF: extracted_assets/架构.png]", None, "设计.docx")
    counts = EnrichmentCounts()
    (out,) = enrich([document], {"extracted_assets/架构.png": "三个方框，由箭头相连。"}, counts)
    text = "架构设计如下 [IMAGE DESCRIPTION] 三个方框，由箭头相连。"
    assert out == EnrichedDocument("d", text, "设计.docx", ("extracted_assets/架构.png",), "text")
    assert {name: count for name, count in asdict(counts).items() if count} == {
        "documents": 1,
        "markers": 1,
        "described": 1,
    }


def test_every_kind_of_mismatch_is_counted() -> None:
    documents = [
        RawDocument("a", "text", "One [IMAGE_REF: ./x.png] two [IMAGE_REF: y.png] three [IMAGE_REF: a\\..\\x.png]."),
        RawDocument("b", "image", "", "raw_data/p.png"),
        RawDocument("c", "image", "", "raw_data/q.png"),
        RawDocument("d", "text", " [IMAGE_REF: z.png]\n"),
        RawDocument("e", "text", "plain"),
    ]
    counts = EnrichmentCounts()
    descriptions = {"x.png": "A boat.", "raw_data/p.png": "A temple.", "unused.png": "Nobody asks."}
    out = list(enrich(iter(documents), descriptions, counts))
    x = "[IMAGE DESCRIPTION] A boat."
    assert [(document.id, document.text, document.images, document.source_type) for document in out] == [
        ("a", f"One {x} two three {x}.", ("x.png",), "text"),
        ("b", "[IMAGE DESCRIPTION] A temple.", ("raw_data/p.png",), "image"),
        ("e", "plain", (), "text"),
    ]
    assert asdict(counts) == {
        "documents": 3,
        "markers": 4,
        "described": 2,
        "missing_descriptions": 2,
        "unused_descriptions": 1,
        "standalone_images": 2,
        "standalone_without_description": 1,
        "empty_documents": 1,
    }


def test_descriptions_cannot_break_a_text() -> None:
    for description, words in (
        ("Shows [IMAGE_REF: x.png] and more", "Shows and more"),
        ("[IMAGE_REF: [IMAGE_REF: x.png] end", "end"),
        ("[IMAGE_REF: cut", "cut"),
        ("[IMAGE DESCRIPTION] A\n\n  boat [IMAGE_DESCRIPTION]", "A boat"),
        ("[IMAGE_[IMAGE_REF: y]REF: x.png]", ""),
        (r"back\1slash \g<0>", r"back\1slash \g<0>"),
    ):
        text, counts = enriched("A [IMAGE_REF: x.png] B", {"x.png": description})
        assert text == (f"A [IMAGE DESCRIPTION] {words} B" if words else "A B"), description
        assert (counts.described, counts.missing_descriptions) == ((1, 0) if words else (0, 1))


def test_documents_stream() -> None:
    read = []

    def documents():
        for number in range(3):
            read.append(number)
            yield RawDocument(str(number), "text", "t")

    counts = EnrichmentCounts()
    stream = enrich(documents(), {"u.png": "unused"}, counts)
    next(stream)
    assert read == [0]
    list(stream)
    assert counts.unused_descriptions == 1
