"""The Missing Modality Transformer and MFN-VAE: any subset, tokens instead of zeros, the same again."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

from bmmae.baselines.feature_table import hide
from bmmae.baselines.mfn_vae import MFNVAE
from bmmae.baselines.missing_modality_transformer import (
    MissingModalityNetwork,
    MissingModalityTransformer,
    ModalInteraction,
)
from bmmae.baselines.table_network import Rows, TableTraining, all_subsets
from bmmae.errors import ConfigError, LabelError, ModalityError, TrainingError

BLOCKS = {"t1": (0, 1, 2), "t1ce": (3, 4), "t2": (5, 6, 7), "flair": (8, 9)}
NAMES = tuple(BLOCKS)
SHORT = TableTraining(epochs=2)
KINDS = (MissingModalityTransformer, MFNVAE)


def patients(count: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two classes that every modality tells apart a little, through a cause that all share."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    cause = 2.0 * labels - 1 + random.normal(size=count)
    return cause[:, None] + 0.5 * random.normal(size=(count, 10)), np.array(["LGG", "GBM"])[labels]


def small_network(**given: Any) -> MissingModalityNetwork:
    torch.manual_seed(0)
    settings = {"width": 8, "dropout": 0.0, "reconstruction": 1.0, "classification": 1.0, **given}
    return MissingModalityNetwork(BLOCKS, 2, **settings).eval()


def available(*names: str, rows: int = 1) -> torch.Tensor:
    return torch.tensor([[name in names for name in NAMES]] * rows)


@pytest.mark.parametrize(("kind", "subset"), list(product(KINDS, all_subsets(NAMES))))
def test_every_subset_is_fitted_and_predicted(kind: Any, subset: tuple[str, ...]) -> None:
    X, y = patients(12)
    model = kind(BLOCKS, (subset,), width=4, training=TableTraining(epochs=1)).fit(X, y)
    given = model.predict_proba(hide(X, BLOCKS, subset))
    assert given.shape == (12, 2)
    np.testing.assert_allclose(given.sum(axis=1), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_one_network_serves_all_subsets(kind: Any) -> None:
    X, y = patients(80)
    model = kind(BLOCKS, training=TableTraining(epochs=15)).fit(X, y)
    unseen, truth = patients(80, seed=1)
    for subset in (NAMES, ("t2",), ("t1", "flair")):
        score = model.predict_proba(hide(unseen, BLOCKS, subset))[:, list(model.classes_).index("GBM")]
        assert roc_auc_score(truth == "GBM", score) > 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_absent_has_no_influence(kind: Any) -> None:
    X, y = patients(20)
    network = kind(BLOCKS, training=SHORT).fit(X, y).network_
    seen = available("t1", "flair", rows=20)
    other = torch.from_numpy(X).float()
    other[:, 3:8] = 99
    one = network.logits(torch.from_numpy(X).float(), seen)
    torch.testing.assert_close(network.logits(other, seen), one)


@pytest.mark.parametrize("kind", KINDS)
def test_an_absent_modality_differs_from_zeros(kind: Any) -> None:
    X, y = patients(20)
    network = kind(BLOCKS, training=SHORT).fit(X, y).network_
    zeros = torch.from_numpy(X).float()
    zeros[:, 3:5] = 0
    absent = network.logits(zeros, available("t1", "t2", "flair", rows=20))
    assert not torch.allclose(network.logits(zeros, available(*NAMES, rows=20)), absent, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_and_leaves_the_global_one_alone(kind: Any) -> None:
    X, y = patients(20)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    model = kind(BLOCKS, training=SHORT, random_state=3)
    first = model.fit(X, y).predict_proba(X)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(clone(model).fit(X, y).predict_proba(X), first)
    assert not np.allclose(clone(model).set_params(random_state=4).fit(X, y).predict_proba(X), first)


def test_the_classification_token_meets_missing_modalities_only() -> None:
    torch.manual_seed(0)
    layer = ModalInteraction(4, 8, 0.0).eval()
    tokens, class_token = torch.randn(1, 4, 8), torch.randn(1, 1, 8)
    missing = ~available("t1", "t2", "flair")
    changed = tokens.clone()
    changed[:, NAMES.index("t2")] = torch.randn(8)
    torch.testing.assert_close(layer(changed, class_token, missing)[1], layer(tokens, class_token, missing)[1])
    changed[:, NAMES.index("t1ce")] = torch.randn(8)
    assert not torch.allclose(layer(changed, class_token, missing)[1], layer(tokens, class_token, missing)[1])


def test_every_modality_token_meets_every_other() -> None:
    torch.manual_seed(0)
    layer = ModalInteraction(4, 8, 0.0).eval()
    tokens = torch.randn(1, 4, 8)
    for one, other in product(range(4), range(4)):
        changed = tokens.clone()
        changed[:, other] = torch.randn(8)
        pair = [layer(given, torch.zeros(1, 1, 8), ~available(*NAMES))[0][:, one] for given in (tokens, changed)]
        assert not torch.allclose(*pair)


def test_the_interaction_is_the_one_written_down() -> None:
    torch.manual_seed(0)
    layer = ModalInteraction(2, 3, 0.0).eval()
    tokens, class_token = torch.randn(1, 2, 3), torch.randn(1, 1, 3)
    q, k, v = zip(*((layer.norm(tokens)[0, m] @ layer.maps[m]).chunk(3) for m in range(2)), strict=True)
    queries = [q[m] + k[0] * k[1] + k[m] * v[m] for m in range(2)]
    last = layer.class_query(layer.norm(class_token))[0, 0] + k[1] * v[1]
    found = torch.cat(layer(tokens, class_token, torch.tensor([[False, True]])), dim=1)[0]
    given = torch.cat([tokens[0], class_token[0]])
    torch.testing.assert_close(found, given + layer.feed_forward(torch.stack([*queries, last])))


def test_the_loss_has_one_weight_for_each_missing_modality() -> None:
    X = torch.randn(6, 10)
    seen = available("t1", "t2", rows=6)
    rows = Rows(X, seen, torch.ones_like(seen), torch.tensor([0, 1] * 3))
    weights = {"t1": 10.0, "t1ce": 2.0, "t2": 10.0, "flair": 3.0}
    network = small_network(reconstruction=weights, classification=5.0)
    guesses = network.reconstructed(network.tokens(X, seen)[0])
    crossed = torch.nn.functional.cross_entropy(network.logits(X, seen), rows.labels)
    errors = 2 * (guesses[1] - X[:, 3:5]).abs().mean() + 3 * (guesses[3] - X[:, 8:10]).abs().mean()
    torch.testing.assert_close(network.loss(rows), 5 * crossed + errors)


def test_what_was_never_measured_is_no_target() -> None:
    X, seen = torch.randn(4, 10), available("t1", rows=4)
    rows = Rows(X, seen, seen, torch.tensor([0, 1, 0, 1]))
    crossed = torch.nn.functional.cross_entropy(small_network().logits(X, seen), rows.labels)
    torch.testing.assert_close(small_network().loss(rows), crossed)


def test_an_absent_modality_is_learned_from_the_others() -> None:
    X, y = patients(80)
    model = MissingModalityTransformer(BLOCKS, (("t1", "t2", "flair"),), training=TableTraining(epochs=40)).fit(X, y)
    unseen = torch.from_numpy(patients(80, seed=1)[0]).float()
    seen = available("t1", "t2", "flair", rows=80)
    guess = model.network_.reconstructed(model.network_.tokens(unseen, seen)[0])[1]
    error = (guess - unseen[:, 3:5]).abs().mean()
    assert error < 0.7 * (unseen[:, 3:5] - unseen[:, 3:5].median(dim=0).values).abs().mean()


def test_without_modalities_the_latent_vector_is_the_prior() -> None:
    X, y = patients(12)
    network = MFNVAE(BLOCKS, training=SHORT).fit(X, y).network_
    mean, variance = network.latent(torch.from_numpy(X).float(), available(rows=12))
    assert not mean.any()
    assert (variance == 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_fitted_is_refused(kind: Any) -> None:
    X, y = patients(12)
    with pytest.raises(LabelError, match=r"two classes or more, got only \['GBM'\]"):
        kind(BLOCKS).fit(X, np.repeat("GBM", 12))
    with pytest.raises(ModalityError, match="unknown modality 'dwi'"):
        kind(BLOCKS, (("t1", "dwi"),)).fit(X, y)
    with pytest.raises(ModalityError, match="'t2' has no columns"):
        kind({**BLOCKS, "t2": ()}).fit(X, y)
    with pytest.raises(ModalityError, match="has column 10, but the table has 10 columns"):
        kind({**BLOCKS, "t2": (10,)}).fit(X, y)
    with pytest.raises(ModalityError, match="a subset to train on has no patient"):
        kind(BLOCKS, (("t2",),)).fit(hide(X, BLOCKS, ["t1"]), y)
    with pytest.raises(ConfigError, match="expected a width"):
        kind(BLOCKS, width=0).fit(X, y)


def test_a_subset_that_was_not_trained_is_refused() -> None:
    X, y = patients(12)
    model = MissingModalityTransformer(BLOCKS, (("t1", "flair"),), training=SHORT).fit(X, y)
    with pytest.raises(ModalityError, match=r"a patient has t1\+t1ce\+t2\+flair, which is none of the subsets"):
        model.predict(X)


def test_a_loss_that_is_not_finite_is_refused() -> None:
    X, y = patients(12)
    with pytest.raises(TrainingError, match="MFN-VAE: the loss is"):
        MFNVAE(BLOCKS, training=SHORT).fit(X * 1e30, y)


def test_weights_must_name_every_modality() -> None:
    X, y = patients(12)
    with pytest.raises(ModalityError, match="no weight for modality 't1ce'"):
        MissingModalityTransformer(BLOCKS, reconstruction={"t1": 1.0}).fit(X, y)


@pytest.mark.parametrize("given", [{"epochs": 0}, {"batch_size": 1}, {"learning_rate": 0.0}, {"weight_decay": -1.0}])
def test_impossible_training_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        TableTraining(**given)
