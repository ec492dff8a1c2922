"""Pretrain a masked autoencoder: data, model, task and optimiser are put together here, then `fit` runs.

accelerate launch pretrain/train.py --config configs/pretrain/tiny.yaml --data.cohort cohort.csv
"""

from dataclasses import asdict
from pathlib import Path

from torch import nn

from bmmae.checkpoint import save_model
from bmmae.config import PretrainConfig, parse, script
from bmmae.data.cache import StudyCache
from bmmae.data.cohort import read_cohort
from bmmae.data.dataset import StudyDataset, View
from bmmae.data.splits import train_and_validation
from bmmae.model.mae import MAE
from bmmae.tasks.reconstruction import ReconstructionTask
from bmmae.training import fit, seed_everything


def main() -> int:
    """Run; returns the exit code of `bmmae.training.fit`."""
    config = parse(PretrainConfig)
    cohort = read_cohort(config.data.cohort, config.model.modalities)
    train, validation = train_and_validation(
        cohort, validation_share=config.data.validation_share, seed=config.train.seed
    )
    cache = StudyCache(config.data.cache, config.preprocess, config.model.modalities)
    view = View.of(config.model)
    seed = config.train.seed
    training_data = StudyDataset(train, view, cache, seed=seed, masking=config.masking, augment=config.augment)
    validation_data = StudyDataset(validation, view, cache, seed=seed, masking=config.masking)

    seed_everything(seed)
    model = MAE(config.model)
    task = ReconstructionTask(config.model)

    def save(trained: nn.Module, folder: Path) -> None:
        save_model(trained, folder, preprocessing=config.preprocess, provenance=provenance)

    result = fit(
        model,
        task,
        training_data,
        validation_data,
        train=config.train,
        optim=config.optim,
        run_dir=config.out,
        save_model=save,
        resolved_config=asdict(config),
    )
    return result.exit_code


if __name__ == "__main__":
    script(main)
