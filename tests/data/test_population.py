"""What is recorded of the training images' looks, against the same figures from the prepared studies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_studies import brain, write_study

from bmmae.data.cache import StudyCache
from bmmae.data.cohort import Cohort, Study
from bmmae.data.origin import training_provenance
from bmmae.data.population import LEVELS, MOST_STUDIES, describe_population, histogram_distance, quantiles_of
from bmmae.data.preprocess import PreprocessConfig, prepare_study
from bmmae.modalities import STANDARD
from bmmae.provenance import Population, Provenance

CONFIG = PreprocessConfig()


@pytest.fixture
def studies(tmp_path: Path) -> list[Study]:
    return [
        write_study(tmp_path / "a", seed=1),
        write_study(tmp_path / "b", ("t1", "t2"), seed=2),
        write_study(tmp_path / "c", ("t1",), seed=3, shape=(24, 28, 20)),
    ]


@pytest.mark.parametrize("stored", [True, False])
def test_quantiles_are_the_mean_of_those_of_the_prepared_studies(
    studies: list[Study], tmp_path: Path, stored: bool
) -> None:
    cache = StudyCache(tmp_path / "cache" if stored else None, CONFIG, STANDARD)
    found = describe_population(studies, cache)
    prepared = [prepare_study(study, CONFIG, STANDARD) for study in studies]
    for name, count in (("t1", 3), ("t2", 2), ("flair", 1)):
        own = [
            np.quantile(p.images[p.names.index(name)][p.brain & p.valid[p.names.index(name)]], LEVELS)
            for p in prepared
            if name in p.names
        ]
        assert len(own) == count
        assert np.allclose(found.quantiles[name], np.mean(own, axis=0), atol=2e-3)  # stored as float16
        far = max(np.abs(q - np.mean(own, axis=0)).mean() for q in own)
        assert found.distances[name] == pytest.approx(far, abs=2e-3)
    assert found.brain_ml == pytest.approx((brain().sum() / 1000, brain((24, 28, 20)).sum() / 1000))
    assert found.subsets == {"t1": 1, "t1+t1ce+t2+flair": 1, "t1+t2": 1}


def test_only_some_of_many_studies_are_opened(
    studies: list[Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = StudyCache(tmp_path / "cache", CONFIG, STANDARD)
    opened = []
    load = cache.load
    monkeypatch.setattr(cache, "load", lambda study: (opened.append(study), load(study))[1])
    many = [studies[index % 3] for index in range(300)]
    found = describe_population(many, cache)
    assert found.studies == len(opened) == MOST_STUDIES
    assert sum(found.subsets.values()) == 300


def test_what_a_model_remembers_survives_json(studies: list[Study], tmp_path: Path) -> None:
    import json

    cohort = Cohort(tuple(studies))
    made = training_provenance(cohort, studies, cache=StudyCache(tmp_path / "cache", CONFIG, STANDARD))
    again = Provenance.of(json.loads(json.dumps(made.as_dict())))
    assert isinstance(again.population, Population)
    assert again == made
    assert training_provenance(cohort, studies).population is None


def test_configs_written_before_the_record_existed_stay_readable() -> None:
    values = Provenance(data="old").as_dict()
    del values["population"]
    assert Provenance.of(values).population is None


def test_distances_of_histograms() -> None:
    values = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    assert quantiles_of(values[:20]) is None
    one = quantiles_of(values)
    two = quantiles_of(values + np.float32(0.5))
    assert one is not None
    assert two is not None
    assert histogram_distance(one, one) == 0
    assert histogram_distance(one, two) == pytest.approx(0.5, abs=1e-3)
