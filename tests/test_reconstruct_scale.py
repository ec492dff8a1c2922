"""Intensities, deviations and doubts of synthesised images, against what their definitions say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_mae
from tiny_studies import SHAPE, brain, picture, save, write_study

from bmmae.checkpoint import Provenance, describe
from bmmae.data.cache import StudyCache
from bmmae.data.population import LEVELS, describe_population
from bmmae.data.preprocess import PreparedStudy, PreprocessConfig
from bmmae.errors import ConfigError
from bmmae.inference import UnlikeTrainingWarning, load_study, predict_absent, reconstruct, to_native
from bmmae.inference.agreement import agreement
from bmmae.inference.prediction import Synthesis
from bmmae.inference.scale import IntensityMap
from bmmae.modalities import STANDARD
from bmmae.model.mae import MAE
from bmmae.provenance import Population

SIZE = (24, 24, 24)


def fresh() -> MAE:
    return tiny_mae(SIZE, kind="cross", colocated=True)


@pytest.fixture(scope="module")
def population(tmp_path_factory: pytest.TempPathFactory) -> Population:
    folder = tmp_path_factory.mktemp("training")
    studies = [write_study(folder / str(seed), seed=seed) for seed in range(3)]
    return describe_population(studies, StudyCache(None, PreprocessConfig(), STANDARD))


@pytest.fixture
def informed(population: Population) -> MAE:
    """A model that knows what its training images looked like."""
    model = fresh()
    describe(model, PreprocessConfig(), Provenance(population=population))
    return model


def files(folder: Path, *names: str) -> dict[str, Path]:
    return dict(write_study(folder, names, labelled=False).images)


def voxels(image: Any) -> np.ndarray:
    return np.asarray(image.dataobj)


def with_variance(monkeypatch: pytest.MonkeyPatch, variance: float) -> None:
    """Let any model predict variances, the same everywhere inside the brain."""

    def predict(model: MAE, prepared: PreparedStudy, absent: Sequence[str], *, uncertainty: bool = False) -> Synthesis:
        made = predict_absent(model, prepared, absent)
        flat = np.where(prepared.brain, np.float32(variance), np.float32(0))
        return Synthesis(made.means, dict.fromkeys(absent, flat) if uncertainty else {})

    monkeypatch.setattr("bmmae.inference.reconstruction.require_uncertainty", lambda _: None)
    monkeypatch.setattr("bmmae.inference.reconstruction.predict_absent", predict)


# ---- intensities


def test_the_cohorts_scale_gives_the_cohorts_quantiles_on_the_scale_of_the_given_images(
    informed: MAE, population: Population, tmp_path: Path
) -> None:
    given = files(tmp_path, "t1", "t2")
    made = voxels(reconstruct(informed, given, intensity="cohort")["flair"])[brain()]
    mean, deviation = np.median(load_study(informed, given).prepared.scales, axis=0)
    found = (np.quantile(made, LEVELS) - mean) / deviation
    assert np.allclose(found, population.quantiles["flair"], atol=0.03)
    straight = voxels(reconstruct(informed, given, intensity="given")["flair"])[brain()]
    assert not np.allclose((np.quantile(straight, LEVELS) - mean) / deviation, population.quantiles["flair"], atol=0.1)


def test_no_scale_changes_which_voxel_is_brighter(informed: MAE, tmp_path: Path) -> None:
    given = files(tmp_path, "t1", "t2")
    z, straight, cohort = (
        voxels(reconstruct(informed, given, intensity=kind)["t1ce"])[brain()] for kind in ("zscore", "given", "cohort")
    )
    order = np.argsort(z)
    assert (np.diff(straight[order]) >= -1e-3).all()
    assert (np.diff(cohort[order]) >= -1e-3).all()
    mean, deviation = np.median(load_study(informed, given).prepared.scales, axis=0)
    assert np.allclose(straight, np.maximum(z * deviation + mean, straight.min()), atol=1e-2)


def test_nothing_is_stretched_unless_asked_for(informed: MAE, tmp_path: Path) -> None:
    given, kind = files(tmp_path, "t1"), "given"
    for model in (informed, fresh()):
        made = reconstruct(model, given, only=["t2"])["t2"]
        assert bytes(made.header["descrip"]).startswith(f"bmmae SYNTHETIC T2, not acquired; scale: {kind}".encode())
        assert np.array_equal(voxels(made), voxels(reconstruct(model, given, only=["t2"], intensity=kind)["t2"]))


def test_a_model_that_does_not_know_its_cohort_says_so(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="does not know the training cohort's intensities of T2: the scale is that of"):
        made = reconstruct(fresh(), files(tmp_path, "t1"), only=["t2"], intensity="cohort")
    assert b"scale: given" in bytes(made["t2"].header["descrip"])


def test_nothing_synthesised_is_darker_than_the_given_brain(informed: MAE, tmp_path: Path) -> None:
    given = files(tmp_path, "t1")
    low = picture()
    low = np.where(brain(), low - low[brain()].min() + np.float32(0.5), 0)
    save(given["t1"], low)
    for made in reconstruct(informed, given, intensity="given").values():
        assert voxels(made)[brain()].min() >= np.float32(0.5)


@pytest.mark.parametrize("seed", range(5))
def test_a_map_rises_and_its_slope_is_that_of_its_deviations(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scale = IntensityMap("cohort", np.sort(rng.normal(size=7)), np.sort(rng.normal(size=7)) * 40 + 300)
    at = np.linspace(-4, 4, 400)
    at = at[np.abs(at[:, None] - scale.knots).min(axis=1) > 0.01]
    step = 1e-3
    slopes = (scale(at + step).astype(np.float64) - scale(at - step).astype(np.float64)) / (2 * step)
    assert (np.diff(scale(at)) >= 0).all()
    assert np.allclose(scale.deviations(at, np.ones_like(at)), slopes, atol=0.1, rtol=1e-2)


def test_a_flat_prediction_keeps_to_the_scale_of_the_given_images(informed: MAE, tmp_path: Path) -> None:
    for values in (*informed.parameters(), *informed.buffers()):
        torch.nn.init.zeros_(values)
    given = files(tmp_path, "t1")
    made = voxels(reconstruct(informed, given, only=["t2"])["t2"])[brain()]
    assert np.allclose(made, load_study(informed, given).prepared.scales[0][0], rtol=1e-4)


# ---- uncertainty


def test_a_model_without_an_uncertainty_output_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this model was pretrained without an uncertainty output"):
        reconstruct(tiny_mae(SIZE, kind="cross"), files(tmp_path, "t1"), uncertainty=True)


def test_deviations_are_in_the_units_of_the_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_variance(monkeypatch, 0.25)
    model = fresh()
    given = files(tmp_path, "t1", "t2")
    deviation = np.median(load_study(model, given).prepared.scales, axis=0)[1]
    for kind, expected in (("zscore", 0.5), ("given", 0.5 * deviation)):
        made = reconstruct(model, given, intensity=kind, uncertainty=True)
        assert list(made) == ["t1ce", "t1ce_std", "flair", "flair_std"]
        values = voxels(made["flair_std"])
        assert np.allclose(values[brain()], expected, rtol=1e-3)
        assert not values[~brain()].any()
        assert b"deviation of SYNTHETIC FLAIR" in bytes(made["flair_std"].header["descrip"])


def regressing(*unknown: str) -> MAE:
    """A model whose regression knows every pair but those of the unknown modalities."""
    model = tiny_mae(SIZE, kind="cross", colocated=True, synthesis=8)
    assert model.synthesis is not None
    model.synthesis.fitted[:] = True
    for name in unknown:
        model.synthesis.fitted[:, STANDARD.index(name)] = False
    describe(model, PreprocessConfig(spacing=(2.0,) * 3), Provenance())
    return model


def test_a_deviation_that_is_not_known_is_not_written(tmp_path: Path) -> None:
    given = files(tmp_path, "t1", "t2")
    with pytest.warns(UnlikeTrainingWarning, match="no deviation of FLAIR is written: no training study had"):
        made = reconstruct(regressing("flair"), given, uncertainty=True)
    assert list(made) == ["t1ce", "t1ce_std", "flair"]


def test_no_deviation_is_larger_than_clipped_z_scores_allow(tmp_path: Path) -> None:
    model, given = regressing(), files(tmp_path, "t1", "t2")
    assert model.synthesis is not None
    model.synthesis.coefficients.zero_()[:, :, 1, 0] = 50.0
    made = reconstruct(model, given, intensity="zscore", uncertainty=True)
    assert np.allclose(voxels(made["flair_std"])[brain()], PreprocessConfig().clip)


def test_a_voxel_that_the_models_grid_lacks_is_not_certain(tmp_path: Path) -> None:
    prepared = load_study(fresh(), files(tmp_path, "t1")).prepared
    nowhere = replace(prepared, brain=np.zeros_like(prepared.brain))
    assert (to_native(nowhere, np.ones(prepared.shape), elsewhere=1.0) == 1).all()
    assert not to_native(nowhere, np.ones(prepared.shape)).any()


def test_what_is_not_asked_for_does_not_coarsen_what_is(tmp_path: Path) -> None:
    given = files(tmp_path, "t1", "t2")
    model, whole = regressing("flair"), regressing()
    for each in (model, whole):
        each.synthesis.coefficients.normal_(generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr]
    fine, expected = (voxels(reconstruct(each, given, only=["t1ce"])["t1ce"]) for each in (model, whole))
    assert np.array_equal(fine, expected)
    study = load_study(model, given)
    assert study.prepared.geometry.spacing == (2.0, 2.0, 2.0)


# ---- doubts


def test_a_study_like_those_of_the_training_raises_no_doubt(informed: MAE, tmp_path: Path) -> None:
    assert load_study(informed, dict(write_study(tmp_path, seed=1).images)).remarks == ()


def test_a_training_study_is_like_the_training_on_a_finer_grid_too(tmp_path: Path) -> None:
    noisy = write_study(tmp_path, ("t1",), shape=(40, 48, 32))
    rng = np.random.default_rng(0)
    voxels = picture(shape=(40, 48, 32)) + np.where(brain((40, 48, 32)), rng.normal(0, 30, (40, 48, 32)), 0)
    save(Path(str(noisy.images["t1"])), voxels.astype(np.float32))
    coarse = PreprocessConfig((4.0, 4.0, 4.0))
    model = regressing()
    population = describe_population([noisy], StudyCache(None, coarse, ("t1",)))
    describe(model, coarse, Provenance(population=population))
    study = load_study(model, dict(noisy.images))
    assert study.prepared.geometry.spacing < coarse.spacing
    assert study.remarks == ()


def doubt(model: MAE, population: Population, **changes: Any) -> MAE:
    describe(model, PreprocessConfig(), Provenance(population=replace(population, **changes)))
    return model


def test_a_brain_of_another_size_is_doubted(informed: MAE, population: Population, tmp_path: Path) -> None:
    doubt(informed, population, brain_ml=(1000.0, 1500.0))
    with pytest.warns(UnlikeTrainingWarning, match="the brain measures 2 ml, the training studies' 1000 to 1500 ml"):
        load_study(informed, files(tmp_path, "t1"))


def test_another_histogram_is_doubted_and_the_likelier_modality_named(
    informed: MAE, population: Population, tmp_path: Path
) -> None:
    given = files(tmp_path, "t1")
    skewed = np.where(brain(), np.exp(np.random.default_rng(0).normal(size=SHAPE)) + 1, 0).astype(np.float32)
    save(given["t1"], skewed)
    with pytest.warns(UnlikeTrainingWarning, match="the T1 histogram is unlike the .* check that it is what its name"):
        study = load_study(informed, given)
    values = study.prepared.images[0][study.prepared.brain]
    own = tuple(float(value) for value in np.quantile(values, LEVELS))
    doubt(informed, population, quantiles={**population.quantiles, "t2": own})
    with pytest.warns(UnlikeTrainingWarning, match="it is like their T2; were files mixed up"):
        load_study(informed, given)


def test_subsets_and_modalities_never_trained_on_are_doubted(
    informed: MAE, population: Population, tmp_path: Path
) -> None:
    doubt(informed, population, subsets={"t1+t1ce": 5, "t2": 3})
    with pytest.warns(UnlikeTrainingWarning) as caught:
        reconstruct(informed, files(tmp_path, "t1", "t2"), only=["flair"])
    said = [str(warning.message) for warning in caught]
    assert "no training study had T1, T2 together" in said
    assert "no training study had FLAIR: what is synthesised for it means nothing" in said
    assert load_study(informed, files(tmp_path, "t1")).remarks == ()  # hidden parts of what it was trained on
    with pytest.warns(UnlikeTrainingWarning, match="^no training study had FLAIR$"):
        load_study(informed, files(tmp_path, "flair"))


# ---- the truth


def test_agreement_is_perfect_up_to_an_affine_map_and_undefined_without_truth() -> None:
    truth = picture(2)
    found = agreement(np.where(brain(), 3 * truth + 7, 0).astype(np.float32), truth, brain())
    assert found.psnr_fitted > 60
    assert found.ssim == pytest.approx(1, abs=1e-4)
    assert found.psnr < 10
    assert found.covered == 1
    half = brain().copy()
    half[: len(half) // 2] = False
    assert agreement(truth, truth, half).covered == np.count_nonzero(truth[half]) / np.count_nonzero(truth)
    nothing = agreement(truth, np.zeros_like(truth), brain())
    assert math.isnan(nothing.psnr)
    assert math.isnan(nothing.covered)
    assert math.isnan(nothing.ssim)
