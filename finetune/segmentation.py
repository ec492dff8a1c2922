"""Fine-tune for segmentation: any subset of modalities in, one set of weights.

accelerate launch finetune/segmentation.py --config configs/finetune/segmentation.yaml \
    --model runs/pretrain --data.cohort cohort.csv
"""

import warnings
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch

from bmmae.checkpoint import describe, load_encoder, load_model, preprocessing_for, provenance_of
from bmmae.config import SegmentConfig, parse, script
from bmmae.data.cache import StudyCache
from bmmae.data.caching import sound_studies
from bmmae.data.coding import SEG_ORIGIN, coding_of, is_predicted
from bmmae.data.cohort import Study, read_cohort
from bmmae.data.dataset import StudyDataset, View
from bmmae.data.labels import CODINGS, labels_from_regions, own_coding
from bmmae.data.origin import training_provenance
from bmmae.data.reading import read_labels
from bmmae.data.small_lesions import warn_of_lost_lesions
from bmmae.data.splits import train_and_validation
from bmmae.errors import ConfigError, LabelError
from bmmae.evaluation.overlap import warn_of_overlap
from bmmae.masking import MaskingConfig
from bmmae.model.config import recipe
from bmmae.model.segmentation import SegmentationConfig, SegmentationModel
from bmmae.tasks.segmentation import SegmentationTask
from bmmae.training import fit

SCRATCH = "scratch:"


def refuse_empty(name: str, studies: Sequence[Study]) -> None:
    """Refuse a part of the cohort without any labelled voxel: nothing could be learned, or no checkpoint chosen."""
    labelled = [study.seg for study in studies if study.seg is not None]
    if not any(read_labels(seg)[0].any() for seg in labelled):
        raise LabelError(
            f"no {name} study has a labelled voxel ({len(labelled)} of {len(studies)} have a segmentation): look at "
            "the column 'seg', or divide the studies otherwise"
        )


def main() -> int:
    """Run; returns the exit code of `bmmae.training.fit`."""
    config = parse(SegmentConfig)
    if config.frozen and config.optim.frozen_steps:
        raise ConfigError("optim.frozen_steps has no effect with frozen, which never trains the encoder: set it to 0")
    seed = config.train.seed
    from_scratch = config.model.startswith(SCRATCH)
    pretrained = None if from_scratch else load_model(config.model)
    shape = pretrained.model_config if pretrained else recipe(config.model.removeprefix(SCRATCH))
    preprocess = preprocessing_for(pretrained, config.preprocess)

    # Folds are those of the whole table: studies without any of these modalities leave the others where they were.
    cohort = read_cohort(config.data.cohort, shape.modalities, set_bare_apart=config.data.splits is not None)
    own = (
        own_coding({value: name for name, value in config.classes.items()}, config.regions) if config.classes else None
    )
    cache = StudyCache(config.data.cache, preprocess, shape.modalities, config.data.memory_mb)
    data = config.data
    train, validation = train_and_validation(
        cohort, validation_share=data.validation_share, seed=seed, splits=data.splits, fold=data.fold, cache=cache
    )
    skip = config.data.skip_broken
    train, validation = (sound_studies(part, cache, skip_broken=skip) for part in (train, validation))
    for name, part in (("training", train), ("validation", validation)):
        refuse_empty(name, part)
    said = own or config.data.labels
    # A proposal is about the whole table: folds must not differ in what a rare value makes of it.
    coding = coding_of([*train, *validation] if said else [*cohort, *cohort.bare], said)
    labels_from_regions(np.zeros((len(coding.regions), 1, 1, 1), bool), coding)  # refuses what could not be written
    known = coding.name in CODINGS  # a coding of the user's own travels with the model
    warn_of_lost_lesions(train, cache)
    predicted = sum(map(is_predicted, [*train, *validation]))
    if predicted:
        warnings.warn(
            f"{predicted} of {len(train) + len(validation)} segmentations are predictions, as the column "
            f"'{SEG_ORIGIN}' says: the model learns another's mistakes, and its validation is no measure of the truth",
            stacklevel=1,
        )
    view = View.of(shape)
    masking = MaskingConfig(config.visible_share) if config.visible_share < 1 else None
    training_data = StudyDataset(train, view, cache, seed=seed, coding=coding, augment=config.augment, masking=masking)
    validation_data = StudyDataset(validation, view, cache, seed=seed, coding=coding)

    torch.manual_seed(seed)
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
            stacklevel=1,
        )
    model.encoder.requires_grad_(not config.frozen)
    parent = None if from_scratch else config.model
    inherited = provenance_of(pretrained) if pretrained else None
    describe(model, preprocess, training_provenance(cohort, training_data.studies, parent, cache, inherited))
    warn_of_overlap(model, validation_data.studies, cache)

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


if __name__ == "__main__":
    script(main)
