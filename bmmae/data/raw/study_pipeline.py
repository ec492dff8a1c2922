"""One raw study to co-registered, skull-stripped volumes on one grid, each interpolated once.

The steps are those of the published pipeline: N4 on copies that only serve to find the transforms, every modality
rigidly to the reference, the reference to the atlas, both transforms composed, one interpolation, brain mask.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from bmmae._version import __version__
from bmmae.arrays import Array, Bool, Float
from bmmae.data.brain import is_stripped
from bmmae.data.cohort import Study
from bmmae.data.geometry import unsure_axes
from bmmae.data.location import fingerprint
from bmmae.data.raw import stripping
from bmmae.data.raw.atlas import Atlas
from bmmae.data.raw.bias import UNBIASED, corrected
from bmmae.data.raw.native import FILE, Native, Registration, read_registration
from bmmae.data.raw.registration import RegistrationConfig, register
from bmmae.data.raw.resampling import Grid, Volume, coverage, resample
from bmmae.data.reading import read_header, read_image, read_labels
from bmmae.data.writing import write_image
from bmmae.errors import ImageError, OccupiedError, OutputError
from bmmae.modalities import STANDARD, in_table_order, title

T1, T1CE, T2, FLAIR = STANDARD
REFERENCE_ORDER = (T1CE, T1, FLAIR, T2)
"""The first that a study has: T1ce is the published choice and mostly the finest scan; further modalities follow in
table order."""

SCANNED_ZERO = 1e-6
"""Zero means "not scanned" in a stripped image; a voxel of the brain that measured zero is written as this instead."""

HEAD_PITCHES = (-20.0, 0.0, 20.0)
"""Degrees; how a head lies towards a template is not known beforehand."""

FEWEST_TO_REGISTER = 4
"""Registration smooths along every axis; fewer voxels leave it nothing to do so."""
SMALLEST_BRAIN = 1000
DESCRIPTION = "bmmae preprocess"
MASK_DESCRIPTION = "bmmae"
MASK, SEG = "brain_mask.nii.gz", "seg.nii.gz"


@dataclass(frozen=True)
class PipelineConfig:
    """What to do with raw scans.

    Attributes:
        atlas: `mni152`, a file, or None to stay in the study's own space.
        affine: Let the atlas registration scale and shear; rigid otherwise.
        spacing: Of the common grid, mm.
        keep_n4: Correct the bias field of the output too, not only of the copies that find the transforms; ADC and CT,
            whose values are measures, are never corrected.
        seed: Of the registration.
    """

    atlas: str | None = None
    affine: bool = False
    spacing: float = 1.0
    keep_n4: bool = False
    seed: int = 1


@dataclass(frozen=True)
class Prepared:
    """A study's new row of the cohort table, and what its user should know, a phrase each."""

    study: Study
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class _Raw:
    """A study's scans in memory; `copies` have their bias field removed, if they can have one."""

    images: dict[str, Volume]
    copies: dict[str, Volume]
    masks: dict[str, Bool[np.ndarray, "H W D"]]
    reference: str


def reference_of(study: Study) -> str:
    """Return the modality that a study's others are aligned to."""
    ranked = (*REFERENCE_ORDER, *in_table_order(study.images))
    return next(name for name in ranked if name in study.images)


def state_of(study: Study, config: PipelineConfig, atlas: Atlas | None) -> str:
    """Return a hash of everything that the result depends on: sources by role, size and time, settings, versions.

    Raises:
        ImageError: If a file of the study does not exist.
    """
    # Not the place: a cohort that moves as a whole is not prepared again.
    stats = {role: fingerprint(file)[1:] for role, file in study.by_role().items()}
    program = stripping.installed()
    content = (stats, asdict(config), atlas.state if atlas else "", program, __version__)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def prepare_study(study: Study, folder: Path, config: PipelineConfig, atlas: Atlas | None) -> Prepared:
    """Prepare one study and write it.

    Args:
        study: Its raw scans.
        folder: Where its volumes, brain mask, segmentation and `registration.json` go.
        config: What to do.
        atlas: The template of `config.atlas`, loaded.

    Raises:
        OccupiedError: If a file that no earlier run has made is where one is going to be written.
        BmmaeError: If a scan cannot be read or registered, or a result not be written.
    """
    _clear(study, folder)
    raw, remarks = _read(study)
    if study.lesion is not None:
        remarks += (f"the lesion map {study.lesion.name} is not on the new grid and is left out: make it anew",)
    to_atlas = _to_atlas(raw, config, atlas)
    own = raw.images[raw.reference].grid.reoriented() if atlas is None else atlas.volume.grid
    grid = own.at_right_angles().at_spacing(config.spacing)
    natives = _co_register(raw, to_atlas, config)
    registration = Registration(
        raw.reference, atlas.name if atlas else None, grid, natives, state_of(study, config, atlas), remarks
    )
    brain = _brain(raw, registration)
    files = (*map(_image_name, natives), *([] if brain is None else [MASK]), *([] if study.seg is None else [SEG]))
    # First: whenever a run is killed, its note lists each of its files, and a study is complete if all are there.
    replace(registration, files=files).write(folder)
    images = _write_images(raw, registration, brain, folder, config)
    mask = None if brain is None else write_image(folder / MASK, brain, grid.affine, description=MASK_DESCRIPTION)
    seg = _write_segmentation(study, registration, folder)
    return Prepared(replace(study, images=images, seg=seg, lesion=None, brain_mask=mask, brain_masks={}), remarks)


def prepared_before(study: Study, folder: Path, registration: Registration) -> Study:
    """Return the row of a study that was prepared by an earlier run."""
    images = {name: folder / _image_name(name) for name in registration.natives}
    mask = folder / MASK
    masked = MASK in registration.files if registration.files else mask.is_file()
    return replace(
        study,
        images=images,
        seg=folder / SEG if study.seg else None,
        lesion=None,
        brain_mask=mask if masked else None,
        brain_masks={},
    )


def _image_name(modality: str) -> str:
    return f"{modality}.nii.gz"


def _clear(study: Study, folder: Path) -> None:
    """Remove what an earlier run made of this study, so that nothing of two runs is mixed.

    Raises:
        OutputError: If that would be one of the sources.
        OccupiedError: If a file that no earlier run has made is where one is going to be written.
    """
    images = [*map(_image_name, study.images)]
    made = _made(folder, [*images, MASK, SEG])
    sources = {file.resolve() for file in study.files() if isinstance(file, Path)}
    if sources & {(folder / name).resolve() for name in (*images, MASK, SEG, *made)}:
        raise OutputError(f"{folder} holds the raw scans themselves: name another --out")
    masked = study.brain_mask is not None or study.brain_masks or stripping.installed()
    for name in (*images, *([MASK] if masked else []), *([SEG] if study.seg else [])):
        path = folder / name
        if path.exists() and name not in made:
            raise OccupiedError(f"{path} exists, and no earlier run has made it: move it away, or choose another --out")
    for name in (*made, FILE):
        (folder / name).unlink(missing_ok=True)


def _made(folder: Path, names: Iterable[str]) -> set[str]:
    """Return the names of the files that an earlier run has made: those that its note lists."""
    try:
        listed = read_registration(folder).files
    except ImageError:
        listed = ()
    # Earlier versions listed none, and left no note where they were killed: their files are known by a description.
    return {Path(name).name for name in listed} or {name for name in names if _is_described(folder / name)}


def _is_described(path: Path) -> bool:
    """Tell whether a file's header has the description that is written here."""
    try:
        found = bytes(read_header(path).raw["descrip"]).decode(errors="replace").rstrip("\0")
    except ImageError:
        return False
    return found == (MASK_DESCRIPTION if path.name == MASK else DESCRIPTION)


def _read(study: Study) -> tuple[_Raw, tuple[str, ...]]:
    """Read scans and masks, and remove the bias field from copies."""
    found = {name: read_image(path) for name, path in study.images.items()}
    thin = next((image for image in found.values() if min(image.shape) < FEWEST_TO_REGISTER), None)
    if thin is not None:
        size = " x ".join(map(str, thin.shape))
        raise ImageError(
            f"{thin.path} has {size} voxels: expected at least {FEWEST_TO_REGISTER} along each axis, as registration "
            "needs; leave its cell blank"
        )
    images = {name: Volume(image.array, image.affine) for name, image in found.items()}
    reference = reference_of(study)
    masks = _given_masks(study, images)
    remarks = _open_axes(study)
    if not masks:
        program = stripping.installed()
        if program:
            masks[reference] = stripping.find_brain_mask(images[reference], program)
        elif not all(is_stripped(volume.array) for volume in images.values()):
            remarks += (f"its skull stays: no brain mask is given and no program is installed; {stripping.ADVICE}",)
    copies = {
        name: volume if name in UNBIASED else corrected(volume, masks.get(name)) for name, volume in images.items()
    }
    return _Raw(images, copies, masks, reference), remarks


def _open_axes(study: Study) -> tuple[str, ...]:
    """Say of which scans right and left are open: no registration tells a brain from its mirror image."""
    headers = {name: read_header(path) for name, path in study.images.items()}
    doubts = {name: unsure_axes(header.raw, header.affine) for name, header in headers.items()}
    return tuple(
        f"right and left of its {title(name)} may be swapped: which way the axes point, {doubt}"
        for name, doubt in doubts.items()
        if doubt
    )


def _given_masks(study: Study, images: dict[str, Volume]) -> dict[str, Bool[np.ndarray, "H W D"]]:
    """Return the brain masks of the table, each on the grid of a modality that it belongs to."""
    masks = {}
    own = dict(study.brain_masks)
    if study.brain_mask is not None:
        drawing = Volume(*read_labels(study.brain_mask))
        grids = {name: image.grid for name, image in images.items()}
        own.setdefault(_owner(drawing, grids, reference_of(study)), study.brain_mask)
    for name, path in own.items():
        if name not in images:
            continue
        labels, affine = read_labels(path)
        mask = Volume((labels > 0).astype(np.float32), affine).turned_like(images[name].grid)
        same = mask.grid.same(images[name].grid)
        # A mask on another grid lies where its header says.
        inside = mask.array if same else resample(mask, np.eye(4), images[name].grid)
        masks[name] = inside > 0.5
        if np.count_nonzero(masks[name]) == 0:
            raise ImageError(f"brain mask {path} does not overlap {study.images[name].name}: draw it again")
    return masks


def _owner(drawing: Volume, grids: dict[str, Grid], otherwise: str) -> str:
    """Return the modality with whose voxels a drawing's are in the same places, the reference first."""
    ranked = sorted(grids, key=lambda name: name != otherwise)
    return next((name for name in ranked if drawing.turned_like(grids[name]).grid.same(grids[name])), otherwise)


def _to_atlas(raw: _Raw, config: PipelineConfig, atlas: Atlas | None) -> Float[Array, "4 4"]:
    """Return the matrix from the common space to the reference's."""
    if atlas is None:
        return np.eye(4)
    moving = raw.copies[raw.reference]
    mask = raw.masks.get(raw.reference)
    if mask is not None and atlas.mask is not None:
        moving = Volume(np.where(mask, moving.array, 0), moving.affine)
    settings = RegistrationConfig(kind="affine" if config.affine else "rigid", seed=config.seed, pitches=HEAD_PITCHES)
    return register(atlas.volume, moving, settings, atlas.mask).matrix


def _co_register(raw: _Raw, to_atlas: Float[Array, "4 4"], config: PipelineConfig) -> dict[str, Native]:
    """Align every modality to the reference and return how each lies under the common grid."""
    fixed = raw.copies[raw.reference]
    mask = _comparison_mask(raw)
    natives = {}
    for name, image in raw.images.items():
        if name == raw.reference:
            natives[name] = Native(image.grid, to_atlas)
            continue
        found = register(fixed, raw.copies[name], RegistrationConfig(seed=config.seed), mask)
        natives[name] = Native(image.grid, found.matrix @ to_atlas, found.before, found.after)
    return natives


def _comparison_mask(raw: _Raw) -> Bool[np.ndarray, "H W D"] | None:
    """Return the reference's brain with a margin: the edge aligns, neck and fat do not."""
    mask = raw.masks.get(raw.reference)
    if mask is None:
        return None
    spacing = raw.images[raw.reference].grid.spacing
    distance = ndimage.distance_transform_edt(~mask, sampling=spacing)
    return np.asarray(distance <= 4.0)


def _brain(raw: _Raw, registration: Registration) -> Bool[np.ndarray, "H W D"] | None:
    """Return the brain on the common grid: the reference's mask, and beyond its field of view the others'."""
    ranked = sorted(raw.masks, key=lambda name: name != raw.reference)
    if not ranked:
        return None
    brain = np.zeros(registration.grid.shape, dtype=bool)
    seen = np.zeros(registration.grid.shape, dtype=bool)
    for name in ranked:
        native = registration.natives[name]
        mask = Volume(raw.masks[name].astype(np.float32), native.grid.affine)
        inside = resample(mask, native.matrix, registration.grid) > 0.5
        brain |= inside & ~seen
        seen |= coverage(native.grid, native.matrix, registration.grid)
    if np.count_nonzero(brain) < SMALLEST_BRAIN:
        raise ImageError("hardly any brain lies on the common grid: expected the masks to fit the scans and the atlas")
    return brain


def _write_images(
    raw: _Raw, registration: Registration, brain: Bool[np.ndarray, "H W D"] | None, folder: Path, config: PipelineConfig
) -> dict[str, Path]:
    paths = {}
    for name, native in registration.natives.items():
        source = (raw.copies if config.keep_n4 else raw.images)[name]
        moved = resample(source, native.matrix, registration.grid)
        if brain is not None:
            scanned = brain & coverage(native.grid, native.matrix, registration.grid)
            moved = np.where(scanned, np.where(moved == 0, np.float32(SCANNED_ZERO), moved), np.float32(0))
        if not moved.any():
            raise ImageError(f"nothing of {name} lies on the common grid: is it a scan of the same head?")
        paths[name] = write_image(folder / _image_name(name), moved, registration.grid.affine, description=DESCRIPTION)
    return paths


def _write_segmentation(study: Study, registration: Registration, folder: Path) -> Path | None:
    if study.seg is None:
        return None
    drawing, natives = Volume(*read_labels(study.seg)), registration.natives
    owner = _owner(drawing, {name: native.grid for name, native in natives.items()}, registration.reference)
    moved = resample(drawing, natives[owner].matrix, registration.grid, "label")
    if drawing.array.any() and not moved.any():
        raise ImageError(
            f"segmentation {study.seg} lies beside the scans: expected it where its header says; draw it again"
        )
    return write_image(folder / SEG, moved, registration.grid.affine, description=DESCRIPTION)
