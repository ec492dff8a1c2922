"""What a file's name says: which modality it is, or that it is a segmentation or a brain mask.

Names are cut into words at anything that is no letter or digit. The longest run of words that the modality table
knows decides, so that `t2_flair` is not `t2`. A name that says two things says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from bmmae import modalities as table
from bmmae.data.contrast import contrast_of, of_treatment

Kind = Literal["image", "seg", "brain_mask"]

T1, T1CE, T2, FLAIR = table.STANDARD
MR_OF_CONTRAST = {T1: T1CE}
"""What a modality is called once a contrast agent shows in it; T2 and FLAIR keep their names."""

WORD = re.compile(r"[A-Za-z0-9]+")
SEGMENTATION = frozenset(
    ("seg", "segm", "segmentation", "dseg", "label", "labels", "groundtruth", "gt", "gtv", "annotation")
)
MASK = frozenset(("mask", "roi"))
LESION = frozenset(("tumor", "tumour", "lesion", "lesions"))
BRAIN = frozenset(("brain", "bet"))
BRAIN_MASK = frozenset(("brainmask", "brainsegmentation", "brainseg"))
NEITHER = frozenset(("head", "skull", "tissue", "wm", "gm", "csf"))
"""A mask of these is neither a lesion's nor the brain's."""
GRADIENT_ECHO = frozenset(("star", "gre", "ffe", "hemo"))
"""Beside T2: a T2*, which is another sequence."""
STAR = re.compile(r"t2[-_ ]?\*", re.IGNORECASE)
DARK_FLUID = frozenset(("dark", "darkfluid", "tirm"))
"""Beside T2: a FLAIR."""
CHANCES = re.compile(
    r"(?<![a-z])(std|stdev|deviation|uncertainty|prob|probs|probseg|probability|probabilities|pve[a-z]*)(?![a-z])"
)
"""Maps of chances and deviations are neither images nor segmentations."""
DERIVED = re.compile(
    r"(?<![a-z])([a-z0-9]*map|[a-z]*warp|(?:bias|deformation|displacement|warp)_?field|jacobian|aseg|aparc|"
    r"subtraction|subtracted|(?<=_)sub(?!_?\d)|(?<=_)bias$)(?![a-z])"
)
"""What is computed from one of the four standard images; an ADC is a map by itself. What ends in `bias` is a field to
some (FSL), and a corrected image to others (UCSF-PDGM), beside the image itself."""
PROJECTION = re.compile(r"(?<![a-z])(mip|minip)(?![a-z])")
"""Slabs of a known sequence that scanners add to it, SWI above all."""
INITIALS = re.compile(r"^(?:ce|km)(?![a-z0-9])", re.IGNORECASE)
"""At the beginning of a name these may be the patient's."""
LONGEST_RUN = 4
NAMELESS = "its name says no modality"


@dataclass(frozen=True)
class Role:
    """What one file is.

    Attributes:
        kind: Image, segmentation or brain mask.
        modality: Of an image: which; of a mask: which one it belongs to, or None for all.
        prefix: What the name says before it says what it is: often the patient.
    """

    kind: Kind
    modality: str | None
    prefix: str


@dataclass(frozen=True)
class _Run:
    modality: str
    first: int
    last: int


def named_modalities(modalities: Iterable[str]) -> tuple[str, ...]:
    """Return canonical names in table order; one name may stand alone.

    Args:
        modalities: Names in any order, aliases and names of the user's own included.

    Raises:
        ModalityError: If a name is repeated or unusable.
    """
    listed = (modalities,) if isinstance(modalities, str) else modalities
    return table.in_table_order(table.find(name) or name for name in listed)


def role_of(stem: str, declared: Sequence[str] = (), folder_modality: str | None = None) -> Role | str:
    """Return what a file is, or the reason why its name does not say.

    Args:
        stem: File name without `.nii.gz` and, where known, without the patient's identifier.
        declared: Modalities that the table lacks.
        folder_modality: What the folder says the file is, for names that say nothing.
    """
    matches = list(WORD.finditer(stem))
    words = [match.group().lower() for match in matches]
    runs = _modality_runs(words, declared)
    kind, used = _kind(words)
    found = {run.modality for run in runs} or ({folder_modality} if folder_modality and kind == "image" else set())
    meant: set[str] | str = _derived(words, kind, found) or found
    if kind != "seg" and meant is found:
        meant = _qualified(found, words, _in_question(stem, matches, runs))
    if isinstance(meant, str):
        return meant
    if kind == "image" and len(meant) != 1:
        return f"its name says {' and '.join(sorted(meant))}" if meant else NAMELESS
    if kind is None or (kind == "brain_mask" and len(meant) > 1):
        return "its name fits both an image and a mask, or a mask of the brain and of a lesion"
    if kind == "seg" and meant and not SEGMENTATION.intersection(words):
        # `t1_mask` may be the brain on T1 or a lesion drawn there; `t1_tumor` may be the image or the drawing.
        return "its name may mean a brain mask, a lesion mask or an image"
    starts = [matches[index].start() for index in (*used, *(run.first for run in runs))]
    prefix = stem[: min(starts, default=len(stem))].strip("-_. ")
    return Role(kind, meant.pop() if kind != "seg" and meant else None, prefix)


def find_modality(words: Sequence[str], declared: Sequence[str] = ()) -> str | None:
    """Return the modality that words joined together spell, or None."""
    text = "".join(words)
    return next((name for name in declared if name.replace("_", "") == text), None) or table.find(text)


def _modality_runs(words: list[str], declared: Sequence[str]) -> list[_Run]:
    """Return the longest runs of words that spell modalities, none overlapping another."""
    taken: set[int] = set()
    runs: list[_Run] = []
    for first, last in _spans(len(words)):
        name = find_modality(words[first:last], declared)
        if words[last - 1] == "post" and any(map(of_treatment, words[last : last + 1])):
            continue
        if name is not None and taken.isdisjoint(range(first, last)):
            taken |= set(range(first, last))
            runs.append(_Run(name, first, last))
    return runs


def _spans(count: int) -> Iterator[tuple[int, int]]:
    for length in range(min(LONGEST_RUN, count), 0, -1):
        for first in range(count - length + 1):
            yield first, first + length


def _in_question(stem: str, matches: Sequence[re.Match[str]], runs: Sequence[_Run]) -> str:
    """Return the name as far as it may tell of contrast: words with a number before the modality are the patient's."""
    start = min((matches[run.first].start() for run in runs), default=0)
    return re.sub(r"[A-Za-z]*\d[A-Za-z0-9]*", " ", stem[:start]) + stem[start:]


def _qualified(found: set[str], words: Sequence[str], name: str) -> set[str] | str:
    """Return the modalities that a name means as a whole, or why that is open: `T1_axial_gd` is not T1."""
    if T2 in found and (GRADIENT_ECHO.intersection(words) or STAR.search(name)):
        return "its name says T2*, another sequence"
    if found == {T2, FLAIR} and DARK_FLUID.intersection(words):
        return {FLAIR}
    said = contrast_of(name) if T1 in found else "silent"
    denied = T1CE in found and contrast_of(name, lone=False) in {"without", "open"}
    if said == "open" or denied or (said == "with" and contrast_of(INITIALS.sub("", name)) != "with"):
        return "its name leaves open whether it is with or without contrast"
    return {MR_OF_CONTRAST.get(each, each) for each in found} if said == "with" else found


def _derived(words: Sequence[str], kind: Kind | None, found: Collection[str]) -> str | None:
    """Return the reason why a file is no image but computed from some, or None."""
    name = "_".join(words)
    of_standard = kind == "image" and not set(table.STANDARD).isdisjoint(found)
    match = CHANCES.search(name) or (DERIVED.search(name) if of_standard else None)
    if match is None and any(map(table.find, found)):
        match = PROJECTION.search(name)
    return f"its name says that it was computed from images ({match[1]})" if match else None


def _kind(words: list[str]) -> tuple[Kind | None, list[int]]:
    """Return the kind of file and the words that said so; no kind where they contradict each other."""
    known = SEGMENTATION | MASK | LESION | BRAIN_MASK
    used = [index for index, word in enumerate(words) if word in known]
    said = {words[index] for index in used}
    masklike = said & (SEGMENTATION | MASK)
    brain = [index for index, word in enumerate(words) if word in BRAIN]
    if masklike and NEITHER.intersection(words):
        return None, used
    if said & BRAIN_MASK or (masklike and brain):
        return (None if said & LESION else "brain_mask"), used + brain
    if masklike or said & LESION:
        return "seg", used
    return "image", []
