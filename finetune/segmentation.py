"""Fine-tune for segmentation: any subset of modalities in, one set of weights.

accelerate launch finetune/segmentation.py --config configs/finetune/segmentation.yaml \
    --model runs/pretrain --data.cohort cohort.csv
"""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import torch

from bmmae.checkpoint import describe, load_encoder, load_model, preprocessing_for, provenance_of
from bmmae.config import SegmentConfig, parse, script
from bmmae.data.cache import StudyCache
from bmmae.data.caching import sound_studies
from bmmae.data.coding import SEG_ORIGIN, coding_of, is_predicted
from bmmae.data.cohort import Cohort, Study
from bmmae.data.dataset import StudyDataset, View
from bmmae.data.labels import CODINGS, Coding, labels_from_regions, own_coding
from bmmae.data.origin import training_provenance
from bmmae.data.problems import counted
from bmmae.data.small_lesions import warn_of_empty_regions, warn_of_lost_lesions
from bmmae.data.splits import is_at_random, warn_of_absent
from bmmae.errors import ConfigError, LabelError
from bmmae.evaluation.overlap import warn_of_overlap
from bmmae.masking import MaskingConfig
from bmmae.model.config import ModelConfig, recipe
from bmmae.model.pretrained import PretrainedModel
from bmmae.model.segmentation import SegmentationConfig, SegmentationModel
from bmmae.tasks.segmentation import SegmentationTask
from bmmae.training import fit, look_ahead

SCRATCH = "scratch:"


def main() -> int:
    """Run; returns the exit code of `bmmae.training.fit`."""
    config = parse(SegmentConfig)
    if config.frozen and config.optim.frozen_steps:
        raise ConfigError("optim.frozen_steps has no effect with frozen, which never trains the encoder: set it to 0")
    look_ahead(config.train, config.optim, config.out)
    seed = config.train.seed
    from_scratch = config.model.startswith(SCRATCH)
    pretrained = None if from_scratch else load_model(config.model)
    shape = pretrained.model_config if pretrained else recipe(config.model.removeprefix(SCRATCH))
    preprocess = preprocessing_for(pretrained, config.preprocess)
    cache = StudyCache(config.data.cache, preprocess, shape.modalities, config.data.memory_mb)

    cohort = config.data.read(shape.modalities)
    train, validation = labelled_parts(config, cohort, cache)
    coding = coding_for(config, cohort, train, validation, cache)
    view = View.of(shape)
    masking = MaskingConfig(config.visible_share) if config.visible_share < 1 else None
    training_data = StudyDataset(train, view, cache, seed=seed, coding=coding, augment=config.augment, masking=masking)
    validation_data = StudyDataset(validation, view, cache, seed=seed, coding=coding) if validation else None

    model = new_model(config, shape, coding, pretrained)
    parent = None if from_scratch else config.model
    inherited = provenance_of(pretrained) if pretrained else None
    seen, judges = training_data.studies, validation_data.studies if validation_data else ()
    origin = training_provenance(cohort, seen, parent, cache, inherited, validation=judges)
    describe(model, preprocess, origin)
    warn_of_overlap(model, judges, cache)

    result = fit(
        model,
        SegmentationTask(model.config, config.distill, seed, config.visible_share, hardest_share=config.hardest_share),
        training_data,
        validation_data,
        train=config.train,
        optim=config.optim,
        run_dir=config.out,
        save_model=SegmentationModel.save_pretrained,
        resolved_config=asdict(config),
    )
    return result.exit_code


def labelled_parts(config: SegmentConfig, cohort: Cohort, cache: StudyCache) -> tuple[list[Study], list[Study]]:
    """Return the studies to train and to validate on, all with a segmentation.

    Raises:
        LabelError: If a part has no labelled voxel.

    Warns:
        UserWarning: Of studies without a segmentation, sequences that no training study has, and lost lesions.
    """
    labelled = tuple(study for study in cohort if study.seg is not None)
    # By chance all labelled studies could end in one part.
    alone = is_at_random(cohort, config.data.splits) and len(labelled) > 1
    divided = replace(cohort, studies=labelled) if alone else cohort
    parts = dict(zip(("training", "validation"), config.data.divide(divided, config.train.seed, cache), strict=True))
    lacking = len(cohort) - len(divided) + sum(study.seg is None for part in parts.values() for study in part)
    if lacking:
        warnings.warn(f"{counted(lacking, 'study', 'studies')} without a segmentation left out", stacklevel=2)
    kept = {}
    for name, part in parts.items():
        studies = [study for study in part if study.seg is not None]
        kept[name] = sound_studies(studies, cache, skip_broken=config.data.skip_broken)
        if part and not any(np.any(cache.load(study).label) for study in kept[name]):
            raise LabelError(
                f"no {name} study has a labelled voxel ({len(studies)} of {len(part)} have a segmentation) on the "
                f"model's grid of {cache.config.grid}: look at the column 'seg', or divide the studies otherwise"
            )
    warn_of_absent(kept["training"], cache.modalities)
    warn_of_lost_lesions(kept["training"], cache)
    return kept["training"], kept["validation"]


def coding_for(
    config: SegmentConfig, cohort: Cohort, train: Sequence[Study], validation: Sequence[Study], cache: StudyCache
) -> Coding:
    """Return what label values mean, by the configuration or by the table.

    Warns:
        UserWarning: Of regions without an example, and of labels that are predictions.
    """
    studies = [*train, *validation]
    said: str | Coding | None = config.data.labels
    if config.classes:
        said = own_coding({value: name for name, value in config.classes.items()}, config.regions)
    # A proposal is about the whole table: folds must not differ in what a rare value makes of it.
    coding = coding_of(studies if said else [*cohort, *cohort.bare], said)
    labels_from_regions(np.zeros((len(coding.regions), 1, 1, 1), bool), coding)  # refuses what could not be written
    warn_of_empty_regions(train, coding, cache)
    predicted = sum(map(is_predicted, studies))
    if predicted:
        warnings.warn(
            f"{predicted} of {len(studies)} segmentations are predictions, as the column '{SEG_ORIGIN}' says: the "
            "model learns another's mistakes, and its validation is no measure of the truth",
            stacklevel=2,
        )
    return coding


def new_model(
    config: SegmentConfig, shape: ModelConfig, coding: Coding, pretrained: PretrainedModel | None
) -> SegmentationModel:
    """Return the model before training, with what the pretrained weights have for it."""
    known = coding.name in CODINGS  # a coding of the user's own travels with the model
    torch.manual_seed(config.train.seed)
    model = SegmentationModel(
        SegmentationConfig(
            shape,
            tuple(coding.regions),
            coding.name,
            config.width,
            config.decoder,
            config.fusion,
            config.supervision,
            classes={} if known else {name: value for value, name in coding.classes.items()},
            united={} if known else dict(coding.regions),
        )
    )
    if pretrained:
        load_encoder(model, pretrained)
    if isinstance(pretrained, SegmentationModel) and not model.take_decoder(pretrained):
        warnings.warn(
            f"the decoder of {config.model} has another shape (width {pretrained.config.width}, decoder "
            f"'{pretrained.config.decoder}', fusion '{pretrained.config.fusion}'): only its encoder is taken, and the "
            "decoder starts from random weights",
            stacklevel=2,
        )
    model.encoder.requires_grad_(not config.frozen)
    return model


if __name__ == "__main__":
    script(main)
