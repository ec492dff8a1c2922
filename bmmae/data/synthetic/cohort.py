"""A synthetic cohort on disk: NIfTI files, cohort table, and a README that says what can be learned from it."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bmmae.arrays import Array, Float
from bmmae.data.coding import SEG_CODING
from bmmae.data.cohort import Cohort, Study
from bmmae.data.labels import BRATS2017
from bmmae.data.loaders import end_with_parent
from bmmae.data.synthetic.anatomy import FIELD_OF_VIEW, make_anatomy
from bmmae.data.synthetic.contrast import make_contrast
from bmmae.data.synthetic.findings import SITES, SUBTYPES, VISIBLE_ON, Patient, best_scores, draw_patients
from bmmae.data.synthetic.lesions import make_lesions, make_small_lesions
from bmmae.data.writing import write_image
from bmmae.errors import ConfigError, OutputError
from bmmae.modalities import STANDARD

GENERATOR_VERSION = "2"
"""Raised whenever the same seed would give another cohort; written into every result made with it."""

SPLIT_PATTERN = ("train",) * 12 + ("validation",) * 3 + ("test",) * 5
CLINICAL_GAPS = 0.15
SMALLEST = 24
LARGEST_SMALL_MM = 8.0


@dataclass(frozen=True)
class SyntheticConfig:
    """A cohort's size and chance.

    Attributes:
        subjects: How many.
        seed: Of everything. A subject depends on the seed and its own number alone.
        size: Voxels along each axis; the field of view stays 192 mm.
        missing: Share of the modalities that are left out, subject by subject; each keeps at least one.
        lesion_radius_mm: Scatter small enhancing lesions of such radii instead, as metastases are (smallest, largest).
            They show nothing of what the labels depend on: such a cohort is for segmentation alone.
    """

    subjects: int = 64
    seed: int = 0
    size: int = 64
    missing: float = 0.0
    lesion_radius_mm: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.subjects < 1:
            raise ConfigError(f"a cohort needs at least one subject, got {self.subjects}")
        if self.size < SMALLEST:
            raise ConfigError(f"a brain needs at least {SMALLEST} voxels along each axis, got {self.size}")
        if not 0 <= self.missing < 1:
            raise ConfigError(f"the share of missing modalities must lie in [0, 1), got {self.missing}")
        radii = self.lesion_radius_mm
        if radii is not None and not 0 < radii[0] <= radii[1] <= LARGEST_SMALL_MM:
            raise ConfigError(
                f"small lesions need a smallest and a largest radius in (0, {LARGEST_SMALL_MM:g}] mm, got {radii}"
            )
        if self.seed < 0:
            raise ConfigError(f"the seed must not be negative, got {self.seed}")


@dataclass(frozen=True)
class SyntheticStudy:
    """One subject in memory.

    Attributes:
        subject: Its name.
        images: Float32[n, n, n] by modality; whole numbers, 0 outside the brain.
        seg: Int16[n, n, n], in the coding `brats2017`.
        affine: To millimetres; the array's axes point left, posterior, superior, as in BraTS.
        patient: Findings and labels.
        split: `train`, `validation` or `test`.
        values: Labels and clinical columns as the table holds them; None where blank.
    """

    subject: str
    images: dict[str, Float[np.ndarray, "n n n"]]
    seg: Array
    affine: Float[np.ndarray, "4 4"]
    patient: Patient
    split: str
    values: dict[str, str | float | None]


def make_study(config: SyntheticConfig, index: int) -> SyntheticStudy:
    """Make one subject: a pure function of the seed, the size, the share missing, and the subject's number."""
    chance, anatomy_chance, scanner = (np.random.default_rng((config.seed, index, part)) for part in range(3))
    (patient,) = draw_patients(chance, 1)
    anatomy = make_anatomy(anatomy_chance, config.size)
    if config.lesion_radius_mm is None:
        lesions = make_lesions(anatomy_chance, anatomy, patient)
    else:
        lesions = make_small_lesions(anatomy_chance, anatomy, config.lesion_radius_mm)
    kept = _kept_modalities(chance, config.missing)
    # Every sequence is drawn, so that leaving one out changes nothing in the others.
    images = {name: make_contrast(scanner, name, anatomy, lesions) for name in STANDARD}
    voxel = FIELD_OF_VIEW / config.size
    affine = np.diag([-voxel, -voxel, voxel, 1.0])
    affine[:3, 3] = np.array([1, 1, -1]) * (FIELD_OF_VIEW - voxel) / 2
    return SyntheticStudy(
        subject=f"sub-{index + 1:04d}",
        images={name: _as_stored(images[name]) for name in kept},
        seg=_as_stored(lesions.label),
        affine=affine,
        patient=patient,
        split=SPLIT_PATTERN[index * 7 % len(SPLIT_PATTERN)],
        values=_table_values(chance, patient),
    )


def _as_stored(volume: Array) -> Array:
    """From right, anterior, superior to left, posterior, superior."""
    return np.ascontiguousarray(volume[::-1, ::-1])


def _kept_modalities(rng: np.random.Generator, missing: float) -> tuple[str, ...]:
    kept = rng.random(len(STANDARD)) >= missing
    kept[rng.integers(len(STANDARD))] |= not kept.any()
    return tuple(name for name, keep in zip(STANDARD, kept, strict=True) if keep)


def _table_values(rng: np.random.Generator, patient: Patient) -> dict[str, str | float | None]:
    gap = rng.random(2) < CLINICAL_GAPS
    return {
        "subtype": SUBTYPES[patient.subtype],
        "primary_site": SITES[patient.site],
        "age": round(patient.age, 1),
        "sex": None if gap[0] else patient.sex,
        "karnofsky": None if gap[1] else float(patient.karnofsky),
    }


def make_cohort(out: str | Path, config: SyntheticConfig, *, progress: bool = True, workers: int = 2) -> Path:
    """Write a cohort: one folder a subject, `cohort.csv`, `README.md` and `ceilings.json`.

    Args:
        out: A new or empty folder.
        config: Size and chance.
        progress: Show a progress bar.
        workers: Processes.

    Returns:
        The cohort table.

    Raises:
        OutputError: If the folder is not empty or cannot be written.
    """
    out = Path(out).expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
        occupied = any(out.iterdir())
    except OSError as error:
        raise OutputError(f"cannot write the cohort to {out}: {error.strerror or error}") from error
    if occupied:
        raise OutputError(f"{out} is not empty: name a new folder for the cohort, or remove it")
    write = partial(_write_study, out, config)
    # Spawned, not forked: the caller may have threads that do not survive a fork.
    context = get_context("spawn")
    with ProcessPoolExecutor(max(1, workers), mp_context=context, initializer=end_with_parent) as pool:
        made = pool.map(write, range(config.subjects), chunksize=2)
        studies = list(tqdm(made, total=config.subjects, desc="synth", unit="subject", disable=not progress))
    ceilings = best_scores() if config.lesion_radius_mm is None else {}
    written = {"generator_version": GENERATOR_VERSION, "config": asdict(config), "ceilings": ceilings}
    (out / "ceilings.json").write_text(json.dumps(written, indent=1))
    (out / "README.md").write_text(_readme(config, ceilings))
    return Cohort(tuple(studies)).write(out / "cohort.csv")


def _write_study(out: Path, config: SyntheticConfig, index: int) -> Study:
    made = make_study(config, index)
    folder = out / made.subject
    description = f"bmmae synth {GENERATOR_VERSION}"
    paths = {
        name: write_image(
            folder / f"{made.subject}_{name}.nii.gz", image.astype(np.int16), made.affine, description=description
        )
        for name, image in made.images.items()
    }
    seg = write_image(
        folder / f"{made.subject}_seg.nii.gz", made.seg.astype(np.uint8), made.affine, description=description
    )
    return Study(
        subject=made.subject,
        images=paths,
        seg=seg,
        split=made.split,
        time=round(made.patient.time, 2),
        event=made.patient.event,
        values={**made.values, SEG_CODING: BRATS2017.name},
    )


def _readme(config: SyntheticConfig, ceilings: dict[str, dict[str, float]]) -> str:
    rows = "\n".join(
        f"| {subset} | {best['subtype']:.3f} | {best['primary_site']:.3f} | {best['survival']:.3f} |"
        for subset, best in ceilings.items()
    )
    seen = "\n".join(f"- `{finding}`: {', '.join(names)}" for finding, names in VISIBLE_ON.items())
    made = (
        f"{config.subjects} subjects, seed {config.seed}, {config.size}^3 voxels of {FIELD_OF_VIEW / config.size:g} mm"
    )
    if config.lesion_radius_mm is not None:
        radii = "{:g} to {:g} mm".format(*config.lesion_radius_mm)
        seen = (
            f"- nowhere: the lesions are enhancing balls with radii of {radii}; this cohort is for segmentation alone"
        )
    return f"""# Synthetic cohort

Made by `bmmae synth`, generator version {GENERATOR_VERSION}: {made},
{config.missing:.0%} of the modalities left out.
**These are no patients.** Models trained on them mean nothing for one.

`seg` uses the coding `brats2017` (1 core, 2 oedema, 4 enhancing), as the column `seg_coding` says. `time` is in months;
`event` is 1 where death was observed.

## The best that can be reached
With the generator's own knowledge of what the images show, integrated over what the absent modalities would have shown:
AUC of `subtype`, macro one-vs-rest AUC of `primary_site`, Harrell's C of survival (age known). Monte Carlo, standard
error about 0.005.

| modalities | subtype | primary_site | survival |
|---|---|---|---|
{rows}

## Where the findings can be seen
{seen}

Age shifts survival; sex has no effect; the Karnofsky index falls with age and says nothing beyond it. Both have gaps.
"""
