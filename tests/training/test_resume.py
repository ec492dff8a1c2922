"""Stopping and going on: nothing is lost, and another training is refused."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from full_disk import files_of_at_most
from tiny_models import tiny_config, tiny_segmentation
from tiny_patients import tiny_patient_model, write_patients
from torch import nn
from toy_training import StopsAt, ToyDataset, ToyModel, ToyTask, rows, same_weights, save_toy, settings, train_toy

from bmmae.checkpoint import describe
from bmmae.data.preprocess import PreprocessConfig
from bmmae.errors import CheckpointError, ConfigError, OutputError, TrainingError
from bmmae.masking import MaskingConfig
from bmmae.model.config import ModelConfig, SynthesisConfig
from bmmae.model.mae import MAE
from bmmae.model.pretrained import PretrainedModel
from bmmae.training import OptimConfig, find_checkpoint, fit, optim
from bmmae.training.checkpointing import write_checkpoint
from bmmae.training.devices import start_accelerator
from bmmae.training.plan import make_plan
from bmmae.training.resume import Progress, restore, settings_of, training_state, write_config
from bmmae.training.run import begin_run, start_together

OPTIM = OptimConfig(lr=1e-2, warmup_steps=1)


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.mark.parametrize("at", [1, 5, 8])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path, at: int) -> None:
    whole, straight = train_toy(tmp_path / "whole")
    _, first = train_toy(tmp_path / "parts", task=StopsAt(at))
    assert (first.status, first.exit_code, first.steps) == ("stopped", 75, at)
    resumed, second = train_toy(tmp_path / "parts", resume=True)
    assert second == straight
    assert same_weights(whole, resumed)
    for key in ("train/loss", "train/error", "val/error", "lr", "grad_norm"):
        assert rows(tmp_path / "parts", key) == rows(tmp_path / "whole", key)


def test_a_stop_between_log_lines_loses_nothing(tmp_path: Path) -> None:
    train_toy(tmp_path / "whole", log_every=6)
    train_toy(tmp_path / "parts", log_every=6, task=StopsAt(8))
    train_toy(tmp_path / "parts", log_every=6, resume=True)
    assert dict(rows(tmp_path / "parts")) == pytest.approx(dict(rows(tmp_path / "whole")))


def test_an_evaluation_that_was_cut_short_is_made_after_the_resume(tmp_path: Path) -> None:
    train_toy(tmp_path / "whole")
    _, first = train_toy(tmp_path / "parts", task=StopsAt(2, during="evaluation"))
    assert (first.status, first.steps) == ("stopped", 4)
    assert rows(tmp_path / "parts", "val/error") == []
    train_toy(tmp_path / "parts", resume=True)
    assert rows(tmp_path / "parts", "val/error") == rows(tmp_path / "whole", "val/error")


def test_an_evaluation_made_after_the_last_checkpoint_is_written_down_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToyTask, "selection", ("error", "max"))  # it falls: no later evaluation is the best and saved
    train_toy(tmp_path / "whole", checkpoint_every=99)
    train_toy(tmp_path / "parts", checkpoint_every=99, task=StopsAt(4, during="evaluation"))  # at step 8
    with pytest.raises(TrainingError):  # step 8 is evaluated now, and then the run dies
        train_toy(tmp_path / "parts", checkpoint_every=99, dataset=ToyDataset(broken=0), resume=True)
    train_toy(tmp_path / "parts", checkpoint_every=99, resume=True)
    assert rows(tmp_path / "parts", "val/error") == rows(tmp_path / "whole", "val/error")


def test_the_last_evaluation_cut_short_is_not_a_finished_run(tmp_path: Path) -> None:
    _, first = train_toy(tmp_path, steps=4, task=StopsAt(1, during="evaluation"))
    assert (first.status, first.steps) == ("stopped", 4)
    _, second = train_toy(tmp_path, steps=4, resume="auto")
    assert (second.status, second.best_step) == ("finished", 4)


def test_an_interrupt_from_the_keyboard_saves_too(tmp_path: Path) -> None:
    _, result = train_toy(tmp_path, task=StopsAt(3, number=signal.SIGINT))
    assert (result.status, result.exit_code) == ("interrupted", 130)
    assert find_checkpoint(tmp_path, "last").name == "step-00000003"


def test_the_time_limit_stops_with_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, result = train_toy(tmp_path, time_limit_hours=1e-9, progress=True)
    assert (result.status, result.steps) == ("stopped", 1)
    assert "stopped at step 1 of 12: the same command with --train.resume auto goes on" in capsys.readouterr().out
    assert find_checkpoint(tmp_path, "last").name == "step-00000001"


def test_a_finished_run_stays_as_it_is(tmp_path: Path) -> None:
    whole, _ = train_toy(tmp_path)
    again, result = train_toy(tmp_path, resume="auto")
    assert same_weights(whole, again)
    assert result.status == "finished"
    assert len(rows(tmp_path)) == 12


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    train_toy(tmp_path, steps=2)
    with pytest.raises(TrainingError, match=r"already holds a run: set train.resume=true"):
        train_toy(tmp_path, steps=2)


def test_there_must_be_something_to_resume(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"holds no checkpoint.*train.resume=auto"):
        train_toy(tmp_path, resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "train.seed was 3 and is now 4"),
        ({"batch_size": 2}, r"global batch .* was 4 and is now 2"),
        ({"steps": 20}, r"schedule steps .* was 4 and is now 20"),
        ({"dataset": ToyDataset(30)}, "number of training samples was 22 and is now 30"),
        ({"optim": OptimConfig(lr=2.0, warmup_steps=1)}, "optim.lr was 0.01 and is now 2.0"),
        ({"optim": replace(OPTIM, weight_decay=0.5)}, "optim.weight_decay was 0.05 and is now 0.5. Restore these, or"),
        ({"optim": replace(OPTIM, betas=(0.8, 0.9))}, r"optim.betas was \[0.9, 0.95\] and is now \[0.8, 0.9\]"),
        ({"optim": replace(OPTIM, kind="muon")}, "optim.kind was 'adamw' and is now 'muon'"),
        ({"optim": replace(OPTIM, schedule="constant")}, "optim.schedule was 'cosine' and is now 'constant'"),
        ({"optim": replace(OPTIM, clip_norm=None)}, "optim.clip_norm was 1.0 and is now None"),
    ],
)
def test_another_training_cannot_be_resumed(
    tmp_path: Path, change: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim, "_is_orthogonal", lambda _name, value, _config: value.ndim == 2)  # a toy has no blocks
    train_toy(tmp_path, steps=4)
    with pytest.raises(TrainingError, match=message):
        train_toy(tmp_path, **({"steps": 4, "resume": True} | change))  # type: ignore[arg-type]


def test_of_many_differences_the_first_are_named(tmp_path: Path) -> None:
    train_toy(tmp_path, steps=4)
    other = OptimConfig(lr=2.0, weight_decay=0.5, betas=(0.8, 0.9), clip_norm=None, eps=1e-6, final_lr_fraction=0.5)
    with pytest.raises(TrainingError, match=r"train\.seed was 3 and is now 4; .*; and 3 more\. Restore these"):
        train_toy(tmp_path, steps=8, seed=4, optim=other, resume=True)


def test_muon_with_nothing_to_update_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"optim\.kind is muon, but no matrix of a transformer block is trained here"):
        train_toy(tmp_path, steps=1, optim=replace(OPTIM, kind="muon"))


def test_other_validation_samples_are_refused_for_they_chose_the_best_checkpoint(tmp_path: Path) -> None:
    class Named(ToyDataset):
        identity = "one"

    def start(resume: bool, validation: ToyDataset) -> None:
        given = {"train": settings(steps=2, resume=resume), "optim": OPTIM, "run_dir": tmp_path, "save_model": save_toy}
        fit(ToyModel(), ToyTask(), ToyDataset(), validation, **given)  # type: ignore[arg-type]

    other = Named()
    other.identity = "other"
    start(False, Named())
    with pytest.raises(TrainingError, match=r"validation samples \(data\.cohort, .* was 'one' and is now 'other'"):
        start(True, other)
    start(True, Named())


def test_a_refused_configuration_is_not_written_down(tmp_path: Path) -> None:
    train_toy(tmp_path, steps=4)
    before = (tmp_path / "config.yaml").read_text()
    with pytest.raises(TrainingError, match=r"optim\.eps"):
        train_toy(tmp_path, steps=4, optim=replace(OPTIM, eps=1e-6), resume=True)
    assert (tmp_path / "config.yaml").read_text() == before


def test_what_may_change_does(tmp_path: Path) -> None:
    train_toy(tmp_path, steps=4)
    longer = replace(OPTIM, schedule_steps=4)  # what it was
    with pytest.warns(UserWarning, match="train.steps: 4 -> 6"):
        _, result = train_toy(
            tmp_path, steps=6, optim=longer, evaluate_every=2, workers=1, log_every=2, keep=1, resume=True
        )
    assert (result.status, result.steps) == ("finished", 6)


def test_a_run_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    train_toy(tmp_path, task=StopsAt(4))
    (folder,) = (tmp_path / "checkpoints").glob("step-*")
    state = torch.load(folder / "training_state.pt", weights_only=True)
    for key in ("optim.kind", "optim.weight_decay", "optim.betas", "optim.eps", "optim.clip_norm"):
        del state["identity"][key]
    shutil.rmtree(tmp_path / "checkpoints")
    write_checkpoint(tmp_path, 4, nn.Linear(1, 1), state, save_toy)
    _, result = train_toy(tmp_path, resume=True)
    assert result.status == "finished"


MODEL, MASKING, PREPROCESS = tiny_config(kind="cross"), MaskingConfig(), PreprocessConfig()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": replace(MODEL, encoder=replace(MODEL.encoder, heads=4))}, "model.encoder.heads was 2 and is now 4"),
        ({"model": replace(MODEL, encoder=replace(MODEL.encoder, rotary=True))}, "model.encoder.rotary was False"),
        ({"model": replace(MODEL, decoder=replace(MODEL.decoder, colocated=True))}, "model.decoder.colocated was Fa"),
        ({"model": replace(MODEL, targets="patches")}, "model.targets was 'voxels' and is now 'patches'"),
        ({"preprocess": PreprocessConfig(spacing=(2.0, 2.0, 2.0))}, r"preprocess.spacing was \[1.0, 1.0, 1.0\]"),
        ({"masking": MaskingConfig(visible_share=0.5)}, "masking.visible_share was 0.25 and is now 0.5"),
    ],
)
def test_another_model_preprocessing_or_masking_is_refused_though_the_weights_fit(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    def start(resume: bool, model: ModelConfig, preprocess: PreprocessConfig, masking: MaskingConfig) -> None:
        describe(made := MAE(model), preprocess)
        plan = make_plan(settings(), OPTIM, 22, 1)
        begin_run(
            start_accelerator(),
            made,
            ToyTask(),
            None,
            plan=plan,
            train=settings(resume=resume),
            optim=OPTIM,
            run_dir=tmp_path,
            save_model=MAE.save_pretrained,
            masking=masking,
        ).save()

    given = {"model": MODEL, "preprocess": PREPROCESS, "masking": MASKING}
    start(False, **given)
    with pytest.raises(TrainingError, match=message):
        start(True, **given | change)


def test_a_regression_that_was_fitted_before_robust_scales_is_not_read_on_one(tmp_path: Path) -> None:
    made, robust = (MAE(replace(MODEL, synthesis=SynthesisConfig(8, robust=names))) for names in ((), ("t1",)))
    optimizer = torch.optim.AdamW(made.parameters())
    told = settings_of(made)
    del told["model.synthesis.robust"]
    saved = training_state(made, optimizer, None, progress=Progress(), window={}, identity=told)
    folder = write_checkpoint(tmp_path, 1, made, saved, lambda _, folder: (folder / "w").touch())
    with pytest.raises(TrainingError, match=r"model\.synthesis\.robust was \[\] and is now \['t1'\]"):
        restore(folder, robust, optimizer, None, settings_of(robust))
    restore(folder, made, optimizer, None, settings_of(made))


@pytest.mark.parametrize(("made", "option"), [(MAE(MODEL), "--start"), (tiny_segmentation(), "--model")])
def test_other_weights_at_the_start_are_refused_by_the_name_of_their_option(
    tmp_path: Path, made: PretrainedModel, option: str
) -> None:
    """Saved runs call them by the same words."""
    optimizer = torch.optim.AdamW(made.parameters())
    key = "encoder at the start (--model)"
    assert key in settings_of(made)
    saved = training_state(made, optimizer, None, progress=Progress(), window={}, identity={key: "one"})
    folder = write_checkpoint(tmp_path, 1, made, saved, lambda _, folder: (folder / "w").touch())
    with pytest.raises(TrainingError, match=rf"encoder at the start \({option}\) was 'one' and is now 'other'"):
        restore(folder, made, optimizer, None, {key: "other"})


def test_a_fine_tuned_model_is_known_by_its_settings_too() -> None:
    found = settings_of(tiny_segmentation(fusion="attention"))
    assert (found["fusion"], found["width"], found["model.encoder.heads"]) == ("attention", 4, 2)


def test_what_is_fitted_is_no_setting_but_names_and_classes_are(tmp_path: Path) -> None:
    one, two = (tiny_patient_model(write_patients(tmp_path / str(count), count)) for count in (6, 7))
    found = settings_of(one)
    assert one.config != two.config
    assert found == settings_of(two)
    assert found["targets"] == ["subtype", "site", "hazard", "cox", "survival_class"]
    assert found["targets.subtype.classes"] == ["NSCLC", "SCLC"]
    assert found["clinical.sex.categories"] == ["F", "M"]
    own = settings_of(tiny_segmentation(coding="own", classes={"rim": 2}, united={"ET": (2,), "TC": (2,), "WT": (2,)}))
    assert (own["regions"], own["classes.rim"], own["united.WT"]) == (["ET", "TC", "WT"], 2, [2])


def test_the_same_global_batch_may_be_cut_differently_on_resume(tmp_path: Path) -> None:
    train_toy(tmp_path, steps=4, task=StopsAt(1))
    with pytest.warns(UserWarning, match=r"train.accumulate: 1 -> 2; train.batch_size: 4 -> 2"):
        _, result = train_toy(tmp_path, steps=4, batch_size=2, accumulate=2, resume=True)
    assert result.status == "finished"


def test_another_model_cannot_be_resumed(tmp_path: Path) -> None:
    train_toy(tmp_path, steps=2)
    with pytest.raises(CheckpointError, match=r"does not fit the model as configured now.*config.yaml"):
        fit(
            nn.Linear(2, 2),
            ToyTask(),
            ToyDataset(),
            None,
            train=settings(steps=2, resume=True),
            optim=OptimConfig(lr=1e-2, warmup_steps=1),
            run_dir=tmp_path,
            save_model=save_toy,
        )


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(tmp_path: Path) -> None:
    whole, _ = train_toy(tmp_path / "whole")
    train_toy(tmp_path / "parts")
    (tmp_path / "parts" / "checkpoints" / "step-00000012" / "training_state.pt").write_text("torn")
    with pytest.warns(UserWarning, match="step-00000012 is damaged"):
        resumed, _ = train_toy(tmp_path / "parts", resume=True)
    assert same_weights(whole, resumed)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_a_best_checkpoint_that_is_gone_is_looked_for_anew(tmp_path: Path) -> None:
    _, first = train_toy(tmp_path, task=StopsAt(6))
    shutil.rmtree(tmp_path / "checkpoints" / f"step-{first.best_step:08d}")
    with pytest.warns(UserWarning, match=r"best checkpoint \(step 4\) is gone"):
        _, second = train_toy(tmp_path, resume=True)
    assert find_checkpoint(tmp_path, "best").name == f"step-{second.best_step:08d}"


def test_the_index_says_how_the_run_stands(tmp_path: Path) -> None:
    train_toy(tmp_path, task=StopsAt(5))
    index = json.loads((tmp_path / "checkpoints" / "index.json").read_text())
    assert (index["status"], index["step"], index["last"]) == ("stopped", 5, "step-00000005")
    assert index["best_metric"]["name"] == "error"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            ("at step 0", "same"),
            r"process 0 starts at step 8, process 1 at step 0\. .*\(`out`\) on storage that they sh",
        ),
        (("not at all", "same"), r"process 0 starts at step 8, process 1 not at all\. "),
        (("at step 8", "other"), r"process 1 has another configuration or other data than process 0\. "),
    ],
)
def test_processes_that_start_from_different_places_are_refused(
    monkeypatch: pytest.MonkeyPatch, other: tuple[str, str], message: str
) -> None:
    def gather(own: tuple[str, str]) -> list[tuple[str, str]]:
        return [own, (other[0], own[1] if other[1] == "same" else "another digest")]

    monkeypatch.setattr("bmmae.training.run.gather", gather)
    with pytest.raises(TrainingError, match=message):
        start_together(lambda: (Progress(step=8), {}), {"optim.lr": 0.1})


def test_a_full_disk_leaves_the_configuration_as_it_was(tmp_path: Path) -> None:
    write_config(tmp_path, {"train": {"steps": 4}})
    before = (tmp_path / "config.yaml").read_text()
    with files_of_at_most(5), pytest.warns(UserWarning, match="has changed"), pytest.raises(OutputError):
        write_config(tmp_path, {"train": {"steps": 6}})
    assert (tmp_path / "config.yaml").read_text() == before


@pytest.mark.parametrize("content", [b"train: {steps: 4", b"- train", b"", b"train: {seed: 1}\n\xff\xfe"])
def test_a_damaged_configuration_in_the_run_folder_is_told_and_written_anew(tmp_path: Path, content: bytes) -> None:
    train_toy(tmp_path, steps=4)
    whole = (tmp_path / "config.yaml").read_bytes()
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.warns(UserWarning, match=r"config\.yaml does not hold a run's configuration .*: it is written anew"):
        train_toy(tmp_path, steps=4, resume=True)
    assert (tmp_path / "config.yaml").read_bytes() == whole.replace(b"resume: false", b"resume: true")


def test_a_run_folder_that_was_moved_goes_on_without_a_warning(tmp_path: Path) -> None:
    write_config(tmp_path / "old", {"out": tmp_path / "old", "train": {"steps": 4}})
    (tmp_path / "old").rename(tmp_path / "new")
    write_config(tmp_path / "new", {"out": tmp_path / "new", "train": {"steps": 4}})
    assert "new" in (tmp_path / "new" / "config.yaml").read_text()
