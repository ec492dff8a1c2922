"""The pretraining task: only hidden, scanned tissue counts, and nothing hidden is read."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import flags, tiny_mae, volumes
from tiny_studies import write_study

from bmmae.config import PretrainConfig, parse
from bmmae.data.loaders import Batch
from bmmae.data.preprocess import PreprocessConfig
from bmmae.modalities import STANDARD
from bmmae.model.mae import MAE
from bmmae.model.synthesis import Examples, VoxelSynthesis
from bmmae.patches import patchify, unpatchify
from bmmae.tasks.reconstruction import ReconstructionTask, fit_synthesis
from bmmae.tasks.task import Task, tensors


def batch(seed: int = 0) -> Batch:
    """Three samples with different subsets, partial coverage and brains that fill half their windows."""
    available = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 1, 1, 0]]).bool()
    valid = flags(3, 4, 16, 16, 16, share=0.8, seed=seed) & available[:, :, None, None, None]
    mask = ~(flags(3, 4, 8, seed=seed + 1) & available[:, :, None])
    decode = mask & available[:, :, None] & flags(3, 4, 8, share=0.7, seed=seed + 2)
    brain = flags(3, 16, 16, 16, seed=seed + 3)
    return {
        "images": torch.where(valid & brain[:, None], volumes(3, seed=seed), 0),
        "available": available,
        "valid": valid,
        "brain": brain,
        "mask": mask,
        "decode": decode,
    }


@pytest.mark.parametrize("tissue_only", [True, False])
def test_the_loss_is_the_error_of_decoded_voxels_that_count(tissue_only: bool) -> None:
    model, data = tiny_mae(kind="cross"), batch()
    with torch.no_grad():
        output = ReconstructionTask(replace(model.config, tissue_only=tissue_only)).step(model, data)
    images, mask, decode, valid, brain = tensors(data, "images", "mask", "decode", "valid", "brain")
    predicted = patchify(model.predict(images, ~mask, decode).detach(), (8, 8, 8))
    counted = patchify((valid & brain[:, None] if tissue_only else valid).float(), (8, 8, 8)) > 0
    target = patchify(images, (8, 8, 8))
    error, count = 0.0, 0
    for b, m, place in decode.nonzero().tolist():
        here = counted[b, m, place]
        error += float(((predicted[b, m, place] - target[b, m, place])[here] ** 2).sum())
        count += int(here.sum())
    assert float(output.loss_sum.detach()) == pytest.approx(error, rel=1e-4)
    assert float(output.loss_count) == count


def test_the_modalities_sum_to_the_loss() -> None:
    model = tiny_mae(kind="cross")
    output = ReconstructionTask(model.config).step(model, batch())
    errors = {name: pair for name, pair in output.metrics.items() if name.startswith("mse_")}
    assert list(errors) == ["mse_t1", "mse_t1ce", "mse_t2", "mse_flair"]
    for place, total in enumerate((output.loss_sum, output.loss_count)):
        parts = sum(float(pair[place]) for pair in errors.values())
        assert parts == pytest.approx(float(total.detach()), rel=1e-5)


def test_what_is_hidden_and_not_decoded_changes_nothing() -> None:
    model, data = tiny_mae(kind="cross", colocated=True, synthesis=8), batch()
    images, mask, decode = tensors(data, "images", "mask", "decode")
    unseen = unpatchify((mask & ~decode)[..., None].float().expand(-1, -1, -1, 512), (2, 2, 2), (8, 8, 8)) > 0
    assert unseen.any()
    task = ReconstructionTask(model.config)
    changed = task.step(model, {**data, "images": torch.where(unseen, 1e3, images)})
    assert torch.equal(changed.loss_sum, task.step(model, data).loss_sum)


def test_targets_influence_the_loss_and_never_the_prediction() -> None:
    model, data = tiny_mae(kind="cross", colocated=True, synthesis=8), batch()
    seen: list[torch.Tensor] = []
    model.register_forward_hook(lambda _, __, output: seen.append(output.values))
    images, decode = tensors(data, "images", "decode")
    targets = unpatchify(decode[..., None].float().expand(-1, -1, -1, 512), (2, 2, 2), (8, 8, 8)) > 0
    task = ReconstructionTask(model.config)
    losses = [task.step(model, {**data, "images": x}).loss_sum for x in (images, torch.where(targets, 5.0, images))]
    assert torch.equal(seen[0], seen[1])
    assert losses[0] != losses[1]


def test_a_batch_without_brain_counts_nothing_and_has_gradients() -> None:
    model, data = tiny_mae(kind="cross"), batch()
    output = ReconstructionTask(model.config).step(model, {**data, "brain": torch.zeros(3, 16, 16, 16) > 0})
    output.loss_sum.backward()
    assert (float(output.loss_sum.detach()), float(output.loss_count)) == (0, 0)
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_two_halves_of_a_batch_sum_to_the_whole() -> None:
    model, data = tiny_mae(kind="self"), batch()
    task = ReconstructionTask(model.config)
    whole = task.step(model, data)
    parts = [task.step(model, {key: value[rows] for key, value in data.items()}) for rows in (slice(1), slice(1, 3))]
    assert float(sum(part.loss_sum.detach() for part in parts)) == pytest.approx(
        float(whole.loss_sum.detach()), rel=1e-4
    )
    assert float(sum(part.loss_count for part in parts)) == float(whole.loss_count)


def test_evaluation_is_the_same_as_a_step() -> None:
    model: MAE = tiny_mae()
    task = ReconstructionTask(model.config)
    assert isinstance(task, Task)
    assert torch.equal(task.evaluate(model, batch()).loss_sum, task.step(model, batch()).loss_sum)


def test_entries_that_are_missing_or_no_tensors_are_refused() -> None:
    with pytest.raises(KeyError, match="label"):
        tensors(batch(), "label")
    with pytest.raises(
        KeyError, match=r"without valid, of images, flags: unpack it first, with bmmae.data.packing.unpack"
    ):
        tensors({"images": torch.zeros(1), "flags": torch.zeros(1)}, "images", "valid")
    with pytest.raises(TypeError, match=r"expected tensors under subject, got \['list'\]"):
        tensors({"subject": ["a"]}, "subject")


def test_the_padding_of_mixed_subsets_is_reported() -> None:
    model, data = tiny_mae(kind="cross"), batch()
    (mask,) = tensors(data, "mask")
    counts = (~mask).sum((1, 2))
    padding, positions = ReconstructionTask(model.config).step(model, data).metrics["padding_share"]
    assert float(positions) == 3 * int(counts.max())
    assert float(padding) == 3 * int(counts.max()) - int(counts.sum())


def test_the_options_of_the_pretraining_page_are_read() -> None:
    root = Path(__file__).parents[2]
    block = (root / "pretrain" / "README.md").read_text().partition("## What can be varied")[2].split("```")[1]
    words = [word for line in block.splitlines()[1:] for word in shlex.split(line, comments=True)]
    tiny = ["--config", str(root / "configs" / "pretrain" / "tiny.yaml"), "--data.cohort", "none.csv"]
    plain, changed = parse(PretrainConfig, tiny), parse(PretrainConfig, [*tiny, *words])
    assert changed.model == replace(
        plain.model,
        encoder=replace(plain.model.encoder, rotary=False),
        surroundings=(),
        targets="patches",
    )
    assert changed.masking == replace(plain.masking, visible_share=0.25)
    assert changed.optim == replace(plain.optim, kind="muon")


def test_standardised_patches_change_the_loss_and_no_metric() -> None:
    model, data = tiny_mae(kind="cross"), batch()
    with torch.no_grad():
        voxels = ReconstructionTask(model.config).step(model, data)
        patches = ReconstructionTask(replace(model.config, targets="patches")).step(model, data)
    assert float(patches.loss_sum) != pytest.approx(float(voxels.loss_sum), rel=1e-3)
    assert patches.metrics == voxels.metrics


def test_visits_of_a_patient_are_in_one_half_of_the_regression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors that the variance is fitted to are on patients, not visits, that the coefficients have not seen."""
    visits = [
        replace(write_study(tmp_path / str(i), ("t1", "t2"), seed=i), group=patient) for i, patient in enumerate("aabb")
    ]
    model = tiny_mae((24, 24, 24), kind="cross", synthesis=8)
    seen: list[Examples] = []
    monkeypatch.setattr(VoxelSynthesis, "fit", lambda _, examples: seen.append(examples))
    fit_synthesis(model, visits, PreprocessConfig())
    (examples,) = seen
    first = examples.half.nonzero()[:, 0]
    assert torch.equal(first, torch.arange(len(first)))  # the first patient's two visits, then the other's
    assert len(first) == pytest.approx(len(examples.half) / 2, rel=0.1)


def test_the_regression_sees_rare_sets_of_sequences_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three studies in a hundred have FLAIR: evenly spaced ones would miss it."""
    common = write_study(tmp_path / "common", ("t1", "t2"))
    rare = write_study(tmp_path / "rare", ("t1", "flair"))
    studies = [replace(rare if i in (1, 50, 52) else common, group=str(i)) for i in range(100)]
    model = tiny_mae((24, 24, 24), kind="cross", synthesis=8)
    seen: list[Examples] = []
    monkeypatch.setattr(VoxelSynthesis, "fit", lambda _, examples: seen.append(examples))
    fit_synthesis(model, studies, PreprocessConfig())
    (examples,) = seen
    with_flair = examples.given[:, STANDARD.index("flair")]
    assert float(with_flair.float().mean()) == pytest.approx(2 / 34, rel=0.1)
    assert len(examples.half[with_flair].unique()) == 2
