"""What frozen embeddings know without any training: nearest neighbours by label and by site, and a picture.

Each study is the mean of the encoder's tokens (`bmmae embed`). Its label is that of most of its nearest neighbours
among the training patients, by cosine; what it has to be above is the share of the most frequent label. A
site that can be told from brains it did not label is a warning: what a scanner does must not look like disease.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from learning_data import Source
from real import Parts

from bmmae.data.cohort import Study
from bmmae.embedding_plot import draw_embeddings
from bmmae.model.pretrained import PretrainedModel
from bmmae.patient_prediction import embed

NEIGHBOURS = 10
FEW = 3
"""Neighbours where only a dozen patients are known."""
SITE = re.compile(r"_(2013|CBICA|TCIA\d\d)_")
"""What BraTS names say of where an image comes from."""


def site_of(study: Study) -> str:
    """Return where a real case comes from, as far as its name says; else the edition."""
    found = SITE.search(study.subject)
    return found.group(1) if found else study.subject[:9]


def _column(name: str) -> Callable[[Study], str]:
    return lambda study: str(study.values[name])


LABELS: dict[str, dict[str, Callable[[Study], str]]] = {
    "real": {"site": site_of},
    "synthetic": {name: _column(name) for name in ("subtype", "primary_site")},
}


def neighbours(
    model: PretrainedModel, source: Source, parts: Parts, *, picture: Path | None = None
) -> dict[str, dict[str, Any]]:
    """Return, by label, which test patients are told rightly: `right` by patient, and the patient's `truth`.

    Args:
        model: Any with an encoder; frozen.
        source: The data.
        parts: Training patients are the neighbours, test patients are asked about.
        picture: Where to draw the test patients, `{label}` in its name; by default nowhere.
    """
    from sklearn.neighbors import KNeighborsClassifier

    known, asked = (embed(model, studies, source.cache) for studies in (parts.train, parts.test))
    kind = "real" if source.name == "real" else "synthetic"
    count = min(FEW if kind == "real" else NEIGHBOURS, len(parts.train))
    found = {}
    for label, of in LABELS[kind].items():
        classifier = KNeighborsClassifier(count, metric="cosine", algorithm="brute")
        classifier.fit(_vectors(known), [of(study) for study in parts.train])
        truth = [of(study) for study in parts.test]
        right = classifier.predict(_vectors(asked)) == np.array(truth)
        names = [study.group for study in parts.test]
        found[label] = {
            "right": dict(zip(names, map(float, right), strict=True)),
            "truth": dict(zip(names, truth, strict=True)),
        }
        if picture is not None and kind == "synthetic":
            draw_embeddings(picture.with_name(picture.name.format(label=label)), asked, parts.test, label)
    return found


def _vectors(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    return np.array([[value for name, value in row.items() if re.fullmatch(r"e\d+", name)] for row in rows], float)
