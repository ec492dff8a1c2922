"""The whole page: what was evaluated, what to doubt, tables, comparisons, pictures, and how to read them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TypeAlias

from bmmae.data.location import write_whole
from bmmae.data.problems import counted
from bmmae.evaluation.classification import compare_classes, evaluate_classes
from bmmae.evaluation.clinical import NAME
from bmmae.evaluation.intervals import DRAWS
from bmmae.evaluation.predictions import ClassPredictions, PredictionKey, SurvivalPredictions
from bmmae.evaluation.scores import Score
from bmmae.evaluation.survival import compare_survival, evaluate_survival
from bmmae.notice import NOTICE
from bmmae.page import document
from bmmae.patient_report.sections import (
    FIRST,
    FIRST_SURVIVAL,
    class_pictures,
    class_warnings,
    comparison_table,
    score_tables,
    survival_pictures,
    survival_warnings,
)

STYLE = """
body { max-width: 1280px } h2 { margin: 1.4em 0 .3em } h3 { font-size: 1em; margin: 1em 0 .2em }
small { color: #5a6677 } td small { white-space: nowrap } summary { cursor: pointer; color: #3366aa }
.notice { border-left: 4px solid #9a5b00; padding-left: .8em }
.row { display: flex; flex-wrap: wrap; gap: 12px } figure { background: none } figcaption { color: #5a6677 }
"""

READING = """
<ul>
<li>A figure is computed within each fold's test patients and averaged over folds; folds are never pooled, because
their models' risks and probabilities have no common scale (the reliability, decision and confusion pictures, which
need all patients, are the exception).</li>
<li>Intervals (95 %) are percentiles over draws of patients with replacement, widened where patients are few. They tell
how much other test patients would change the figure, not how much other training patients would: for that see the
deviation over folds. With fewer than twenty patients they can still be too narrow. There is none where all draws
agree (a perfect figure in a few patients is no proof), none where a figure rests on one patient of a class or one
death, and none of the calibration error, which draws inflate.</li>
<li>Each patient is given the likeliest class: of two classes, that is a threshold of 0.5, whatever their frequency.
Sensitivity, specificity and F1 depend on it; the AUC does not. Two classes: figures are those of the second, the
positive one (macro F1 and balanced accuracy are of both). More classes: means over classes.</li>
<li>The corrected t-test allows for the training patients that folds share; the paired bootstrap draws the same
patients for both models; DeLong's test is for one test set. No p-value is corrected for the number of tests.</li>
<li>A figure that is not defined (one class alone, no death) is left out of the mean, and counted.</li>
<li>Risk: higher means that the patient dies sooner. The calibration error (ece) is biased upwards in small folds.
Calibration slope: 1 is best, below it predictions are too extreme; in folds of fewer than forty patients that of a
well-calibrated model is above 1 on average. Calibration in the large: 0 is best, above it the second class is more
frequent than predicted (logits).</li>
</ul>
"""


Scores: TypeAlias = tuple[Sequence[Score], Sequence[Score]]
"""Of classes, and of survival."""


def score_all(
    classes: ClassPredictions | None, survival: SurvivalPredictions | None, *, draws: int = DRAWS
) -> tuple[list[Score], list[Score]]:
    """Return all figures of classes and of survival.

    Raises:
        CohortError: If nothing can be evaluated: no class is known, nobody died.
    """
    return (
        evaluate_classes(classes, draws=draws) if classes else [],
        evaluate_survival(survival, draws=draws) if survival else [],
    )


def patient_page(
    classes: ClassPredictions | None,
    survival: SurvivalPredictions | None,
    *,
    title: str,
    remarks: Sequence[str] = (),
    assurances: Sequence[str] = (),
    reference: str = NAME,
    draws: int = DRAWS,
    scores: Scores | None = None,
) -> str:
    """Return the page.

    Args:
        classes: Predictions of classes, if any.
        survival: Predictions of survival, if any.
        title: What was evaluated.
        remarks: Reasons to doubt the figures, which must stand above them: patients that the model has seen, synthetic
            data.
        assurances: What speaks for them: that the model has seen none of the patients.
        reference: The model that the others are compared with; the clinical-only one.
        draws: Bootstrap draws.
        scores: What `score_all` returns, if it is known already.

    Raises:
        CohortError: If nothing can be evaluated: no class is known, nobody died.
    """
    class_scores, survival_scores = scores or score_all(classes, survival, draws=draws)
    keys = [key for part in (classes, survival) if part is not None for key in part.keys]
    names = {key.model for key in keys}
    doubts = [
        *remarks,
        *(class_warnings(classes) if classes else ()),
        *(survival_warnings(survival) if survival else ()),
    ]
    if reference not in names:
        doubts.append(f"No model '{reference}' is beside: what the images add to clinical variables is not known.")
    parts = [
        f"<h1>{escape(title)}</h1><p class=notice>{escape(NOTICE, quote=False)}</p>",
        f"<p>{_counts(keys)}</p>",
        *(f"<p class=fine>{escape(assurance, quote=False)}</p>" for assurance in assurances),
        *(f"<p class=warning>{escape(doubt, quote=False)}</p>" for doubt in doubts),
        _class_section(classes, class_scores, reference, draws) if classes else "",
        _survival_section(survival, survival_scores, reference, draws) if survival else "",
        f"<h2>How to read this</h2>{READING}",
    ]
    return document(title, parts, STYLE)


def write_patient_report(
    path: Path,
    classes: ClassPredictions | None,
    survival: SurvivalPredictions | None,
    *,
    title: str,
    remarks: Sequence[str] = (),
    assurances: Sequence[str] = (),
    reference: str = NAME,
    draws: int = DRAWS,
    scores: Scores | None = None,
) -> Path:
    """Write the page; the arguments are `patient_page`'s.

    Raises:
        CohortError: If nothing can be evaluated.
        OutputError: If it cannot be written.
    """
    page = patient_page(
        classes,
        survival,
        title=title,
        remarks=remarks,
        assurances=assurances,
        reference=reference,
        draws=draws,
        scores=scores,
    )
    write_whole(Path(path), page.encode())
    return Path(path)


def _counts(keys: Sequence[PredictionKey]) -> str:
    patients, studies = {key.group for key in keys}, {(key.subject, key.session) for key in keys}
    folds = {key.fold for key in keys}
    kind = f"{len(folds)} folds of a cross-validation" if len(folds) > 1 else "one test set"
    told = counted(len(patients), "patient", "patients"), counted(len(studies), "study", "studies")
    return f"{', '.join(told)}, {kind}."


def _class_section(predictions: ClassPredictions, scores: Sequence[Score], reference: str, draws: int) -> str:
    names = [escape(name) for name in predictions.classes]
    positive = f" (positive: {names[1]})" if len(names) == 2 else ""
    parts = [f"<h2>Classes: {', '.join(names)}{positive}</h2>", score_tables(scores, FIRST)]
    if _comparable(predictions.known.keys, reference):
        parts.append(comparison_table(compare_classes(predictions, reference, draws=draws), reference, "auc"))
    return "\n".join([*parts, class_pictures(predictions)])


def _survival_section(predictions: SurvivalPredictions, scores: Sequence[Score], reference: str, draws: int) -> str:
    parts = ["<h2>Survival</h2>", score_tables(scores, FIRST_SURVIVAL)]
    if _comparable(predictions.known.keys, reference):
        parts.append(comparison_table(compare_survival(predictions, reference, draws=draws), reference, "harrell_c"))
    return "\n".join([*parts, survival_pictures(predictions)])


def _comparable(keys: Sequence[PredictionKey], reference: str) -> bool:
    return len({key.model for key in keys}) > 1 and reference in {key.model for key in keys}
