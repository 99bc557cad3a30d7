"""Real files to read: photographs, PDFs, Word files, archives."""

import io
import zipfile
from pathlib import Path

import docx
from PIL import Image
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.lib.styles import getSampleStyleSheet
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Image as PdfImage
from reportlab.platypus import PageBreak, Paragraph, SimpleDocTemplate
from sklearn.datasets import load_sample_images

CHINA, FLOWER = (Image.fromarray(pixels).resize((160, 107)) for pixels in load_sample_images().images)


def encoded(image: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **settings)
    return stream.getvalue()


def write_pdf(path: Path, *pages: list[str | Image.Image]) -> Path:
    """Paragraphs and pictures below each other."""
    style, story = getSampleStyleSheet()["Normal"], []
    for page in pages:
        for part in page:
            story.append(Paragraph(part, style) if isinstance(part, str) else PdfImage(io.BytesIO(encoded(part))))
        story.append(PageBreak())
    SimpleDocTemplate(str(path), invariant=1).build(story)
    return path


def write_encrypted_pdf(path: Path, password: str) -> Path:
    """One that opens with a password, or with none if that is empty, but then forbids to change it."""
    canvas = Canvas(str(path), encrypt=StandardEncryption(password, "of the owner", canModify=0))
    canvas.drawString(72, 700, "Nobody reads this.")
    canvas.save()
    return path


def write_docx(path: Path, *parts: str | Image.Image | list[str | Image.Image]) -> Path:
    """Paragraphs and pictures; a list is a table of one row."""
    document = docx.Document()
    for part in parts:
        if isinstance(part, list):
            table = document.add_table(1, len(part))
            for cell, content in zip(table.rows[0].cells, part, strict=True):
                _fill(cell.paragraphs[0], content)
        else:
            _fill(document.add_paragraph(), part)
    document.save(path)
    return path


def _fill(paragraph: object, content: str | Image.Image) -> None:
    if isinstance(content, str):
        paragraph.add_run(content)
    else:
        paragraph.add_run().add_picture(io.BytesIO(encoded(content)))


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path
