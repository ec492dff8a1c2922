"""Commands on patients: measure, predict, embed, evaluate."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bmmae.cli.command import (
    Commands,
    add_command,
    add_modalities,
    given_modalities,
    millimetres,
    positive,
    require_writable,
    separate_names,
    whole,
)
from bmmae.cli.images import load
from bmmae.errors import CheckpointError, CohortError, ConfigError, OutputError
from bmmae.notice import NOTICE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bmmae.data.cache import StudyCache
    from bmmae.data.cohort import Cohort, Study
    from bmmae.model.patient import PatientModel
    from bmmae.model.pretrained import PretrainedModel
    from bmmae.patient_prediction import Outputs


def add_commands(commands: Commands) -> None:
    """Add this module's commands."""
    for add in (_measure, _predict, _embed, _evaluate):
        add(commands)


def _measure(commands: Commands) -> None:
    summary = "Add what can be measured of lesions in each image to a cohort table, for models of patients."
    command = add_command(commands, "measure", summary, _run_measure)
    command.add_argument("cohort", type=Path, help="the cohort table")
    command.add_argument("--out", type=Path, required=True, help="the table to write (.csv or .parquet)")
    command.add_argument("--labels", metavar="CODING", help="label coding (name or YAML file), where it is left open")
    command.add_argument(
        "--spacing",
        type=millimetres,
        nargs=3,
        default=(1.0, 1.0, 1.0),
        metavar="MM",
        help="of the grid that is measured on (default: 1 1 1)",
    )
    command.add_argument("--cache", type=Path, help="folder of prepared studies, see `bmmae cache`")
    command.add_argument("--skip-broken", action="store_true", help="leave broken studies out and say how many")
    add_modalities(command)


def _run_measure(given: argparse.Namespace) -> int:
    from bmmae.data.cache import StudyCache
    from bmmae.data.caching import sound_studies
    from bmmae.data.cohort import read_cohort
    from bmmae.data.labels import find_coding
    from bmmae.data.measures import PREFIX, measure_cohort
    from bmmae.data.preprocess import PreprocessConfig

    _require_table(given.out, given.cohort)
    cohort = read_cohort(given.cohort, given_modalities(given))
    cache = StudyCache(given.cache, PreprocessConfig(spacing=tuple(given.spacing)), cohort.modalities)
    coding = find_coding(given.labels) if given.labels else None
    sound = sound_studies(cohort.studies, cache, skip_broken=given.skip_broken, option="--skip-broken")
    found = measure_cohort(replace(cohort, studies=tuple(sound)), cache, coding, progress=True)
    columns = {name for study in found for name in study.values if name.startswith(PREFIX)}
    print(f"{len(columns)} measures of {len(found)} studies in {found.write(given.out)}")
    return 0


def _add_cohort(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", required=True, help="a model folder, a run folder or a hub id (org/name)")
    command.add_argument("--cohort", type=Path, required=True, metavar="CSV", help="the cohort table")
    command.add_argument("--cache", type=Path, help="folder of prepared studies, see `bmmae cache`")
    command.add_argument(
        "--subset", nargs="+", metavar="NAME", help="use only these modalities of each patient (default: all)"
    )
    command.add_argument("--every-subset", action="store_true", help="from every subset of what each patient has")
    command.add_argument("--batch-size", type=positive, default=4, help="studies at a time (default: 4)")
    command.add_argument("--skip-broken", action="store_true", help="leave broken studies out and say how many")


def _only(given: argparse.Namespace, model: PretrainedModel) -> tuple[str, ...] | None:
    """The modalities that `--subset` restricts a model to; None for no restriction."""
    from bmmae.patient_prediction import given_subset

    return given_subset(None if given.subset is None else separate_names(given.subset), model)


def _opened(
    given: argparse.Namespace, model: PretrainedModel, look: Callable[[Sequence[Study]], object] | None = None
) -> tuple[Cohort, StudyCache]:
    """The cohort as the model sees it, its broken studies refused or left out; `look` may refuse it before the work."""
    from bmmae.checkpoint import preprocessing_of
    from bmmae.data.cache import StudyCache
    from bmmae.data.caching import sound_studies
    from bmmae.data.cohort import Cohort, read_cohort
    from bmmae.model.patient import PatientModel
    from bmmae.patient_prediction import warn_of_cut_brains

    cohort = read_cohort(given.cohort, model.model_config.modalities, set_bare_apart=True)
    if not cohort.studies:
        raise CohortError(f"no study of {given.cohort} has any of the modalities {', '.join(cohort.modalities)}")
    if look:
        look(cohort.studies)
    cache = StudyCache(given.cache, preprocessing_of(model), model.model_config.modalities)
    known = cohort.studies
    if not (isinstance(model, PatientModel) and model.config.lesion != "none"):
        known = tuple(map(cache.without_label, known))
    studies = sound_studies(known, cache, skip_broken=given.skip_broken, option="--skip-broken")
    warn_of_cut_brains(model, studies, cache)
    return Cohort(tuple(studies), cohort.modalities, cohort.path, cohort.bare), cache


def _patient_model(source: str) -> PatientModel:
    from bmmae.model.patient import PatientModel

    model = load(source)
    if not isinstance(model, PatientModel):
        raise CheckpointError(
            f"{source} holds a model of kind '{model.kind}', which predicts nothing of a patient: make one with "
            f"finetune/classification.py or finetune/survival.py --model {source}"
        )
    return model


def _predicted(
    given: argparse.Namespace,
    model: PatientModel,
    only: tuple[str, ...] | None,
    look: Callable[[Sequence[Study]], object] | None = None,
) -> tuple[Cohort, StudyCache, Outputs]:
    """What a model says of the cohort, with warnings of what it lacks and of subsets that it hardly knows."""
    from bmmae.patient_prediction import (
        predict,
        refuse_unreadable_cells,
        warn_of_lacking_inputs,
        warn_of_other_units,
        warn_of_rare_subsets,
        warn_of_unseen_categories,
    )

    def look_first(studies: Sequence[Study]) -> None:
        if look:
            look(studies)
        refuse_unreadable_cells(model, studies)

    cohort, cache = _opened(given, model, look_first)
    warn_of_lacking_inputs(model, cohort.studies)
    warn_of_unseen_categories(model, cohort.studies)
    warn_of_other_units(model, cohort.studies)
    outputs = predict(
        model,
        cohort.studies,
        cache,
        only=only,
        every=given.every_subset,
        batch_size=given.batch_size,
        progress=True,
    )
    warn_of_rare_subsets(model, outputs)
    return cohort, cache, outputs


def _predict(commands: Commands) -> None:
    summary = f"Predict classes, risks and survival curves of a cohort, from whatever each patient has. {NOTICE}"
    command = add_command(commands, "predict", summary, _run_predict)
    _add_cohort(command)
    command.add_argument("--out", type=Path, required=True, help="the table to write (.csv or .parquet)")


def _run_predict(given: argparse.Namespace) -> int:
    from bmmae.patient_tables import prediction_rows, write_table

    _require_table(given.out, given.cohort)
    model = _patient_model(given.model)
    cohort, _, outputs = _predicted(given, model, _only(given, model))
    path = write_table(given.out, prediction_rows(model, outputs))
    left = _left_out(cohort, {study.key for study in outputs.studies})
    print(f"{len(outputs.studies)} predictions in {path}{left}\n{NOTICE}")
    return 0


def _left_out(cohort: Cohort, seen: set[tuple[str, str]]) -> str:
    """What to say of those who have none of the modalities, if there are any."""
    from bmmae.data.problems import counted

    left = len(cohort) + len(cohort.bare) - len(seen)
    return f", {counted(left, 'patient', 'patients')} without these modalities left out" if left else ""


def _embed(commands: Commands) -> None:
    summary = "Write one vector a study: the mean of the encoder's tokens."
    command = add_command(commands, "embed", summary, _run_embed)
    _add_cohort(command)
    command.add_argument("--out", type=Path, required=True, help="the table to write (.parquet or .csv)")
    command.add_argument("--umap", type=Path, metavar="PNG", help="also draw them in two dimensions")
    command.add_argument("--colour", metavar="COLUMN", help="column of the cohort that colours the picture")


def _run_embed(given: argparse.Namespace) -> int:
    from bmmae.embedding_plot import cells_to_colour, draw_embeddings, require_picture
    from bmmae.patient_prediction import embed
    from bmmae.patient_tables import write_table

    if given.colour and not given.umap:
        raise ConfigError(f"--colour {given.colour} colours the picture of --umap: name its file")
    _require_table(given.out, given.cohort)
    if given.umap:
        require_picture(given.umap)
        require_writable(given.umap.parent)
    model = load(given.model)
    only = _only(given, model)
    look = partial(cells_to_colour, column=given.colour) if given.colour else None
    cohort, cache = _opened(given, model, look)
    rows = embed(
        model,
        cohort.studies,
        cache,
        only=only,
        every=given.every_subset,
        batch_size=given.batch_size,
        progress=True,
    )
    left = _left_out(cohort, {(str(row["subject"]), str(row["session"])) for row in rows})
    print(f"{len(rows)} embeddings in {write_table(given.out, rows)}{left}")
    if given.umap:
        method = draw_embeddings(given.umap, rows, cohort.studies, given.colour)
        print(f"{method} in {given.umap}")
    return 0


def _evaluate(commands: Commands) -> None:
    summary = "Judge a saved model of patients on an outside cohort, with intervals."
    command = add_command(commands, "evaluate", summary, _run_evaluate)
    _add_cohort(command)
    command.add_argument("--out", type=Path, required=True, help="folder for tables and reports")
    command.add_argument("--beside", nargs="+", default=[], metavar="M", help="further models on the same patients")
    command.add_argument(
        "--draws", type=whole, default=1000, metavar="N", help="bootstrap draws (0: no intervals; default: 1000)"
    )


def _run_evaluate(given: argparse.Namespace) -> int:
    from bmmae.patient_evaluation import evaluate_cohort, model_names, refuse_what_cannot_be_judged

    require_writable(given.out)
    sources = [given.model, *given.beside]
    models = dict(zip(model_names(sources), map(_patient_model, sources), strict=True))
    only = _only(given, next(iter(models.values())))
    look = partial(refuse_what_cannot_be_judged, models)
    found, left = {}, {}
    for name, model in models.items():
        cohort, cache, outputs = _predicted(given, model, only, look)
        found[name] = (model, outputs)
        left[name] = _left_out(cohort, {study.key for study in outputs.studies})
    print(evaluate_cohort(found, cache, given.out, draws=given.draws))
    for name, told in left.items():
        if told:
            print(f"{name}: {len(found[name][1].studies)} predictions{told}")
    return 0


def _require_table(path: Path, cohort: Path) -> None:
    """Find out before the work whether a table can be written, and is not that of the cohort.

    Raises:
        OutputError: If it cannot.
    """
    from bmmae.data.location import refuse_overwriting

    if path.suffix.lower() not in {".csv", ".tsv", ".parquet", ".pq"}:
        raise OutputError(f"cannot write {path}: expected a name ending in .csv, .tsv or .parquet")
    refuse_overwriting([path], [cohort])
    require_writable(path.parent)
