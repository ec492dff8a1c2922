"""Absent modalities of one study, synthesised from those it has."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import nibabel as nib
import numpy as np

from bmmae.arrays import Float
from bmmae.checkpoint import provenance_of, synthetic_training
from bmmae.errors import ConfigError, ModalityError
from bmmae.inference.agreement import Agreement
from bmmae.inference.likeness import UnlikeTrainingWarning, untrained
from bmmae.inference.prediction import predict_absent, require_uncertainty
from bmmae.inference.scale import Intensity, find_map, lowest
from bmmae.inference.study import LoadedStudy, caveat, load_files, name_files, require_loaded
from bmmae.inference.windows import to_native
from bmmae.inference.writing import image_like
from bmmae.modalities import canonical, title
from bmmae.model.mae import MAE
from bmmae.model.pretrained import PretrainedModel

DEVIATION = "_std"
"""What the name of a modality is followed by for its standard deviation."""


@dataclass(frozen=True)
class ReconstructOptions:
    """What is to be synthesised, and how.

    Attributes:
        only: Just these of the absent modalities; empty means all.
        subset: Pretend that only these are available; empty means all that are.
        intensity: The scale of the results (see `bmmae.inference.scale`); None means `given`.
        uncertainty: Give a standard deviation as well.
        complete: Write the images given as well.

    Raises:
        ConfigError: If `intensity` is unknown.
    """

    only: tuple[str, ...] = ()
    subset: tuple[str, ...] = ()
    intensity: Intensity | None = None
    uncertainty: bool = False
    complete: bool = False

    def __post_init__(self) -> None:
        known = get_args(Intensity)
        if self.intensity is not None and self.intensity not in known:
            raise ConfigError(f"unknown intensity '{self.intensity}': expected one of {', '.join(known)}")

    def named(self, known: Sequence[str]) -> ReconstructOptions:
        """Return the same with canonical names.

        Raises:
            ModalityError: If a name is unknown to the model.
        """
        only, subset = (tuple(canonical(name, known) for name in names) for names in (self.only, self.subset))
        return ReconstructOptions(only, subset, self.intensity, self.uncertainty, self.complete)


@dataclass(frozen=True)
class Reconstruction:
    """The synthesised modalities of one study, on the grid of its images.

    Attributes:
        study: What was given.
        volumes: Float[X, Y, Z] by modality, in table order; 0 outside the brain.
        deviations: Their standard deviations Float[X, Y, Z], in the same units; empty if not asked for.
        intensities: What kind of scale each has.
        remarks: Reasons to doubt the results, one sentence each.
        weights: What must be known of the model wherever the results are shown; empty if nothing.
        truth: Real images of synthesised modalities, where the study has them.
        agreement: How close the synthesised ones are to these.
    """

    study: LoadedStudy
    volumes: Mapping[str, Float[np.ndarray, "X Y Z"]]
    deviations: Mapping[str, Float[np.ndarray, "X Y Z"]]
    intensities: Mapping[str, Intensity]
    remarks: tuple[str, ...] = ()
    weights: str = ""
    truth: Mapping[str, Float[np.ndarray, "X Y Z"]] = field(default_factory=dict)
    agreement: Mapping[str, Agreement] = field(default_factory=dict)

    def images(self) -> dict[str, nib.Nifti1Image]:
        """Return the volumes as images, each followed by its standard deviation (`t2_std`), if there is one."""
        out = {}
        for name, values in self.volumes.items():
            made = f"scale: {self.intensities[name]}{caveat(self.study)}"
            what = f"bmmae SYNTHETIC {title(name)}, not acquired; {made}"
            out[name] = image_like(values, self.study.reference, what)
            if name in self.deviations:
                what = f"bmmae deviation of SYNTHETIC {title(name)}; {made}"
                out[name + DEVIATION] = image_like(self.deviations[name], self.study.reference, what)
        return out


def reconstruct(
    model: PretrainedModel,
    images: Mapping[str, str | Path],
    *,
    brain_mask: str | Path | None = None,
    only: str | Sequence[str] | None = None,
    intensity: Intensity | None = None,
    uncertainty: bool = False,
) -> dict[str, nib.Nifti1Image]:
    """Synthesise the absent modalities of one study.

    Args:
        model: A masked autoencoder.
        images: Files by modality name or alias, in any order.
        brain_mask: A mask on the same grid, for images that are not skull-stripped.
        only: Synthesise just this one, or these, of the absent modalities.
        intensity: `cohort`, `given` or `zscore`; see `bmmae.inference.scale`. By default `given`; a model that
            does not know what its training images looked like has no other. The header says which it is.
        uncertainty: Return a standard deviation a voxel as well, as `<modality>_std`.

    Returns:
        The absent modalities by name, on the grid of the input, in its orientation; 0 outside the brain.

    Raises:
        ModalityError: If none is given, none is absent, or the model cannot reconstruct.
        ImageError: If a file is broken.
        ConfigError: If the model has no uncertainty output and one is asked for, or `intensity` is unknown.

    Warns:
        UnlikeTrainingWarning: For each way in which the images differ from those of the training.
    """
    mae = require_mae(model)
    chosen = (only,) if isinstance(only, str) else tuple(only or ())
    options = ReconstructOptions(chosen, (), intensity, uncertainty).named(mae.config.modalities)
    files = name_files(mae, images, brain_mask)
    absent = wanted(mae, files.images, options)
    return synthesise(mae, load_files(mae, files, absent), absent, options).images()


def require_mae(model: PretrainedModel) -> MAE:
    """Return the model as what it has to be.

    Raises:
        ModalityError: If it cannot reconstruct.
    """
    require_loaded(model)
    if not isinstance(model, MAE):
        raise ModalityError(f"a {model.kind} model cannot reconstruct: use a pretrained model (kind 'mae')")
    return model


def wanted(model: MAE, given: Mapping[str, object], options: ReconstructOptions) -> tuple[str, ...]:
    """Return the modalities to synthesise, in the model's order.

    Raises:
        ModalityError: If one that is asked for is given, or none is left.
    """
    names = model.config.modalities
    asked = options.only or names
    among = [name for name in asked if name in given]
    if options.only and among:
        raise ModalityError(f"{', '.join(among)} cannot be synthesised: it is among the images given")
    absent = tuple(name for name in names if name in asked and name not in given)
    if not absent:
        raise ModalityError(f"no modality is left to reconstruct: all of {', '.join(names)} are given")
    return absent


def synthesise(model: MAE, study: LoadedStudy, absent: Sequence[str], options: ReconstructOptions) -> Reconstruction:
    """Synthesise modalities of a loaded study, on its own grid and scale.

    Args:
        model: The masked autoencoder.
        study: What is given.
        absent: What to synthesise.
        options: How.

    Raises:
        ConfigError: If the model has no uncertainty output and one is asked for.
    """
    if options.uncertainty:
        require_uncertainty(model)
    population = provenance_of(model).population
    made = predict_absent(model, study.prepared, absent, uncertainty=options.uncertainty)
    brain = study.brain
    floor = lowest(study, brain)
    volumes, deviations, intensities = {}, {}, {}
    for name in absent:
        scores = to_native(study.prepared, made.means[name])
        scale = find_map(name, scores[brain], study, options.intensity, population)
        darkest = -np.inf if scale.kind == "zscore" else floor
        volumes[name] = np.where(brain, np.maximum(scale(scores), darkest), 0).astype(np.float32)
        intensities[name] = scale.kind
        if name in made.variances:
            # A voxel that the model's grid does not have got the mean: that of a z-score is off by 1.
            deviation = np.sqrt(to_native(study.prepared, made.variances[name], elsewhere=1.0))
            deviations[name] = np.where(brain, scale.deviations(scores, deviation), 0).astype(np.float32)
    remarks = (
        *untrained(absent, population),
        *_without_cohort(options, intensities),
        *_without_deviation([name for name in absent if options.uncertainty and name not in made.variances]),
    )
    for remark in remarks:
        warnings.warn(remark, UnlikeTrainingWarning, stacklevel=3)
    told = synthetic_training(model)
    return Reconstruction(
        study, volumes, deviations, intensities, (*study.remarks, *remarks), f"The model {told}." if told else ""
    )


def _without_deviation(names: Sequence[str]) -> tuple[str, ...]:
    """Say so if a deviation was asked for and is not known."""
    if not names:
        return ()
    listed = ", ".join(map(title, names))
    return (f"no deviation of {listed} is written: no training study had these sequences together, so it is not known",)


def _without_cohort(options: ReconstructOptions, used: Mapping[str, Intensity]) -> tuple[str, ...]:
    """Say so if the scale asked for could not be had."""
    lacking = [title(name) for name, kind in used.items() if options.intensity == "cohort" and kind != "cohort"]
    if not lacking:
        return ()
    return (
        f"the model does not know the training cohort's intensities of {', '.join(lacking)}: the scale is that of the "
        "given images",
    )
