"""Model cards: what a repository holds, how it was made, what was measured, and a snippet that runs.

The text is in `card_templates/` (one file a graft, and `stock.md.jinja` for transformers' own models, says what the
model is and where it ends), the numbers come from the configuration and from `training_meta.json`. The clean room runs
the snippet as it stands in the finished card, so the card names its repository once, as `repo_id = "owner/name"`, and
`name_repository` can change it everywhere.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from peft import PeftConfig
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from ..configuration import GRAFTS
from .graft_parts import parameter_table
from .static_checks import is_local_name

DEFAULT_OWNER = "your-name"
MEASURES = {
    "valid_json": "valid JSON",
    "exact_match": "exact match",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "cover_exact_match": "cover exact match",
    "cover_words": "all words covered",
    "token_f1": "token F1",
    "faithfulness": "faithfulness",
    "blank_image": "blank image",
    "shuffled_image": "shuffled images",
    "no_documents": "no documents",
    "shuffled_documents": "another row's documents",
}
CONTROLS = ("blank_image", "shuffled_image", "no_documents", "shuffled_documents")

State = Literal["trained", "random", "unrecorded"]


def build_card(
    config: PreTrainedConfig,
    *,
    repo_id: str,
    training: Mapping[str, Any] | None = None,
    license: str | None = None,
    base_models: Mapping[str, Mapping[str, str]] | None = None,
    base_model_relation: Literal["finetune", "merge"] = "finetune",
    datasets: Sequence[str] | None = None,
    figures: Mapping[str, str] | None = None,
    random_weights: bool = False,
    config_only: bool = False,
) -> ModelCard:
    """The card of a graft, or of a stock image-text model of transformers.

    Args:
        config: the model's configuration; parameters are counted from it on the meta device.
        repo_id: "owner/name" on the Hub.
        training: content of `training_meta.json`; keys it lacks are left out of the card.
        license: the Hub's name of the licence; that of `training` when left out, else apache-2.0 for a graft, and
            none for a model whose weights are all its base's, a stock or a recursive one, and so the licence.
        base_models: part -> {"repo_id", "revision"}; those of `training` or of `config` when left out.
        base_model_relation: what this model is to its bases; "merge" for a merged adapter.
        datasets: Hub ids; the data set of `training` when left out and on the Hub.
        figures: file name in the repository -> caption.
        random_weights: the weights come from an initialisation alone.
        config_only: the repository holds no weights.

    Raises:
        ValueError: a configuration of neither, or a `repo_id` without an owner.
    """
    _check_repo_id(repo_id)
    totals, graft = parameter_table(config), GRAFTS.get(config.model_type)
    pipeline_tag = graft.pipeline_tag if graft else "image-text-to-text"
    training = training or {}
    base_models = base_models or training.get("base_models") or getattr(config, "base_models", None) or {}
    own_weights = graft is not None and (graft.reads_images or random_weights)
    family = [config.layer_family] if hasattr(config, "layer_family") else []
    state: State = "random" if random_weights else "trained" if training else "unrecorded"
    data = ModelCardData(
        license=license or training.get("license") or ("apache-2.0" if own_weights else None),
        library_name="transformers",
        pipeline_tag=pipeline_tag,
        tags=[*family, *graft.tags, "custom_code"] if graft else ["vision-language"],
        **_relation(base_models, base_model_relation),
        **_measured(repo_id, pipeline_tag, training, datasets),
    )
    return _render(
        "model.md.jinja",
        data,
        repo_id=repo_id,
        config=config,
        graft=graft,
        pipeline_tag=pipeline_tag,
        state=state,
        config_only=config_only,
        dtype=str(config.dtype or "float32").removeprefix("torch."),
        parameters=_parameter_rows(totals, training.get("parameters") or {}),
        base_models=_base_rows(base_models),
        training=training,
        results=_results(training),
        figures=figures or {},
    )


def build_adapter_card(
    adapter: PeftConfig,
    *,
    repo_id: str,
    training: Mapping[str, Any] | None = None,
    license: str | None = None,
    pipeline_tag: str = "image-text-to-text",
    datasets: Sequence[str] | None = None,
    figures: Mapping[str, str] | None = None,
    about: str = "",
    auto_processor: str | None = None,
) -> ModelCard:
    """The card of a PEFT adapter; see `build_card` for the arguments they share.

    Args:
        adapter: the adapter's configuration, which names its base model and revision.
        repo_id: "owner/name" on the Hub.
        pipeline_tag: the base model's task.
        about: a sentence on what the adapter does.
        auto_processor: Auto class of what goes before the base; default by its task.

    Raises:
        ValueError: the base model is a local path, or a `repo_id` without an owner.
    """
    _check_repo_id(repo_id)
    base = adapter.base_model_name_or_path or ""
    if not base or is_local_name(base):
        raise ValueError(
            f"`base_model_name_or_path` is {base!r}; an adapter that others can load names a Hub repository. "
            "Push the base model and set its id."
        )
    training = training or {}
    # Recipes have PEFT note the base's class in adapters of stock models (`recipes/trained_parts.py`).
    library = (adapter.auto_mapping or {}).get("parent_library", "")
    stock = library.startswith("transformers.") or training.get("model_type") in CONFIG_MAPPING_NAMES
    data = ModelCardData(
        license=license or training.get("license") or (None if stock else "apache-2.0"),
        library_name="peft",
        pipeline_tag=pipeline_tag,
        tags=["lora", *([] if stock else ["custom_code"])],
        **_relation({"base": {"repo_id": base}}, "adapter"),
        **_measured(repo_id, pipeline_tag, training, datasets),
    )
    return _render(
        "adapter.md.jinja",
        data,
        repo_id=repo_id,
        adapter=adapter,
        about=about,
        custom_code=not stock,
        auto_processor=auto_processor or ("AutoTokenizer" if pipeline_tag == "text-generation" else "AutoProcessor"),
        parameters=_parameter_rows({}, training.get("parameters") or {}),
        base_models=_base_rows(training.get("base_models") or {}),
        training=training,
        results=_results(training),
        figures=figures or {},
    )


def placeholder_repo_id(folder: Path) -> str:
    """The id a card carries until it is known where the folder goes (`name_repository`)."""
    return f"{DEFAULT_OWNER}/{re.sub(r'[^A-Za-z0-9_.-]+', '-', folder.name)}"


def card_snippet(card: Path) -> tuple[str | None, str | None]:
    """The first Python snippet of a card and the repository it names; None for what is not there."""
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    snippet = re.search(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    repo_id = re.search(r'^repo_id = "([\w.-]+/[\w.-]+)"', snippet.group(1) if snippet else "", flags=re.MULTILINE)
    return snippet and snippet.group(1), repo_id and repo_id.group(1)


def name_repository(card: Path, repo_id: str) -> None:
    """Make a card on disk name `repo_id` wherever it names its repository.

    Raises:
        ValueError: no card, one without a snippet that names its repository, or a `repo_id` without an owner.
    """
    _check_repo_id(repo_id)
    old = card_snippet(card)[1]
    if old is None:
        raise ValueError(
            f'{card} does not exist or has no Python snippet with `repo_id = "owner/name"`. Write the card with '
            "`qwen-grafts card`, or export again."
        )
    if old != repo_id:
        text = card.read_text(encoding="utf-8")
        card.write_text(re.sub(rf"(?<![\w./-]){re.escape(old)}(?![\w/-])", repo_id, text), encoding="utf-8")


def loss_curve_figure(training: Mapping[str, Any], path: Path) -> Path:
    """Draw the loss curve of a `training_meta.json` as PNG.

    Raises:
        ValueError: there is no loss curve in it.
    """
    curve = training.get("loss_curve")
    if not curve:
        raise ValueError("`loss_curve` is missing or empty; training records [step, loss] pairs when it logs.")
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*curve, strict=True), linewidth=1.2)
    axes.set(xlabel="step", ylabel="training loss", ylim=(0, None))
    axes.grid(alpha=0.3)
    figure.savefig(path, format="png", dpi=120)
    return path


def _check_repo_id(repo_id: str) -> None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"{repo_id!r} is not a repository id; write it as `owner/name`.")


def _relation(base_models: Mapping[str, Mapping[str, str]], relation: str) -> dict[str, Any]:
    """Base models that are on the Hub, in the card's metadata."""
    ids = [base["repo_id"] for base in base_models.values() if base.get("repo_id")]
    on_hub = list(dict.fromkeys(repo_id for repo_id in ids if not is_local_name(repo_id)))
    return {"base_model": on_hub, "base_model_relation": relation} if on_hub else {}


def _base_rows(base_models: Mapping[str, Mapping[str, str]]) -> list[tuple[str, str, str]]:
    """(part, repository, revision) as text; a folder of somebody's machine says nothing to the reader."""
    rows = []
    for part, base in base_models.items():
        repo_id = base.get("repo_id") or ""
        on_hub = repo_id != "" and not is_local_name(repo_id)
        link = f"[{repo_id}](https://huggingface.co/{repo_id})" if on_hub else "a local checkpoint"
        rows.append((part, link, base.get("revision") or "-"))
    return rows


def _measured(repo_id: str, task: str, training: Mapping[str, Any], datasets: Sequence[str] | None) -> dict[str, Any]:
    """Data sets and measured values, in the card's metadata; controls are no results and stay in the table."""
    name = (training.get("dataset") or {}).get("name")
    on_hub = [name] if name and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not is_local_name(name) else None
    results = [
        EvalResult(
            task_type=task,
            dataset_type=name or "unknown",
            dataset_name=name or "unknown",
            dataset_config=kind,
            metric_type=measure,
            metric_name=MEASURES.get(measure, measure),
            metric_value=value,
        )
        for kind, measure, value in _values(training)
        if measure not in CONTROLS
    ]
    found = {"datasets": list(datasets or on_hub or []) or None}
    return found | ({"eval_results": results, "model_name": repo_id} if results else {})


def _values(training: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """(kind, measure, value) of everything measured after training."""
    for kind, row in _by_kind(training, "after").items():
        for measure, value in row.items():
            if measure != "rows" and isinstance(value, int | float):
                yield kind, measure, value


def _by_kind(training: Mapping[str, Any], moment: str) -> dict[str, Mapping[str, Any]]:
    """Kind of question -> measures, before or after training; plain measures count as one kind, "all"."""
    measured = (training.get("metrics") or {}).get(moment) or {}
    nested = {kind: row for kind, row in measured.items() if isinstance(row, Mapping)}
    return nested or ({"all": measured} if measured else {})


def _results(training: Mapping[str, Any]) -> dict[str, Any] | None:
    """The table of results: header, rows of text, and for each kind the command that made its row."""
    after, before = _by_kind(training, "after"), _by_kind(training, "before")
    if not after:
        return None
    present = list(dict.fromkeys(measure for _, measure, _ in _values(training)))
    measures = [*(m for m in MEASURES if m in present), *(m for m in present if m not in MEASURES)]
    header = ["questions"]
    for measure in measures:
        before_too = measure not in CONTROLS and any(measure in row for row in before.values())
        header += [f"{MEASURES.get(measure, measure)} before"] if before_too else []
        header.append(MEASURES.get(measure, measure))
    rows = []
    for kind, row in after.items():
        cells = [kind]
        for measure in measures:
            if f"{MEASURES.get(measure, measure)} before" in header:
                cells.append(_number(before.get(kind, {}).get(measure)))
            cells.append(_number(row.get(measure)))
        rows.append([*cells, _number(row.get("rows"))])
    shared = (training.get("metrics") or {}).get("command") or training.get("command")
    commands = {kind: row.get("command") or shared for kind, row in after.items()}
    return {"header": [*header, "rows"], "rows": rows, "commands": {k: c for k, c in commands.items() if c}}


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return "-" if value is None else f"{value:,}"


def _parameter_rows(totals: Mapping[str, int], recorded: Mapping[str, Mapping[str, int]]) -> list[tuple[str, str, str]]:
    """(part, total, trained) as text, with a sum; totals are counted, what was trained is recorded by training."""
    totals = dict(totals) | {part: row["total"] for part, row in recorded.items() if part not in totals}
    trained = {part: recorded.get(part, {}).get("trained") for part in totals}
    rows = [(f"`{part}`", f"{total:,}" if total else "tied", _number(trained[part])) for part, total in totals.items()]
    known = [value for value in trained.values() if value is not None]
    return [*rows, ("**all**", f"{sum(totals.values()):,}", _number(sum(known)) if known else "-")] if rows else []


def _render(template: str, data: ModelCardData, **values: Any) -> ModelCard:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("card_templates")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = environment.get_template(template).render(card_data=data.to_yaml(), **values)
    return ModelCard(re.sub(r"\n{3,}", "\n\n", text))
