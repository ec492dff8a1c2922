"""The mean of the weights of several trainings: what it is, what it remembers, and which models have none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_mae, tiny_segmentation

from bmmae.averaging import average_models
from bmmae.checkpoint import describe, load_model, provenance_of, save_model
from bmmae.cli import main
from bmmae.data.preprocess import PreprocessConfig
from bmmae.errors import ConfigError
from bmmae.model.segmentation import SegmentationModel
from bmmae.provenance import Metric, Provenance

ORIGIN = Provenance(
    data="2 real studies of 2 patients",
    subjects=2,
    content_hashes=("a", "b"),
    selection_hashes=("c",),
    metrics={"WT": Metric(0.9)},
    parent="start",
    parent_hashes=("p",),
)


def trained(seed: int, **other: object) -> SegmentationModel:
    model = tiny_segmentation()
    torch.manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value))
    describe(model, PreprocessConfig(), replace(ORIGIN, **other))
    return model


def test_every_parameter_is_the_mean_and_the_models_stay() -> None:
    models = {str(seed): trained(seed) for seed in range(3)}
    before = {name: value.clone() for name, value in models["0"].state_dict().items()}
    made = average_models(models)
    assert isinstance(made, SegmentationModel)
    assert not made.training
    for name, value in made.named_parameters():
        torch.testing.assert_close(value, sum(m.get_parameter(name) for m in models.values()) / 3)  # type: ignore[arg-type]
    assert all(torch.equal(value, before[name]) for name, value in models["0"].state_dict().items())


def test_it_has_seen_what_all_have_seen_and_was_measured_on_nothing() -> None:
    other = {"data": "1 real studies of 1 patients", "subjects": 1, "content_hashes": ("d",), "selection_hashes": ()}
    made = provenance_of(average_models({"one": trained(0), "two": trained(1, **other)}))
    assert (made.content_hashes, made.selection_hashes) == (("a", "b", "d"), ("c",))
    assert {"a", "b", "d", "p"} <= set(made.seen)
    assert made.subjects is None
    assert made.metrics == {}
    assert made.changes == ("the mean of the weights of 2 trainings",)
    assert provenance_of(average_models({"one": trained(0), "two": trained(1)})).subjects == 2


def test_models_that_are_no_family_are_refused() -> None:
    one = trained(0)
    with pytest.raises(ConfigError, match="expected two models or more to average, got 'one'"):
        average_models({"one": one})
    with pytest.raises(ConfigError, match=r"did not begin at the same weights \(one start, two elsewhere\)"):
        average_models({"one": one, "two": trained(1, parent="elsewhere")})
    with pytest.raises(ConfigError, match="one random ones, two random ones"):
        average_models({"one": trained(0, parent=None), "two": trained(1, parent=None)})
    with pytest.raises(ConfigError, match="one and two are of two kinds, 'segmentation' and 'mae'"):
        average_models({"one": one, "two": tiny_mae()})
    other = tiny_segmentation(fusion="attention")
    describe(other, PreprocessConfig(spacing=(2.0, 2.0, 2.0)), ORIGIN)
    with pytest.raises(ConfigError, match=r"one and two differ in 'fusion', 'preprocessing\.spacing': only models"):
        average_models({"one": one, "two": other})
    fitted = [tiny_mae(synthesis=8) for _ in range(2)]
    for number, model in enumerate(fitted):
        describe(model, PreprocessConfig(), ORIGIN)
        assert model.synthesis is not None
        torch.nn.init.constant_(model.synthesis.coefficients, float(number))
    with pytest.raises(ConfigError, match=r"fitted and not learned in steps \('synthesis.coefficients'\)"):
        average_models({"one": fitted[0], "two": fitted[1]})


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(save_model(trained(seed), tmp_path / f"run{seed}")) for seed in range(2)]
    assert main(["average", *names, "--out", str(tmp_path / "mean")]) == 0
    assert "the mean of 2 models; measure it before you rely on it" in capsys.readouterr().out
    made, expected = load_model(tmp_path / "mean"), average_models({name: load_model(name) for name in names})
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in made.state_dict().items())
    assert main(["average", names[0], names[0], "--out", str(tmp_path / "twice")]) == 2
    assert "given twice: each model counts once" in capsys.readouterr().err
