"""The report page of CLaRa's demo: retrieval and answers beside their controls, rate against quality, samples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from .report import inlined, loss_curve, write_page

WAYS = ("own document", "another document", "no document", "most frequent")


def write_clara_report(
    path: Path,
    *,
    retrieval: Mapping[str, Mapping[str, Mapping[str, float]]],
    answers: Mapping[str, Mapping[str, float]],
    reconstruction: Mapping[str, Mapping[str, float]],
    rates: Sequence[int],
    documents: int,
    metadata: dict[str, Any],
    finding: dict[str, Any],
    samples: Sequence[Mapping[str, Any]],
    card: str,
    seconds: float,
) -> Path:
    """Write the page.

    Args:
        retrieval: "words in common", "untrained" and "trained" -> rate -> measure -> share.
        answers: what was asked -> way of answering -> share that was right.
        reconstruction: passages -> what they were said again from -> loss of a token, nats.
        rates: compression rates.
        documents: how many there were to find one among.
        metadata, finding: contents of `training_meta.json` of the published model and of its first step.
        samples: {"question", "expected", "answer", "asked", "found", "score", "right"}.
        card: the model card's Markdown with its YAML header.
        seconds: wall-clock time of the whole demo.
    """
    return write_page(
        path,
        "clara_report.html.jinja",
        headline="Documents as latents: compressed once, found, and answered from",
        retrieval=retrieval,
        answers=answers,
        reconstruction=reconstruction,
        ways=WAYS,
        documents=documents,
        metadata=metadata,
        finding=finding,
        samples=samples,
        minutes=seconds / 60,
        rate_figure=inlined(rate_figure(retrieval["trained"], answers, reconstruction, rates, documents)),
        loss_curve=inlined(loss_curve(finding)),
        card=card,
    )


def rate_figure(
    retrieval: Mapping[str, Mapping[str, float]],
    answers: Mapping[str, Mapping[str, float]],
    reconstruction: Mapping[str, Mapping[str, float]],
    rates: Sequence[int],
    documents: int,
) -> plt.Figure:
    """Against the compression rate: the right document first and answers; what latents tell of a passage's tokens."""
    figure, (axes, right) = plt.subplots(1, 2, figsize=(9.6, 3.6), layout="constrained")
    ordered = sorted(rates)
    measures = {
        "right document first": [retrieval[str(rate)]["recall@1, known documents"] for rate in ordered],
        "right answer": [answers[f"known documents, rate {rate}"]["own document"] for rate in ordered],
        "right answer without it": [answers[f"known documents, rate {rate}"]["no document"] for rate in ordered],
    }
    for (name, shares), colour in zip(measures.items(), ("#d1495b", "#2a6fdb", "#b8b8b8"), strict=True):
        axes.plot(ordered, shares, "o-", color=colour, label=name)
    for name, colour in (("known", "#2e8b57"), ("new", "#c9a227")):
        rows = [reconstruction[f"{name} documents, rate {rate}"] for rate in ordered]
        saved = [row["another document"] - row["own document"] for row in rows]
        right.plot(ordered, saved, "o-", color=colour, label=f"{name} documents")
    axes.axhline(1 / documents, color="#d1495b", linestyle="dotted", linewidth=1)
    axes.set(xscale="log", xlabel="tokens of a document for one latent", ylabel="share", ylim=(0, 1.04))
    right.axhline(0, color="#b8b8b8", linewidth=1)
    right.set(xscale="log", xlabel="tokens of a document for one latent", ylabel="nats a token that its latents save")
    for each in (axes, right):
        each.set_xticks(ordered, [str(rate) for rate in ordered])
        each.minorticks_off()
        each.legend(frameon=False, fontsize=8)
    return figure
