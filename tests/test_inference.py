"""From files to files: every result opens over its input, whatever the subset, orientation or spacing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxtyping
import nibabel as nib
import numpy as np
import pytest
import torch
from tiny_models import tiny_config, tiny_mae, tiny_segmentation, volumes
from tiny_studies import SHAPE, brain, picture, save, write_study

from bmmae.data.brain import head_foreground
from bmmae.data.preprocess import PreprocessConfig, prepare_study
from bmmae.errors import BmmaeError, ConfigError, GeometryError, ImageError, ModalityError, OutputError
from bmmae.inference import (
    ReconstructOptions,
    UnlikeTrainingWarning,
    load_study,
    reconstruct,
    reconstruct_prepared,
    reconstruct_to_folder,
    save_image,
    segment,
)
from bmmae.modalities import STANDARD
from bmmae.model.mae import MAE
from bmmae.model.segmentation import SegmentationModel
from bmmae.model.tokens import TokenIndex
from bmmae.report import predict_regions

SIZE = (24, 24, 24)
GRIDS = [
    ("RAS", (1, 1, 1), (1, 1)),
    ("LPS", (1, 1, 1), (1, 0)),
    ("PIR", (0.8, 1.1, 1.7), (0, 2)),
    ("SAL", (1, 1.5, 1), (2, 1)),
]


@pytest.fixture(scope="module")
def mae() -> MAE:
    return tiny_mae(SIZE, kind="cross", colocated=True, synthesis=8)


@pytest.fixture(scope="module")
def segmenter() -> SegmentationModel:
    return tiny_segmentation(SIZE)


def files(
    folder: Path, *names: str, orientation: str = "RAS", spacing: tuple[float, ...] = (1, 1, 1)
) -> dict[str, Path]:
    study = write_study(folder, names, orientation=orientation, spacing=spacing, labelled=False)
    return dict(study.images)


def in_ras(image: nib.Nifti1Image) -> np.ndarray:
    return np.asarray(nib.as_closest_canonical(image).dataobj)


@pytest.mark.parametrize(("orientation", "spacing", "codes"), GRIDS)
def test_results_open_over_their_input(
    mae: MAE,
    segmenter: SegmentationModel,
    tmp_path: Path,
    orientation: str,
    spacing: tuple[float, ...],
    codes: tuple[int, int],
) -> None:
    path = save(tmp_path / "t1.nii.gz", picture(), orientation, spacing, codes)
    given = nib.load(path)
    written = reconstruct_to_folder(mae, {"t1": path}, tmp_path / "out")
    results = [
        *reconstruct(mae, {"t1": path}).values(),
        segment(segmenter, {"t1": path}),
        *map(nib.load, written.values()),
    ]
    assert len(results) == 7
    for image in results:
        assert image.shape == given.shape
        assert np.allclose(image.affine, given.affine, atol=1e-5)
        assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == codes
        assert image.header.get_xyzt_units() == given.header.get_xyzt_units()
        assert image.header.get_zooms() == pytest.approx(given.header.get_zooms())


@pytest.mark.parametrize("orientation", ["LPS", "PIR", "SAL"])
def test_the_same_anatomy_gives_the_same_result_in_any_orientation(
    mae: MAE, segmenter: SegmentationModel, tmp_path: Path, orientation: str
) -> None:
    spacing = (1.0, 1.3, 0.9)
    first, other = (files(tmp_path / o, "t1", "t2", orientation=o, spacing=spacing) for o in ("RAS", orientation))
    a, b = reconstruct(mae, first), reconstruct(mae, other)
    assert list(a) == list(b) == ["t1ce", "flair"]
    for name in a:
        assert np.allclose(in_ras(a[name]), in_ras(b[name]), atol=1e-2)
    assert np.mean(in_ras(segment(segmenter, first)) != in_ras(segment(segmenter, other))) < 1e-3


def test_the_order_of_the_files_changes_nothing(mae: MAE, tmp_path: Path) -> None:
    given = files(tmp_path, "t1", "t2", "flair")
    turned = dict(reversed(given.items()))
    assert np.array_equal(reconstruct(mae, given)["t1ce"].dataobj, reconstruct(mae, turned)["t1ce"].dataobj)


@pytest.mark.parametrize("given", [("t1",), ("t1", "flair"), ("t1ce", "t2", "flair")])
def test_the_absent_modalities_are_made_and_no_other(mae: MAE, tmp_path: Path, given: tuple[str, ...]) -> None:
    assert tuple(reconstruct(mae, files(tmp_path, *given))) == tuple(name for name in STANDARD if name not in given)


def test_only_those_asked_for_are_made(mae: MAE, tmp_path: Path) -> None:
    given = files(tmp_path, "t1")
    everything = reconstruct(mae, given)
    chosen = reconstruct(mae, given, only=["T2w"])
    assert list(chosen) == list(reconstruct(mae, given, only="t2")) == ["t2"]
    assert np.allclose(chosen["t2"].dataobj, everything["t2"].dataobj, atol=1e-3)
    with pytest.raises(ModalityError, match="t1 cannot be synthesised: it is among the images given"):
        reconstruct(mae, given, only=["t1", "t2"])


def test_results_are_zero_outside_the_brain_and_on_the_inputs_scale_inside(mae: MAE, tmp_path: Path) -> None:
    made = reconstruct(mae, files(tmp_path, "t1"))["flair"]
    values = np.asarray(made.dataobj)
    assert not values[~brain()].any()
    assert np.isfinite(values).all()
    assert abs(float(np.median(values[brain()])) - 100) < 60
    assert bytes(made.header["descrip"]).startswith(b"bmmae SYNTHETIC FLAIR, not acquired")


def test_a_sequence_that_shows_no_brain_sets_no_scale_and_is_told(mae: MAE, tmp_path: Path) -> None:
    given, mask = files(tmp_path, "t1", "t2"), save(tmp_path / "mask.nii", brain().astype(np.uint8))
    alone = np.asarray(reconstruct(mae, {"t2": given["t2"]}, brain_mask=mask)["flair"].dataobj)
    elsewhere = np.zeros(SHAPE, np.float32)
    elsewhere[0, 0, :5] = range(1, 6)  # outside the brain
    save(given["t1"], elsewhere)
    with pytest.warns(UnlikeTrainingWarning, match="T1 has no voxel inside the brain: it is not used"):
        both = reconstruct(mae, given, brain_mask=mask, only=["flair"])["flair"]
    assert np.allclose(both.dataobj, alone, atol=1e-3)


def test_the_same_input_gives_the_same_result(mae: MAE, segmenter: SegmentationModel, tmp_path: Path) -> None:
    given = files(tmp_path, "t1", "t2")
    first, again = (reconstruct(mae, given)["flair"].dataobj for _ in range(2))
    assert np.array_equal(first, again)
    first, again = (segment(segmenter, given).dataobj for _ in range(2))
    assert np.array_equal(first, again)


def test_inference_equals_the_tensor_interface(tmp_path: Path) -> None:
    mae = tiny_mae(SIZE, kind="cross", colocated=True)
    study = write_study(tmp_path, ("t1", "flair"))
    prepared = prepare_study(study, PreprocessConfig(), STANDARD)
    pads = [((24 - n) // 2, 24 - n - (24 - n) // 2) for n in prepared.shape]
    tensors = {
        n: torch.from_numpy(np.pad(x, pads))[None, None] for n, x in zip(prepared.names, prepared.images, strict=True)
    }
    tissue = torch.from_numpy(np.pad(prepared.brain, pads))[None, None]
    expected = mae.reconstruct(tensors, tissue)["t2"][0, 0].numpy()
    inner = tuple(slice(a, 24 - b) for a, b in pads)
    made = reconstruct_prepared(mae, prepared, ["t1ce", "t2"])["t2"]
    assert np.allclose(made, np.where(prepared.brain, expected[inner], 0), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("units", [0, 8], ids=["patches", "voxels"])
def test_files_are_read_in_the_precision_of_the_weights(dtype: torch.dtype, units: int, tmp_path: Path) -> None:
    given = files(tmp_path, "t1", "flair")
    mae = tiny_mae(SIZE, kind="cross", colocated=True, synthesis=units)
    exact = reconstruct(mae, given, only="t2")["t2"].get_fdata()
    made = reconstruct_to_folder(mae.to(dtype), given, tmp_path / "out", options=ReconstructOptions(only=("t2",)))
    assert np.allclose(nib.load(made["t2"]).get_fdata(), exact, rtol=0, atol=0.05 * exact.std())
    assert segment(tiny_segmentation(SIZE).to(dtype), given).shape == exact.shape


def test_what_is_asked_for_is_not_read(mae: MAE, tmp_path: Path) -> None:
    whole = prepare_study(write_study(tmp_path / "a"), PreprocessConfig(), STANDARD)
    less = prepare_study(write_study(tmp_path / "b", ("t1", "t1ce", "t2")), PreprocessConfig(), STANDARD)
    made, expected = (reconstruct_prepared(mae, study, ["flair"])["flair"] for study in (whole, less))
    assert np.allclose(made, expected, atol=1e-5)


def test_a_part_that_was_not_scanned_is_predicted_and_not_read(mae: MAE, tmp_path: Path) -> None:
    given = files(tmp_path, "t1", "t2")
    partial = picture(2)
    partial[:, :, 9:] = 0
    save(given["t2"], partial)
    made = np.asarray(reconstruct(mae, given)["flair"].dataobj)
    assert np.count_nonzero(made) == pytest.approx(brain().sum(), rel=0.01)
    prepared = load_study(mae, given).prepared
    expected = reconstruct_prepared(mae, prepared, ["flair"])["flair"]
    assert prepared.shape[2] == 12  # centred in the window of 24: the last patches begin 10 voxels in
    assert not prepared.valid[1, ..., 10:][prepared.brain[..., 10:]].any()
    prepared.images[1][..., 10:] = 1e3
    assert np.array_equal(reconstruct_prepared(mae, prepared, ["flair"])["flair"], expected)


def test_background_is_read_by_models_trained_on_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = tiny_mae(SIZE).config
    model = MAE(type(config)(**{**vars(config), "tissue_only": False})).eval()
    seen: list[TokenIndex] = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[1:3]))
    reconstruct(model, files(tmp_path, "t1"))
    visible, targets = (tokens.chosen for tokens in seen)
    assert visible[:, 0].all()
    assert targets[:, 1:].all()
    assert not (visible & targets).any()


def test_pictures_show_what_a_segmentation_model_trained_on_background_finds() -> None:
    whole = replace(tiny_config(SIZE), tissue_only=False)
    model = SegmentationModel(replace(tiny_segmentation(SIZE).config, model=whole)).eval()
    torch.nn.init.zeros_(model.heads[0].around.bias)
    sample = {"images": volumes(size=SIZE)[0], "available": torch.ones(4, dtype=torch.bool)}
    sample |= {"valid": torch.ones(4, *SIZE, dtype=torch.bool), "brain": torch.zeros(SIZE, dtype=torch.bool)}
    sample["brain"][8:16, 8:16, 8:16] = True
    with torch.no_grad():
        expected = model(sample["images"][None], sample["available"][None], None, sample["valid"][None])[0] > 0
    assert np.array_equal(predict_regions(model, sample, STANDARD), expected.numpy())


@pytest.mark.parametrize("spacing", [(1, 1, 1), (1.6, 2, 1.3)])
def test_a_brain_larger_than_the_window_is_covered_by_many(tmp_path: Path, spacing: tuple[float, ...]) -> None:
    given = files(tmp_path, "t1", spacing=spacing)
    made = np.asarray(reconstruct(tiny_mae((16, 16, 16), kind="cross"), given)["flair"].dataobj)
    assert np.isfinite(made).all()
    assert np.count_nonzero(made) >= 0.99 * brain().sum()
    labels = np.asarray(segment(tiny_segmentation((16, 16, 16)), given).dataobj)
    assert labels.shape == SHAPE


def test_segmentations_hold_values_of_the_coding_inside_the_brain(segmenter: SegmentationModel, tmp_path: Path) -> None:
    image = segment(segmenter, files(tmp_path, "t1", "t1ce"))
    labels = np.asarray(image.dataobj)
    assert image.get_data_dtype() == np.uint8
    assert set(np.unique(labels)) <= {0, 1, 2, 4}
    assert labels.any()
    assert not labels[~brain()].any()


def test_a_head_with_its_skull_is_warned_about(mae: MAE, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(0.5, 2, SHAPE)
    head = (picture() + noise).astype(np.float32)
    path = save(tmp_path / "t1.nii.gz", head)
    with pytest.warns(UnlikeTrainingWarning, match="not skull-stripped"):
        made = reconstruct(mae, {"t1": path})
    assert not np.asarray(made["t2"].dataobj)[~head_foreground(head)].any()
    assert b"not skull-stripped" in bytes(made["t2"].header["descrip"])
    mask = save(tmp_path / "mask.nii.gz", brain().astype(np.uint8))
    made = reconstruct(mae, {"t1": path}, brain_mask=mask)
    assert not np.asarray(made["t2"].dataobj)[~brain()].any()


def test_thick_slices_are_warned_about(mae: MAE, tmp_path: Path) -> None:
    with pytest.warns(UnlikeTrainingWarning, match=r"coarsest spacing is 3\.0 mm, more than twice the model's 1\.0 mm"):
        load_study(mae, files(tmp_path, "t1", spacing=(1, 1, 3)))


def broken(folder: Path, kind: str) -> dict[str, Path]:
    """Images of a study, one of which has something wrong with it."""
    given = files(folder, "t1", "t2")
    image = nib.load(given["t2"])
    array = np.asarray(image.dataobj).copy()
    if kind == "four axes":
        array = np.stack([array, array], axis=-1)
    if kind == "not finite":
        array[3, 3, 3] = np.nan
    if kind == "empty":
        array[:] = 0
    if kind == "another grid":
        array = array[:-1]
    nib.save(nib.Nifti1Image(array, image.affine), given["t2"])
    if kind == "truncated":
        given["t2"].write_bytes(given["t2"].read_bytes()[:-400])
    if kind == "absent":
        given["t2"].unlink()
    return given


BROKEN = [
    ("four axes", ImageError, r"t2\.nii\.gz: expected 3 axes, got shape \(20, 24, 16, 2\)"),
    ("not finite", ImageError, r"1 voxels of .*t2\.nii\.gz are not finite"),
    ("empty", ImageError, r"t2\.nii\.gz holds only zeros"),
    (
        "another grid",
        GeometryError,
        r"t1\.nii\.gz \(20, 24, 16\) and t2\.nii\.gz \(19, 24, 16\) are on different grids",
    ),
    ("truncated", ImageError, r"t2\.nii\.gz is truncated"),
    ("absent", ImageError, r"t2\.nii\.gz does not exist"),
]


@pytest.mark.parametrize(("kind", "error", "message"), BROKEN)
def test_a_broken_file_is_one_clear_sentence_and_nothing_is_written(
    mae: MAE, tmp_path: Path, kind: str, error: type[BmmaeError], message: str
) -> None:
    given = broken(tmp_path / "in", kind)
    with pytest.raises(error, match=message):
        reconstruct_to_folder(mae, given, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_that_make_no_sense_are_refused(mae: MAE, tmp_path: Path) -> None:
    given = files(tmp_path, *STANDARD)
    with pytest.raises(ModalityError, match="no modality is left to reconstruct: all of t1, t1ce, t2, flair are given"):
        reconstruct(mae, given)
    with pytest.raises(ModalityError, match="no image given: expected at least one of t1, t1ce, t2, flair"):
        reconstruct(mae, {})
    with pytest.raises(ModalityError, match=r"unknown modality 'fliar'.*Did you mean 'flair'\?"):
        reconstruct(mae, {"fliar": given["flair"]})
    with pytest.raises(ModalityError, match="given twice under two names: t1, T1w"):
        reconstruct(mae, {"t1": given["t1"], "T1w": given["t2"]})


def test_a_mask_on_another_grid_is_refused(mae: MAE, tmp_path: Path) -> None:
    mask = save(tmp_path / "mask.nii", brain((20, 24, 15)).astype(np.uint8))
    with pytest.raises(
        GeometryError, match=r"the brain mask mask\.nii \(20, 24, 15\) is not on the grid of t1\.nii\.gz"
    ):
        reconstruct(mae, files(tmp_path, "t1"), brain_mask=mask)


def test_a_model_does_only_what_it_was_trained_for(mae: MAE, segmenter: SegmentationModel, tmp_path: Path) -> None:
    given = files(tmp_path, "t1")
    with pytest.raises(ModalityError, match="a segmentation model cannot reconstruct"):
        reconstruct(segmenter, given)
    with pytest.raises(ModalityError, match="a mae model cannot segment"):
        segment(mae, given)


def test_a_folder_holds_the_images_and_how_they_were_made(mae: MAE, tmp_path: Path) -> None:
    given = files(tmp_path / "in", "t1", "t2")
    paths = reconstruct_to_folder(mae, given, tmp_path / "out", complete=True)
    assert list(paths) == list(STANDARD)
    for name in ("t1", "t2"):
        assert np.array_equal(nib.load(paths[name]).dataobj, nib.load(given[name]).dataobj)
    note = json.loads((tmp_path / "out" / "reconstruction.json").read_text())
    assert note["synthetic"] == ["t1ce", "flair"]
    assert note["given"] == {"t1": "t1.nii.gz", "t2": "t2.nii.gz"}
    assert bytes(nib.load(paths["flair"]).header["descrip"]).startswith(b"bmmae SYNTHETIC FLAIR")


@pytest.mark.parametrize("suffix", [".nii", ".mgz"])
def test_other_formats_are_read_and_completed(mae: MAE, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t1{suffix}"
    kind = nib.MGHImage if suffix == ".mgz" else nib.Nifti1Image
    nib.save(kind(picture(), np.diag([-1.0, -1.0, 1.0, 1.0])), path)
    paths = reconstruct_to_folder(mae, {"t1": path}, tmp_path / "out", complete=True)
    assert np.array_equal(nib.load(paths["t1"]).dataobj, picture())
    assert np.allclose(nib.load(paths["t2"]).affine, nib.load(path).affine)


def test_a_gzip_file_is_known_by_its_content(mae: MAE, tmp_path: Path) -> None:
    given = files(tmp_path, "t1")["t1"]
    misnamed = given.rename(tmp_path / "t1.nii")
    assert reconstruct(mae, {"t1": misnamed})["t2"].shape == SHAPE


def test_a_folder_that_cannot_be_written_is_one_clear_error(mae: MAE, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        reconstruct_to_folder(mae, files(tmp_path, "t1"), tmp_path / "out")
    (tmp_path / "other" / "reconstruction.json").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"cannot write to .*other"):
        reconstruct_to_folder(mae, files(tmp_path, "t1"), tmp_path / "other")


@pytest.mark.parametrize("codes", [(1, 1), (1, 0)])
def test_results_open_over_an_input_in_micrometres(
    mae: MAE, segmenter: SegmentationModel, tmp_path: Path, codes: tuple[int, int]
) -> None:
    path = save(tmp_path / "t1.nii.gz", picture(), codes=codes)
    expected = segment(segmenter, {"t1": path})
    given = nib.load(path)
    affine = np.diag([1000.0, 1000, 1000, 1]) @ given.affine
    given.set_qform(affine, codes[0])
    given.set_sform(affine, codes[1])
    given.header.set_xyzt_units("micron")
    nib.save(given, path)
    found = segment(segmenter, {"t1": path})
    assert np.array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))
    written = reconstruct_to_folder(mae, {"t1": path}, tmp_path / "out")
    for image in (found, *map(nib.load, written.values())):
        assert np.allclose(image.affine, affine)
        assert image.header.get_zooms() == pytest.approx((1000, 1000, 1000))
        assert image.header.get_xyzt_units()[0] == "micron"


def test_a_header_without_a_place_is_doubted_and_its_results_open_over_it(
    segmenter: SegmentationModel, tmp_path: Path
) -> None:
    path = save(tmp_path / "t1.nii.gz", picture(), codes=(0, 0))
    with pytest.warns(UnlikeTrainingWarning, match=r"axes of t1.nii.gz point is open.*codes are 0.*Right and left may"):
        found = segment(segmenter, {"t1": path})
    written = nib.load(save_image(found, tmp_path / "seg.nii.gz")).header
    assert (int(written["qform_code"]), int(written["sform_code"])) == (0, 0)
    assert written.get_zooms() == nib.load(path).header.get_zooms()


def test_a_qform_that_is_no_rotation_stops_nothing(segmenter: SegmentationModel, tmp_path: Path) -> None:
    path = save(tmp_path / "t1.nii", picture(), codes=(1, 1))
    affine = nib.load(path).affine
    content = bytearray(path.read_bytes())
    content[256:264] = np.full(2, 0.8, np.float32).tobytes()  # two parts of the quaternion
    path.write_bytes(content)
    found = segment(segmenter, {"t1": path})
    assert np.allclose(nib.load(save_image(found, tmp_path / "seg.nii")).affine, affine)


def test_a_mask_of_one_everywhere_is_a_mask(mae: MAE, tmp_path: Path) -> None:
    image = np.where(brain(), picture(), 1).astype(np.float32)
    given = {"t1": save(tmp_path / "t1.nii.gz", image)}
    mask = save(tmp_path / "mask.nii.gz", np.ones(SHAPE, np.uint8))
    written = reconstruct_to_folder(mae, given, tmp_path / "out", brain_mask=mask)
    made = reconstruct(mae, given, brain_mask=mask)
    assert np.array_equal(np.asarray(nib.load(written["t2"]).dataobj), np.asarray(made["t2"].dataobj))


@pytest.fixture
def unchecked() -> Iterator[None]:
    """As a user runs it: tests refuse arguments of another type by themselves."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
def test_arguments_that_make_no_sense_are_explained(mae: MAE, tmp_path: Path) -> None:
    given = files(tmp_path, "t1")
    do: Any = reconstruct
    with pytest.raises(ConfigError, match="unknown intensity 'foo': expected one of cohort, given, zscore"):
        do(mae, given, intensity="foo")
    with pytest.raises(ModalityError, match="expected a loaded model, got 'checkpoints/tiny-segmentation'"):
        segment("checkpoints/tiny-segmentation", given)
    with pytest.raises(ModalityError, match=r"expected a loaded model, got 'checkpoints/tiny': .*bmmae.load_model"):
        do("checkpoints/tiny", given)
    for value, name in ((None, "NoneType"), (nib.load(given["t1"]), "Nifti1Image"), (picture(), "ndarray")):
        with pytest.raises(ImageError, match=f"^t1: expected the path of an image file, got {name}; leave out"):
            do(mae, {"t1": value})
    for paths in ([given["t1"]], str(given["t1"])):
        with pytest.raises(ImageError, match=r"by modality name, such as {'t1': 't1.nii.gz'}, got .*t1.nii.gz"):
            do(mae, paths)
    with pytest.raises(ImageError, match=r"^brain_mask: expected the path of an image file, got ndarray"):
        do(mae, given, brain_mask=brain())
