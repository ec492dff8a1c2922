"""Proportional hazards: scikit-survival's coefficients and curves."""

import numpy as np
import pytest

from bmmae.baselines.cox import fit_cox
from bmmae.errors import CohortError
from bmmae.metrics import harrell_c


def cohort(patients: int = 80) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    table = draw.normal(size=(patients, 3))
    death = draw.exponential(20 * np.exp(-table @ [1.0, -0.5, 0.0]))
    end = draw.uniform(5, 60, size=patients)
    return table, np.ceil(np.minimum(death, end)), death <= end


@pytest.mark.parametrize("penalty", [0.0, 5.0])
def test_slopes_and_curves_equal_scikit_survival(penalty: float) -> None:
    linear = pytest.importorskip("sksurv.linear_model", reason="needs scikit-survival, of the extra `dev`")
    from sksurv.util import Surv

    table, time, event = cohort()
    reference = linear.CoxPHSurvivalAnalysis(alpha=penalty, ties="breslow", tol=1e-12)
    reference.fit(table, Surv.from_arrays(event, time))
    found = fit_cox(table, time, event, penalty)
    assert found.slopes == pytest.approx(reference.coef_, abs=1e-5)
    at = np.array([4.0, 12.0, 30.0])
    expected = np.array([curve(at) for curve in reference.predict_survival_function(table)])
    assert found.survival(table, at) == pytest.approx(expected, abs=1e-5)


def test_a_higher_risk_dies_sooner() -> None:
    table, time, event = cohort()
    model = fit_cox(table, time, event)
    assert harrell_c(model.risk(table), time, event) > 0.7
    assert model.slopes[0] > 0 > model.slopes[1]
    assert (model.risk(table) >= model.risk_cut).mean() == 0.5


def test_a_column_that_parts_the_dead_stays_finite() -> None:
    time, event = np.arange(1.0, 9.0), np.ones(8, bool)
    assert np.isfinite(fit_cox(-time[:, None], time, event, 0.1).slopes).all()


def test_without_deaths_nothing_is_fitted() -> None:
    table, time, event = cohort()
    with pytest.raises(CohortError, match="none of 80"):
        fit_cox(table, time, np.zeros_like(event))
