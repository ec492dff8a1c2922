"""Which sequence a series is, from what its headers say and how it was made.

Two witnesses are heard: the words of description and protocol, and the physics (TR, TE, TI, kind of sequence). A
series is taken where they agree, or where one of them is silent. Where they contradict each other, or leave contrast
open, the series is reported and left to the user. Nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from bmmae.data.contrast import contrast_of, without_accents
from bmmae.data.geometry import FEWEST_SLICES
from bmmae.data.naming import FLAIR, MR_OF_CONTRAST, T1, T2, role_of
from bmmae.data.raw.dicom_files import Acquisition, Series
from bmmae.modalities import STANDARD, TABLE, find

Status = Literal["taken", "ambiguous", "apart", "broken", "structures"]

WEIGHTING = re.compile(r"(?<![a-z0-9])t([12])[-_ ]?(?:w|weighted)?(?![a-z0-9*])")
DARK_FLUID = re.compile(rf"dark[-_ ]?fluid|tirm|(?<![a-z])fla(?![a-z])|{FLAIR}")
T1_BRANDS = re.compile(r"mp[-_ ]?rage|fspgr|spgr|bravo|(?<![a-z])tfl|(?<![a-z])tfe|vibe|mp2rage")
LONE_C = re.compile(r"(?<![a-z0-9])t1w?[-_ ]c(?![a-z0-9-])")
"""Contrast to some, coronal to others."""

APART_WORDS = {
    "localiser": r"locali[sz]er|scout|survey|3[-_ ]?(?:plane|pl)|(?<![a-z])loc(?![a-z])|aahead|smartbrain",
    "calibration": r"calib|asset|(?<![a-z])(?:b0|b1|field)[-_ ]?map|shim",
    "diffusion": r"dwi|diff|trace|tensor|(?<![a-z])(?:dti|e?adc|fa|b\d{3,4})(?![a-z])",
    "perfusion": r"perf|(?<![a-z])(?:dsc|dce|pwi|r?cbv|r?cbf|mtt|ttp|tmax|asl|pcasl|pasl)(?![a-z])",
    "susceptibility": r"(?<![a-z])(?:swi|hemo|qsm)|swan|t2[-_ ]?(?:\*|star|gre|ffe)|suscept|pha(?:se)?[-_ ]?ima",
    "angiography": r"(?<![a-z])(?:tof|mra|mrv|angio\w*|veno\w*|pca)(?![a-z])",
    "functional": r"bold|fmri|(?<![a-z])rest(?:ing)?(?![a-z])",
    "spectroscopy": r"spectro|(?<![a-z])(?:mrs|svs|csi|mrsi|press)(?![a-z])",
    "projection or reformat": r"(?<![a-z])(?:mip|minip|mpr|vr|reformat\w*|recon)(?![a-z])",
    "subtraction": r"(?<![a-z])sub(?:traction|tracted)?(?![a-z])",
    "another part of the body": r"spine|cerv|lumb|thorac|neck|(?<![a-z])(?:orbit\w*|iac|breast|pelvis|knee)(?![a-z])",
}
APART_TYPES = {
    "LOCALIZER": "localiser",
    "ADC": "diffusion",
    "TRACEW": "diffusion",
    "DIFFUSION": "diffusion",
    "FA": "diffusion",
    "MPR": "projection or reformat",
    "REFORMATTED": "projection or reformat",
    "PROJECTION IMAGE": "projection or reformat",
    "MIP": "projection or reformat",
    "MNIP": "projection or reformat",
    "SUBTRACTION": "subtraction",
    "SUB": "subtraction",
    "SWI": "susceptibility",
    "PHASE MAP": "phase image",
    "P": "phase image",
    "SCREEN SAVE": "screen shot",
}
HEADS = re.compile(
    r"head|brain|skull|neuro|cran|cerebr|encefal|encephal|^(?:unknown|other|none)$|kopf|sch(?:ae|a)del|hirn|tete"
    r"|cerveau|cabe[zc]a|testa|hoofd|hersen|hjern|hjarn|hoved|huvud|hode|glow|mozg|hlava|moz[eg]k|голов|頭|头|脑|脳"
)
"""Parts of the body that hold a brain, as scanners of a dozen languages name them without accents."""


@dataclass(frozen=True)
class Verdict:
    """What a series is held to be.

    Attributes:
        status: `taken`; `ambiguous` (a person must say); `apart` (no sequence wanted here); `broken`; `structures`.
        modality: The sequence, or the likeliest one of an ambiguous series; None where there is none.
        reason: Why, a phrase.
    """

    status: Status
    modality: str | None
    reason: str


def recognise(series: Series, wanted: Iterable[str] = STANDARD) -> Verdict:
    """Say which sequence a series is.

    Args:
        series: One series, headers read.
        wanted: Modalities to take; others are set apart by name.
    """
    acquisition = series.acquisition
    if series.is_structures:
        return Verdict("structures", None, "contours" if acquisition.kind == "RTSTRUCT" else "segmentation")
    listed = _listed(acquisition, tuple(wanted))
    reason = None if listed else _apart(series)
    if reason:
        return Verdict("apart", None, reason)
    verdict = Verdict("taken", listed, "named so") if listed else _weighed(acquisition)
    if verdict.modality is not None and verdict.modality not in tuple(wanted):
        return Verdict("apart", None, f"{verdict.modality} is not among the modalities asked for")
    if series.problems:
        return Verdict("broken", verdict.modality, "; ".join(series.problems))
    return verdict


def _listed(acquisition: Acquisition, wanted: tuple[str, ...]) -> str | None:
    """Return a wanted modality beyond the four standard ones that the names spell, or the file's own kind is."""
    beyond = {item.name for item in TABLE} - set(STANDARD)
    found = {find(acquisition.kind)} & beyond
    for text in acquisition.description:
        role = role_of(text)
        if not isinstance(role, str) and role.modality in beyond:
            found.add(role.modality)
    name = found.pop() if len(found) == 1 else None
    return name if name in wanted else None


def _apart(series: Series) -> str | None:
    """Return why a series is none of the standard sequences, if it is not."""
    acquisition = series.acquisition
    text = _words(acquisition)
    if acquisition.image_type[:2] == ("ORIGINAL", "PRIMARY"):
        # `t1_mpr_ns_sag` is an MPRAGE of Siemens; reformats are DERIVED.
        text = re.sub(r"(?<![a-z])mpr(?![a-z])", " ", text)
    reasons = [APART_TYPES[word] for word in acquisition.image_type if word in APART_TYPES]
    reasons += [reason for reason, pattern in APART_WORDS.items() if re.search(pattern, text)]
    if acquisition.kind != "MR":
        reasons.insert(0, f"not MR but {acquisition.kind}")
    if acquisition.image_type[:2] == ("DERIVED", "SECONDARY"):
        reasons.append("derived from other images")
    if acquisition.body_part and not HEADS.search(without_accents(acquisition.body_part)):
        reasons.append(f"another part of the body ({acquisition.body_part})")
    if series.slices < FEWEST_SLICES:
        reasons.append(f"only {series.slices} slices")
    return reasons[0] if reasons else None


def _weighed(acquisition: Acquisition) -> Verdict:
    """Hear both witnesses, then ask for contrast."""
    said, made = _by_name(_words(acquisition)), _by_physics(acquisition)
    if made == "other":
        return Verdict("ambiguous", None, f"{_parameters(acquisition)} fits none of {', '.join(STANDARD)}")
    if said and made and made not in said:
        return Verdict(
            "ambiguous", None, f"named {' and '.join(sorted(said))}, but {_parameters(acquisition)} is {made}"
        )
    name = made or (said.copy().pop() if len(said) == 1 else None)
    if name is None:
        return Verdict("ambiguous", None, "names and header say no sequence" if not said else "its name says two")
    reason = f"name and {_parameters(acquisition)}" if said and made else ("name" if said else _parameters(acquisition))
    return _with_contrast(name, acquisition, reason)


def _with_contrast(name: str, acquisition: Acquisition, reason: str) -> Verdict:
    if name not in MR_OF_CONTRAST:
        return Verdict("taken", name, reason)
    said = contrast_of(" | ".join(acquisition.description))
    agent = bool(acquisition.contrast)
    if said == "open" or (agent and contrast_of(acquisition.contrast) == "open"):
        return Verdict(
            "ambiguous", None, f"its words say both with and without contrast, or neither clearly ({reason})"
        )
    if agent and said == "without":
        return Verdict("ambiguous", None, f"named as without contrast, but the header names an agent ({reason})")
    if agent or said == "with":
        return Verdict(
            "taken", MR_OF_CONTRAST[name], f"{reason}, {'contrast agent' if agent else 'named with contrast'}"
        )
    text = _words(acquisition)
    if said == "without" or ((WEIGHTING.search(text) or T1_BRANDS.search(text)) and not LONE_C.search(text)):
        return Verdict("taken", name, reason)
    # The parameters are the same before and after the agent.
    return Verdict("ambiguous", None, f"{name} by {reason}, but nothing says whether before or after contrast")


def _words(acquisition: Acquisition) -> str:
    return " ".join(acquisition.description).lower()


def _by_name(text: str) -> set[str]:
    """Return every sequence that the words could mean."""
    text = text.replace("_", " ")
    found = {(T1, T2)[int(match[1]) - 1] for match in WEIGHTING.finditer(text)}
    if T1_BRANDS.search(text):
        found.add(T1)
    if DARK_FLUID.search(text):
        # "T2 FLAIR" is a FLAIR; "T1 FLAIR" is a T1 on some scanners: the physics decides.
        found = (found - {T2}) | {FLAIR}
    return found


def _by_physics(acquisition: Acquisition) -> str | None:
    """Return the sequence that TR, TE and TI make, `other` if it is none of the four, None if they are not known."""
    tr, te, ti = acquisition.tr, acquisition.te, acquisition.ti or 0.0
    if tr is None or te is None:
        return None
    if "EP" in acquisition.scanning:
        return "other"
    if te >= 60 and tr >= 2000:
        return FLAIR if ti >= 1400 else (T2 if ti == 0 else "other")
    # 500 and more echoes a train: 3D FLAIR and T2 of some makers give an effective TE only in the protocol's name.
    if te <= 30 and ti == 0 and tr <= 1200 and not ("GR" in acquisition.scanning and te > 15):
        return T1
    if te <= 30 and 200 <= ti <= 1300:
        return T1
    return "other"


def _parameters(acquisition: Acquisition) -> str:
    named = {"TR": acquisition.tr, "TE": acquisition.te, "TI": acquisition.ti}
    return " ".join(f"{name} {value:g}" for name, value in named.items() if value) or "no TR and TE"
