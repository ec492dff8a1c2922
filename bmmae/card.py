"""The model card: what people read about a model before they use it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import yaml

from bmmae.modalities import title
from bmmae.model_folder import SavedConfig
from bmmae.provenance import Metric, Provenance
from bmmae.schema import flatten

SYNTHETIC = (
    "These weights were trained on **synthetic images**. They demonstrate the software; what they say about a patient "
    "means nothing."
)
PRETRAINED_SYNTHETIC = (
    "Its training started from weights that were trained on **synthetic images**: what it owes to them means nothing "
    "for a patient."
)
LIMITS = (
    "Research use only: it is no medical device, and no clinical decision may rest on its output.",
    "A reconstructed modality is a guess from the others. It shows what is usual beside them, not what a scanner "
    "would have seen in this patient, and cannot prove that a lesion is there or is not.",
)
MEASURE = (
    "Images from other scanners, other preprocessing, children, or other diseases than those of the training data may "
    "give worse results: measure on your own cases first"
)
JUDGED_BY = {
    "mae": "`bmmae reconstruct --cohort TABLE --subset NAMES`",
    "segmentation": "`bmmae segment --cohort TABLE --metrics`",
    "patient": "`bmmae evaluate --cohort TABLE`",
}
"""The command that measures a model, by its kind."""
_UNKNOWN = "not recorded"


def model_card(saved: SavedConfig, modalities: Iterable[str], parameters: int) -> str:
    """Return the card of a saved model, in Markdown with the hub's metadata on top.

    Args:
        saved: What config.json holds.
        modalities: The modalities it knows.
        parameters: How many trainable values it has.
    """
    provenance = Provenance.of(saved.provenance)
    names = list(modalities)
    sections = [
        _front_matter(saved, provenance),
        f"# {saved.kind}: {', '.join(title(name) for name in names)}",
        _synthetic(provenance),
        _section("How to load", _loading(saved)),
        _section("Recipe", _table(("setting", "value"), _recipe_rows(saved, names, parameters))),
        _section("Training data", _data(provenance)),
        _section("Metrics", _metrics(provenance.metrics)),
        _section("Limits", _limits(saved.kind, provenance)),
        _section("Licence", _licence(provenance)),
    ]
    return "\n\n".join(part for part in sections if part) + "\n"


def _synthetic(provenance: Provenance) -> str:
    return SYNTHETIC if provenance.synthetic else PRETRAINED_SYNTHETIC if provenance.parent_synthetic else ""


def _limits(kind: str, provenance: Provenance) -> str:
    command = f" ({JUDGED_BY[kind]})" if kind in JUDGED_BY else ""
    inherited = (f"Of the weights that its training started from: {limit}" for limit in provenance.parent_limits)
    return "\n".join(f"- {limit}" for limit in (*LIMITS, MEASURE + command + ".", *provenance.limits, *inherited))


def _licence(provenance: Provenance) -> str:
    own = provenance.licence or f"{_UNKNOWN}: ask its author before you share or sell anything"
    if not provenance.parent_licences:
        return own
    licences = ", ".join(provenance.parent_licences)
    return f"{own}\n\nIts training started from weights under {licences}: keep to these terms as well."


def _front_matter(saved: SavedConfig, provenance: Provenance) -> str:
    tags = ["bmmae", saved.kind, "mri", "brain", "medical-imaging"]
    values: dict[str, object] = {"library_name": "bmmae", "tags": tags + ["synthetic-data"] * provenance.synthetic}
    if provenance.licence:
        values["license"] = provenance.licence.lower()
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---"


def _loading(saved: SavedConfig) -> str:
    return (
        "```python\nimport bmmae\n\n"
        f'model = bmmae.load_model("FOLDER or ORG/NAME")  # written by bmmae {saved.bmmae_version}\n```\n\n'
        "Any non-empty subset of the modalities will do as input."
    )


def _recipe_rows(saved: SavedConfig, names: list[str], parameters: int) -> list[tuple[str, str]]:
    settings = {**flatten(saved.model), **flatten(saved.preprocessing, "preprocessing.")}
    rows = [("modalities", ", ".join(names)), ("parameters", f"{parameters:,}")]
    return rows + [(key, str(value)) for key, value in settings.items() if not key.endswith("modalities")]


def _data(provenance: Provenance) -> str:
    hashes = provenance.content_hashes
    # One digest of all, whatever their order, says at a glance whether two models saw the same images.
    digest = hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()[:16]
    rows = [
        ("data", provenance.data or _UNKNOWN),
        ("patients", _UNKNOWN if provenance.subjects is None else str(provenance.subjects)),
        (
            "images",
            f"{len(hashes)}, as SHA-256 of image content in config.json (digest {digest})" if hashes else _UNKNOWN,
        ),
        (
            "synthetic",
            f"yes, generator {provenance.generator or _UNKNOWN}" if provenance.synthetic else "not marked as such",
        ),
        *(
            [("chosen by", f"{len(chosen)} images of the validation part")]
            if (chosen := provenance.selection_hashes)
            else []
        ),
        ("started from", provenance.parent or "new weights"),
        *([("changed since", "; ".join(provenance.changes))] if provenance.changes else []),
        ("command", f"`{provenance.command}`" if provenance.command else _UNKNOWN),
    ]
    return _table(("what", "value"), rows)


def _metrics(metrics: Mapping[str, Metric]) -> str:
    if not metrics:
        return "None recorded: evaluate it before you rely on it."
    rows = [
        (name, f"{m.value:.4g}", interval(m), m.unit, "" if m.n is None else str(m.n)) for name, m in metrics.items()
    ]
    return _table(("metric", "value", "interval", "unit", "patients"), rows)


def interval(metric: Metric) -> str:
    """Return a metric's interval as text, or that there is none."""
    return "none" if metric.low is None or metric.high is None else f"{metric.low:.4g} to {metric.high:.4g}"


def _section(heading: str, body: str) -> str:
    return f"## {heading}\n\n{body}"


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
