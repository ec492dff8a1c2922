"""The autoencoder: any subset, any order, any grid, and never a look at what is hidden."""

from __future__ import annotations

import math
import re
import warnings
from typing import Any

import jaxtyping
import pytest
import torch
from tiny_models import DECODERS, flags, tiny_mae, tiny_segmentation, volumes

from bmmae.checkpoint import load_encoder
from bmmae.errors import ConfigError, ModalityError
from bmmae.model.config import DecoderConfig, EncoderConfig, ModelConfig, recipe
from bmmae.model.encoder_model import UnpreparedWarning
from bmmae.model.mae import MAE
from bmmae.model.patient import PatientModel, PatientModelConfig
from bmmae.model.pretrained import ModelMetadata
from bmmae.model.segmentation import SegmentationModel
from bmmae.model.tokens import TokenIndex
from bmmae.patches import Triple, patchify, unpatchify
from bmmae.targets import Target

each_decoder = pytest.mark.parametrize("decoder", DECODERS, ids=["self", "cross", "cross-synthesis", "self-synthesis"])


def draw(batch: int = 3, places: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Visible tokens, of other subsets and numbers in each sample, and hidden ones to predict."""
    visible = flags(batch, 4, places, seed=seed)
    visible[0, 1:] = False
    return visible, flags(batch, 4, places, seed=seed + 1) & ~visible


@each_decoder
def test_the_order_of_the_modalities_changes_nothing(decoder: dict[str, Any]) -> None:
    model, data = tiny_mae(**decoder), volumes(2)
    named = {name: data[:, [i]] for i, name in enumerate(("t1", "t2", "flair"))}
    encoded, absent = model.encode(named), model.reconstruct(named)
    for order in (("flair", "t2", "t1"), ("t2", "t1", "flair")):
        shuffled = {name: named[name] for name in order}
        assert torch.equal(model.encode(shuffled), encoded)
        assert torch.equal(model.reconstruct(shuffled)["t1ce"], absent["t1ce"])
    assert set(absent) == {"t1ce"}
    assert encoded.shape == (2, 1 + 3 * 8, 24)


@each_decoder
def test_absent_differs_from_zero_filled(decoder: dict[str, Any]) -> None:
    model, data = tiny_mae(**decoder), volumes()
    alone = model.reconstruct({"t1": data[:, :1]})["flair"]
    filled = model.reconstruct({"t1": data[:, :1], "t2": torch.zeros_like(data[:, :1])})["flair"]
    assert not torch.allclose(alone, filled, atol=1e-3)


def test_modalities_are_told_apart_by_name() -> None:
    model, data = tiny_mae(), volumes()[:, :1]
    assert not torch.allclose(model.encode({"t1": data}), model.encode({"t2": data}), atol=1e-3)


@each_decoder
def test_a_sample_gets_the_same_output_in_any_batch(decoder: dict[str, Any]) -> None:
    model, images, (visible, targets) = tiny_mae(**decoder), volumes(3), draw()
    together = model(images, visible, targets)
    for i in range(3):
        alone = model(images[[i]], visible[[i]], targets[[i]])
        torch.testing.assert_close(together.values[together.targets.sample == i], alone.values, atol=1e-5, rtol=1e-4)


def test_an_encoded_sample_is_the_same_in_any_batch() -> None:
    model, images, (visible, _) = tiny_mae(), volumes(3), draw()
    together = model.encoder(images, TokenIndex.of(visible))
    for i in range(3):
        alone = model.encoder(images[[i]], TokenIndex.of(visible[[i]]))
        torch.testing.assert_close(together[[i], : alone.shape[1]], alone, atol=1e-5, rtol=1e-4)


@each_decoder
def test_hidden_voxels_never_influence_the_prediction(decoder: dict[str, Any]) -> None:
    model, images, (visible, targets) = tiny_mae(**decoder), volumes(3), draw()
    hidden = unpatchify((~visible)[..., None].float().expand(-1, -1, -1, 512), (2, 2, 2), (8, 8, 8))
    changed = torch.where(hidden > 0, 1e4, images)
    assert torch.equal(model(images, visible, targets).values, model(changed, visible, targets).values)


@each_decoder
def test_visible_voxels_do(decoder: dict[str, Any]) -> None:
    model, images, (visible, targets) = tiny_mae(**decoder), volumes(3), draw()
    assert not torch.allclose(model(images, visible, targets).values, model(images + 1, visible, targets).values)


@each_decoder
def test_every_parameter_gets_a_gradient_though_modalities_are_absent(decoder: dict[str, Any]) -> None:
    model, images, (visible, targets) = tiny_mae(**decoder), volumes(3), draw()
    visible[:, 2:], targets[:, 2:] = False, False
    model(images, visible, targets).values.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@each_decoder
def test_a_batch_without_targets_still_has_gradients(decoder: dict[str, Any]) -> None:
    model, images, (visible, targets) = tiny_mae(**decoder), volumes(3), draw()
    prediction = model(images, visible, torch.zeros_like(targets))
    assert prediction.values.shape == (0, 512)
    prediction.values.sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@each_decoder
def test_a_sample_without_a_visible_token_or_a_target_runs(decoder: dict[str, Any]) -> None:
    model, images, (visible, targets) = tiny_mae(**decoder), volumes(3), draw()
    visible[1], targets[2] = False, False
    values = model(images, visible, targets).values
    assert values.isfinite().all()
    assert len(values) == int(targets.sum())


@each_decoder
def test_a_batch_in_which_nothing_is_visible_runs(decoder: dict[str, Any]) -> None:
    targets = torch.ones(1, 4, 8, dtype=torch.bool)
    assert tiny_mae(**decoder)(volumes(), ~targets, targets).values.isfinite().all()


@each_decoder
def test_tokens_are_predicted_whether_they_are_visible_or_hidden(decoder: dict[str, Any]) -> None:
    model, images, (visible, targets) = tiny_mae(**decoder), volumes(3), draw()
    every = torch.ones_like(visible)
    prediction = model(images, visible, every)
    assert torch.equal(prediction.targets.chosen, every)
    if decoder["kind"] == "cross":  # queries do not see each other: more of them change nothing
        hidden = model(images, visible, targets).values
        torch.testing.assert_close(prediction.values[prediction.targets.among(TokenIndex.of(targets))], hidden)


def test_asking_for_visible_tokens_as_well_changes_nothing_for_the_hidden_ones() -> None:
    model, images, (visible, _) = tiny_mae(kind="self"), volumes(3), draw()
    every = model(images, visible, torch.ones_like(visible))
    hidden = model(images, visible, ~visible)
    among = every.targets.among(hidden.targets)
    torch.testing.assert_close(every.values[among], hidden.values, atol=1e-5, rtol=1e-4)


def test_colocated_queries_start_from_what_is_visible_in_their_own_place_alone() -> None:
    model = tiny_mae(kind="cross", colocated=True)
    visible, targets = torch.zeros(1, 4, 8, dtype=torch.bool), torch.zeros(1, 4, 8, dtype=torch.bool)
    visible[0, 0, [2, 5]] = True
    visible[0, 1, 2] = True
    targets[0, 3, [2, 4]] = True
    shown, wanted, placed = TokenIndex.of(visible), TokenIndex.of(targets), torch.randn(3, 24)
    starts = model.decoder._starts(placed, shown, wanted, (2, 2, 2))
    address = model.decoder.mask_token + model.decoder._address(wanted, (2, 2, 2))
    torch.testing.assert_close(starts[0] - address[0], placed[[0, 2]].mean(0))  # modalities 0 and 1 at place 2
    torch.testing.assert_close(starts[1], address[1])


@pytest.mark.parametrize(("size", "patch"), [((8, 16, 24), (8, 8, 8)), ((12, 8, 8), (6, 4, 2)), ((8, 8, 8), (8, 8, 8))])
@each_decoder
def test_any_grid_and_any_patch_run(size: Triple, patch: Triple, decoder: dict[str, Any]) -> None:
    model = tiny_mae(size, patch, **decoder)
    absent = model.reconstruct({"t1": volumes(1, 1, size)})
    assert {name: tuple(v.shape) for name, v in absent.items()} == dict.fromkeys(("t1ce", "t2", "flair"), (1, 1, *size))


def test_a_model_runs_on_grids_it_was_not_trained_on() -> None:
    assert tiny_mae().encode({"t2": volumes(1, 1, (8, 24, 16))}).shape == (1, 1 + 6, 24)


def test_predictions_land_in_their_patches_and_nowhere_else() -> None:
    model, images, (visible, targets) = tiny_mae(kind="cross"), volumes(3), draw()
    patches = patchify(model.predict(images, visible, targets), (8, 8, 8))
    assert torch.equal(patches[targets], model(images, visible, targets).values)
    assert not patches[~targets].any()


def test_patches_without_tissue_are_neither_read_nor_predicted() -> None:
    model, data = tiny_mae(kind="cross"), volumes(2, 1)
    tissue = torch.zeros(2, 1, 16, 16, 16, dtype=torch.bool)
    tissue[0, :, :8] = True
    tissue[1, :, 3, 3, 3] = True
    absent = model.reconstruct({"t1": data}, tissue)["t2"]
    assert not absent[0, :, 8:].any()
    assert absent[0, :, :8].any()
    read = torch.ones_like(data)
    read[0, :, 8:], read[1, :, 8:], read[1, :, :, 8:], read[1, :, :, :, 8:] = 0, 0, 0, 0
    assert torch.equal(model.reconstruct({"t1": data * read}, tissue)["t2"], absent)


def test_the_layers_last_after_the_norm_is_the_output() -> None:
    model, images, tokens = tiny_mae(), volumes(3), TokenIndex.of(draw()[0])
    layers = list(model.encoder.layers(images, tokens))
    assert len(layers) == 1 + model.config.encoder.depth
    assert torch.equal(model.encoder.norm(layers[-1]), model.encoder(images, tokens))


@each_decoder
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_run(decoder: dict[str, Any], dtype: torch.dtype) -> None:
    model, (visible, targets) = tiny_mae(**decoder).to(dtype), draw()
    values = model(volumes(3).to(dtype), visible, targets).values
    assert values.dtype == dtype
    exact = tiny_mae(**decoder)(volumes(3), visible, targets).values
    torch.testing.assert_close(values.float(), exact, atol=0.3 if dtype == torch.bfloat16 else 1e-4, rtol=0.1)


@each_decoder
def test_bf16_autocast_trains(decoder: dict[str, Any]) -> None:
    model, (visible, targets) = tiny_mae(**decoder), draw()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(volumes(3), visible, targets).values.float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@each_decoder
def test_bf16_autocast_reconstructs(decoder: dict[str, Any]) -> None:
    model, data = tiny_mae(**decoder), volumes(1, 1)
    exact = model.reconstruct({"t1": data})["t2"]
    with torch.autocast("cpu", torch.bfloat16):
        near = model.reconstruct({"t1": data})["t2"]
    assert torch.nn.functional.mse_loss(near.float(), exact) < 0.01 * exact.var()


def test_embeddings_named_as_free_of_weight_decay_exist() -> None:
    model = tiny_mae()
    assert model.no_weight_decay() <= {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, ModalityError, "no modality given: expected at least one of t1, t1ce, t2, flair"),
        ({"ct": (16, 16, 16)}, ModalityError, "unknown modality 'ct': expected one of t1, t1ce, t2, flair"),
        ({"t1": (16, 16, 16), "T1w": (16, 16, 16)}, ModalityError, "given twice under two names: t1, T1w"),
        ({"t1": (16, 16, 16), "t2": (8, 16, 16)}, ConfigError, "expected volumes of one shape"),
        ({"t1": (16, 16, 0)}, ConfigError, "do not divide into patches"),
        ({"t1": (16, 16, 12)}, ConfigError, "do not divide into patches"),
        (dict.fromkeys(("t1", "t1ce", "t2", "flair"), (16, 16, 16)), ModalityError, "there is none to reconstruct"),
    ],
)
def test_volumes_that_do_not_fit_are_refused(given: dict[str, Triple], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tiny_mae().reconstruct({name: torch.zeros(1, 1, *size) for name, size in given.items()})


def test_what_is_no_volume_is_refused_by_name() -> None:
    model, volume = tiny_mae(), volumes(1)[:, :1]
    broken = volume.clone()
    broken[0, 0, 1, 1, 1] = torch.nan
    cases: list[tuple[Any, str]] = [
        (volume.numpy(), "got ndarray; of an array make one with torch.from_numpy"),
        (volume.tolist(), "got list"),
        (None, "got NoneType"),
        (volume.long(), "got torch.int64; convert it with .float()"),
        (broken, "got NaN or infinity among them"),
    ]
    jaxtyping.config.update("jaxtyping_disable", True)  # tests refuse other types by themselves
    try:
        for run in (model.encode, model.reconstruct, tiny_segmentation().segment):
            for value, message in ((volume, "got Tensor"), ([volume], "got list")):
                with pytest.raises(
                    ConfigError, match=r"expected volumes by modality name, such as \{'t1': volume\}, " + message
                ):
                    run(value)
            for value, message in cases:
                told = re.escape(f"flair: expected a torch tensor of finite floats [B, 1, H, W, D], {message}")
                with pytest.raises(ConfigError, match=told):
                    run({"flair": value})
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_what_is_no_config_of_a_model_is_refused() -> None:
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        for build, config, message in (
            (MAE, "tiny", "MAE takes a ModelConfig, got 'tiny': build a new model of bmmae.recipe"),
            (SegmentationModel, recipe("tiny"), "SegmentationModel takes a SegmentationConfig, got a ModelConfig"),
            (PatientModel, recipe("tiny"), "PatientModel takes a PatientModelConfig, got a ModelConfig"),
        ):
            with pytest.raises(ConfigError, match=message):
                build(config)
        with pytest.raises(ConfigError, match=r"model.encoder must be of type EncoderConfig, got \{'dim': 192\}"):
            recipe("tiny", encoder={"dim": 192})
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    with pytest.raises(ConfigError, match="a recipe has no modality: expected some of modalities, patch, size"):
        recipe("tiny", modality=("t1",))


def test_no_sample_at_all_is_refused_as_such() -> None:
    for run in (tiny_mae().encode, tiny_mae().reconstruct, tiny_segmentation().segment):
        with pytest.raises(ConfigError, match=r"B at least 1, got .*\(0, 1, 16, 16, 16\)"):
            run({"t1": torch.zeros(0, 1, 16, 16, 16)})


@pytest.mark.parametrize("mask", [flags(4, 16, 16, 16), flags(4, 1, 16, 16, 16).float(), flags(1, 1, 16, 16, 16)])
def test_tissue_that_is_no_mask_of_the_volumes_is_refused(mask: torch.Tensor) -> None:
    # Four samples of four modalities: without its axis a mask would be read as one a modality, and chances as zeros.
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        for run in (tiny_mae().encode, tiny_mae().reconstruct, tiny_segmentation().segment):
            with pytest.raises(ConfigError, match=r"expected a mask of bools \[B, 1, H, W, D\].* B = 4"):
                run({"t1": volumes(4)[:, :1]}, mask)
        with pytest.raises(ConfigError, match=r"available: expected bools \[B, M\], got torch.int64"):
            tiny_segmentation()(volumes(2), torch.ones(2, 4, dtype=torch.int64))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_volumes_of_any_precision_are_taken_in_that_of_the_weights(dtype: torch.dtype) -> None:
    volume, mae, segmenter = volumes(1)[:, :1].to(dtype), tiny_mae(**DECODERS[2]), tiny_segmentation()
    for run in (mae.encode, segmenter.segment, lambda images: mae.reconstruct(images)["t2"]):
        assert torch.equal(run({"t1": volume}), run({"t1": volume.float()}))
    assert mae.to(dtype).reconstruct({"t1": volume.float()})["t2"].dtype == dtype
    assert segmenter.to(dtype).segment({"t1": volume.float()}).dtype == dtype


def test_aliases_are_accepted() -> None:
    model, data = tiny_mae(), volumes(1, 1)
    assert torch.equal(model.encode({"T2-FLAIR": data}), model.encode({"flair": data}))


def test_every_model_encodes_by_the_same_encoder() -> None:
    mae, images = tiny_mae(), {"flair": volumes(2, 1), "t1": volumes(2, 1)}
    tissue = torch.zeros(2, 1, *images["t1"].shape[2:], dtype=torch.bool)
    tissue[:, :, :8] = True
    expected = mae.encode(images), mae.encode(images, tissue)
    patients = PatientModel(PatientModelConfig(mae.config, (Target("idh", "binary", ("idh",), ("no", "yes")),))).eval()
    for model in (tiny_segmentation(), patients):
        load_encoder(model, mae)
        assert torch.equal(model.encode(images), expected[0])
        assert torch.equal(model.encode(images, tissue), expected[1])


@pytest.mark.parametrize("run", ["encode", "reconstruct", "segment"])
def test_volumes_that_no_preprocessing_gives_are_doubted(run: str) -> None:
    model, volume = tiny_segmentation() if run == "segment" else tiny_mae(), volumes(1, 1)
    look = getattr(model, run)
    look({"t1": 1000 * volume})  # no word of how images were prepared: nothing to compare with
    model.metadata = ModelMetadata({"spacing": [1.0, 1.0, 1.0], "clip": 8.0})
    look({"t1": volume.clamp(-8, 8)})
    look({"t1": torch.zeros_like(volume)})
    model.metadata = ModelMetadata({"clip": 5.3})
    for dtype in (torch.float32, torch.bfloat16):  # neither holds 5.3 itself
        look({"t1": (3 * volume).clamp(-5.3, 5.3).to(dtype)})
    model.metadata = ModelMetadata({"clip": 8.0})
    for unlike, told in ((1000 * volume, "t1 holds values beyond 8"), (volume.sigmoid(), "t1 holds no value below 0")):
        with pytest.warns(UnpreparedWarning, match=told + ".* between -8 and 8: preprocess images"):
            look({"t1": unlike})


def test_a_loop_over_unprepared_studies_warns_once() -> None:
    model, volume = tiny_mae(), volumes(1, 1)
    model.metadata = ModelMetadata({"clip": 8.0})
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        for scale in (100, 200, 300):
            model.encode({"t1": scale * volume})
    assert len(shown) == 1


def test_flags_of_other_modalities_than_the_models_are_refused() -> None:
    # Read from the left, three of four modalities would be taken for the model's first three.
    model, data, available = tiny_mae(), volumes(2), torch.ones(2, 4) > 0
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        for images, given in ((data, available[:, :3]), (data[:, :3], available[:, :3]), (data, available[:1])):
            with pytest.raises(ConfigError, match=r"with M = 4, as the model knows t1, t1ce, t2, flair; got \(2, "):
                model.tokens(images, given)
        with pytest.raises(ConfigError, match=r"images \[B, M, H, W, D\] of M = 4 modalities, got \(2, 5, 16"):
            model.encoder(torch.cat([data, data[:, :1]], 1), TokenIndex.of(model.tokens(data, available)))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EncoderConfig(dim=30, heads=4), "encoder.dim 30 is not a multiple of encoder.heads 4"),
        (lambda: EncoderConfig(heads=0), "encoder.dim, depth and heads must be at least 1 .* got 768, 12, 0 and 2.0"),
        (lambda: DecoderConfig(depth=-1), "decoder.dim, depth and heads must be at least 1"),
        (lambda: EncoderConfig(mlp_ratio=math.nan), "encoder.mlp_ratio above 0, got 768, 12, 12 and nan"),
        (lambda: DecoderConfig(dim=30, heads=4), "decoder.dim 30 is not a multiple of decoder.heads 4"),
        (lambda: ModelConfig(modalities=()), "a model needs at least one modality"),
        (lambda: ModelConfig(size=(100, 100, 100)), "do not divide into patches"),
        (lambda: recipe("huge"), "unknown recipe 'huge': expected one of tiny, small, base, large"),
    ],
)
def test_shapes_that_contradict_themselves_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_model_has_its_modalities_in_table_order() -> None:
    assert ModelConfig(modalities=("flair", "t1")).modalities == ("t1", "flair")
    assert ModelConfig(modalities=("FLAIR", "T1Gd")).modalities == ("t1ce", "flair")


def test_the_tiny_recipe_is_tiny() -> None:
    assert MAE(recipe("tiny")).parameter_count() <= 3_700_000
