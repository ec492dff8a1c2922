"""What metrics refuse: NumPy would take it and give a wrong number. Signatures are unwrapped, as users call them."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch

from bmmae import metrics
from bmmae.baselines.cox import fit_cox
from bmmae.evaluation.comparison import delong
from bmmae.evaluation.intervals import mean_with_interval
from bmmae.metrics.lesions import match_lesions

SCORE = np.array([0.1, 0.9, 0.3, 0.8])
TIME = np.array([4.0, 1.0, 3.0, 2.0])
FLAGS = np.array([False, True, False, True])
CURVE = metrics.censoring_curve(TIME, FLAGS)
MASK = np.zeros((6, 7, 8), bool)
MASK[2:4, 2:4, 2:4] = True
VOLUME = np.arange(float(MASK.size)).reshape(MASK.shape)
OF_FLAGS = {
    metrics.auc: (SCORE,),
    metrics.average_precision: (SCORE,),
    metrics.calibration_slope: (SCORE,),
    metrics.calibration_in_the_large: (SCORE,),
    delong: (SCORE, 1 - SCORE),
    metrics.kaplan_meier: (TIME,),
    metrics.censoring_curve: (TIME,),
    metrics.harrell_c: (SCORE, TIME),
    fit_cox: (SCORE[:, None], TIME),
}
OF_MASKS = {
    metrics.dice: (),
    metrics.relative_volume_error: (),
    metrics.volume_error: ((1.0, 1.0, 2.0),),
    metrics.hd95: ((1.0, 1.0, 2.0),),
    metrics.surface_dice: ((1.0, 1.0, 2.0),),
    match_lesions: (),
}


def call(figure: Any, *given: Any) -> Any:
    return inspect.unwrap(figure)(*given)


@pytest.mark.parametrize("figure", OF_FLAGS, ids=lambda figure: figure.__name__)
@pytest.mark.parametrize(
    "flags", [FLAGS.astype(int), FLAGS.tolist(), torch.from_numpy(FLAGS)], ids=["int", "list", "tensor"]
)
def test_labels_and_events_that_are_no_bools_are_refused(figure: Any, flags: Any) -> None:
    with pytest.raises(ValueError, match=r"expected a NumPy array of bools, got .*np.asarray\(labels\) == 1"):
        call(figure, *OF_FLAGS[figure], flags)
    with pytest.raises(ValueError, match=r"expected arrays of one shape, got .*\(3,\)"):
        call(figure, *OF_FLAGS[figure], FLAGS[:3])


@pytest.mark.parametrize("figure", OF_MASKS, ids=lambda figure: figure.__name__)
def test_masks_that_are_no_bools_of_one_shape_are_refused(figure: Any) -> None:
    with pytest.raises(ValueError, match="expected a NumPy array of bools, got an array of uint8"):
        call(figure, MASK.astype(np.uint8), MASK.astype(np.uint8), *OF_MASKS[figure])
    with pytest.raises(ValueError, match="expected arrays of one shape"):
        call(figure, MASK[:1], MASK, *OF_MASKS[figure])


@pytest.mark.parametrize("figure", [name for name in OF_MASKS if OF_MASKS[name]], ids=lambda figure: figure.__name__)
def test_millimetres_need_a_spacing_of_each_axis(figure: Any) -> None:
    for predicted in (MASK, np.zeros_like(MASK)):
        with pytest.raises(ValueError, match="expected 3 spacings"):
            call(figure, predicted, MASK, (1.0, 1.0))


@pytest.mark.parametrize("figure", [metrics.psnr, metrics.ssim], ids=lambda figure: figure.__name__)
def test_images_are_judged_inside_a_mask_alone(figure: Any) -> None:
    with pytest.raises(ValueError, match="expected a NumPy array of bools"):
        call(figure, VOLUME, VOLUME, MASK.astype(int))
    with pytest.raises(ValueError, match="expected arrays of one shape"):
        call(figure, VOLUME[:1], VOLUME, MASK)


@pytest.mark.parametrize("wrong", [-1, 2])
def test_a_number_of_no_class_is_not_counted_as_another(wrong: int) -> None:
    for one, two in (([0, wrong], [0, 1]), ([0, 1], [0, wrong])):
        with pytest.raises(ValueError, match=f"expected numbers of 2 classes, 0 to 1, got .*{wrong}"):
            metrics.confusion_matrix(np.array(one), np.array(two), 2)


def test_predictions_that_are_nan_are_no_hits() -> None:
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        metrics.top_k(np.array([[np.nan, np.nan], [0.4, 0.6]]), np.array([0, 1]), 1)
    with pytest.raises(ValueError, match="1 of 4 scores are NaN"):
        delong(np.where(SCORE == 0.9, np.nan, SCORE), SCORE, FLAGS)


@pytest.mark.parametrize("wrong", [1.5, -0.2, np.nan])
def test_calibration_is_of_probabilities(wrong: float) -> None:
    with pytest.raises(ValueError, match="expected probabilities from 0 to 1"):
        metrics.expected_calibration_error(np.array([0.5, wrong]), np.array([True, False]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_risks_and_times_that_cannot_be_compared_are_refused(value: float) -> None:
    risk = np.where(SCORE == 0.9, value, SCORE)
    for figure in (metrics.harrell_c, lambda *given: metrics.uno_c(*given, CURVE)):
        with pytest.raises(ValueError, match=r"1 of 4 (scores are NaN|risks are infinite)"):
            figure(risk, TIME, FLAGS)
    with pytest.raises(ValueError, match="1 of 4"):
        metrics.dynamic_auc(risk, TIME, FLAGS, CURVE, np.array([2.5]))
    late = np.where(TIME == 4, np.nan, TIME)
    for refused in (lambda: metrics.kaplan_meier(late, FLAGS), lambda: metrics.harrell_c(SCORE, late, FLAGS)):
        with pytest.raises(ValueError, match="1 of 4 times are NaN"):
            refused()


def test_a_mean_with_an_infinite_value_has_no_interval() -> None:
    found = mean_with_interval([30.0, 31.0, np.inf, 33.0])
    assert (found.value, found.low, found.high) == (np.inf, None, None)
