"""The clinical-only models that stand beside every image model: what the images add is the difference to them.

Logistic regression and proportional hazards on the cohort table's clinical columns, for `cross_validate`. Gaps are
filled with the training fold's median (for categories: none of them) and flagged; columns are scaled by the training
fold. Images are never looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bmmae.arrays import Array, Float
from bmmae.baselines.cox import fit_cox
from bmmae.clinical import ClinicalVariable, fit_clinical
from bmmae.data.cohort import Study
from bmmae.data.patients import cells_of
from bmmae.errors import CohortError
from bmmae.evaluation.cross_validation import Answer, Fit, Predictor, Subset
from bmmae.targets import as_label

NAME = "clinical"
"""What the model is called among the others."""


def clinical_classifier(columns: Sequence[str], label: str, strength: float = 1.0) -> Fit:
    """Return how logistic regression of a class on clinical columns is fitted.

    Args:
        columns: Clinical columns of the cohort table.
        label: Column of the class, `Truth.column`.
        strength: Inverse of the ridge penalty, scikit-learn's `C`.

    Raises:
        CohortError: If the class is among the columns given.
    """
    if label in columns:
        raise CohortError(f"column '{label}' is predicted, so it cannot be given: take it out of the clinical columns")

    def fit(train: Sequence[Study], _: Sequence[Study]) -> Predictor:
        from sklearn.linear_model import LogisticRegression

        labelled = [(study, name) for study in train if (name := as_label(study.values.get(label))) is not None]
        names = [name for _, name in labelled]
        if len(set(names)) < 2:
            raise CohortError(
                f"column '{label}' has {len(set(names))} classes among the training studies: expected two"
            )
        variables = fit_variables([study for study, _ in labelled], columns)
        model = LogisticRegression(C=strength, max_iter=1000)
        model.fit(design([study for study, _ in labelled], variables), names)

        def predict(studies: Sequence[Study], _: Subset) -> Answer:
            chances = np.asarray(model.predict_proba(design(studies, variables)))
            return Answer(classes=tuple(map(str, model.classes_)), probabilities=chances)

        return predict

    return fit


def clinical_cox(columns: Sequence[str], at: Sequence[float], penalty: float = 1.0) -> Fit:
    """Return how proportional hazards on clinical columns are fitted.

    Args:
        columns: Clinical columns of the cohort table.
        at: Times at which the survival curve is given.
        penalty: Of `fit_cox`.
    """

    def fit(train: Sequence[Study], _: Sequence[Study]) -> Predictor:
        followed = [study for study in train if study.time is not None and study.event is not None]
        if not followed:
            raise CohortError(f"none of the {len(train)} training studies has both `time` and `event`: fill in the two")
        variables = fit_variables(followed, columns)
        time, event = np.array([study.time for study in followed], float), np.array([bool(s.event) for s in followed])
        model = fit_cox(design(followed, variables), time, event, penalty)

        def predict(studies: Sequence[Study], _: Subset) -> Answer:
            table = design(studies, variables)
            return Answer(
                risk=model.risk(table),
                curve=model.survival(table, np.array(at, float)),
                at=tuple(at),
                risk_cut=model.risk_cut,
            )

        return predict

    return fit


def fit_variables(train: Sequence[Study], columns: Sequence[str]) -> tuple[ClinicalVariable, ...]:
    """Fit scaling, categories and what fills gaps on training studies.

    Raises:
        CohortError: If a column is not in the table or blank for all of them, or there is none.
    """
    if not columns:
        raise CohortError("a clinical model needs at least one clinical column, got none")
    return tuple(fit_clinical(name, cells_of(train, name), impute=True) for name in columns)


def design(studies: Sequence[Study], variables: Sequence[ClinicalVariable]) -> Float[Array, "N X"]:
    """Return one row a study: each number, or a 1 for the category, and whether it was missing."""
    return np.array([[number for v in variables for number in _encoded(v, study)] for study in studies])


def _encoded(variable: ClinicalVariable, study: Study) -> list[float]:
    value, known = variable.encode(study.values.get(variable.name))
    if variable.kind == "numeric":
        return [value, float(not known)]
    return [float(known and index == value) for index in range(len(variable.categories))] + [float(not known)]
