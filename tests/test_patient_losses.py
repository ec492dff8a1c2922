"""The likelihoods of patients equal their formulas, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bmmae.losses import class_loss, cox_partial_likelihood, logistic_hazard

NAN = math.nan


def test_class_loss_is_cross_entropy_and_leaves_unknown_labels_out() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([2, -1, 0, 1])
    weights = torch.tensor([1.0, 2.0, 0.5])
    losses = class_loss(logits, label, weights)
    known = label >= 0
    torch.testing.assert_close(losses[known], F.cross_entropy(logits[known], label[known], weights, reduction="none"))
    assert float(losses[1]) == 0


def test_focal_loss_equals_its_formula_and_forgives_what_is_easy() -> None:
    logits = torch.tensor([[0.0, 2.0], [0.0, -1.0]])
    p = torch.sigmoid(torch.tensor([2.0, -1.0]))
    expected = -((1 - p) ** 2) * p.log()
    torch.testing.assert_close(class_loss(logits, torch.tensor([1, 1]), focal=2.0), expected)
    torch.testing.assert_close(class_loss(logits, torch.tensor([1, 1]), focal=0.0), -p.log())


def test_logistic_hazard_equals_a_calculation_by_hand() -> None:
    edges = torch.tensor([2.0, 5.0, 9.0])
    logits = torch.tensor([[0.3, -0.7, 1.1]]).expand(7, -1)
    h = torch.sigmoid(logits[0])
    live = (1 - h).log()
    cases = [
        (1.0, True, h[0].log()),
        (2.0, True, h[0].log()),  # an interval holds its end
        (4.0, True, live[0] + h[1].log()),
        (4.0, False, live[0]),  # the interval of the censoring says nothing
        (5.0, False, live[0] + live[1]),  # but one that has just ended was survived
        (12.0, True, live.sum()),  # death after the last edge: survived all that is modelled
        (NAN, False, torch.tensor(0.0)),
    ]
    time = torch.tensor([case[0] for case in cases])
    event = torch.tensor([case[1] for case in cases])
    expected = -torch.stack([case[2] for case in cases])
    torch.testing.assert_close(logistic_hazard(logits, time, event, edges), expected)


def test_cox_without_ties_equals_a_calculation_by_hand() -> None:
    risk = torch.tensor([0.5, -0.2, 1.0, 0.1])
    time, event = torch.tensor([3.0, 1.0, 2.0, 4.0]), torch.tensor([True, True, False, False])
    loss, deaths = cox_partial_likelihood(risk, time, event)
    e = risk.exp()
    expected = -(risk[1] - e.sum().log()) - (risk[0] - (e[0] + e[3]).log())
    torch.testing.assert_close(loss, expected)
    assert float(deaths) == 2


def test_cox_with_ties_is_efrons() -> None:
    risk = torch.tensor([0.5, -0.2, 1.0])
    time, event = torch.tensor([2.0, 2.0, 5.0]), torch.tensor([True, True, False])
    loss, _ = cox_partial_likelihood(risk, time, event)
    e = risk.exp()
    tied, whole = e[0] + e[1], e.sum()
    expected = -(risk[0] + risk[1]) + whole.log() + (whole - tied / 2).log()
    torch.testing.assert_close(loss, expected)


def test_cox_coefficients_equal_scikit_survivals_with_efrons_ties() -> None:
    from sksurv.linear_model import CoxPHSurvivalAnalysis

    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 2))
    months = np.ceil(rng.exponential(np.exp(-x @ [0.8, -0.5])) * 5)
    died = rng.random(120) < 0.7
    outcome = np.array(list(zip(died, months, strict=True)), dtype=[("event", bool), ("time", float)])
    theirs = CoxPHSurvivalAnalysis(ties="efron").fit(x, outcome).coef_
    beta = torch.zeros(2, requires_grad=True)
    optimiser = torch.optim.LBFGS([beta], max_iter=100, line_search_fn="strong_wolfe")
    design, time, event = torch.from_numpy(x).float(), torch.from_numpy(months).float(), torch.from_numpy(died)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss, count = cox_partial_likelihood(design @ beta, time, event)
        (loss / count).backward()
        return loss / count

    optimiser.step(closure)
    np.testing.assert_allclose(beta.detach().numpy(), theirs, atol=2e-3)


def test_cox_holds_where_risks_lie_far_apart() -> None:
    risk = torch.tensor([200.0, -200.0, 0.0], requires_grad=True)
    loss, _ = cox_partial_likelihood(risk, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True, True, False]))
    loss.backward()
    assert loss.item() == 200.0  # the second dies beside one of a risk higher by 200
    assert risk.grad is not None
    assert risk.grad.tolist() == [0.0, -1.0, 1.0]


def test_cox_falls_when_the_higher_risk_dies_sooner() -> None:
    time, event = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True, True, True])
    good, _ = cox_partial_likelihood(torch.tensor([1.0, 0.0, -1.0]), time, event)
    bad, _ = cox_partial_likelihood(torch.tensor([-1.0, 0.0, 1.0]), time, event)
    assert float(good) < float(bad)


@pytest.mark.parametrize("event", [[False, False], [False, True]])
def test_cox_of_nothing_known_is_zero_with_a_gradient(event: list[bool]) -> None:
    risk = torch.zeros(2, requires_grad=True)
    loss, deaths = cox_partial_likelihood(risk, torch.tensor([3.0, NAN]), torch.tensor(event))
    loss.backward()
    assert (float(loss.detach()), float(deaths)) == (0, 0)
    assert risk.grad is not None
    assert risk.grad.abs().sum() == 0
