"""A segmentation model over all subsets of the modalities: table, plot, and where more images made it worse.

Works on scores alone, one row a patient, subset and region; whoever makes them (`bmmae.segmenting`, a comparator)
brings them here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from bmmae.errors import OutputError
from bmmae.evaluation.intervals import mean_with_interval
from bmmae.metrics.regions import RegionMetrics
from bmmae.modalities import STANDARD, in_table_order, subset_label, title
from bmmae.provenance import Metric

HALF_A_POINT = 0.005
"""Of Dice: what a score has to fall by to count as fallen."""

LEAST_GAIN = 0.01
"""Of mean Dice: what a modality has to bring to a region to be used for it."""

LOWER_IS_BETTER = frozenset({"hd95", "false_lesions"})
ZERO_IS_BEST = frozenset({"volume_error_ml", "volume_error_relative"})
UNITS = {"hd95": "mm", "volume_error_ml": "ml"}
MARKS = "os^Dv"
"""Of regions in a plot, beside their colours."""

WHOLE: tuple[str, ...] = ()
"""In place of a subset: all modalities that each study has, whichever these are."""


@dataclass(frozen=True)
class RegionScore:
    """Metrics of one region of one patient, predicted from one subset.

    Attributes:
        subject: The study's name.
        subset: The modalities given, in table order.
        region: Name of the region.
        metrics: On the whole volume.
        group: The patient; by default the subject. Intervals resample patients.
    """

    subject: str
    subset: tuple[str, ...]
    region: str
    metrics: RegionMetrics
    group: str = ""


@dataclass(frozen=True)
class SubsetSummary:
    """One metric of one region from one subset, over patients.

    Attributes:
        subset: The modalities given.
        region: Name of the region; `mean` for the mean over regions.
        mean: With its interval by patient, and how many patients have it.
        median: Over patients.
        worst: The worst patient's.
        worst_subject: Which one.
        undefined: Patients that it is not defined for.
    """

    subset: tuple[str, ...]
    region: str
    mean: Metric
    median: float
    worst: float
    worst_subject: str
    undefined: int


@dataclass(frozen=True)
class CounterIntuitive:
    """How often a modality more made a segmentation worse.

    Attributes:
        rate: Share of the cases that fell; lower is better. NaN without a case.
        fallen: How many fell by more than half a point of Dice.
        cases: (patient, pair of subsets, region) whose Dice is defined with and without.
    """

    rate: float
    fallen: int
    cases: int


def all_subsets(modalities: Sequence[str] = STANDARD) -> tuple[tuple[str, ...], ...]:
    """Return every non-empty subset, the smallest first: fifteen of four modalities."""
    names = in_table_order(modalities)
    return tuple(chosen for size in range(1, len(names) + 1) for chosen in combinations(names, size))


def counter_intuitive(scores: Iterable[RegionScore], drop: float = HALF_A_POINT) -> CounterIntuitive:
    """Count how often Dice falls when a modality is added.

    A case is a patient, a region, and a pair of subsets of which one has exactly one modality more (28 pairs of four
    modalities). Cases whose Dice is not defined with or without are left out.

    Args:
        scores: From any number of subsets.
        drop: Fall of Dice that counts.
    """
    by_key = {(s.subject, s.region, frozenset(s.subset)): s.metrics.dice for s in scores}
    falls = []
    for (subject, region, subset), more in by_key.items():
        fewer = [by_key.get((subject, region, subset - {name}), math.nan) for name in sorted(subset)]
        falls += [less - more > drop for less in fewer if not math.isnan(less - more)]
    return CounterIntuitive(sum(falls) / len(falls) if falls else math.nan, sum(falls), len(falls))


def choose_subsets(scores: Iterable[RegionScore], margin: float = LEAST_GAIN) -> dict[str, dict[str, str]]:
    """Choose, for each region and subset given, which of the modalities to take it from: fewer if more do not pay.

    A subset is used whole if its mean Dice is above that of what its smaller subsets use by more than `margin`, on the
    patients who have been scored with both; else the best of those serves it too. What a modality does not improve it
    then does not touch, which is what the counter-intuitive rate is about.

    Args:
        scores: Of patients whom the model has not seen, from every subset; test patients must not be among them.
        margin: Dice that a modality has to bring to be used.

    Returns:
        For `SegmentationConfig.relied_on`: by region, from the subset given to the subset used, where they differ.
    """
    found: dict[tuple[str, frozenset[str]], dict[str, float]] = {}
    labels: dict[frozenset[str], str] = {}  # a set would forget the order of the user's own modalities
    for score in scores:
        labels[frozenset(score.subset)] = subset_label(score.subset)
        if not math.isnan(score.metrics.dice):
            found.setdefault((score.region, frozenset(score.subset)), {})[score.subject] = score.metrics.dice
    used: dict[tuple[str, frozenset[str]], frozenset[str]] = {}
    for region, subset in sorted(found, key=lambda key: (key[0], len(key[1]), sorted(key[1]))):
        smaller = [used[region, less] for name in sorted(subset) if (region, less := subset - {name}) in used]
        gains = {less: _mean_gain(found[region, less], found[region, subset]) for less in smaller}
        known = {less: gain for less, gain in gains.items() if not math.isnan(gain)}
        best = min(known, key=lambda less: known[less], default=subset)
        used[region, subset] = best if known and known[best] <= margin else subset
    tables: dict[str, dict[str, str]] = {region: {} for region, _ in used}
    for (region, subset), chosen in used.items():
        if chosen != subset:
            tables[region][labels[subset]] = labels[chosen]
    return {region: table for region, table in tables.items() if table}


def _mean_gain(less: Mapping[str, float], more: Mapping[str, float]) -> float:
    """Return the mean over the subjects that are in both; NaN if there is none."""
    shared = less.keys() & more.keys()
    return sum(more[subject] - less[subject] for subject in shared) / len(shared) if shared else math.nan


def of_whole_studies(scores: Sequence[RegionScore]) -> list[RegionScore]:
    """Return each study's scores from all that it has, as of the subset `WHOLE`.

    Args:
        scores: From any number of subsets.

    Returns:
        Nothing if all studies have the same modalities: theirs are the scores of a subset like any other.
    """
    whole: dict[str, tuple[str, ...]] = {}
    for score in scores:
        whole[score.subject] = max(whole.get(score.subject, ()), score.subset, key=len)
    if len(set(whole.values())) < 2:
        return []
    return [replace(score, subset=WHOLE) for score in scores if score.subset == whole[score.subject]]


def summarise_subsets(scores: Sequence[RegionScore], metric: str = "dice") -> list[SubsetSummary]:
    """Summarise one metric for every subset and region, and for the mean over regions.

    Args:
        scores: One a patient, subset and region.
        metric: Name of a field of `RegionMetrics`.
    """
    groups: dict[tuple[tuple[str, ...], str], dict[str, list[float]]] = {}
    for score in scores:
        for region in (score.region, "mean"):
            patients = groups.setdefault((score.subset, region), {})
            patients.setdefault(score.group or score.subject, []).append(float(getattr(score.metrics, metric)))
    names = _all_names(score.subset for score in scores)
    keys = sorted(groups, key=lambda key: (len(key[0]), tuple(map(names.index, key[0])), key[1] == "mean"))
    return [_summary(*key, groups[key], metric) for key in keys]


def _all_names(subsets: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the modalities that occur, in table order, the user's own as the largest subset has them."""
    largest_first = sorted(subsets, key=len, reverse=True)
    return in_table_order(dict.fromkeys(name for subset in largest_first for name in subset))


def _summary(
    subset: tuple[str, ...], region: str, patients: Mapping[str, Sequence[float]], metric: str
) -> SubsetSummary:
    values = {name: _mean(found) for name, found in patients.items()}
    defined = {name: value for name, value in values.items() if not math.isnan(value)}
    sign = "lower" if metric in LOWER_IS_BETTER else "zero" if metric in ZERO_IS_BEST else "higher"
    unit = f"{UNITS.get(metric, '')}, {sign} is better" if sign != "zero" else f"{UNITS.get(metric, '')}, zero is best"
    worst = max(defined, key=lambda name: _badness(defined[name], sign)) if defined else ""
    return SubsetSummary(
        subset=subset,
        region=region,
        mean=mean_with_interval(list(values.values()), unit.removeprefix(", ")),
        median=float(np.median(list(defined.values()))) if defined else math.nan,
        worst=defined.get(worst, math.nan),
        worst_subject=worst,
        undefined=len(values) - len(defined),
    )


def _badness(value: float, sign: str) -> float:
    return {"lower": value, "zero": abs(value), "higher": -value}[sign]


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def subset_table(scores: Sequence[RegionScore], metric: str = "dice", *, digits: int = 3) -> str:
    """Return a Markdown table: a row a subset and region, with mean, interval, median and worst.

    Where studies have different modalities the first rows are of them all, each from what it has.

    Args:
        scores: One a patient, subset and region.
        metric: Name of a field of `RegionMetrics`.
        digits: After the point.
    """

    def number(value: float | None) -> str:
        return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"

    lines = [f"| modalities | region | mean {metric} | 95 % interval | median | worst | patients |", "|" + "---|" * 7]
    for row in summarise_subsets([*of_whole_studies(scores), *scores], metric):
        interval = "-" if row.mean.low is None else f"{number(row.mean.low)} to {number(row.mean.high)}"
        counted = f"{row.mean.n}" + (f" ({row.undefined} undefined)" if row.undefined else "")
        name = " + ".join(map(title, row.subset)) or "all of each study"
        worst = f"{number(row.worst)} ({row.worst_subject})" if row.worst_subject else "-"
        cells = (name, row.region, number(row.mean.value), interval, number(row.median), worst, counted)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def save_subset_plot(scores: Sequence[RegionScore], path: Path, metric: str = "dice") -> Path:
    """Draw one metric by subset: mean and interval a region, over a grid that shows which modalities are given.

    Args:
        scores: One a patient, subset and region.
        path: The PNG to write.
        metric: Name of a field of `RegionMetrics`.

    Raises:
        OutputError: If the file cannot be written.
    """
    from matplotlib.figure import Figure

    rows = [row for row in summarise_subsets(scores, metric) if row.region != "mean"]
    subsets = list(dict.fromkeys(row.subset for row in rows))
    regions = list(dict.fromkeys(row.region for row in rows))
    names = _all_names(subsets)
    width = max(5.0, 2 + 0.6 * len(subsets))
    figure = Figure(figsize=(width, 5), layout="constrained", facecolor="white")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for number, region in enumerate(regions):
        shift = 0.15 * (number - (len(regions) - 1) / 2)
        own = {row.subset: row.mean for row in rows if row.region == region}
        places = [place + shift for place, subset in enumerate(subsets) if subset in own]
        means = [own[subset] for subset in subsets if subset in own]
        low = [0.0 if m.low is None else m.value - m.low for m in means]
        high = [0.0 if m.high is None else m.high - m.value for m in means]
        above.errorbar(
            places,
            [m.value for m in means],
            yerr=(low, high),
            fmt=MARKS[number % len(MARKS)],
            markersize=4,
            label=region,
        )
    if all(math.isnan(row.mean.value) for row in rows):
        above.text(0.5, 0.5, "not defined in any patient", transform=above.transAxes, ha="center", va="center")
        above.set_yticks([])
    above.set_ylabel(f"{metric}{f', {UNITS[metric]}' if metric in UNITS else ''} (mean, 95 % interval)")
    above.grid(axis="y", alpha=0.3)
    one_line = sum(0.6 + 0.1 * len(region) for region in regions) < width  # inches, about
    figure.legend(ncols=len(regions) if one_line else 1, loc="outside upper center")
    given = [(x, y) for x, subset in enumerate(subsets) for y, name in enumerate(names) if name in subset]
    below.scatter(*zip(*given, strict=True), color="black", s=30)
    below.set_yticks(range(len(names)), [title(name) for name in names])
    below.set_xticks(range(len(subsets)), [""] * len(subsets))
    below.set(xlim=(-0.5, len(subsets) - 0.5), ylim=(len(names) - 0.5, -0.5), ylabel="given")
    below.grid(alpha=0.3)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise OutputError(f"cannot write the plot {path}: {error.strerror or error}") from error
    return path
