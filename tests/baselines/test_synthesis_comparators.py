"""Comparators of synthesis: what each learns, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from prepared_studies import prepared

from bmmae.baselines.budget import Budget
from bmmae.baselines.comparator import restricted
from bmmae.baselines.conditional_unet import ConditionalUNet, UNetConfig, draw_sample, make_network
from bmmae.baselines.histogram import HistogramMatching, matched
from bmmae.data.loaders import sample_generator
from bmmae.errors import ConfigError, ModalityError, TrainingError
from bmmae.modalities import STANDARD

T1, T1CE, T2, FLAIR = STANDARD
SMALL = UNetConfig(channels=(4, 8), window=(16, 16, 16), spacing=(1.0, 1.0, 1.0), batch=1, lr=2e-2, warmup=2)


def test_matched_values_have_the_quantiles_asked_for_and_keep_their_order() -> None:
    values = np.random.default_rng(0).normal(size=4000)
    wanted = np.linspace(10, 20, 257)
    found = matched(values, wanted)
    assert np.quantile(found, [0, 0.25, 0.5, 1]) == pytest.approx([10, 12.5, 15, 20], abs=0.05)
    assert (np.argsort(found, kind="stable") == np.argsort(values, kind="stable")).all()


def test_histogram_matching_is_the_mean_of_the_available_in_the_absent_ones_histogram() -> None:
    comparator = HistogramMatching()
    train, test = prepared(0), prepared(1)
    comparator.fit([train])
    one = comparator.predict(restricted(test, (T1,)), T2)
    other = comparator.predict(restricted(test, (T1CE,)), T2)
    both = comparator.predict(restricted(test, (T1, T1CE)), T2)
    np.testing.assert_allclose(both, (one + other) / 2, atol=1e-5)
    here = train.images[2][train.brain]
    assert np.quantile(one[test.brain], 0.5) == pytest.approx(float(np.quantile(here, 0.5)), abs=0.02)
    assert not both[~test.brain].any()


def test_histogram_matching_averages_what_was_scanned() -> None:
    comparator = HistogramMatching()
    comparator.fit([prepared(0)])
    test = restricted(prepared(1), (T1, T1CE))
    test.valid[1, :10] = False
    alone = comparator.predict(restricted(test, (T1,)), T2)
    np.testing.assert_array_equal(comparator.predict(test, T2)[:10], alone[:10])


@pytest.mark.parametrize("amount", [0.0, -1.0, float("nan")])
def test_a_budget_says_what_it_was_given(amount: float) -> None:
    with pytest.raises(ConfigError, match=f"must be positive, got {amount}"):
        Budget(seconds=amount)


def test_a_modality_that_is_given_is_not_predicted() -> None:
    comparator = HistogramMatching()
    comparator.fit([prepared(0)])
    with pytest.raises(ModalityError, match="cannot predict 't2' from"):
        comparator.predict(prepared(1), T2)


def test_a_modality_without_a_histogram_is_refused() -> None:
    comparator = HistogramMatching()
    comparator.fit([prepared(0, (T1, T1CE))])
    with pytest.raises(TrainingError, match="no training study has flair"):
        comparator.predict(prepared(1, (T1,)), FLAIR)


def test_the_unet_has_2_7_million_parameters() -> None:
    assert sum(p.numel() for p in make_network(UNetConfig()).parameters()) == pytest.approx(2.7e6, rel=0.02)


def test_a_hidden_channel_is_zero_flagged_and_a_target() -> None:
    config = UNetConfig(window=(24, 16, 16))
    hidden_counts = set()
    for place in range(30):
        study = prepared(0, (T1, T1CE, FLAIR))
        inputs, targets, counted = draw_sample(study, config, sample_generator(0, 0, place))
        images, flags = inputs[:4], inputs[4:]
        flagged = flags.all(axis=(1, 2, 3))
        asked = counted.any(axis=(1, 2, 3))
        assert flagged[2]
        assert not asked[2]
        assert (flagged == asked)[[0, 1, 3]].all()
        assert 1 <= asked.sum() <= 2
        assert not images[flagged].any()
        np.testing.assert_array_equal(images[~flagged], targets[~flagged])
        assert not counted[:, ~targets.any(axis=0)].any()  # outside the brain there is nothing to predict
        assert not flags[~flagged].any()
        hidden_counts.add(int(asked.sum()))
    assert hidden_counts == {1, 2}


def test_beyond_a_small_study_an_absent_channel_stays_flagged() -> None:
    seen: list[torch.Tensor] = []
    unet = ConditionalUNet(UNetConfig(channels=(4, 8), window=(64, 64, 64), spacing=(1.0, 1.0, 1.0)), Budget(steps=1))
    unet.network.register_forward_hook(lambda _, inputs, outputs: seen.extend((inputs[0][0], outputs[0].clone())))
    study = prepared(0, (T1, FLAIR))
    assert study.shape == (20, 22, 18)
    found = unet.predict(study, T2)
    window, made = (part[..., 22:42, 21:43, 23:41].numpy() for part in seen)
    assert seen[0][4 + 2].all()
    np.testing.assert_array_equal(window[0], study.images[0])
    np.testing.assert_allclose(found[study.brain], made[2][study.brain], rtol=1e-5)


@pytest.mark.slow
def test_the_unet_learns_to_predict_an_absent_modality() -> None:
    studies, test = [prepared(seed) for seed in range(3)], prepared(9)
    unet = ConditionalUNet(SMALL, Budget(steps=40), seed=0)
    given = restricted(test, (T1, T2, FLAIR))
    before = np.square(unet.predict(given, T1CE) - test.images[1])[test.brain].mean()
    unet.fit(studies)
    after = np.square(unet.predict(given, T1CE) - test.images[1])[test.brain].mean()
    assert unet.steps == 40
    assert after < 0.5 * before
    assert not unet.predict(given, T1CE)[~test.brain].any()


def test_training_is_a_function_of_the_seed_and_survives_saving(tmp_path: Path) -> None:
    made = []
    for seed in (0, 0, 1):
        unet = ConditionalUNet(SMALL, Budget(steps=2), seed=seed)
        unet.fit([prepared(0), prepared(1)])
        made.append(unet.predict(prepared(2, (T1,)), T2))
    np.testing.assert_array_equal(made[0], made[1])
    assert not np.allclose(made[0], made[2])
    unet.save(tmp_path / "unet.pt")
    loaded = ConditionalUNet(SMALL, Budget(steps=2), seed=5)
    loaded.load(tmp_path / "unet.pt")
    np.testing.assert_array_equal(loaded.predict(prepared(2, (T1,)), T2), made[2])
    assert loaded.steps == 2


def test_the_unet_refuses_what_it_cannot_do() -> None:
    unet = ConditionalUNet(SMALL, Budget(steps=1))
    with pytest.raises(ModalityError, match="cannot predict 't1' from t1"):
        unet.predict(prepared(0, (T1,)), T1)
    with pytest.raises(TrainingError, match="two modalities"):
        unet.fit([prepared(0, (T1,))])


def test_a_budget_counts_steps_or_the_seconds_of_this_process() -> None:
    running = Budget(steps=4).start()
    assert [running.share(step) for step in (0, 2, 4)] == [0, 0.5, 1]
    running = Budget(seconds=0.2).start(spent=0.1)
    assert running.share(99) == pytest.approx(0.5, abs=0.1)
    while running.share(0) < 1:
        torch.randn(200, 200) @ torch.randn(200, 200)
    assert running.spent() == pytest.approx(0.2, abs=0.1)
    running.leave_out(lambda: [torch.randn(200, 200) @ torch.randn(200, 200) for _ in range(400)])
    assert running.spent() == pytest.approx(0.2, abs=0.1)
    for wrong in ({}, {"seconds": 1.0, "steps": 1}, {"steps": 0}, {"seconds": -1.0}):
        with pytest.raises(ConfigError, match="budget"):
            Budget(**wrong)
