"""The fifteen-subset table, its plot, and the counter-intuitive rate, on scores worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from bmmae.errors import OutputError
from bmmae.evaluation.subsets import (
    RegionScore,
    all_subsets,
    choose_subsets,
    counter_intuitive,
    save_subset_plot,
    subset_table,
    summarise_subsets,
)
from bmmae.metrics.regions import RegionMetrics

PERFECT = RegionMetrics(1.0, 0.0, 1.0, 1.0, 1.0, 0, 1, 0.0, 0.0, 5.0)


def score(subject: str, subset: tuple[str, ...], dice: float, region: str = "WT", hd95: float = 1.0) -> RegionScore:
    return RegionScore(subject, subset, region, replace(PERFECT, dice=dice, hd95=hd95))


def test_there_are_fifteen_subsets_of_four_modalities_and_28_pairs() -> None:
    subsets = all_subsets()
    assert len(set(subsets)) == len(subsets) == 15
    assert subsets[0] == ("t1",)
    assert subsets[-1] == ("t1", "t1ce", "t2", "flair")
    same = counter_intuitive([score("p", subset, 0.5) for subset in subsets])
    assert (same.rate, same.fallen, same.cases) == (0, 0, 28)


def test_the_rate_counts_falls_of_more_than_half_a_point() -> None:
    scores = [
        score("p", ("t1",), 0.80),
        score("p", ("t2",), 0.70),
        score("p", ("t1", "t2"), 0.79),  # falls from t1, rises from t2
        score("q", ("t1",), 0.80),
        score("q", ("t1", "t2"), 0.796),  # less than half a point
        score("r", ("t1",), math.nan),
        score("r", ("t1", "t2"), 0.0),  # not defined before
    ]
    found = counter_intuitive(scores)
    assert (found.fallen, found.cases) == (1, 3)
    assert found.rate == pytest.approx(1 / 3)


def test_modalities_of_the_users_own_keep_the_order_that_they_are_given_in() -> None:
    own = ("t1", "pet", "perf", "asl", "cbv", "dti")  # behind the table's, as declared, whatever a set makes of them
    alone = [score("p", (name,), 0.5) for name in reversed(own)]
    scores = [*alone, score("p", own, 0.5)]
    assert choose_subsets([*scores, score("p", own[1:3], 0.5)])["WT"] == {"pet+perf": "pet"}
    order = dict.fromkeys(row.subset for row in summarise_subsets(scores))
    assert list(order) == [*((name,) for name in own), own]


def test_the_rate_of_nothing_is_undefined() -> None:
    assert math.isnan(counter_intuitive([score("p", ("t1",), 0.5)]).rate)


def test_a_region_is_taken_from_no_more_modalities_than_pay() -> None:
    means = {("t1",): 0.5, ("t2",): 0.7, ("flair",): 0.6, ("t1", "t2"): 0.705, ("t1", "flair"): 0.8}
    means |= {("t2", "flair"): 0.69, ("t1", "t2", "flair"): 0.75}
    scores = [score("a", subset, dice + 0.1) for subset, dice in means.items()]
    scores += [score("b", subset, dice - 0.1) for subset, dice in means.items()]
    assert choose_subsets(scores) == {"WT": {"t1+t2": "t2", "t2+flair": "t2", "t1+t2+flair": "t1+flair"}}


def test_what_pays_for_one_region_may_not_for_another() -> None:
    gains = {"ET": 0.2, "WT": 0.0}
    scores = [score("a", ("t1",), 0.5, region) for region in gains]
    scores += [score("a", ("t1", "t1ce"), 0.5 + gain, region) for region, gain in gains.items()]
    assert choose_subsets(scores) == {"WT": {"t1+t1ce": "t1"}}


def test_a_modality_is_judged_on_the_patients_who_have_it() -> None:
    """Hard cases alone had flair: what it gains there is not hidden by easy cases that lack it."""
    hard = [score(f"h{i}", ("t1",), 0.3) for i in range(5)] + [score(f"h{i}", ("t1", "flair"), 0.5) for i in range(5)]
    easy = [score(f"e{i}", ("t1",), 0.9) for i in range(15)]
    assert choose_subsets(hard + easy) == {}
    apart = [score("a", ("t1",), 0.9), score("b", ("t1", "flair"), 0.1)]
    assert choose_subsets(apart) == {}


def test_scores_that_are_not_defined_choose_nothing() -> None:
    scores = [score("a", ("t1",), math.nan), score("a", ("t1", "t2"), 0.4), score("b", ("t1", "t2"), math.nan)]
    assert choose_subsets(scores) == {}
    assert choose_subsets([]) == {}


def test_a_summary_gives_mean_median_and_the_worst_patient() -> None:
    scores = [score(name, ("t1",), dice) for name, dice in zip("abcd", (0.9, 0.2, 0.8, math.nan), strict=True)]
    row, mean = summarise_subsets(scores)
    assert (row.region, mean.region) == ("WT", "mean")
    assert row.mean.value == pytest.approx(1.9 / 3)
    assert row.mean.low is not None
    assert row.mean.low < row.mean.value
    assert (row.median, row.worst, row.worst_subject, row.undefined) == (0.8, 0.2, "b", 1)


def test_the_worst_hd95_is_the_largest() -> None:
    rows = summarise_subsets([score("a", ("t1",), 1.0, hd95=3.0), score("b", ("t1",), 1.0, hd95=40.0)], "hd95")
    assert (rows[0].worst, rows[0].worst_subject, rows[0].mean.unit) == (40.0, "b", "mm, lower is better")


def test_a_patient_of_two_visits_counts_once() -> None:
    scores = [replace(score(f"p{i}", ("t1",), dice), group="p") for i, dice in enumerate((0.2, 0.4))]
    row, _ = summarise_subsets([*scores, score("q", ("t1",), 0.9)])
    assert row.mean.n == 2
    assert row.mean.value == pytest.approx((0.3 + 0.9) / 2)


def test_the_mean_over_regions_is_by_patient() -> None:
    scores = [score("p", ("t1",), 0.5, "ET"), score("p", ("t1",), 0.7, "WT")]
    assert summarise_subsets(scores)[-1].mean.value == pytest.approx(0.6)


def many() -> list[RegionScore]:
    rng = np.random.default_rng(0)
    names = [f"p{i}" for i in range(5)]
    return [
        score(name, s, float(rng.random()), region) for name in names for s in all_subsets() for region in ("ET", "WT")
    ]


def test_the_table_has_a_row_a_subset_and_region() -> None:
    lines = subset_table(many()).splitlines()
    assert len(lines) == 2 + 15 * 3
    assert lines[-1].startswith("| T1 + T1ce + T2 + FLAIR | mean | ")


def test_studies_of_different_modalities_are_also_summed_up_together() -> None:
    full = [score("a", ("t1", "flair"), 0.8), score("b", ("t1",), 0.5), score("c", ("flair",), 0.2)]
    lines = subset_table([score("a", ("t1",), 0.1), *full]).splitlines()
    assert lines[2].startswith("| all of each study | WT | 0.500 | ")
    assert lines[2].endswith("| 0.500 | 0.200 (c) | 3 |")
    assert [line.split(" | ")[0] for line in lines[4:]] == ["| T1", "| T1", "| FLAIR", "| FLAIR"] + ["| T1 + FLAIR"] * 2


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    path = save_subset_plot(many(), tmp_path / "plots" / "subsets.png")
    assert path.stat().st_size > 10_000
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write the plot"):
        save_subset_plot(many(), tmp_path / "file" / "subsets.png")


@pytest.mark.parametrize("regions", [("ET", "TC", "WT"), ("enhancing tumour", "non-enhancing core", "oedema")])
def test_nothing_is_cut_off_the_plot_of_a_single_subset(tmp_path: Path, regions: tuple[str, ...]) -> None:
    scores = [score(f"p{i}", ("flair",), 0.5 + 0.1 * i, region) for i in range(4) for region in regions]
    picture = imread(save_subset_plot(scores, tmp_path / "subsets.png"))[..., :3]
    rim = np.concatenate([picture[[0, -1]].ravel(), picture[:, [0, -1]].ravel()])
    assert (rim == 1).all()


def test_a_plot_names_its_intervals_and_says_where_nothing_is_defined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    save_subset_plot(many(), tmp_path / "a.png", "hd95")
    save_subset_plot([score("p", ("t1",), math.nan)], tmp_path / "b.png")
    full, empty = (figure.axes for figure in drawn)
    assert full[0].get_ylabel() == "hd95, mm (mean, 95 % interval)"
    assert full[1].get_ylim() == (3.5, -0.5)  # whole dots in the first and last row
    assert [text.get_text() for text in full[0].texts] == []
    assert [text.get_text() for text in empty[0].texts] == ["not defined in any patient"]
