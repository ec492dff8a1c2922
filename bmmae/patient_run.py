"""A run on patients, from configuration to predictions: what `finetune/classification.py` and `survival.py` share.

Whatever is fitted is fitted on the training fold; the inner validation fold selects the checkpoint (or the penalty);
the test fold is looked at once, at the end.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import starmap
from pathlib import Path
from typing import cast

import torch
from torch import nn

from bmmae.checkpoint import describe, load_encoder, load_model, preprocessing_for, provenance_of
from bmmae.data.augment import AugmentConfig
from bmmae.data.cache import StudyCache
from bmmae.data.caching import sound_studies
from bmmae.data.cohort import Cohort, Study
from bmmae.data.dataset import View
from bmmae.data.fold_file import read_fold
from bmmae.data.loaders import collate
from bmmae.data.origin import training_provenance
from bmmae.data.patient_columns import fit_columns, format_targets, is_labelled
from bmmae.data.patients import Columns, PatientDataset, Shares, whole_brain
from bmmae.data.splits import warn_of_absent
from bmmae.data.subset_shares import subset_shares
from bmmae.errors import CohortError, ConfigError, TrainingError, few
from bmmae.evaluation.clinical import NAME as CLINICAL
from bmmae.evaluation.overlap import warn_of_overlap
from bmmae.linear_heads import Rows, collect, fit_linear_heads
from bmmae.modalities import canonical, in_table_order
from bmmae.model.config import ModelConfig, recipe
from bmmae.model.outcomes import baseline_hazard, risk
from bmmae.model.patient import PatientModel, PatientModelConfig
from bmmae.patient_config import PatientConfig
from bmmae.patient_prediction import (
    Visits,
    columns_of,
    over_subsets,
    predict,
    warn_of_other_units,
    warn_of_unseen_categories,
    warn_of_unseen_classes,
)
from bmmae.patient_tables import follow_up, tables, write_tables
from bmmae.targets import Target
from bmmae.tasks.patient import PatientTask, beside_of
from bmmae.tasks.task import Batch, tensors
from bmmae.training import find_checkpoint, fit
from bmmae.training.checkpointing import (
    checkpoint_step,
    list_checkpoints,
    read_state,
    remove_old_checkpoints,
    write_checkpoint,
    write_index,
)
from bmmae.training.resume import find_start, write_config

SCRATCH = "scratch:"
PREDICTIONS = "predictions"


@dataclass(frozen=True)
class Parts:
    """Who trains, who selects, who is predicted.

    Attributes:
        cohort: The table.
        train: Labelled studies of the training fold.
        validation: Labelled studies of the inner validation fold.
        test: Of the test fold, labelled or not; may be empty.
    """

    cohort: Cohort
    train: list[Study]
    validation: list[Study]
    test: list[Study]


def fine_tune(config: PatientConfig) -> int:
    """Train, select on the validation fold, and predict validation and test fold; returns the exit code.

    The run folder then holds the model, `predictions/validation/<target>.csv` and `predictions/test/<target>.csv`, and
    with clinical variables the same of a model that sees nothing else (`predictions/clinical-only/...`).

    Raises:
        BmmaeError: As the parts of the configuration say.
    """
    if config.mode == "features":
        if not _is_main():
            return 0  # linear heads are fitted at once, by one process
        _refuse_run(config.out)
    pretrained = None if config.model.startswith(SCRATCH) else load_model(config.model)
    known = pretrained.model_config if pretrained else recipe(config.model.removeprefix(SCRATCH))
    shape = _shape(config, known)
    preprocess = preprocessing_for(pretrained, config.preprocess)
    cache = StudyCache(config.data.cache, preprocess, shape.modalities, config.data.memory_mb)
    parts = find_parts(config, known.modalities, shape, cache)
    if config.modalities:
        warn_of_absent(parts.train, shape.modalities)
    columns, train = _fitted(config, parts)
    warn_of_unseen_classes(columns.targets, [*parts.validation, *parts.test])
    parts = replace(parts, train=train, validation=_labelled(parts.validation, columns.targets, "validation"))
    _say(format_targets(columns.targets))
    for study in (*parts.validation, *parts.test):
        columns.encode(study)  # what cannot be read ends here, not after training

    shape = replace(shape, size=whole_brain(parts.train, cache, View.of(shape)))
    torch.manual_seed(config.train.seed)
    model = PatientModel(_model_config(config, shape, columns, parts.train))
    if pretrained:
        load_encoder(model, pretrained)
    model.encoder.requires_grad_(config.mode == "full")
    parent = config.model if pretrained else None
    inherited = provenance_of(pretrained) if pretrained else None
    origin = training_provenance(parts.cohort, parts.train, parent, cache, inherited, validation=parts.validation)
    describe(model, preprocess, origin)
    warn_of_unseen_categories(model, [*parts.validation, *parts.test])
    warn_of_other_units(model, [*parts.validation, *parts.test])
    warn_of_overlap(model, [*parts.validation, *parts.test], cache)

    code = (
        _fit_features(config, model, parts, cache)
        if config.mode == "features"
        else _fit_network(config, model, parts, cache)
    )
    if code == 0 and _is_main():
        finish(config, parts, cache, columns)
    return code


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _say(text: str) -> None:
    """Print what every process of the run could say, once."""
    if _is_main():
        print(text, flush=True)  # noqa: T201 - a program's output


def _shape(config: PatientConfig, shape: ModelConfig) -> ModelConfig:
    if not config.modalities:
        return shape
    return replace(shape, modalities=in_table_order(canonical(name, shape.modalities) for name in config.modalities))


def find_parts(config: PatientConfig, columns: Sequence[str], shape: ModelConfig, cache: StudyCache) -> Parts:
    """Read the cohort and divide it; studies without any of the model's modalities are left out.

    Raises:
        CohortError: If a part is empty, columns cannot be learned from, or a study is broken and not to be skipped.
    """
    data = config.data
    cohort = data.read(columns)
    train, validation = data.divide(cohort, config.train.seed, cache)
    if data.splits is not None:
        test = read_fold(data.splits, cohort, data.fold, cache)["test"]
    else:
        test = [study for study in cohort if study.split == "test"]
    seen = [_restricted(part, shape.modalities) for part in (train, validation, test)]
    for part, name in zip(seen[:2], ("training", "validation"), strict=True):
        if not part:
            raise CohortError(f"no {name} study has any of the modalities {', '.join(shape.modalities)}: name others")
    _refuse_unusable_columns(config, seen)
    return Parts(cohort, *(sound_studies(part, cache, skip_broken=data.skip_broken) if part else [] for part in seen))


def _refuse_unusable_columns(config: PatientConfig, parts: Sequence[Sequence[Study]]) -> None:
    """Find out from the table alone, before images are opened, whether its columns can be learned from and read.

    What is fitted here is thrown away: broken studies, which may be skipped, have a part in it.

    Args:
        config: Names the columns.
        parts: Training, validation and test studies; the columns are fitted on the first.

    Raises:
        CohortError: As `fit_columns` and `Columns.encode` say.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when they are fitted on the studies that are left
        columns = fit_columns(parts[0], config.targets, config.beside)
    for part in parts:
        for study in part:
            columns.encode(study)


def _restricted(studies: Sequence[Study], modalities: Sequence[str]) -> list[Study]:
    """Return the studies that have any of the modalities, with no others."""
    images = [{name: study.images[name] for name in modalities if name in study.images} for study in studies]
    return [replace(study, images=own) for study, own in zip(studies, images, strict=True) if own]


def _fitted(config: PatientConfig, parts: Parts) -> tuple[Columns, list[Study]]:
    """What was fitted on the training fold, and those of its studies that have a label."""
    columns = fit_columns(parts.train, config.targets, config.beside)
    return columns, _labelled(parts.train, columns.targets, "training")


def _labelled(studies: Sequence[Study], targets: Sequence[Target], part: str) -> list[Study]:
    labelled = [study for study in studies if is_labelled(study, targets)]
    if not labelled:
        raise CohortError(
            f"none of the {len(studies)} {part} studies has a label of any target "
            f"({few((target.name for target in targets), quote='')}) that the training studies know: fill in labels, "
            "mark other studies in the column 'split', or choose other folds or a larger data.validation_share"
        )
    return labelled


def _model_config(
    config: PatientConfig, shape: ModelConfig, columns: Columns, train: Sequence[Study]
) -> PatientModelConfig:
    known = [tuple(study.images) for study in train]
    every = config.mode == "features"  # linear heads see each subset of a study
    shown = AugmentConfig(modality_dropout=1.0) if every else config.augment
    return PatientModelConfig(
        model=shape,
        targets=columns.targets,
        clinical=columns.clinical,
        vector=columns.vector,
        lesion=config.beside.lesion,
        fusion=config.beside.fusion and not every,
        pool_heads=config.head.pool_heads,
        dropout=config.head.dropout,
        subsets=subset_shares(known, shown.modality_dropout, shown.single_share),
    )


def _fit_network(config: PatientConfig, model: PatientModel, parts: Parts, cache: StudyCache) -> int:
    head, seed, view = config.head, config.train.seed, View.of(model.model_config)
    columns = columns_of(model)
    drawn = {column: {str(name): share for name, share in classes.items()} for column, classes in head.shares.items()}
    shares = next(starmap(Shares, drawn.items()), None)
    training = PatientDataset(parts.train, view, cache, columns, seed=seed, augment=config.augment, shares=shares)
    validation = PatientDataset(parts.validation, view, cache, columns, seed=seed)
    _require_comparisons(config, model.config.targets, parts.validation)
    if head.start == "linear" and model.fused:
        raise ConfigError("head.start=linear knows no fusion: set beside.fusion=false, or head.start=random")
    if head.start == "linear" and find_start(config.out, config.train.resume) is None:
        _fit_heads(config, model, parts, cache)
    task = PatientTask(model.config, importance=head.importance, focal=head.focal, token_share=head.token_share)
    result = fit(
        model,
        task,
        training,
        validation,
        train=config.train,
        optim=config.optim,
        run_dir=config.out,
        save_model=_save,
        resolved_config=asdict(config),
    )
    return result.exit_code


def _require_comparisons(config: PatientConfig, targets: Sequence[Target], validation: Sequence[Study]) -> None:
    """Refuse Cox targets where nothing could be learned or chosen: they compare patients with each other."""
    kinds = {target.kind for target in targets}
    if "cox" not in kinds:
        return
    if config.train.find_batch_size:
        raise ConfigError(
            "a Cox target compares the patients of a batch, so another batch is another training: set "
            "train.find_batch_size to false, and choose train.batch_size"
        )
    if config.train.batch_size == 1:
        raise ConfigError("a Cox target compares the patients of a batch: set train.batch_size to 2 or more, better 8")
    if not any(study.event for study in validation if study.time is not None):
        said = "nobody in the validation part has died, which says nothing of a Cox target"
        if kinds == {"cox"}:
            raise CohortError(
                f"{said}: choose other folds, a larger data.validation_share, or targets.survival '[hazard]'"
            )
        warnings.warn(f"{said}: the checkpoint is chosen by the other targets alone", stacklevel=2)


def _refuse_run(out: Path) -> None:
    if list_checkpoints(out):
        raise TrainingError(f"{out} already holds a run: linear heads are fitted at once, so choose another folder")


def _fit_features(config: PatientConfig, model: PatientModel, parts: Parts, cache: StudyCache) -> int:
    write_config(config.out, asdict(config))  # a folder that cannot be written ends here, not after the work
    _fit_heads(config, model, parts, cache)
    folder = write_checkpoint(config.out, 0, model, {}, _save)
    write_index(config.out, {"status": "finished", "step": 0, "steps": 0, "last": folder.name, "best": folder.name})
    return 0


def _fit_heads(config: PatientConfig, model: PatientModel, parts: Parts, cache: StudyCache) -> None:
    """Fit linear heads to what the encoder says of every subset of each study."""
    model.eval().to(_device())
    rows = [
        collect_features(model, part, cache, progress=config.train.progress) for part in (parts.train, parts.validation)
    ]
    for name, told in fit_linear_heads(model, rows[0], rows[1], columns_of(model)).items():
        _say(f"{name}: {told}")


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _save(model: nn.Module, folder: Path) -> None:
    cast(PatientModel, model).save_pretrained(folder)


def collect_features(
    model: PatientModel, studies: Sequence[Study], cache: StudyCache, *, progress: bool = False
) -> Rows:
    """Encode each study once from each subset of its modalities."""

    def look(batch: Batch) -> dict[str, torch.Tensor]:
        images, available, valid, brain = tensors(batch, "images", "available", "valid", "brain")
        tissue = brain[:, None] if model.config.model.tissue_only else None
        beside = beside_of(batch, model.config)
        features = model.features(images, available, tissue, valid, beside=beside)[:, 0]
        return {"features": features, "design": model.design(beside, len(images), images.device)}

    found = over_subsets(model, Visits(studies, cache, columns_of(model), every=True, progress=progress), look)
    arrays = (found.logits[name].double().numpy() for name in ("features", "design"))
    return collect(found.studies, found.subsets, *arrays)


def finish(config: PatientConfig, parts: Parts, cache: StudyCache, columns: Columns) -> None:
    """Fit baseline hazards and risk cuts on the training fold, save them with the best model, and predict."""
    folder = find_checkpoint(config.out, "best")
    model = cast(PatientModel, PatientModel.from_pretrained(folder)).to(_device())
    _calibrate(model, parts.train, cache)
    state = read_state(folder)
    step = checkpoint_step(folder)
    write_checkpoint(config.out, step, model, state, _save)
    newest = checkpoint_step(list_checkpoints(config.out)[0])
    remove_old_checkpoints(config.out, newest, step, config.train.keep)
    models = {"": model}
    if any(variable.modality is None for variable in model.config.clinical):
        models["clinical-only"] = _clinical_only(model, parts, cache, columns)
        models["clinical-only"].save_pretrained(config.out / "clinical-only")
    for name, each in models.items():
        for part in ("validation", "test"):
            studies: list[Study] = getattr(parts, part)
            if studies:
                _write_predictions(config, each, studies, cache, Path(name) / part)


def _calibrate(model: PatientModel, train: Sequence[Study], cache: StudyCache) -> None:
    """Put into a model's config what only its predictions for the training fold can tell."""
    if not any(target.survival for target in model.config.targets):
        return
    outputs = predict(model, train, cache)
    time, event = (torch.from_numpy(values).double() for values in follow_up(outputs.studies))
    fitted = []
    for target in model.config.targets:
        if target.survival:
            risks = risk(target, outputs.logits[target.name])
            if target.kind == "cox":
                target = replace(target, baseline=baseline_hazard(risks, time, event, target.edges))  # noqa: PLW2901
            target = replace(target, risk_cut=float(risks.median()))  # noqa: PLW2901
        fitted.append(target)
    model.config = replace(model.config, targets=tuple(fitted))


def _clinical_only(model: PatientModel, parts: Parts, cache: StudyCache, columns: Columns) -> PatientModel:
    """Return a model of the same targets that sees the clinical variables alone: a vector may come from the images."""
    known = tuple(variable for variable in model.config.clinical if variable.modality is None)
    config, columns = (
        replace(model.config, clinical=known, vector=None, fusion=False, lesion="none"),
        replace(columns, clinical=known, vector=None),
    )
    plain = PatientModel(config).eval().to(_device())
    plain.metadata = model.metadata
    plain.encoder = model.encoder
    rows = [_design_rows(plain, part, columns) for part in (parts.train, parts.validation)]
    fit_linear_heads(plain, rows[0], rows[1], columns, images=False)
    _calibrate(plain, parts.train, cache)
    return plain


def _design_rows(model: PatientModel, studies: Sequence[Study], columns: Columns) -> Rows:
    batch: Batch = collate([columns.encode(study) for study in studies])
    design = model.design(beside_of(batch, model.config), len(studies), torch.device("cpu")).double().numpy()
    return collect(studies, [()] * len(studies), design[:, :0], design)


def _write_predictions(
    config: PatientConfig, model: PatientModel, studies: Sequence[Study], cache: StudyCache, place: Path
) -> None:
    outputs = predict(model, studies, cache, every=config.every_subset)
    name = CLINICAL if place.parts[0] == "clinical-only" else config.mode
    found = tables(model.config.targets, outputs, name, config.data.fold, pooled=True)
    for path in write_tables(config.out / PREDICTIONS / place, found):
        _say(str(path))
