"""The published weights load value by value, and nothing else passes for them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from published import SMALL, generator, published_state

from bmmae.checkpoint import PartialLoadWarning, convert, load_model, provenance_of
from bmmae.conversion import convert_state, destination, infer_config, published_shapes, read_pickle
from bmmae.errors import CheckpointError
from bmmae.hub import sha256_of
from bmmae.model.config import DecoderConfig, recipe
from bmmae.model.embed import sincos_positions
from bmmae.model.mae import MAE

REFERENCE = Path(__file__).parent / "reference"
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(REFERENCE / "published.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def base() -> MAE:
    """The published model's shape with the reference's values."""
    return convert_state(published_state(recipe("published")), "the reference")


@pytest.fixture(scope="module")
def volumes() -> dict[str, torch.Tensor]:
    shape = (1, 1, 128, 128, 128)
    names = recipe("published").modalities
    return {n: torch.from_numpy(generator(f"input/{n}").standard_normal(shape).astype(np.float32)) for n in names}


@pytest.fixture
def small() -> dict[str, torch.Tensor]:
    return published_state(SMALL)


def difference(ours: torch.Tensor, theirs: np.ndarray) -> float:
    return float(np.abs(ours.numpy() - theirs).max())


@pytest.mark.parametrize(("name", "dim"), [("encoder", 768), ("decoder", 384)])
def test_position_tables_agree_with_the_published_ones(expected, name, dim) -> None:
    table = sincos_positions((8, 8, 8), dim)
    assert difference(table[::37, ::16], expected[f"position/{name}"]) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("subset", ["t1+t2", "flair", "t1+t1ce+t2+flair"])
def test_encoder_agrees_with_the_published_one(base, volumes, expected, subset) -> None:
    with torch.inference_mode():
        tokens = base.encode({name: volumes[name] for name in subset.split("+")})
    assert difference(tokens[0, ::64], expected[f"encoder/{subset}"]) <= TOLERANCE


@pytest.mark.slow
def test_reconstruction_with_t1ce_absent_agrees_with_the_published_one(base, volumes, expected) -> None:
    visible = torch.zeros(1, 4, 512, dtype=torch.bool)
    counts = {"t1": 200, "t1ce": 0, "t2": 250, "flair": 62}
    for index, (name, count) in enumerate(counts.items()):
        visible[0, index, generator(f"mask/{name}").permutation(512)[:count]] = True
    with torch.inference_mode():
        images = torch.cat([volumes[name] for name in counts], dim=1)
        patches = base(images, visible, torch.ones_like(visible)).values.view(4, 512, 4096)
    for index, name in enumerate(counts):
        assert difference(patches[index, ::32, ::64], expected[f"reconstruction/{name}"]) <= TOLERANCE


def test_the_rule_of_keys_gives_the_published_keys_and_shapes() -> None:
    listed = json.loads((REFERENCE / "published_keys.json").read_text())
    assert {key: list(value.shape) for key, value in published_shapes(recipe("published")).items()} == listed


def test_every_value_of_ours_but_the_modality_embedding_comes_from_a_published_one() -> None:
    ours = MAE(SMALL).state_dict()
    reached = {destination(key)[0] for key in published_shapes(SMALL) if "position_embeddings" not in key}
    assert set(ours) - reached == {"encoder.embedding.modality"}


def test_shape_depth_patch_and_window_are_read_off_the_shapes(small) -> None:
    assert infer_config(small, "here") == SMALL


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_stripped(tmp_path, small, prefix) -> None:
    torch.save({prefix + key: value for key, value in small.items()}, tmp_path / "bmmae.pth")
    assert set(read_pickle(tmp_path / "bmmae.pth")) == set(small)


@pytest.mark.parametrize("wrapping", ["state_dict", "model", "model_state_dict"])
def test_the_state_dict_is_found_in_what_training_scripts_save(tmp_path, small, wrapping) -> None:
    torch.save({wrapping: small, "epoch": 3}, tmp_path / "bmmae.pth")
    assert set(read_pickle(tmp_path / "bmmae.pth")) == set(small)


def test_dead_keys_of_later_monai_versions_are_dropped_and_reported(small) -> None:
    dead = {"blocks.0.norm_cross_attn.weight": torch.ones(48), "blocks.0.cross_attn.to_q.weight": torch.ones(48, 48)}
    report = convert_state({**small, **dead}, "here").key_report
    assert report is not None
    assert report.complete
    assert set(dead) <= set(report.dropped)


def test_missing_unexpected_and_misshapen_keys_are_all_listed(small) -> None:
    del small["norm.bias"]
    small["classifier.weight"] = torch.ones(2, 48)
    small["decoder.decoder_pred.bias"] = torch.ones(7)
    with pytest.raises(CheckpointError) as caught:
        convert_state(small, "their.pth")
    for part in (
        "1 missing: norm.bias",
        "1 unexpected: classifier.weight",
        "decoder_pred.bias (expected (512,), got (7,))",
    ):
        assert part in str(caught.value)
    assert "partial=True" in str(caught.value)


def test_partial_loads_happen_on_request_only_and_are_reported(tmp_path, small) -> None:
    encoder = {key: value for key, value in small.items() if not key.startswith("decoder.decoder_pred")}
    torch.save(encoder, tmp_path / "half.pth")
    with pytest.raises(CheckpointError, match=r"2 missing: decoder.decoder_pred.weight, decoder.decoder_pred.bias"):
        load_model(tmp_path / "half.pth")
    with pytest.warns(PartialLoadWarning, match=r"2 missing: decoder.decoder_pred"):
        model = load_model(tmp_path / "half.pth", partial=True)
    assert model.key_report is not None
    assert len(model.key_report.loaded) == len(encoder) - len([k for k in encoder if "position" in k])


def test_trained_position_tables_are_refused(small) -> None:
    small["tokenizers.t2.patch_embedding.position_embeddings"] += 0.1
    with pytest.raises(CheckpointError, match=r"tokenizers.t2.*is not the fixed sine-cosine one"):
        convert_state(small, "their.pth")
    for key in small:
        if key.startswith("tokenizers") and key.endswith("position_embeddings"):
            small[key] = torch.randn_like(small[key])
    with pytest.raises(CheckpointError, match="was trained with other positions"):
        convert_state(small, "their.pth")


def test_another_architecture_is_named_as_such() -> None:
    with pytest.raises(
        CheckpointError, match=r"r50.pth is no BM-MAE state dict: expected cls_token.*found conv1.weight"
    ):
        convert_state({"conv1.weight": torch.ones(1)}, "r50.pth")


class Malicious:
    def __reduce__(self):
        return (print, ("this ran",))


def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path, capsys) -> None:
    torch.save({"cls_token": Malicious()}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match=r"bad.pth is refused: besides tensors it contains Python objects"):
        load_model(tmp_path / "bad.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(CheckpointError, match="contains Python objects"):
        load_model(tmp_path / "plain.pth")
    assert "this ran" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"hello, this is no model", b"PK\x03\x04"])
def test_a_damaged_file_is_named(tmp_path, content) -> None:
    (tmp_path / "bmmae.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bmmae.pth is .*damaged: download it again"):
        load_model(tmp_path / "bmmae.pth")


def test_a_truncated_file_is_named(tmp_path, small) -> None:
    torch.save(small, tmp_path / "bmmae.pth")
    whole = (tmp_path / "bmmae.pth").read_bytes()
    (tmp_path / "bmmae.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"bmmae.pth is .*damaged: download it again"):
        load_model(tmp_path / "bmmae.pth")


def test_a_file_of_the_old_format_is_named_wherever_it_ends(tmp_path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "old.pth").read_bytes()
    for end in range(len(whole)):
        (tmp_path / "bmmae.pth").write_bytes(whole[:end])
        with pytest.raises(CheckpointError, match=r"bmmae\.pth is"):
            read_pickle(tmp_path / "bmmae.pth")


def test_a_file_without_state_dict_is_named(tmp_path) -> None:
    torch.save([1, 2], tmp_path / "bmmae.pth")
    with pytest.raises(CheckpointError, match="holds no state dict: expected tensors by name, got list"):
        load_model(tmp_path / "bmmae.pth")


def test_a_state_dict_of_this_library_says_what_it_lacks(tmp_path) -> None:
    torch.save(MAE(SMALL).state_dict(), tmp_path / "mine.pth")
    with pytest.raises(CheckpointError, match=r"weights of this library without the config .* bmmae.save_model\("):
        load_model(tmp_path / "mine.pth")
    torch.save({"encoder.cls_token": torch.zeros(1, 1, 8)}, tmp_path / "theirs.pth")  # as many libraries call it
    with pytest.raises(CheckpointError, match="is no BM-MAE state dict"):
        load_model(tmp_path / "theirs.pth")


def test_published_weights_that_are_no_numbers_are_refused(small) -> None:
    small["norm.bias"][0] = torch.inf
    with pytest.raises(CheckpointError, match=r"a test holds NaN or infinity in norm.bias"):
        convert_state(small, "a test")


def test_converting_writes_a_folder_that_loads_the_same(tmp_path, small) -> None:
    torch.save(small, tmp_path / "bmmae.pth")
    report = convert(tmp_path / "bmmae.pth", tmp_path / "base")
    assert report.complete
    direct, saved = load_model(tmp_path / "bmmae.pth"), load_model(tmp_path / "base")
    assert direct.config == saved.config
    assert all(
        torch.equal(a, b) for a, b in zip(direct.state_dict().values(), saved.state_dict().values(), strict=True)
    )


def test_a_folder_of_the_published_layout_loads_by_file_name(tmp_path, small) -> None:
    torch.save(small, tmp_path / "bmmae_tcga.pth")
    model = load_model(tmp_path, filename="bmmae_tcga.pth")
    assert torch.equal(model.state_dict()["encoder.cls_token"], small["cls_token"])


def test_half_precision_files_are_read_in_full_precision(small) -> None:
    model = convert_state({key: v if "position" in key else v.half() for key, v in small.items()}, "half.pth")
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounded_position_tables_are_known_as_the_fixed_ones(small, dtype) -> None:
    model = convert_state({key: value.to(dtype) for key, value in small.items()}, "half.pth")
    assert model.config == SMALL
    tables = "tokenizers.t1.patch_embedding.position_embeddings"
    trained = {**small, tables: (small[tables] + 0.05).to(dtype)}
    with pytest.raises(CheckpointError, match="it was trained with other positions"):
        convert_state(trained, "trained.pth")


def test_modalities_of_other_spellings_get_the_tables_names(small) -> None:
    spelt = {"t1": "t1n", "t1ce": "T1c", "t2": "t2w", "flair": "FLAIR"}
    parts = [key.split(".") for key in small]
    other = {".".join(spelt.get(part, part) for part in key): small[".".join(key)] for key in parts}
    model = convert_state(other, "other.pth")
    assert model.config == SMALL
    assert all(torch.equal(v, convert_state(small, "small.pth").state_dict()[k]) for k, v in model.state_dict().items())


def test_a_file_that_keeps_the_state_dict_elsewhere_says_what_it_holds(tmp_path, small) -> None:
    torch.save({"ema": small, "epoch": 3}, tmp_path / "run.pth")
    with pytest.raises(CheckpointError, match=r"got a dict of 'ema', 'epoch'; they may stand under state_dict"):
        load_model(tmp_path / "run.pth")


def test_an_encoder_alone_loads_on_request_with_the_published_decoder_new(small) -> None:
    encoder = {key: value for key, value in small.items() if not key.startswith("decoder.")}
    with pytest.raises(CheckpointError, match=r"missing: decoder\."):
        convert_state(encoder, "encoder.pth")
    model = convert_state(encoder, "encoder.pth", partial=True)
    assert torch.equal(model.state_dict()["encoder.norm.weight"], small["norm.weight"])
    assert model.config.decoder == DecoderConfig()


def test_a_file_in_the_home_folder_is_converted(tmp_path, small, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(small, tmp_path / "bmmae.pth")
    assert convert("~/bmmae.pth", "~/base").complete
    assert load_model(tmp_path / "base").kind == "mae"


def test_only_published_files_are_converted(tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"is no file of published weights: expected a name that ends in .pth"):
        convert(tmp_path / "model.safetensors", tmp_path / "out")


def test_a_converted_model_says_where_it_came_from(tmp_path, small) -> None:
    torch.save(small, tmp_path / "bmmae.pth")
    provenance = provenance_of(load_model(tmp_path / "bmmae.pth"))
    assert "arXiv 2505.00568" in provenance.data
    assert provenance.extra["converted_from"] == {"file": "bmmae.pth", "sha256": sha256_of(tmp_path / "bmmae.pth")}
