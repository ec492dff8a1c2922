"""Pretrain a masked autoencoder: data, model, task and optimiser are put together here, then `fit` runs.

accelerate launch pretrain/train.py --config configs/pretrain/tiny.yaml --data.cohort cohort.csv
"""

from dataclasses import asdict
from functools import partial

import torch

from bmmae.checkpoint import describe
from bmmae.config import PretrainConfig, parse, script
from bmmae.data.cache import StudyCache
from bmmae.data.caching import sound_studies
from bmmae.data.dataset import StudyDataset, View
from bmmae.data.origin import training_provenance
from bmmae.data.splits import warn_of_absent
from bmmae.model.mae import MAE
from bmmae.report import save_progress
from bmmae.tasks.reconstruction import ReconstructionTask, fit_synthesis
from bmmae.training import fit


def main() -> int:
    """Run; returns the exit code of `bmmae.training.fit`."""
    config = parse(PretrainConfig)
    seed = config.train.seed

    cohort = config.data.read(config.model.modalities)
    cache = StudyCache(config.data.cache, config.preprocess, config.model.modalities, config.data.memory_mb)
    parts = config.data.divide(cohort, seed, cache)
    train, validation = (sound_studies(part, cache, skip_broken=config.data.skip_broken) for part in parts)
    warn_of_absent(train, config.model.modalities)
    view = View.of(config.model)
    training_data = StudyDataset(train, view, cache, seed=seed, masking=config.masking, augment=config.augment)
    validation_data = StudyDataset(validation, view, cache, seed=seed, masking=config.masking)

    torch.manual_seed(seed)
    model = MAE(config.model)
    fit_synthesis(model, training_data.studies, config.preprocess)
    describe(model, config.preprocess, training_provenance(cohort, training_data.studies, cache=cache))

    result = fit(
        model,
        ReconstructionTask(config.model),
        training_data,
        validation_data,
        train=config.train,
        optim=config.optim,
        run_dir=config.out,
        save_model=MAE.save_pretrained,
        resolved_config=asdict(config),
        picture=partial(save_progress, data=validation_data, folder=config.out / "pictures"),
    )
    return result.exit_code


if __name__ == "__main__":
    script(main)
