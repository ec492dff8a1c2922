"""What a model is, for people and for programs: `bmmae info`."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from bmmae.card import interval
from bmmae.modalities import title
from bmmae.model.config import RECIPES, ModelConfig
from bmmae.model.pretrained import PretrainedModel
from bmmae.provenance import Provenance
from bmmae.schema import to_dict
from bmmae.sources import unfinished


@dataclass(frozen=True)
class ModelInfo:
    """A summary of a loaded model.

    Attributes:
        source: What was loaded.
        kind: Its class.
        recipe: The named recipe it follows, or `custom`.
        modalities: What it takes, in its own order.
        parameters: Trainable values.
        encoder_parameters: Those of the encoder.
        patch: Voxels of a patch.
        size: Voxels of the window it was trained on.
        spacing: Millimetres between voxels; None if not recorded.
        heads: What it can put out, with the settings of each.
        config: Its whole config.
        provenance: What it was trained on and how.
        run: How its run stands, if it has not finished.
    """

    source: str
    kind: str
    recipe: str
    modalities: tuple[str, ...]
    parameters: int
    encoder_parameters: int
    patch: tuple[int, int, int]
    size: tuple[int, int, int]
    spacing: tuple[float, ...] | None
    heads: dict[str, dict[str, Any]]
    config: dict[str, Any]
    provenance: Provenance
    run: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        values: dict[str, Any] = to_dict(self)
        return values

    def format_table(self) -> str:
        """Return it as lines of `name  value`."""
        rows = [*self._shape_rows(), *self._origin_rows()]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def _shape_rows(self) -> list[tuple[str, str]]:
        spacing = " x ".join(f"{s:g}" for s in self.spacing) + " mm" if self.spacing else "not recorded"
        heads = [f"{name} ({_settings(values)})" if values else name for name, values in self.heads.items()]
        return [
            ("model", self.source),
            *([("run", f"NOT FINISHED: {self.run}")] if self.run else []),
            ("kind", self.kind),
            ("recipe", self.recipe),
            ("modalities", ", ".join(title(name) for name in self.modalities)),
            ("parameters", f"{self.parameters:,} ({self.encoder_parameters:,} in the encoder)"),
            ("patch", " x ".join(map(str, self.patch)) + " voxels"),
            ("window", " x ".join(map(str, self.size)) + " voxels"),
            ("spacing", spacing),
            ("heads", ", ".join(heads)),
        ]

    def _origin_rows(self) -> list[tuple[str, str]]:
        origin = self.provenance
        rows = [
            ("data", origin.data),
            ("patients", "" if origin.subjects is None else str(origin.subjects)),
            ("images", f"{len(origin.content_hashes)} content hashes" if origin.content_hashes else ""),
            ("chosen by", f"{len(origin.selection_hashes)} other images" if origin.selection_hashes else ""),
            ("synthetic", f"YES (generator {origin.generator or 'unknown'})" if origin.synthetic else ""),
            ("started from", origin.parent or ""),
            ("before that", "synthetic data" if origin.parent_synthetic else ""),
            ("changed since", "; ".join(origin.changes)),
            ("command", origin.command or ""),
            ("licence", origin.licence or ""),
            ("licences before", ", ".join(origin.parent_licences)),
            ("limits", " ".join((*origin.limits, *origin.parent_limits))),
        ]
        rows += [(name, f"{m.value:.4g} ({interval(m)}) {m.unit}".rstrip()) for name, m in origin.metrics.items()]
        return [row for row in rows if row[1]] or [("provenance", "not recorded")]


def _settings(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def summarise(model: PretrainedModel, source: str) -> ModelInfo:
    """Return a model's summary."""
    config = model.model_config
    spacing = model.metadata.preprocessing.get("spacing")
    return ModelInfo(
        source=source,
        kind=model.kind,
        recipe=recipe_of(config),
        modalities=config.modalities,
        parameters=model.parameter_count(),
        encoder_parameters=sum(p.numel() for name, p in model.named_parameters() if name.startswith("encoder.")),
        patch=config.patch,
        size=config.size,
        spacing=tuple(spacing) if spacing else None,
        heads=_heads(model),
        config=to_dict(model.config),
        provenance=Provenance.of(model.metadata.provenance),
        run=unfinished(source),
    )


def recipe_of(config: ModelConfig) -> str:
    """Return the recipe that a config follows, whatever its modalities and window; else that of its encoder."""
    for name, known in RECIPES.items():
        if replace(config, modalities=known.modalities, size=known.size, tissue_only=known.tissue_only) == known:
            return name
    for name, known in RECIPES.items():
        if (config.encoder, config.patch) == (known.encoder, known.patch):
            return f"custom (encoder of {name})"
    return "custom"


def _heads(model: PretrainedModel) -> dict[str, dict[str, Any]]:
    """Name what comes out, with the settings beside the `ModelConfig` in the model's config."""
    config = model.config
    if isinstance(config, ModelConfig) or not is_dataclass(config):
        return {"reconstruction": {"decoder": model.model_config.decoder.kind}}
    settings = {item.name: getattr(config, item.name) for item in fields(config)}
    plain = {name: to_dict(value) for name, value in settings.items() if not isinstance(value, ModelConfig)}
    return {model.kind: plain}
