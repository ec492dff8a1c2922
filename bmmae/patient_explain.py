"""Why a model of patients answers as it does for one study: modalities, clinical variables, places."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from bmmae.arrays import Array, Bool, Float, Tensor
from bmmae.data.cohort import Study
from bmmae.data.dataset import centred
from bmmae.data.preprocess import overlap
from bmmae.data.tables import Cell
from bmmae.errors import ConfigError, few
from bmmae.explain import modality_shares, occlusion_map, shapley_values
from bmmae.inference.study import LoadedStudy, load_study
from bmmae.inference.windows import to_native
from bmmae.inference.writing import image_like, write_together
from bmmae.model.beside import Beside, shown_variables, unknown_values
from bmmae.model.outcomes import probabilities, risk
from bmmae.model.patient import PatientModel
from bmmae.patches import any_in_patch, patch_grid, unpatchify
from bmmae.patient_prediction import columns_of, warn_of_unseen_categories
from bmmae.targets import Target

NOTE = "explanation.json"


@dataclass(frozen=True)
class Explanation:
    """What a model used for one answer about one study.

    Attributes:
        study: As loaded.
        target: Name of the target.
        outcome: The class whose probability is explained, or `risk`.
        answer: That probability or risk, from all that is given.
        base: What would be said of anybody: the class's share in training, or the training patients' median risk.
        shapley: `answer - base` divided among modalities and clinical variables (named `clinical: <name>`).
        attention: Share of the pooling's weight by modality.
        attention_map: Float32[X, Y, Z], weight of each place over modalities, 1 on average over the patches seen.
        occlusion: Float32[X, Y, Z], by how much the answer falls when a place is hidden in all modalities.
    """

    study: LoadedStudy
    target: str
    outcome: str
    answer: float
    base: float
    shapley: Mapping[str, float]
    attention: Mapping[str, float]
    attention_map: Float[np.ndarray, "X Y Z"]
    occlusion: Float[np.ndarray, "X Y Z"]


def explain_patient(
    model: PatientModel,
    images: Mapping[str, str | Path],
    *,
    target: str | None = None,
    outcome: str | None = None,
    clinical: Mapping[str, Cell] | None = None,
    brain_mask: str | Path | None = None,
) -> Explanation:
    """Explain one answer of a model about one study. Takes a pass for each subset of inputs, and for each patch.

    A patch is hidden by leaving its tokens out, as the model's pretraining did. A subset without any image is answered
    by `base`, whatever the clinical variables: the model has never seen such patients.

    Args:
        model: In eval mode.
        images: Files by modality name or alias.
        target: Name of the target; by default the first.
        outcome: Class whose probability is explained; by default the likeliest. Targets without classes: the risk. Of a
            multi-label target the column whose yes is explained; it has to be named.
        clinical: Clinical variables and measures by column; None for one that is not known.
        brain_mask: A mask on the same grid, for images that are not skull-stripped.

    Raises:
        ConfigError: If the model lacks the target, the target lacks the class, no column of a multi-label target is
            named, or there are more inputs than exact Shapley values can be had for.
        ModalityError: If an image is of no modality of the model.
        ImageError: If a file is broken.

    Warns:
        UserWarning: If the model takes something beside the images that is not given, or cannot be.
    """
    _warn_of_what_is_left_out(model, clinical or {})
    study = load_study(model, images, brain_mask)
    chosen = _target(model, target)
    view = _View.of(model, study, clinical or {})
    whole = view.logits(chosen)
    index, name = _outcome(chosen, outcome, whole)
    base = _base(chosen, index)
    players = [*study.images, *(f"clinical: {variable}" for variable in view.known)]

    def answer(given: frozenset[str]) -> float:
        if not given & set(study.images):
            return base
        return float(_answer(chosen, index, view.logits(chosen, given=given))[0])

    def without(hidden: Bool[Array, "K H W D"]) -> Float[Array, " K"]:
        return _answer(chosen, index, view.logits(chosen, hidden=hidden))

    patch = model.config.model.patch
    weights = view.attention(chosen)
    return Explanation(
        study=study,
        target=chosen.name,
        outcome=name,
        answer=float(_answer(chosen, index, whole)[0]),
        base=base,
        shapley=shapley_values(answer, players),
        attention={
            n: s for n, s in modality_shares(weights, model.config.model.modalities).items() if n in study.images
        },
        attention_map=view.native(_spread(weights.sum(axis=0), view)),
        occlusion=view.native(occlusion_map(without, view.brain, patch, patch)),
    )


def _warn_of_what_is_left_out(model: PatientModel, clinical: Mapping[str, Cell]) -> None:
    warn_of_unseen_categories(model, [Study("", {}, values=dict(clinical))])
    left = [variable.name for variable in model.config.clinical if variable.name not in clinical]
    if left:
        warnings.warn(
            f"the model also takes {few(left)}, not given here: what is not given counts as missing, and "
            "`bmmae predict` may answer otherwise",
            stacklevel=3,
        )
    lacking = {"a vector": model.config.vector, "a lesion map": model.config.lesion != "none"}
    for name, wanted in lacking.items():
        if wanted:
            warnings.warn(
                f"the model also takes {name}, which an explanation cannot: it counts as missing, and `bmmae predict` "
                "may answer otherwise",
                stacklevel=3,
            )


def write_explanation(explanation: Explanation, folder: Path) -> dict[str, Path]:
    """Write `attention.nii.gz` and `occlusion.nii.gz` on the input's grid, and `explanation.json`; all or nothing.

    Raises:
        OutputError: If the folder cannot be written.
    """
    text = f"bmmae {explanation.target} {explanation.outcome}: "
    like = explanation.study.reference
    images = {
        "attention": image_like(explanation.attention_map, like, text + "attention"),
        "occlusion": image_like(explanation.occlusion, like, text + "occlusion"),
    }
    names = ("target", "outcome", "answer", "base", "shapley", "attention")
    return write_together(images, {name: getattr(explanation, name) for name in names}, folder, NOTE)


@dataclass(frozen=True)
class _View:
    """One study as a model's window shows it, and the calls that explanations need."""

    model: PatientModel
    study: LoadedStudy
    images: Float[Tensor, "1 M H W D"]
    valid: Bool[Tensor, "1 M H W D"]
    brain: Bool[np.ndarray, "H W D"]
    values: Float[Tensor, "1 V"]
    available: Bool[Tensor, "1 V"]

    @classmethod
    def of(cls, model: PatientModel, study: LoadedStudy, clinical: Mapping[str, Cell]) -> _View:
        config = model.config.model
        window = study.prepared.window(centred(study.prepared.shape, config.size), config.size)
        images = torch.zeros(1, len(config.modalities), *config.size)
        valid = torch.zeros(images.shape, dtype=torch.bool)
        for place, name in enumerate(window.names):
            slot = config.modalities.index(name)
            images[0, slot] = torch.from_numpy(window.images[place])
            valid[0, slot] = torch.from_numpy(window.valid[place])
        like = next(model.parameters())
        device = like.device
        row = columns_of(model).encode(Study("", {}, values=dict(clinical)))
        values = row.get("clinical", torch.zeros(0))[None].to(device)
        known = row.get("clinical_available", torch.zeros(0, dtype=torch.bool))[None].to(device)
        return cls(model, study, images.to(like), valid.to(device), window.brain, values, known)

    @property
    def known(self) -> tuple[str, ...]:
        """Clinical variables that are known of the patient."""
        names = (variable.name for variable in self.model.config.clinical)
        return tuple(name for name, there in zip(names, self.available[0].tolist(), strict=True) if there)

    @torch.inference_mode()
    def logits(
        self, target: Target, *, given: frozenset[str] | None = None, hidden: Bool[Array, "K H W D"] | None = None
    ) -> Float[Tensor, "K _"]:
        """Return a target's outputs from some of the inputs, or with some voxels hidden."""
        rows = 1 if hidden is None else len(hidden)
        wanted = set(self.study.images) | {f"clinical: {name}" for name in self.known} if given is None else given
        variables = torch.tensor(
            [[f"clinical: {v.name}" in wanted for v in self.model.config.clinical]], dtype=torch.bool
        )
        images, available, tissue, valid = self._batch(rows, wanted)
        config = self.model.config
        shown = self.available & variables.to(self.available.device)
        shown = shown & shown_variables(config.clinical, config.model.modalities, available)
        values = torch.where(shown, self.values, unknown_values(config.clinical, shown.device))
        beside = Beside(clinical=values, clinical_available=shown)
        kept = None
        if hidden is not None:
            patches = torch.from_numpy(any_in_patch(hidden, self.model.config.model.patch)).to(images.device)
            kept = ~patches[:, None].expand(-1, images.shape[1], -1)
        beside = beside if self.model.config.clinical else Beside()
        found: dict[str, Tensor] = self.model(images, available, tissue, valid, beside=beside, kept=kept)
        return found[target.name].float().cpu()

    @torch.inference_mode()
    def attention(self, target: Target) -> Float[np.ndarray, "M L"]:
        """Return how much each patch weighs in a target's pooling."""
        images, available, tissue, valid = self._batch(1, set(self.study.images))
        return np.asarray(self.model.attention(images, available, tissue, valid)[target.name][0].float().cpu().numpy())

    def _batch(self, rows: int, wanted: set[str] | frozenset[str]) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        config = self.model.config.model
        there = torch.tensor([[name in wanted and name in self.study.images for name in config.modalities]])
        available = there.to(self.images.device).expand(rows, -1)
        brain = torch.from_numpy(self.brain)[None, None].to(self.images.device).expand(rows, -1, -1, -1, -1)
        expand = partial(torch.Tensor.expand, size=(rows, -1, -1, -1, -1))
        return expand(self.images), available, brain if config.tissue_only else None, expand(self.valid)

    def native(self, volume: Float[Array, "H W D"]) -> Float[np.ndarray, "X Y Z"]:
        """Bring a volume from the window to the input's grid; 0 outside the window and the brain."""
        shape, size = self.study.prepared.shape, self.model.config.model.size
        there, here = overlap(centred(shape, size), size, shape)
        whole = np.zeros(shape, np.float32)
        whole[there] = volume[here]
        return np.asarray(to_native(self.study.prepared, whole) * self.study.brain, dtype=np.float32)


def _spread(weights: Float[Array, " L"], view: _View) -> Float[Array, "H W D"]:
    """Give every voxel of the window its patch's weight, 1 on average over the patches that weigh anything."""
    config = view.model.config.model
    scaled = torch.from_numpy(weights / weights[weights > 0].mean() if (weights > 0).any() else weights)
    voxels = scaled[:, None].expand(-1, int(np.prod(config.patch)))
    return np.asarray(unpatchify(voxels, patch_grid(config.size, config.patch), config.patch).numpy())


def _target(model: PatientModel, name: str | None) -> Target:
    targets = {target.name: target for target in model.config.targets}
    if name is not None and name not in targets:
        raise ConfigError(f"the model predicts no '{name}': expected one of {', '.join(targets)}")
    found: Target = targets[name] if name is not None else next(iter(targets.values()))
    return found


def _outcome(target: Target, wanted: str | None, logits: Tensor) -> tuple[int | None, str]:
    """The number and name of what is explained; no number for a risk."""
    if wanted is not None and not target.classes:
        raise ConfigError(
            f"'{target.name}' has no classes, so no '{wanted}': leave the outcome out, and its risk is explained"
        )
    if target.kind == "multilabel" and wanted is None:
        raise ConfigError(
            f"'{target.name}' is a multi-label target, and one answer is explained at a time: name its column as the "
            f"outcome, one of {', '.join(target.classes)}"
        )
    if not target.classes or (target.survival and wanted is None):
        return None, "risk"
    if wanted is not None and wanted not in target.classes:
        raise ConfigError(f"'{target.name}' has no class '{wanted}': expected one of {', '.join(target.classes)}")
    index = int(probabilities(target, logits)[0].argmax()) if wanted is None else target.classes.index(wanted)
    return index, target.classes[index]


def _answer(target: Target, index: int | None, logits: Float[Tensor, "K _"]) -> Float[Array, " K"]:
    found = risk(target, logits) if index is None else probabilities(target, logits)[:, index]
    return np.asarray(found.double().numpy())


def _base(target: Target, index: int | None) -> float:
    """What one would say of anybody; 0 where the model does not say what its training patients were like."""
    if index is None:
        return target.risk_cut or 0.0
    return target.shares[index] if len(target.shares) == len(target.classes) else 1 / len(target.classes)
