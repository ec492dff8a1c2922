"""Quadratic regression by voxel: the same as scikit-learn's on the same voxels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import PolynomialFeatures

from bmmae.baselines.comparator import restricted
from bmmae.baselines.voxel_regression import VoxelRegression, monomials
from bmmae.data.geometry import Geometry
from bmmae.data.preprocess import PreparedStudy
from bmmae.errors import ModalityError, TrainingError
from bmmae.modalities import STANDARD

SHAPE = (6, 7, 5)
T1, T1CE, T2, FLAIR = STANDARD


def study(seed: int, names: tuple[str, ...] = STANDARD) -> PreparedStudy:
    """T2 and FLAIR are quadratic functions of the others, with a little noise; a layer of FLAIR is not scanned."""
    rng = np.random.default_rng(seed)
    t1, t1ce = rng.normal(size=(2, *SHAPE))
    t2 = 1 + t1 - 2 * t1 * t1ce + 0.1 * rng.normal(size=SHAPE)
    flair = t1ce**2 - 0.5 * t2 + 0.1 * rng.normal(size=SHAPE)
    brain = np.zeros(SHAPE, bool)
    brain[1:-1, 1:, :] = True
    valid = np.ones((4, *SHAPE), bool)
    valid[3, 1] = False
    images = np.where(valid & brain, np.stack([t1, t1ce, t2, flair]), 0).astype(np.float32)
    kept = [STANDARD.index(name) for name in names]
    geometry = Geometry.of(SHAPE, np.eye(4), (1.0, 1.0, 1.0))
    scales = ((0.0, 1.0),) * len(kept)
    return PreparedStudy(names, images[kept], valid[kept], brain, None, geometry, scales, "nonzero")


def fitted(*studies: PreparedStudy, penalty: float = 0.0) -> VoxelRegression:
    regression = VoxelRegression(penalty=penalty)
    regression.fit(studies)
    return regression


@pytest.mark.parametrize(("given", "wanted"), [((T1, T1CE, FLAIR), T2), ((T1, T1CE), T2), ((T2,), FLAIR)])
def test_it_is_least_squares_on_all_linear_and_quadratic_terms(given: tuple[str, ...], wanted: str) -> None:
    train, test = [study(0), study(1)], study(2)
    needed = [STANDARD.index(name) for name in (*given, wanted)]
    inside = [np.asarray(each.brain & each.valid[needed].all(axis=0)) for each in train]
    pairs = list(zip(train, inside, strict=True))
    terms = PolynomialFeatures(2)

    def inputs(each: PreparedStudy, where: np.ndarray) -> np.ndarray:
        return np.stack([each.images[STANDARD.index(name)][where] for name in given], axis=1)

    x = np.concatenate([inputs(each, where) for each, where in pairs])
    y = np.concatenate([each.images[STANDARD.index(wanted)][where] for each, where in pairs])
    reference = LinearRegression(fit_intercept=False).fit(terms.fit_transform(x), y)
    everywhere = test.brain & test.valid[[STANDARD.index(name) for name in given]].all(axis=0)
    found = fitted(*train).predict(restricted(test, given), wanted)[everywhere]
    np.testing.assert_allclose(found, reference.predict(terms.transform(inputs(test, everywhere))), atol=1e-4)


def test_it_finds_the_function_that_made_the_data() -> None:
    terms, weights = fitted(study(0), study(1), study(2)).coefficients((T1, T1CE), T2)
    found = dict(zip(terms, weights, strict=True))
    assert found[()] == pytest.approx(1, abs=0.05)
    assert found[(0,)] == pytest.approx(1, abs=0.05)
    assert found[(0, 1)] == pytest.approx(-2, abs=0.05)
    assert found[(1, 1)] == pytest.approx(0, abs=0.05)


def test_where_a_modality_was_not_scanned_the_others_are_used() -> None:
    regression = fitted(study(0), study(1))
    test = study(2)
    all_three = regression.predict(restricted(test, (T1, T1CE, FLAIR)), T2)
    two = regression.predict(restricted(test, (T1, T1CE)), T2)
    np.testing.assert_array_equal(all_three[1], two[1])
    assert not np.allclose(all_three[2], two[2])


def test_studies_with_other_subsets_add_what_they_have() -> None:
    both = fitted(study(0), study(1, (T1, T2)))
    np.testing.assert_allclose(both.coefficients((T1,), T2)[1], fitted(study(0), study(1)).coefficients((T1,), T2)[1])
    alone = fitted(study(0)).coefficients((T1,), FLAIR)[1]
    np.testing.assert_allclose(both.coefficients((T1,), FLAIR)[1], alone)


def test_a_penalty_shrinks_all_but_the_constant() -> None:
    free, held = (fitted(study(0), penalty=p).coefficients((T1, T1CE), T2)[1] for p in (0.0, 1e6))
    assert np.abs(held[1:]).max() < 1e-3 < np.abs(free[1:]).max()
    train = study(0)
    assert held[0] == pytest.approx(float(train.images[2][train.brain].mean()), abs=1e-2)


def test_four_modalities_have_fifteen_terms() -> None:
    assert len(monomials(range(4))) == 15
    assert len(set(monomials(range(4)))) == 15


def test_what_no_training_voxel_shows_is_refused() -> None:
    regression = fitted(study(0, (T1, T2)))
    with pytest.raises(TrainingError, match="no training voxel has t1 and flair"):
        regression.coefficients((T1,), FLAIR)
    with pytest.raises(ModalityError, match="cannot predict 't1' from t1"):
        regression.coefficients((T1,), T1)


def test_a_restricted_study_does_not_know_where_the_others_found_brain() -> None:
    test = study(0)
    brain = test.brain.copy()
    brain[1] = False
    alone = restricted(test, (FLAIR,))
    assert alone.names == (FLAIR,)
    np.testing.assert_array_equal(alone.brain, brain)
    np.testing.assert_array_equal(restricted(test, STANDARD).brain, test.brain)
    with pytest.raises(ModalityError, match="expected some of"):
        restricted(replace(test, names=(T1,)), (T2,))
