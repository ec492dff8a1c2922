"""A cohort of raw scans to a cohort of prepared ones: resumable, and no study stops the others."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from bmmae.data.cohort import Cohort, Study
from bmmae.data.loaders import end_with_parent
from bmmae.data.origin import pass_mark_on
from bmmae.data.problems import NO_MEMORY, NamedProblem, in_short
from bmmae.data.raw.atlas import Atlas, load_atlas
from bmmae.data.raw.extras import require
from bmmae.data.raw.native import read_registration
from bmmae.data.raw.study_pipeline import PipelineConfig, Prepared, prepare_study, prepared_before, state_of
from bmmae.data.replacing import filled_cells, refuse_losing_columns
from bmmae.errors import BmmaeError, CohortError, ImageError, OutputError


@dataclass(frozen=True)
class PipelineReport:
    """What became of a cohort.

    Attributes:
        table: The new cohort table.
        done: How many studies are in it.
        remarks: What the user should know, by the study's name.
        failures: Studies that are not in it, and why.
    """

    table: Path
    done: int
    remarks: tuple[NamedProblem, ...]
    failures: tuple[NamedProblem, ...]


def preprocess_cohort(
    cohort: Cohort, out: str | Path, config: PipelineConfig | None = None, workers: int = 1, progress: bool = True
) -> PipelineReport:
    """Prepare all studies of a cohort; those that an earlier run finished are kept.

    Args:
        cohort: Raw scans.
        out: One folder a study, and `cohort.csv` beside them.
        config: What to do.
        workers: Studies at a time, in processes of their own.
        progress: Show a progress bar on standard error.

    Raises:
        ConfigError: If SimpleITK, or nilearn for its template, is not installed.
        ImageError: If the atlas cannot be read.
        CohortError: If no study could be prepared.
        OutputError: If the table cannot be written, or the one that is there has more columns or studies; or a process
            was killed.
    """
    from tqdm import tqdm

    out, config = Path(out).expanduser(), config or PipelineConfig()
    made = {"subject", "session", "brain_mask", *cohort.modalities}
    keys = [study.key for study in cohort]
    refuse_losing_columns(out / "cohort.csv", made.union(*map(filled_cells, cohort)), keys)
    require("SimpleITK", "Registration")
    atlas = load_atlas(config.atlas) if config.atlas else None
    work = partial(_prepare, out=out, config=config, atlas=atlas)
    with _mapped(work, cohort.studies, workers) as results:
        bar = tqdm(results, total=len(cohort), desc="preprocess", unit="study", disable=not progress, leave=False)
        outcomes = list(bar)
    prepared = [outcome for outcome in outcomes if isinstance(outcome, Prepared)]
    named = zip(cohort, outcomes, strict=True)
    failures = tuple((study.name, outcome) for study, outcome in named if isinstance(outcome, str))
    if not prepared:
        raise CohortError(f"no study could be prepared: {in_short(failures)}")
    pass_mark_on(cohort, out)
    remarks = tuple((item.study.name, remark) for item in prepared for remark in item.remarks)
    table = Cohort(tuple(item.study for item in prepared), cohort.modalities).write(out / "cohort.csv")
    return PipelineReport(table, len(prepared), remarks, failures)


@contextmanager
def _mapped(
    work: partial[Prepared | str], studies: tuple[Study, ...], workers: int
) -> Iterator[Iterator[Prepared | str]]:
    if workers <= 1:
        yield map(work, studies)
        return
    # Spawned, not forked: ITK's threads do not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        try:
            yield pool.map(work, studies)
        except BrokenProcessPool as error:
            raise OutputError(
                "a process that prepared studies was killed, most likely for want of memory; what is finished is kept: "
                "run the same command again with fewer --workers"
            ) from error


def _prepare(study: Study, out: Path, config: PipelineConfig, atlas: Atlas | None) -> Prepared | str:
    """Return the prepared study, or in one sentence why there is none."""
    folder = out / study.name
    try:
        before = _finished(study, folder, config, atlas)
        return before or prepare_study(study, folder, config, atlas)
    except MemoryError:
        return NO_MEMORY
    except BmmaeError as error:
        return str(error)


def _finished(study: Study, folder: Path, config: PipelineConfig, atlas: Atlas | None) -> Prepared | None:
    """Return a study that an earlier run prepared from the same sources with the same settings."""
    state = state_of(study, config, atlas)
    try:
        registration = read_registration(folder)
    except ImageError:
        return None
    row = prepared_before(study, folder, registration)
    complete = all(isinstance(path, Path) and path.is_file() for path in row.files())
    return Prepared(row, registration.remarks) if registration.state == state and complete else None
