"""Converted weights work everywhere ours do: other grids, further modalities, fewer layers, any head."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch
from published import SMALL, published_state

from bmmae.checkpoint import (
    Metric,
    Provenance,
    add_modality,
    describe,
    load_encoder,
    load_model,
    provenance_of,
    save_model,
    truncate,
)
from bmmae.conversion import convert_state
from bmmae.errors import CheckpointError, ConfigError, ModalityError
from bmmae.growth import continue_from, transplant_encoder
from bmmae.model.config import DecoderConfig, EncoderConfig, ModelConfig, SynthesisConfig
from bmmae.model.mae import MAE
from bmmae.model.segmentation import SegmentationConfig, SegmentationModel
from bmmae.model.synthesis import Examples

OURS = ModelConfig(
    modalities=("t1", "flair"),
    patch=(8, 8, 8),
    size=(16, 16, 16),
    encoder=EncoderConfig(24, 2, 2),
    decoder=DecoderConfig(kind="cross", dim=12, depth=1, heads=2, colocated=True),
    synthesis=SynthesisConfig(units=8, scales=(2.0,)),
)


@pytest.fixture(scope="module")
def published() -> MAE:
    """A small model of the published architecture, converted."""
    return convert_state(published_state(SMALL), "a test")


@pytest.fixture
def ours() -> MAE:
    """One of our recipes, whose voxel-wise regression has been fitted."""
    model = MAE(OURS).eval()
    voxels = torch.randn(500, 2, 2, generator=torch.Generator().manual_seed(0)).cumsum(1)
    model.synthesis.fit(Examples(voxels, torch.ones(500, 2) > 0, torch.arange(500) % 2 == 0, voxels[..., 0]))
    return model


def volume(*size: int) -> torch.Tensor:
    return torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(sum(size)))


@torch.inference_mode()
def encode(model: MAE, **images: torch.Tensor) -> torch.Tensor:
    return model.encode(images)


@torch.inference_mode()
def predict(model: MAE, wanted: tuple[str, ...], **images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Predict the modalities named; a `self` decoder's answer depends on what else it is asked for."""
    names = model.config.modalities
    volumes, available = model.stack(images)
    asked = torch.tensor([name in wanted for name in names]) & ~available
    predicted = model.predict(volumes, model.tokens(volumes, available), model.tokens(volumes, asked))
    return {name: predicted[:, names.index(name)] for name in wanted if name not in images}


@pytest.mark.parametrize("size", [(16, 16, 24), (8, 8, 8), (24, 8, 40)])
def test_converted_weights_encode_and_reconstruct_any_grid(published, size) -> None:
    tokens = encode(published, flair=volume(*size), t1=volume(*size))
    assert tokens.shape == (2, 1 + 2 * size[0] * size[1] * size[2] // 512, 48)
    absent = published.reconstruct({"t1": volume(*size)})
    assert {name: tuple(v.shape) for name, v in absent.items()} == dict.fromkeys(("t1ce", "t2", "flair"), (2, 1, *size))


@pytest.mark.parametrize("name", ["dwi", "pet"])
@pytest.mark.parametrize("which", ["published", "ours"])
def test_a_further_modality_changes_nothing_for_those_known_before(request, which, name) -> None:
    model = request.getfixturevalue(which)
    grown = add_modality(model, name, like="flair")
    images = {"t1": volume(16, 16, 16)}
    assert torch.equal(encode(grown, **images), encode(model, **images))
    before, after = (predict(m, model.config.modalities, **images) for m in (model, grown))
    assert all(torch.allclose(after[known], before[known], atol=1e-6) for known in before)
    assert set(grown.reconstruct(images)) - set(model.reconstruct(images)) == {name}


def test_a_further_modality_starts_as_the_one_it_is_like(ours) -> None:
    grown = add_modality(ours, "dwi", like="flair")
    image = volume(16, 16, 16)
    assert grown.config.modalities == ("t1", "flair", "dwi")
    assert torch.equal(encode(grown, dwi=image), encode(grown, flair=image))
    absent = grown.reconstruct({"t1": image})
    assert torch.allclose(absent["dwi"], absent["flair"])


@pytest.mark.parametrize(("like", "robust"), [("t1", ("t1", "swi")), ("flair", ("t1",))])
def test_a_modality_is_read_on_the_scale_of_the_one_it_is_like(like: str, robust: tuple[str, ...]) -> None:
    config = replace(OURS, synthesis=replace(OURS.synthesis, robust=("t1",)))
    grown = add_modality(MAE(config), "swi", like=like)
    assert set(grown.config.synthesis.robust) == set(robust)
    places = [grown.config.modalities.index(name) for name in robust]
    assert sorted(grown.synthesis.robust) == sorted(places)


def test_a_scale_that_a_recipe_names_for_others_is_not_that_of_what_is_added(ours) -> None:
    ours.config = replace(OURS, synthesis=replace(OURS.synthesis, robust=("swi",)))
    grown = add_modality(ours, "swi", like="flair")
    assert (grown.config.synthesis.robust, grown.synthesis.robust) == ((), [])


def test_the_model_that_grows_stays_as_it_was(ours) -> None:
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    grown = add_modality(ours, "dwi", like="t1")
    with torch.no_grad():
        for parameter in grown.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())
    assert ours.config == OURS


def test_a_grown_model_is_saved_and_loaded_like_any_other(ours, tmp_path) -> None:
    grown = add_modality(add_modality(ours, "pet", like="t1"), "ct", like="pet")
    loaded = load_model(save_model(grown, tmp_path / "grown"))
    assert loaded.config.modalities == ("t1", "flair", "ct", "pet")


@pytest.mark.parametrize(
    ("derive", "change"),
    [
        (lambda model: truncate(model, 1), "truncated to 1 of 2 encoder blocks"),
        (lambda model: add_modality(model, "dwi", like="t1"), "dwi added, which starts as t1"),
    ],
)
def test_what_is_made_from_a_model_says_so_and_claims_none_of_its_metrics(ours, derive, change, tmp_path) -> None:
    told = Provenance("9 studies", content_hashes=("ab",), metrics={"psnr": Metric(30.0)}, licence="MIT", parent="old")
    describe(ours, provenance=told)
    found = provenance_of(derive(ours))
    assert (dict(found.metrics), found.changes, found.licence) == ({}, (change,), "MIT")
    assert found.parent == "a mae model trained on 9 studies, which started from old"
    assert (found.seen, found.parent_hashes) == (("ab",), ())
    save_model(derive(ours), tmp_path / "made")
    assert f"| changed since | {change} |" in (tmp_path / "made" / "README.md").read_text()
    assert provenance_of(ours) == told


def test_a_second_change_is_added_to_the_first(ours) -> None:
    describe(ours, provenance=Provenance("9 studies", content_hashes=("ab",)))
    found = provenance_of(truncate(add_modality(ours, "dwi", like="t1"), 1))
    assert len(found.changes) == 2
    assert (found.parent, found.parent_hashes) == ("a mae model trained on 9 studies", ("ab",))


def test_a_segmentation_model_grows_as_well() -> None:
    model = SegmentationModel(SegmentationConfig(model=OURS, regions=("WT",), width=4)).eval()
    grown = add_modality(model, "dwi", like="flair")
    images, available = torch.cat([volume(16, 16, 16)] * 2, 1), torch.tensor([[True, False]] * 2)
    more, still = torch.cat([images, images[:, :1]], 1), torch.tensor([[True, False, False]] * 2)
    with torch.inference_mode():
        assert torch.allclose(model(images, available), grown(more, still), atol=1e-6)


def test_growing_refuses_what_makes_no_sense(ours) -> None:
    with pytest.raises(ModalityError, match="the model knows 'flair' already: it has t1, flair"):
        add_modality(ours, "flair", like="t1")
    with pytest.raises(ModalityError, match="unknown modality 't2': expected one of t1, flair"):
        add_modality(ours, "dwi", like="t2")
    with pytest.raises(ModalityError, match="the model knows 'flair' already"):
        add_modality(ours, "tirm", like="flair")
    with pytest.raises(ModalityError, match="'D W I' cannot be a modality name"):
        add_modality(ours, "D W I", like="t1")


def test_fewer_layers_read_out_what_those_layers_computed(published) -> None:
    from bmmae.model.tokens import TokenIndex

    image = volume(16, 16, 16)
    volumes, available = published.stack({"t2": image})
    tokens = TokenIndex.of(published.tokens(volumes, available))
    with torch.inference_mode():
        second = list(published.encoder.layers(volumes, tokens))[2]
        assert torch.equal(encode(truncate(published, 2), t2=image), published.encoder.norm(second))


@pytest.mark.parametrize("depth", [0, 4])
def test_more_layers_than_there_are_is_refused(published, depth) -> None:
    with pytest.raises(ConfigError, match=f"cannot read out {depth} encoder blocks: expected 1 to 3"):
        truncate(published, depth)


def test_a_head_receives_the_converted_encoder(published) -> None:
    head = SegmentationModel(SegmentationConfig(model=SMALL, regions=("WT",), width=4)).eval()
    assert load_encoder(head, published).complete
    ours, theirs = head.encoder.state_dict(), published.encoder.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    images = torch.randn(1, 4, 16, 16, 24)
    with torch.inference_mode():
        out = head(images, torch.tensor([[True, False, False, True]]))
    assert out.shape == (1, 1, 16, 16, 24)
    assert bool(torch.isfinite(out).all())


def test_an_encoder_that_lacks_a_modality_says_how_to_add_it(published, ours) -> None:
    head = add_modality(published, "ct", like="t1")
    with pytest.raises(ModalityError, match=r"does not know ct, only t1, .*add_modality\(donor, 'ct', like='t1'\)"):
        load_encoder(head, published)


def test_an_encoder_goes_from_model_to_model(ours) -> None:
    with pytest.raises(ConfigError, match=r"to receive an encoder, got a Linear: load_encoder\(model, source\) takes"):
        inspect.unwrap(transplant_encoder)(torch.nn.Linear(1, 1), ours)
    with pytest.raises(ConfigError, match="to give an encoder, got a str"):
        inspect.unwrap(transplant_encoder)(ours, "checkpoints/tiny")


def test_an_encoder_of_another_shape_is_refused(ours, published) -> None:
    with pytest.raises(CheckpointError, match=r"has encoder.dim 48 where the model has 24, encoder.heads 12 where"):
        load_encoder(ours, published)
    wider = MAE(replace(OURS, encoder=replace(OURS.encoder, mlp_ratio=3.0)))
    with pytest.raises(CheckpointError, match=r"do not fit Encoder: .*misshapen: .*fc1.bias \(expected .*72.*got .*48"):
        load_encoder(wider, ours)
    with pytest.raises(ConfigError, match="the model's encoder has 3 blocks, the pretrained one 2"):
        load_encoder(published, truncate(published, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": EncoderConfig(24, 2, 4)}, "has encoder.heads 2 where the model has 4: "),
        ({"encoder": EncoderConfig(24, 2, 2, rotary=True)}, "has encoder.rotary False where the model has True: "),
        ({"patch": (16, 8, 4)}, r"has patch \(8, 8, 8\) where the model has \(16, 8, 4\): "),
    ],
)
def test_an_encoder_of_the_same_shapes_and_another_meaning_is_refused(ours, change, message) -> None:
    head = MAE(replace(OURS, **change))
    shapes = {key: value.shape for key, value in ours.encoder.state_dict().items()}
    assert shapes == {key: value.shape for key, value in head.encoder.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"the pretrained encoder {message}.*settings"):
        load_encoder(head, ours)


def test_pretraining_goes_on_from_all_weights_but_the_regression(ours) -> None:
    wider = replace(OURS, size=(32, 32, 32), synthesis=SynthesisConfig(units=4, scales=(2.0,)), targets="patches")
    going_on = MAE(wider)
    regression = going_on.synthesis.state_dict()["units"].clone()
    continue_from(going_on, ours)
    assert torch.equal(going_on.synthesis.units, regression)
    learned, before = dict(going_on.named_parameters()), dict(ours.named_parameters())
    assert learned.keys() == before.keys()
    assert all(torch.equal(learned[name], before[name]) for name in before)


def test_pretraining_goes_on_from_a_model_of_its_own_shape_alone(ours) -> None:
    more = MAE(replace(OURS, modalities=("t1", "t2", "flair"), encoder=replace(OURS.encoder, depth=3)))
    with pytest.raises(
        ConfigError, match=r"model.modalities .*model.encoder.depth 2 where this run has 3: set the run's"
    ):
        continue_from(more, ours)
    with pytest.raises(ConfigError, match="from a masked autoencoder, got a SegmentationModel"):
        continue_from(ours, SegmentationModel(SegmentationConfig(OURS)))
