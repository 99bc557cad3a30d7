"""The chat template that every vision graft ships (`chat_template.jinja` beside this file)."""

from importlib.resources import files


def load_chat_template() -> str:
    """Source of the template: content blocks, thinking switch, `{% generation %}` markers, supervised end of turn."""
    return files(__package__).joinpath("chat_template.jinja").read_text(encoding="utf-8")
