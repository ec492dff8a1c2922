"""What a file's name says: which modality it is, or that it is a segmentation or a brain mask.

Names are cut into words at anything that is no letter or digit. The longest run of words that the modality table
knows decides, so that `t1_post` is not `t1` and `t2_flair` is not `t2`. A name that says two things says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from bmmae import modalities as table

Kind = Literal["image", "seg", "brain_mask"]

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

CONTRAST = frozenset(
    ("post", "contrast", "postcontrast", "gd", "gad", "gado", "gadolinium", "enhanced", "postgd", "postgad")
)
"""Words that change a modality wherever they stand; `ce` and `c` only count beside it, as they may be initials."""
NOT_BEFORE = frozenset(("pre", "no", "non", "without", "wo"))
NOT_AFTER = frozenset(("op", "surgery", "treatment", "tx", "rt"))
LONGEST_RUN = 4


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
    found = {run.modality for run in runs}
    kind, used = _kind(words)
    starts = [matches[index].start() for index in (*used, *(run.first for run in runs))]
    prefix = stem[: min(starts, default=len(stem))].strip("-_. ")
    if kind == "image":
        if not found and folder_modality:
            return Role("image", folder_modality, prefix)
        if len(found) != 1:
            return f"its name says {' and '.join(sorted(found))}" if found else "its name says no modality"
        return Role("image", found.pop(), prefix)
    if kind is None or (kind == "brain_mask" and len(found) > 1):
        return "its name fits both an image and a mask, or a mask of the brain and of a lesion"
    if kind == "seg" and found and not SEGMENTATION.intersection(words):
        # `t1_mask` may be the brain on T1 or a lesion drawn there; `t1_tumor` may be the image or the drawing.
        return "its name may mean a brain mask, a lesion mask or an image"
    return Role(kind, found.pop() if kind == "brain_mask" and found else None, prefix)


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
        if words[last - 1] in CONTRAST and NOT_AFTER.intersection(words[last : last + 1]):
            continue
        if name is not None and taken.isdisjoint(range(first, last)):
            taken |= set(range(first, last))
            runs.append(_Run(_qualified(name, words, first, last), first, last))
    return runs


def _spans(count: int) -> Iterator[tuple[int, int]]:
    for length in range(min(LONGEST_RUN, count), 0, -1):
        for first in range(count - length + 1):
            yield first, first + length


def _qualified(name: str, words: list[str], first: int, last: int) -> str:
    """Let contrast anywhere in the name complete a modality: `post_T1` and `T1_axial_gd` are not T1."""
    for index, word in enumerate(words):
        before, after = words[max(index - 1, 0) : index], words[index + 1 : index + 2]
        denied = NOT_BEFORE.intersection(before) or NOT_AFTER.intersection(after)
        if word in CONTRAST and not first <= index < last and not denied:
            return table.find(f"{name}-contrast") or name
    return name


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
