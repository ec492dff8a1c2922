"""Synthesised modalities in a folder, with a note that says how they were made and whether they still hold."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from bmmae._version import __version__
from bmmae.checkpoint import provenance_of
from bmmae.data.geometry import same_grid
from bmmae.data.location import File, refuse_overwriting
from bmmae.data.preprocess import VERSION as PREPROCESSING
from bmmae.data.reading import Image, is_synthetic, read_image
from bmmae.errors import GeometryError, ModalityError
from bmmae.inference.agreement import Agreement, agreement
from bmmae.inference.reconstruction import (
    DEVIATION,
    Reconstruction,
    ReconstructOptions,
    require_mae,
    synthesise,
    wanted,
)
from bmmae.inference.scale import DESCRIPTIONS
from bmmae.inference.study import StudyFiles, load_files, name_files
from bmmae.inference.writing import image_like, read_note, refuse_replacing, write_together
from bmmae.modalities import in_table_order
from bmmae.model.mae import MAE
from bmmae.model.pretrained import PretrainedModel, digest

NOTE = "reconstruction.json"
REPORT = "report.html"
SEEN = "the model was trained on this study: how close it comes to the real images says nothing about new patients"
NOTICE = "Synthetic images made by research software; not acquired, not for diagnosis."

Page: TypeAlias = Callable[[str, Reconstruction], str]
"""Writes the report of a study, given its name: HTML."""


@dataclass(frozen=True)
class Plan:
    """What is to be made of one study.

    Attributes:
        given: What the model may see.
        absent: What to synthesise.
        truth: Real images of these, if the study has any.
        options: How.
    """

    given: StudyFiles
    absent: tuple[str, ...]
    truth: Mapping[str, File]
    options: ReconstructOptions

    @classmethod
    def of(cls, model: MAE, files: StudyFiles, options: ReconstructOptions, synthesised: Collection[str] = ()) -> Plan:
        """Plan a study.

        Args:
            model: The masked autoencoder.
            files: What the study has.
            options: What is asked for.
            synthesised: Modalities of which it has no real image, whatever their headers say: nothing is compared
                with them.

        Raises:
            ModalityError: If it has none of the subset, or nothing is left to synthesise.
        """
        options = options.named(model.config.modalities)
        shown = {name: path for name, path in files.images.items() if not options.subset or name in options.subset}
        if not shown:
            raise ModalityError(
                f"none of {', '.join(options.subset)} is given: expected at least one of them beside "
                f"{', '.join(files.images)}"
            )
        absent = wanted(model, shown, options)
        masks = {name: mask for name, mask in files.masks.items() if name in shown}
        hidden = {name: files.images[name] for name in absent if name in files.images and name not in synthesised}
        truth = {name: path for name, path in hidden.items() if not is_synthetic(path)}
        return cls(StudyFiles(shown, masks), absent, truth, options)

    def identity(self, model: str, *, report: bool) -> dict[str, Any]:
        """Return all that decides what is written, as JSON holds it: two runs that agree in it write the same.

        Args:
            model: The model's `digest`.
            report: Whether there will be a report.

        Raises:
            ImageError: If a file is broken.
        """
        how = {name: value for name, value in asdict(self.options).items() if name not in {"only", "subset"}}
        return {
            "model": model,
            "preprocessing": PREPROCESSING,
            "content": self.given.content(),
            "place": self.given.place(),
            "truth": StudyFiles(self.truth, {}).content(),
            "synthetic": list(self.absent),
            "report": report,
            **how,
        }


def reconstruct_to_folder(
    model: PretrainedModel,
    images: Mapping[str, str | Path],
    folder: str | Path,
    *,
    brain_mask: str | Path | None = None,
    complete: bool = False,
    options: ReconstructOptions | None = None,
    page: Page | None = None,
) -> dict[str, Path]:
    """Synthesise the absent modalities and write each to `<folder>/<modality>.nii.gz`.

    Args:
        model: A masked autoencoder.
        images: Files by modality name or alias, in any order.
        folder: Created if need be. Beside the images, `reconstruction.json` says how they were made.
        brain_mask: A mask on the same grid, for images that are not skull-stripped.
        complete: Write the given images as well, unchanged in values.
        options: What to synthesise, and how; by default all that is absent.
        page: Writes the report, `report.html`; by default there is none.

    Returns:
        The files by modality, standard deviations as `<modality>_std`.

    Raises:
        BmmaeError: As `reconstruct`; nothing is written then.
        OutputError: If the folder cannot be written, or an image given would be written over.
    """
    mae = require_mae(model)
    options = options or ReconstructOptions()
    options = replace(options, complete=options.complete or complete)
    plan = Plan.of(mae, name_files(mae, images, brain_mask), options)
    return carry_out(plan, mae, Path(folder), plan.identity(digest(mae), report=page is not None), page)


def carry_out(plan: Plan, model: MAE, folder: Path, identity: Mapping[str, Any], page: Page | None) -> dict[str, Path]:
    """Synthesise what is planned and write it, all or nothing; raises as `reconstruct_to_folder`."""
    names = [*plan.absent, *(plan.given.images if plan.options.complete else ())]
    written = [folder / f"{name}{suffix}.nii.gz" for name in names for suffix in ("", DEVIATION)]
    refuse_overwriting(written, [*plan.given.images.values(), *plan.given.masks.values(), *plan.truth.values()])
    refuse_replacing([*written, *([folder / REPORT] if page else [])], folder, NOTE)
    made = synthesise(model, load_files(model, plan.given, plan.absent), plan.absent, plan.options)
    made = _compare(made, plan.truth)
    if made.agreement and seen_in_training(model, identity):
        warnings.warn(SEEN, stacklevel=2)
        made = replace(made, remarks=(*made.remarks, SEEN))
    images = made.images()
    if plan.options.complete:
        images |= {name: image_like(image.array, image, "") for name, image in made.study.images.items()}
    modalities = in_table_order(name for name in images if not name.endswith(DEVIATION))
    ordered = [key for name in modalities for key in (name, name + DEVIATION) if key in images]
    pages = {REPORT: page(folder.resolve().name, made)} if page else {}
    note = _note(plan, made, model, identity)
    return write_together({key: images[key] for key in ordered}, note, folder, NOTE, pages)


def seen_in_training(model: PretrainedModel, identity: Mapping[str, Any]) -> bool:
    """Tell whether any image of a plan's `identity` was among those that the model was trained on, by its voxels."""
    images = {*identity["content"].values(), *identity["truth"].values()}
    return not images.isdisjoint(provenance_of(model).seen)


def agreement_in(folder: Path) -> dict[str, dict[str, float | None]]:
    """Return how close a folder's images are to the real ones: figures by modality.

    None where one is not defined, or was not yet written when the folder was made.
    """
    note: Mapping[str, Any] = read_note(folder, NOTE) or {}
    figures = [item.name for item in fields(Agreement)]
    return {name: {key: found.get(key) for key in figures} for name, found in note.get("agreement", {}).items()}


def is_finished(folder: Path, identity: Mapping[str, object]) -> bool:
    """Tell whether a folder holds, complete, what a run of this identity would write."""
    note = read_note(folder, NOTE)
    return note is not None and note.get("identity") == identity


def _compare(made: Reconstruction, truth: Mapping[str, File]) -> Reconstruction:
    """Add the real images and how close the synthesised ones are to them."""
    real = {name: _on_grid(read_image(path), made.study.reference) for name, path in truth.items()}
    scores = {name: agreement(made.volumes[name], image, made.study.brain) for name, image in real.items()}
    return replace(made, truth=real, agreement=scores)


def _on_grid(image: Image, like: Image) -> np.ndarray:
    if not same_grid(image.shape, image.affine, like.shape, like.affine):
        raise GeometryError(
            f"{image.path.name}, the real image to compare with, is not on the grid of {like.path.name}: co-register "
            "the study's modalities first"
        )
    return np.asarray(image.array)


def _note(plan: Plan, made: Reconstruction, model: MAE, identity: Mapping[str, object]) -> dict[str, object]:
    provenance = model.metadata.provenance
    told = {key: value for key, value in provenance.items() if not key.endswith("hashes") and key != "population"}
    return {
        "bmmae": __version__,
        "synthetic": list(plan.absent),
        "given": {name: path.name for name, path in plan.given.images.items()},
        "hidden": {name: path.name for name, path in plan.truth.items()},
        "intensity": {name: DESCRIPTIONS[kind] for name, kind in made.intensities.items()},
        "remarks": list(made.remarks),
        "agreement": {
            name: {figure: value if np.isfinite(value) else None for figure, value in asdict(found).items()}
            for name, found in made.agreement.items()
        },
        "model": told,
        "identity": dict(identity),
        "notice": NOTICE,
    }
