"""The benchmark of feature tables compares what it says, on the same folds, without enhancing tumour where stated."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import feature_tables as benchmark

from bmmae.baselines.feature_table import FeatureTable

MODALITIES = ("t1", "flair")
PLAN = benchmark.Plan((0, 1, 2), (("t1",), ("flair",), MODALITIES), 3)


def table() -> FeatureTable:
    labels = np.array(["GBM"] * 20 + ["LGG"] * 15)
    names = ("Mean_ET_T1", "Mean_ED_T1", "Mean_ED_FLAIR")
    subjects = tuple(f"p{row}" for row in range(35))
    features = np.random.default_rng(0).normal(size=(35, 3))
    return FeatureTable(features, names, subjects, labels, {"t1": (0, 1), "flair": (2,)}, {})


def scores() -> dict[tuple[str, tuple[str, ...], str], dict[str, list[float]]]:
    """Every method at 0.8 everywhere, but for two models and subsets."""
    found = {kind: {key: [0.8, 0.8, 0.8] for key in benchmark.FIGURES} for kind in benchmark._kinds(PLAN.subsets)}
    transformer = "missing_modality_transformer"
    found["without_et", ("t1",), transformer] = {
        **found["without_et", ("t1",), transformer],
        "accuracy": [0.9, 0.9, 1.0],
    }
    found["without_et", MODALITIES, transformer] = {key: [0.0, 0.0, 0.0] for key in benchmark.FIGURES}
    return found


def test_one_missing_is_compared_with_all_by_fold() -> None:
    headline = benchmark._headline(scores(), MODALITIES, PLAN)
    found = headline["mmt_vs_mfn_vae"]
    assert found.value == pytest.approx(np.mean([0.05, 0.05, 0.1]))
    assert found.low < found.value < found.high
    assert found.asked == -benchmark.MARGIN
    assert headline["mmt_vs_mfn_vae_auc"].value == headline["mmt_vs_mfn_vae_with_et"].value == 0
    assert headline["mmt_vs_random_forest"].value == found.value


def test_folds_are_the_same_for_both_sets_of_columns_and_share_no_patient() -> None:
    folds = [benchmark._fold(table(), columns, 7, "") for columns in benchmark.COLUMNS]
    assert folds[0].table.columns == ("Mean_ED_T1", "Mean_ED_FLAIR")
    assert folds[1].table.columns == table().columns
    np.testing.assert_array_equal(folds[0].test, folds[1].test)
    assert not set(folds[0].train) & set(folds[0].test)
    assert folds[0].labels.sum() == 20


def test_a_cell_scores_the_test_rows_of_its_subset(tmp_path: Path) -> None:
    fold = benchmark._fold(table(), "with_et", 0, str(tmp_path))
    outcome = fold.fit("logistic_regression", ("flair",), None)
    assert set(outcome["figures"]) == set(benchmark.FIGURES)
    assert len(outcome["probabilities"]) == len(fold.test) == 7


def test_figures_that_are_not_defined_in_a_fold_are_left_out() -> None:
    row = benchmark._row(
        "with_et", ("t1",), "mfn_vae", {"precision": [float("nan"), 0.5, 1.0], "auc": [float("nan")] * 3}
    )
    assert (row["precision"], row["precision_sd"]) == (0.75, 0.3536)
    assert row["auc"] is row["auc_sd"] is None
