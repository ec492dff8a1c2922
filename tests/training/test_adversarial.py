"""The alternating loop: both sides learn, and a resumed run is the uninterrupted one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from prepared_studies import prepared

from bmmae.baselines.budget import Budget
from bmmae.baselines.cyclegan import CycleConfig, CycleGAN
from bmmae.errors import CheckpointError, TrainingError
from bmmae.training.adversarial import AdversarialConfig, train_adversarially
from bmmae.training.checkpointing import list_checkpoints

TINY = CycleConfig(width=4, blocks=1, spacing=(1.0, 1.0, 1.0))
STUDIES = [prepared(seed, shape=(16, 16, 6)) for seed in range(2)]


def trained(steps: int, run_dir: Path | None = None, **changes: object) -> CycleGAN:
    torch.manual_seed(0)
    model = CycleGAN(TINY)
    config = AdversarialConfig(Budget(steps=steps), lr=1e-3, **changes)  # type: ignore[arg-type]
    assert train_adversarially(model, STUDIES, config, run_dir).steps == steps
    return model


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = trained(6)
    trained(3, tmp_path)
    resumed = trained(6, tmp_path)
    for one, other in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step-00000006"]


def test_a_finished_run_is_not_trained_further(tmp_path: Path) -> None:
    first = trained(2, tmp_path)
    again = trained(2, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))


def test_both_sides_move() -> None:
    torch.manual_seed(0)
    before = CycleGAN(TINY)
    after = trained(1)
    for part in ("generators", "discriminators"):
        pairs = zip(getattr(before, part)(), getattr(after, part)(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs)
    assert all(parameter.requires_grad for parameter in after.parameters())


@pytest.mark.slow
def test_the_cycle_closes() -> None:
    torch.manual_seed(0)
    model = CycleGAN(TINY)
    result = [
        train_adversarially(model, STUDIES, AdversarialConfig(Budget(steps=steps), lr=4e-3, seed=steps))
        for steps in (5, 60)
    ]
    assert result[1].generator_loss < 0.7 * result[0].generator_loss


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    trained(1, tmp_path)
    with pytest.raises(TrainingError, match="another training"):
        trained(2, tmp_path, seed=1)
    (list_checkpoints(tmp_path)[0] / "training_state.pt").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="cannot be read"):
        trained(2, tmp_path)
    with pytest.raises(TrainingError, match="both t1ce and flair"):
        train_adversarially(CycleGAN(TINY), [prepared(0, ("t1",))], AdversarialConfig(Budget(steps=1)))


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    model = CycleGAN(TINY)
    with torch.no_grad():
        next(iter(model.generators())).fill_(float("nan"))
    with pytest.raises(TrainingError, match="NaN or infinite at step 1"):
        train_adversarially(model, STUDIES, AdversarialConfig(Budget(steps=2)))
