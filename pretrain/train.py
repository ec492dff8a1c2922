"""Pretrain a masked autoencoder: data, model, task and optimiser are put together here, then `fit` runs.

accelerate launch pretrain/train.py --config configs/pretrain/tiny.yaml --data.cohort cohort.csv
"""

from dataclasses import asdict
from functools import partial

import torch

from bmmae.checkpoint import describe, load_model, provenance_of, warn_of_other_images
from bmmae.config import PretrainConfig, parse, script
from bmmae.data.cache import StudyCache
from bmmae.data.caching import sound_studies
from bmmae.data.dataset import StudyDataset, View
from bmmae.data.origin import training_provenance
from bmmae.data.splits import warn_of_absent
from bmmae.evaluation.overlap import warn_of_overlap
from bmmae.growth import continue_from
from bmmae.model.mae import MAE
from bmmae.report import save_progress
from bmmae.tasks.reconstruction import ReconstructionTask, fit_synthesis
from bmmae.training import fit, look_ahead


def main() -> int:
    """Run; returns the exit code of `bmmae.training.fit`."""
    config = parse(PretrainConfig)
    look_ahead(config.train, config.optim, config.out)
    seed = config.train.seed
    torch.manual_seed(seed)
    model = MAE(config.model)
    inherited = None
    if config.start is not None:
        pretrained = load_model(config.start)
        continue_from(model, pretrained)
        warn_of_other_images(pretrained, config.preprocess)
        inherited = provenance_of(pretrained)

    cohort = config.data.read(config.model.modalities)
    cache = StudyCache(config.data.cache, config.preprocess, config.model.modalities, config.data.memory_mb)
    parts = config.data.divide(cohort, seed, cache)
    train, validation = (sound_studies(part, cache, skip_broken=config.data.skip_broken) for part in parts)
    warn_of_absent(train, config.model.modalities)
    view = View.of(config.model)
    training_data = StudyDataset(train, view, cache, seed=seed, masking=config.masking, augment=config.augment)
    validation_data = StudyDataset(validation, view, cache, seed=seed, masking=config.masking) if validation else None

    fit_synthesis(model, training_data.studies, config.preprocess)
    seen, judges = training_data.studies, validation_data.studies if validation_data else ()
    origin = training_provenance(cohort, seen, config.start, cache, inherited, validation=judges)
    describe(model, config.preprocess, origin)
    if inherited is not None:
        warn_of_overlap(model, judges, cache)

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
        picture=partial(save_progress, data=validation_data, folder=config.out / "pictures")
        if validation_data
        else None,
    )
    return result.exit_code


if __name__ == "__main__":
    script(main)
