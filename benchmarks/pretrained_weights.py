"""Pretrained weights for comparisons at equal compute: the library's recipe and the published one, at one size.

Both have an encoder of the size of the recipe `tiny`, the same studies, windows, batch, peak learning rate and
computing seconds. What differs is what the recipes differ in: positions, masking, decoder, tokens, aims,
augmentation, weight decay.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from budgeted import Training, train
from harness import ROOT
from learning_data import WORK, Source

from bmmae.baselines.budget import Budget, computing_seconds
from bmmae.config import PretrainConfig, parse
from bmmae.data.cohort import Study
from bmmae.data.dataset import StudyDataset, View
from bmmae.model.mae import MAE
from bmmae.tasks.reconstruction import ReconstructionTask, fit_synthesis

Recipe = Literal["ours", "published"]
TRAINING = "training.json"
BATCH = 8
"""Of both recipes wherever they are compared. `configs/pretrain/tiny.yaml` has since taken a smaller one, the change
that gained most: what is measured at this one is less than it does."""
WARMUP = 50
"""Steps. Not used, since `budgeted` warms up over a share of the budget; finished cells are found by it."""


def configuration(recipe: Recipe, window: tuple[int, int, int], batch_size: int | None = BATCH) -> PretrainConfig:
    """Return a recipe's configuration file, the published one brought to the size of `tiny`.

    Args:
        recipe: Ours or the published one.
        window: Of the model, in voxels.
        batch_size: None for that of `tiny` as it is.
    """
    tiny = _read("tiny")
    train = replace(tiny.train, batch_size=batch_size or tiny.train.batch_size)
    if recipe == "ours":
        optim = replace(tiny.optim, warmup_steps=WARMUP)
        return replace(tiny, model=replace(tiny.model, size=window), optim=optim, train=train)
    published = _read("published")
    small, core = tiny.model.decoder, tiny.model.encoder
    decoder = replace(published.model.decoder, dim=small.dim, depth=small.depth, heads=small.heads)
    encoder = replace(
        published.model.encoder, dim=core.dim, depth=core.depth, heads=core.heads, mlp_ratio=core.mlp_ratio
    )
    model = replace(published.model, patch=tiny.model.patch, size=window, encoder=encoder, decoder=decoder)
    optim = replace(published.optim, lr=tiny.optim.lr)
    train = replace(published.train, batch_size=train.batch_size)
    return replace(published, model=model, optim=optim, train=train)


@functools.cache
def _read(name: str) -> PretrainConfig:
    return parse(PretrainConfig, ["--config", str(ROOT / "configs" / "pretrain" / f"{name}.yaml"), *_UNUSED])


_UNUSED = ("--data.cohort", "none.csv")
"""A configuration names a cohort; here the studies come from elsewhere."""


def pretrain(
    config: PretrainConfig, source: Source, studies: Sequence[Study], budget: Budget, *, seed: int = 0
) -> tuple[MAE, Training]:
    """Pretrain on some studies alone; nobody else's images are seen, and the closed-form part's time is counted."""
    torch.manual_seed(seed)
    model = MAE(config.model)
    dataset = StudyDataset(
        studies, View.of(config.model), source.cache, seed=seed, masking=config.masking, augment=config.augment
    )
    started = computing_seconds()
    fit_synthesis(model, studies, source.cache.config)
    if budget.seconds is not None:
        budget = Budget(seconds=max(1e-3, budget.seconds - (computing_seconds() - started)))
    task = ReconstructionTask(config.model)
    batch_size = min(config.train.batch_size, len(dataset))
    done = train(model, task, dataset, budget, optim=config.optim, batch_size=batch_size, seed=seed)
    return model, done


def random_weights(source: Source, *, seed: int = 0) -> MAE:
    """Return the same encoder before any training."""
    torch.manual_seed(seed)
    return MAE(configuration("ours", source.window).model).eval()


UNTOLD = ("single_share=0.0, ", "robust=(), ", "robust=('t1',), ")
"""Settings that came later and that weights trained by steps do not depend on: the recipes leave the first off, and
the others are the voxel-wise regression's."""


def form_of(recipe: Recipe, source: Source, batch_size: int | None = BATCH) -> str:
    """Return what tells one form of a recipe from another: weights of a changed recipe are other weights."""
    config = configuration(recipe, source.window, batch_size)
    parts = (config.model, config.masking, config.augment, config.optim, config.train.batch_size)
    words = functools.reduce(lambda text, setting: text.replace(setting, ""), UNTOLD, repr(parts))
    return hashlib.sha256(words.encode()).hexdigest()[:8]


def weights_of(
    recipe: Recipe,
    source: Source,
    studies: Sequence[Study],
    *,
    fold: str,
    seconds: float,
    seed: int = 0,
    batch_size: int | None = BATCH,
    work: Path = WORK / "pretrained",
) -> tuple[Path, dict[str, Any]]:
    """Return weights pretrained on these studies alone, and how long they were trained: kept ones, else made now.

    Args:
        recipe: Ours or the published one.
        source: The data.
        studies: The fold's training studies.
        fold: Its name.
        seconds: Of computing, the closed-form part included.
        seed: Of weights and samples.
        batch_size: None for that of `tiny` as it is.
        work: Where weights are kept.
    """
    folder = work / f"{source.name}-{recipe}-{form_of(recipe, source, batch_size)}-fold{fold}-seed{seed}-{seconds:g}s"
    note = folder / TRAINING
    if not note.exists():
        config = configuration(recipe, source.window, batch_size)
        model, training = pretrain(config, source, studies, Budget(seconds=seconds), seed=seed)
        work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=work) as partial:
            made = Path(partial) / folder.name
            model.save_pretrained(made)
            write_note(made, training.steps, training.seconds)
            with contextlib.suppress(OSError):  # another process was faster, and its weights are as good
                made.rename(folder)
    return folder, json.loads(note.read_text())


def write_note(folder: Path, steps: int, seconds: float) -> None:
    """Say beside weights how they were trained."""
    folder.mkdir(parents=True, exist_ok=True)
    note = {"steps": steps, "training_seconds": round(seconds, 1)}
    (folder / TRAINING).write_text(json.dumps(note) + "\n")
