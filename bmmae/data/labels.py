"""What the numbers in a segmentation mean. Never guessed: the same number is another tissue in another edition.

BraTS up to 2021 writes enhancing tumour as 4; from 2023 on it is 3, and in the post-treatment edition of 2024 the
number 4 is the resection cavity. All editions share the regions ET (enhancing), TC (core and enhancing) and WT (TC
and oedema); the cavity is a region of its own, RC, and part of no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from bmmae.arrays import Array, Bool, Int
from bmmae.data.reading import INTEGRAL_TOLERANCE
from bmmae.errors import LabelError


@dataclass(frozen=True)
class Coding:
    """The meaning of a segmentation's values; 0 is always background.

    Attributes:
        name: `brats2017`, `brats2023`, `brats2024-post`, `binary`, or the name of an own mapping.
        classes: Value to class name.
        regions: Region name to the values it unites, in the order of the region axis.

    Raises:
        LabelError: If a value is not positive, there is no region, or a region uses a value without a class.
    """

    name: str
    classes: Mapping[int, str]
    regions: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        if not self.classes or min(self.classes) < 1:
            raise LabelError(f"coding '{self.name}': expected class values from 1 on (0 is background)")
        if not self.regions:
            raise LabelError(f"coding '{self.name}': expected at least one region")
        for region, values in self.regions.items():
            unknown = sorted(set(values) - set(self.classes))
            if unknown or not values:
                raise LabelError(
                    f"coding '{self.name}': region '{region}' unites values {list(values)}; expected some of "
                    f"{sorted(self.classes)}"
                )


BRATS2017 = Coding(
    "brats2017",
    {1: "core", 2: "oedema", 4: "enhancing"},
    {"ET": (4,), "TC": (1, 4), "WT": (1, 2, 4)},
)
BRATS2023 = Coding(
    "brats2023",
    {1: "core", 2: "oedema", 3: "enhancing"},
    {"ET": (3,), "TC": (1, 3), "WT": (1, 2, 3)},
)
BRATS2024_POST = Coding(
    "brats2024-post",
    {1: "core", 2: "oedema", 3: "enhancing", 4: "cavity"},
    {"ET": (3,), "TC": (1, 3), "WT": (1, 2, 3), "RC": (4,)},
)
BINARY = Coding("binary", {1: "lesion"}, {"lesion": (1,)})
OWN = "own"
"""Name of every coding that users spell out."""
CODINGS = {coding.name: coding for coding in (BRATS2017, BRATS2023, BRATS2024_POST, BINARY)}

EARLY_NAME = re.compile(r"brats_?(20)?(17|18|19|20|21)(?!\d)", re.IGNORECASE)
LATE_NAME = re.compile(r"brats-(gli|ssa|men|met)-\d{5}-\d{3}", re.IGNORECASE)
"""Not the paediatric (PED) and radiotherapy (MEN-RT) editions, whose numbers mean other things."""


def find_coding(name: str) -> Coding:
    """Return a named coding, or the user's own from a YAML file.

    Args:
        name: One of `CODINGS`, or a file that maps `classes` (name to label value) and, if it unites some, `regions`
            (name to label values), as the configuration of a fine-tuning does; other keys are passed over.

    Raises:
        LabelError: If there is none of that name, or the file does not say that.
    """
    if name.endswith((".yaml", ".yml")):
        return _read_coding(Path(name).expanduser())
    if name == OWN:
        raise LabelError(
            f"the label coding is '{OWN}' (as a table's column `seg_coding` may say), which is a model's or a user's: "
            "write `classes` into a YAML file and name it (--labels own.yaml of a command, data.labels in a config)"
        )
    if name not in CODINGS:
        raise LabelError(
            f"unknown label coding '{name}': expected one of {', '.join(CODINGS)}, or a YAML file with `classes`"
        )
    return CODINGS[name]


def _read_coding(path: Path) -> Coding:
    try:
        said = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LabelError(f"cannot read the label coding {path}: {error}") from error
    classes, regions = (said.get("classes"), said.get("regions") or {}) if isinstance(said, dict) else (None, {})
    valued = isinstance(classes, dict) and all(type(value) is int for value in classes.values())
    united = isinstance(regions, dict) and all(
        isinstance(values, list) and all(type(value) is int for value in values) for values in regions.values()
    )
    if not classes or not valued or not united:
        raise LabelError(
            f"{path} does not say what labels mean: expected `classes: {{core: 1, rim: 2}}` and, for regions that "
            "unite some, `regions: {lesion: [1, 2]}`"
        )
    if len(set(classes.values())) < len(classes):
        raise LabelError(f"{path}: each of classes needs a label value of its own, got {classes}")
    return own_coding({value: str(key) for key, value in classes.items()}, {str(k): v for k, v in regions.items()})


def own_coding(classes: Mapping[int, str], regions: Mapping[str, Sequence[int]] | None = None) -> Coding:
    """Return a coding of the user's own; by default each class is a region.

    Raises:
        LabelError: If it contradicts itself.
    """
    united = regions or {name: (value,) for value, name in sorted(classes.items())}
    return Coding(OWN, dict(classes), {region: tuple(values) for region, values in united.items()})


def values_of(labels: Array) -> tuple[int, ...]:
    """Return the values that occur, sorted; float storage is fine if they are whole.

    Args:
        labels: [H W D].

    Raises:
        LabelError: If values are not whole numbers.
    """
    if labels.dtype.kind == "f":
        found = np.unique(labels)
        whole = np.isfinite(found) & (np.abs(found - np.rint(found)) <= INTEGRAL_TOLERANCE)
        if not whole.all():
            strange = ", ".join(f"{value:g}" for value in found[~whole][:5])
            raise LabelError(f"expected whole label values, got {strange}; is this a probability map?")
        return tuple(sorted({int(value) for value in np.rint(found)}))
    smallest, largest = int(labels.min()), int(labels.max())
    if smallest >= 0 and largest < 2**16:
        # Counting is many times faster than sorting eight million voxels.
        return tuple(int(value) for value in np.flatnonzero(np.bincount(labels.ravel(order="K"))))
    return tuple(int(value) for value in np.unique(labels))


def check_values(values: Iterable[int], coding: Coding, where: str = "the segmentation") -> None:
    """Refuse values that a coding does not know.

    Raises:
        LabelError: Listing them.
    """
    strange = sorted(set(values) - {0} - set(coding.classes))
    if strange:
        raise LabelError(
            f"{where} has label values {strange}: coding '{coding.name}' knows only 0 and {sorted(coding.classes)}; "
            "name the right one, or a YAML file with `classes` (data.labels in a config, --labels of a command)"
        )


def propose_coding(names: Iterable[str | Path], values: Iterable[int]) -> Coding:
    """Propose the coding of one data set from its file names and all the values that occur in it.

    Names of the form `Brats17_`, `Brats18_`, `BraTS20_`, `BraTS2021_` mean `brats2017`. `BraTS-GLI-00000-000` is used
    by 2023 and by post-treatment 2024 alike (SSA, MEN and MET share its numbers): a value of 4 decides for
    `brats2024-post`, and without one `brats2023` is proposed, because a cavity that is never marked leaves ET, TC and
    WT the same in both. With other names only values {0, 1} settle it (`binary`).

    Args:
        names: Files or folders of one data set.
        values: Union of the values in its segmentations (give many: rare classes decide).

    Raises:
        LabelError: If names and values contradict each other, or leave it open.
    """
    found = frozenset(values) - {0}
    text = [_telling(name) for name in names]
    early = any(EARLY_NAME.search(name) for name in text)
    late = any(LATE_NAME.search(name) for name in text)
    if early and late:
        raise LabelError(
            "the files mix BraTS editions that code enhancing tumour differently (4 up to 2021, 3 from 2023): keep "
            "them in separate tables, or recode one of them"
        )
    if early or late:
        coding = BRATS2017 if early else BRATS2024_POST if 4 in found else BRATS2023
        check_values(found, coding, where=f"a data set named like {coding.name} ('{_first(text)}')")
        return coding
    if found == {1}:
        return BINARY
    known = ", ".join(fitting(found))
    advice = "which" if known else "what they mean in a YAML file with `classes: {lesion: 1}`"
    raise LabelError(
        f"the label coding is open: values {sorted(found)} under names like '{_first(text)}' fit "
        f"{known or 'no known coding'}; say {advice} (data.labels in a config, --labels of a command)"
    )


def editions_of(name: str | Path) -> tuple[str, ...]:
    """Return the codings that a segmentation may have by its name (or its folder's); nothing if that does not say."""
    text = _telling(name)
    if EARLY_NAME.search(text):
        return (BRATS2017.name,)
    return (BRATS2023.name, BRATS2024_POST.name) if LATE_NAME.search(text) else ()


def fitting(values: Iterable[int]) -> tuple[str, ...]:
    """Return the names of the codings that know all of the values."""
    found = set(values) - {0}
    return tuple(name for name, coding in CODINGS.items() if found <= set(coding.classes))


def region_masks(labels: Array, coding: Coding) -> Bool[Array, "R H W D"]:
    """Return one mask a region, in the order of `coding.regions`.

    Args:
        labels: [H W D], whole numbers of any type.
        coding: What they mean.

    Raises:
        LabelError: If there are values that the coding does not know, or that are not whole.
    """
    check_values(values_of(labels), coding)
    whole = np.rint(labels).astype(np.int16) if labels.dtype.kind == "f" else labels
    # A table of the few values that occur is many times faster than comparing every voxel with each of them.
    inside = np.zeros((len(coding.regions), max(coding.classes) + 1), dtype=bool)
    for row, values in zip(inside, coding.regions.values(), strict=True):
        row[list(values)] = True
    return np.asarray(inside[:, whole])


def labels_from_regions(masks: Bool[Array, "R H W D"], coding: Coding) -> Int[Array, "H W D"]:
    """Return label values from region masks: the inverse of `region_masks` for masks that nest as the coding says.

    Regions are painted from the largest to the smallest; each paints the value that sets it apart from those inside
    it (WT oedema, TC core, ET enhancing).

    Raises:
        LabelError: If a region has no value of its own.
    """
    out = np.zeros(masks.shape[1:], dtype=np.int16)
    order = sorted(coding.regions, key=lambda region: -len(coding.regions[region]))
    for region in order:
        values = set(coding.regions[region])
        inner = [set(other) for other in coding.regions.values() if set(other) < values]
        own = sorted(values.difference(*inner))
        if len(own) != 1:
            raise LabelError(
                f"coding '{coding.name}': region '{region}' leaves the values {own} to choose from; regions must "
                "nest so that each adds one value"
            )
        out[masks[list(coding.regions).index(region)]] = own[0]
    return out


def _first(names: Sequence[str]) -> str:
    return Path(names[0]).name if names else "nothing"


def _telling(name: str | Path) -> str:
    """The file and its folder: either may carry the edition's name."""
    return "/".join(Path(name).parts[-2:])
