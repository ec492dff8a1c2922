"""What names of folders and subjects say of visits: `week-044-2`, `2019_01_31`, `p01_baseline`."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

from bmmae.data.cohort import Study
from bmmae.errors import few

VISIT = re.compile(
    r"(ses(sion)?|visit|time[-_ ]?point|tp|week|month|day|baseline|follow[-_ ]?up|fu|pre[-_ ]?op|post[-_ ]?op)"
    r"([-_ ]?\d{1,3}d?([-_ ]\d)?)?|ses-\w+",
    re.I,
)
DATE = re.compile(
    r"(19|20)\d\d[-_. ]?(0[1-9]|1[0-2])[-_. ]?(0[1-9]|[12]\d|3[01])"
    r"|(0?[1-9]|[12]\d|3[01])[-_. ](0?[1-9]|[12]\d|3[01])[-_. ](19|20)\d\d"
)
ARCHIVE = re.compile(r"\d\d-\d\d-(19|20)\d\d-.+")
"""How The Cancer Imaging Archive names a visit: `06-08-1997-NA-MRI BRAIN-12345`, with one folder a series below it."""
MOMENT = rf"(?:{VISIT.pattern}|{DATE.pattern})"
MOMENTS = re.compile(rf"{MOMENT}([-_. ]{MOMENT})*", re.I)
PATIENTS = (
    re.compile(rf"(?P<patient>.*?\d.*?)[-_. ]{MOMENTS.pattern}", re.I),
    re.compile(r"(?P<patient>UPENN-GBM-\d{5})_\d\d", re.I),
    re.compile(r"(?P<patient>BraTS-[A-Z]{2,4}-\d{5})-\d{3}", re.I),
    re.compile(rf"(?P<patient>.*?\d.*?)([-_. ](v\d|scan[-_]?\d|t\d|pre|post|{MOMENT}))+", re.I),
)
"""Names of a patient's visit. Only a number makes a name a patient's: `scan_baseline` may be anyone's, as may
`site1_v01`, the first of many volunteers; visits after a `v`, `scan` or `t` have one digit. Where `t1` or `pre` means a
sequence, the patient is the same; as a folder's name they are no visit."""


def is_visit(place: Sequence[str]) -> bool:
    """Tell whether the last of these folders is a visit of the one above it; in the root, dates may be patients."""
    if len(place) < 2:
        return bool(place and VISIT.fullmatch(place[0]))
    return bool(MOMENTS.fullmatch(place[-1]) or ARCHIVE.fullmatch(place[-1]))


def patient_of(subject: str) -> str:
    """Return a subject's name without the visit that it ends in: `p01` of `p01_baseline` and of `p01_v1_pre`."""
    plain = re.sub(r"[-_ ](nifti|nii)$", "", subject, flags=re.IGNORECASE)
    patient = next((found["patient"] for pattern in PATIENTS if (found := pattern.fullmatch(plain))), plain)
    return subject if MOMENTS.fullmatch(patient) else patient


def ungrouped_visits(studies: Iterable[Study]) -> str | None:
    """Return what to say of subjects or groups named as those of one patient; None if there are none.

    These are subjects named as visits that no `group` joins, one subject in several groups, and names that differ only
    in capitals or in zeros before a number (`P01`, `p1`).
    """
    groups: dict[str, set[str]] = defaultdict(set)
    subjects: dict[str, set[str]] = defaultdict(set)
    for study in studies:
        patient = patient_of(study.subject) if study.group == study.subject else study.group
        groups[_plain(patient)].add(study.group)
        subjects[study.subject].add(study.group)
    alike = dict.fromkeys(tuple(sorted(names)) for names in (*groups.values(), *subjects.values()) if len(names) > 1)
    found = [" and ".join(names[:2]) for names in alike]
    if not found:
        return None
    return (
        f"{few(found, most=3, quote='')} look like visits of one patient{' each' if len(found) > 1 else ''}: fill in "
        "`group`, else they may fall on both sides of a split"
    )


def _plain(patient: str) -> str:
    """Return a name without what spreadsheets and typists change: capitals, composed letters, zeros before a number."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", unicodedata.normalize("NFKC", patient).casefold())


def without_series(place: list[str]) -> list[str]:
    """Leave out the folders of single series below an archive's visit."""
    last = next((i for i, part in enumerate(place) if i and ARCHIVE.fullmatch(part)), len(place))
    return place[: last + 1]
