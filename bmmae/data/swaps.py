"""Two files of a study that look as if each were under the other's name.

Two rules, each a comparison of two images of one patient inside the brain, blind to the scale of intensities:

- Contrast agent makes vessels, dura and enhancing tumour far brighter than all else on T1ce; nothing is so on T1. The
  *bright tail* of an image is the distance from its median to its 99.9th percentile, in interquartile ranges. A swap
  is likely if the tail of T1 is over 1.2 times that of T1ce.
- Fluid is the brightest of T2 and dark on FLAIR, but what is brightest on FLAIR (oedema, lesions) is bright on T2 too.
  A swap is likely if the brightest 3 % of T2 rank higher on FLAIR than the brightest 3 % of FLAIR do on T2, by over
  0.1 of the range of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from bmmae.arrays import Bool, Float
from bmmae.data.scans import Scan
from bmmae.modalities import STANDARD, title

T1, T1CE, T2, FLAIR = STANDARD
TAIL_RATIO = 1.2
BRIGHTEST = 0.03
RANK_MARGIN = 0.1
FEWEST_VOXELS = 2000
"""Percentiles of fewer voxels are noise."""

Values = Float[np.ndarray, " N"]


def likely_swaps(
    scans: Mapping[str, Scan], masks: Mapping[str, Bool[np.ndarray, "H W D"]]
) -> Iterator[tuple[str, str, str]]:
    """Yield pairs of modalities that seem to be swapped, with a sentence that gives the figures.

    Args:
        scans: By modality.
        masks: Brain masks of those that have one; others are looked at only if they are skull-stripped, because fat
            and bone follow other rules.
    """
    for one, two, rule in ((T1, T1CE, _tails), (T2, FLAIR, _ranks)):
        if one in scans and two in scans and scans[one].grid.same(scans[two].grid):
            inside = _brain(scans[one], masks.get(one)) & _brain(scans[two], masks.get(two))
            if np.count_nonzero(inside) >= FEWEST_VOXELS:
                reason = rule(scans[one].thin[inside], scans[two].thin[inside])
                if reason:
                    yield one, two, reason


def _brain(scan: Scan, mask: Bool[np.ndarray, "H W D"] | None) -> Bool[np.ndarray, "h w d"]:
    if mask is not None:
        return np.asarray(mask[scan.grid.thinned] & (scan.thin != 0))
    return np.asarray((scan.thin != 0) & scan.stripped)


def _tails(one: Values, two: Values) -> str | None:
    tail, other = bright_tail(one), bright_tail(two)
    if tail <= TAIL_RATIO * other:
        return None
    return (
        f"its brightest voxels lie {tail:.1f} interquartile ranges above the median, those of {title(T1CE)} only "
        f"{other:.1f}: contrast agent makes it the other way round"
    )


def bright_tail(values: Values) -> float:
    """Return how far the 99.9th percentile lies above the median, in interquartile ranges."""
    low, middle, high, top = np.percentile(values, (25, 50, 75, 99.9))
    return float((top - middle) / max(high - low, 1e-12 * max(1.0, abs(top))))


def _ranks(one: Values, two: Values) -> str | None:
    forth, back = brightness_in(one, two), brightness_in(two, one)
    if forth - back <= RANK_MARGIN:
        return None
    return (
        f"its brightest voxels are at the {100 * forth:.0f}th percentile of {title(FLAIR)} on average, those of "
        f"{title(FLAIR)} at its {100 * back:.0f}th: fluid, brightest on {title(T2)} and dark on {title(FLAIR)}, makes "
        "it the other way round"
    )


def brightness_in(one: Values, two: Values) -> float:
    """Return the mean rank, 0 to 1, that the brightest voxels of one image have in another."""
    ranks = np.searchsorted(np.sort(two), two[one > np.quantile(one, 1 - BRIGHTEST)]) / len(two)
    return float(ranks.mean()) if len(ranks) else 0.0
