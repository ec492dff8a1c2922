"""A cohort segmented: files, tables, resume, and one sentence for whatever is wrong."""

from __future__ import annotations

import csv
import json
import warnings
from dataclasses import replace
from pathlib import Path

import jaxtyping
import nibabel as nib
import numpy as np
import pytest
import torch
from full_disk import files_of_at_most
from tiny_models import tiny_mae, tiny_segmentation
from tiny_studies import SHAPE, lesion, save, write_study

from bmmae.checkpoint import Metric, Provenance, describe, load_model, provenance_of, save_model
from bmmae.cli import main
from bmmae.data.coding import SEG_CODING, coding_of
from bmmae.data.cohort import Cohort, Study, read_cohort
from bmmae.data.labels import BINARY, BRATS2017, labels_from_regions, region_masks
from bmmae.data.preprocess import PreprocessConfig, prepare_images, prepare_study
from bmmae.data.reading import read_image
from bmmae.errors import ConfigError, ImageError, LabelError, ModalityError, OutputError
from bmmae.evaluation.overlap import overlap
from bmmae.inference.postprocess import PostprocessConfig, clean_regions
from bmmae.inference.segmentation import SegmentOptions, segment, segment_prepared
from bmmae.inference.windows import fitted_size, window_starts
from bmmae.metrics import dice
from bmmae.model.segmentation import SegmentationModel
from bmmae.segmentation_scores import write_metrics
from bmmae.segmenting import CohortOptions, segment_cohort

SIZE = (24, 24, 24)


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    return tiny_segmentation(SIZE)


def cohort(folder: Path) -> Cohort:
    first = write_study(folder / "a", ("t1", "flair"))
    return Cohort((first, write_study(folder / "b", ("t1ce",), labelled=False)))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream))


def test_a_cohort_leaves_files_tables_and_metrics(model: SegmentationModel, tmp_path: Path) -> None:
    out = tmp_path / "out"
    studies = cohort(tmp_path / "in")
    options = CohortOptions(probabilities=True, subsets=True, metrics=True)
    results = segment_cohort(model, studies, out, options)
    assert [result.status for result in results] == ["made", "made"]
    written = {path.name for path in (out / "a").iterdir()}
    maps = {f"probability_{region}.nii.gz" for region in ("ET", "TC", "WT")} | {"lesion_probability.nii.gz"}
    assert written == {"seg.nii.gz", "segmentation.json"} | maps
    labels, truth = (np.asarray(nib.load(p).dataobj) for p in (out / "a" / "seg.nii.gz", studies[0].seg))
    found = rows(out / "metrics.csv")
    assert {row["modalities"] for row in found} == {"t1", "flair", "t1+flair"}
    full = {row["region"]: float(row["dice"]) for row in found if row["modalities"] == "t1+flair"}
    assert full["WT"] == pytest.approx(dice(labels > 0, truth > 0))
    assert full["ET"] == pytest.approx(dice(labels == 4, truth == 4))
    summary = (out / "metrics.md").read_text()
    assert summary.startswith("NOT KNOWN whether the model was trained on these test studies")
    assert summary.count("| T1 + FLAIR | mean |") == 6
    assert "## hd95" in summary
    assert "NaN" not in (out / "a" / "segmentation.json").read_text()
    assert (out / "subsets.png").stat().st_size > 10_000

    again = read_cohort(out / "cohort.csv")
    assert [str(study.seg) for study in again] == [str(out / name / "seg.nii.gz") for name in "ab"]
    assert again[1].lesion == out / "b" / "lesion_probability.nii.gz"
    parts = [np.asarray(nib.load(out / "a" / name).dataobj) for name in sorted(maps)]
    assert np.allclose(parts[0], np.max(parts[1:], axis=0))
    assert np.array_equal(parts[3] > 0.5, labels > 0) or (parts[3] > 0.5).sum() <= (labels > 0).sum()


def test_finished_studies_are_kept_until_something_changes(model: SegmentationModel, tmp_path: Path) -> None:
    studies, out = cohort(tmp_path / "in"), tmp_path / "out"
    first = segment_cohort(model, studies, out)
    (out / "b" / "seg.nii.gz").unlink()
    stamp = (out / "a" / "seg.nii.gz").stat().st_mtime_ns
    second = segment_cohort(model, studies, out)
    assert [result.status for result in second] == ["kept", "made"]
    assert second[0].scores == pytest.approx(first[0].scores) or str(second[0].scores) == str(first[0].scores)
    assert (out / "a" / "seg.nii.gz").stat().st_mtime_ns == stamp
    third = segment_cohort(model, studies, out, CohortOptions(segment=SegmentOptions(flips=True)))
    assert [result.status for result in third] == ["made", "made"]


def test_maps_of_regions_that_no_file_may_be_named_like_are_written(tmp_path: Path) -> None:
    small = tiny_segmentation(SIZE)
    config = replace(small.config, regions=("rim/oedema", "core"), coding="own", classes={"core": 1, "rim": 2})
    config = replace(config, united={"rim/oedema": (1, 2), "core": (1,)})
    studies = Cohort((write_study(tmp_path / "p", ("t1",), labelled=False),))
    segment_cohort(SegmentationModel(config).eval(), studies, tmp_path / "out", CohortOptions(probabilities=True))
    assert (tmp_path / "out" / "p" / "probability_rim-oedema.nii.gz").exists()


def test_replacing_what_another_model_made_is_said(model: SegmentationModel, tmp_path: Path) -> None:
    studies, out = cohort(tmp_path / "in"), tmp_path / "out"
    segment_cohort(model, studies, out)
    other = relying(model, TC={"t1+t2": "t2"})
    with torch.no_grad():
        next(other.parameters()).add_(1)
    with pytest.warns(UserWarning, match=r"2 studies that another model segmented \('a', 'b'\): .* name another --out"):
        results = segment_cohort(other, studies, out)
    assert [result.status for result in results] == ["made", "made"]
    assert {result.status for result in segment_cohort(other, studies, out)} == {"kept"}  # without a warning


def test_a_broken_study_stops_no_other(model: SegmentationModel, tmp_path: Path) -> None:
    a, b = cohort(tmp_path / "in").studies
    b.images["t1ce"].write_bytes(b"no image")
    results = segment_cohort(model, Cohort((b, a)), tmp_path / "out")
    assert [result.status for result in results] == ["failed", "made"]
    assert "t1ce.nii.gz" in results[0].problem
    assert len(read_cohort(tmp_path / "out" / "cohort.csv")) == 1


def one(folder: Path, **changes: object) -> Study:
    return replace(write_study(folder / "p", ("t1",)), **changes)


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        (lesion((20, 24, 15)), r"the segmentation truth\.nii\.gz \(20, 24, 15\) is not on the grid of t1\.nii\.gz"),
        (np.full(SHAPE, 3, np.int16), r"has label values \[3\]: coding 'brats2017' knows only 0 and \[1, 2, 4\]"),
        (None, r"truth\.nii\.gz does not exist"),
    ],
)
def test_a_truth_that_does_not_fit_is_one_sentence(
    model: SegmentationModel, tmp_path: Path, truth: np.ndarray | None, message: str
) -> None:
    study, out = one(tmp_path, seg=tmp_path / "truth.nii.gz"), tmp_path / "out"
    if truth is not None:
        save(tmp_path / "truth.nii.gz", truth)
    for options, statuses in ((CohortOptions(), ("made", "kept")), (CohortOptions(metrics=True), ("failed", "failed"))):
        for status in statuses:
            (result,) = segment_cohort(model, Cohort((study,)), out, options)
            assert (result.status, result.scores) == (status, ())
            with pytest.raises(LabelError, match=message):
                raise LabelError(result.problem)
    assert (out / "p" / "seg.nii.gz").exists()
    assert not (out / "metrics.csv").exists()


def test_a_truth_of_another_edition_is_refused_until_its_coding_is_said(tmp_path: Path) -> None:
    study = one(tmp_path)
    late = study.seg.rename(tmp_path / "BraTS-GLI-00001-000-seg.nii.gz")  # type: ignore[union-attr]
    studies = Cohort((replace(study, seg=late),))
    with pytest.raises(
        LabelError, match=r"coded as brats2023 or brats2024-post, and the model's labels are 'brats2017'"
    ):
        segment_cohort(tiny_segmentation(SIZE), studies, tmp_path / "out")
    (result,) = segment_cohort(tiny_segmentation(SIZE), studies, tmp_path / "out", CohortOptions(labels="brats2017"))
    assert len(result.scores) == 3


def test_what_was_predicted_keeps_its_coding(model: SegmentationModel, tmp_path: Path) -> None:
    study = replace(one(tmp_path), subject="BraTS-GLI-00001-000")
    segment_cohort(model, Cohort((study,)), tmp_path / "out", CohortOptions(labels="brats2017"))
    written = read_cohort(tmp_path / "out" / "cohort.csv")
    assert written[0].values[SEG_CODING] == "brats2017"
    save(tmp_path / "out" / "BraTS-GLI-00001-000" / "seg.nii.gz", lesion())
    assert coding_of(written) == BRATS2017
    with pytest.warns(UserWarning, match="'seg_coding' says 'brats2017', and 'brats2024-post' was asked for"):
        coding_of(written, "brats2024-post")
    mixed = replace(written[0], subject="other", values={SEG_CODING: "brats2023"})
    with pytest.raises(LabelError, match=r"states several label codings \(brats2017, brats2023\)"):
        coding_of([*written, mixed])
    (judged,) = segment_cohort(model, Cohort((study,)), tmp_path / "again", CohortOptions(labels="brats2017"))
    assert judged.status == "made"


def test_scores_under_another_coding_are_made_again(model: SegmentationModel, tmp_path: Path) -> None:
    study, coding = one(tmp_path), tmp_path / "coding.yaml"
    classes = "classes: {core: 1, oedema: 2, enhancing: 4}\n"
    coding.write_text(f"{classes}regions: {{ET: [4], TC: [1, 4], WT: [1, 2, 4]}}\n")
    options = CohortOptions(labels=str(coding))
    assert segment_cohort(model, Cohort((study,)), tmp_path / "out", options)[0].status == "made"
    assert segment_cohort(model, Cohort((study,)), tmp_path / "out", options)[0].status == "kept"
    coding.write_text(f"{classes}regions: {{ET: [1], TC: [1, 4], WT: [1, 2, 4]}}\n")
    assert segment_cohort(model, Cohort((study,)), tmp_path / "out", options)[0].status == "made"


def test_a_part_of_the_table_or_of_a_fold_is_segmented(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bmmae.checkpoint import save_model

    saved = save_model(tiny_segmentation(SIZE), tmp_path / "model", preprocessing=PreprocessConfig())
    parts = ("train", "train", "validation", "test")
    plain = [write_study(tmp_path / "in" / name, ("t1",), seed=i) for i, name in enumerate("abcd")]
    marked = [replace(study, split=part) for study, part in zip(plain, parts, strict=True)]
    table, free = (Cohort(tuple(s)).write(tmp_path / f"{n}.csv") for n, s in (("marked", marked), ("free", plain)))
    command = ["segment", "--model", str(saved), "--cohort", str(table), "--out", str(tmp_path / "out"), "--metrics"]
    assert main([*command, "--part", "test"]) == 0
    assert "1 study: 1 segmented" in capsys.readouterr().out
    folds = tmp_path / "folds.json"
    assert main(["split", str(free), "--out", str(folds), "--folds", "3"]) == 0
    capsys.readouterr()
    command[command.index("--cohort") + 1] = str(free)
    assert main([*command, "--splits", str(folds), "--fold", "1"]) == 0
    assert "NOT KNOWN whether the model was trained on these test studies" in capsys.readouterr().out
    assert len({row["subject"] for row in rows(tmp_path / "out" / "metrics.csv")}) == 1


def test_metrics_without_any_truth_are_refused(model: SegmentationModel, tmp_path: Path) -> None:
    studies = Cohort((one(tmp_path, seg=None),))
    for options in (CohortOptions(metrics=True), CohortOptions(subsets=True)):
        with pytest.raises(LabelError, match="no study of the cohort has a segmentation to compare with"):
            segment_cohort(model, studies, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_predictions_are_no_truth(model: SegmentationModel, tmp_path: Path) -> None:
    segment_cohort(model, Cohort((one(tmp_path),)), tmp_path / "out")
    predicted = read_cohort(tmp_path / "out" / "cohort.csv")
    with pytest.raises(LabelError, match=r"column 'seg' \('seg_origin' says that it holds predictions\)"):
        segment_cohort(model, predicted, tmp_path / "again", CohortOptions(metrics=True))
    (result,) = segment_cohort(model, predicted, tmp_path / "again")
    assert (result.status, result.scores) == ("made", ())
    assert result.problem == "its segmentation is a prediction, as 'seg_origin' says, and no truth"


def test_a_finished_study_is_not_judged_by_what_the_table_has_called_a_prediction_since(
    model: SegmentationModel, tmp_path: Path
) -> None:
    study = one(tmp_path)
    assert segment_cohort(model, Cohort((study,)), tmp_path / "out")[0].scores
    stated = replace(study, values={"seg_origin": "predicted"})
    (result,) = segment_cohort(model, Cohort((stated,)), tmp_path / "out")
    assert (result.scores, result.problem[:33]) == ((), "its segmentation is a prediction,")
    assert not (tmp_path / "out" / "metrics.csv").exists()


def test_a_truth_that_the_table_has_named_since_and_is_not_there_is_told(
    model: SegmentationModel, tmp_path: Path
) -> None:
    study = one(tmp_path, seg=None)
    segment_cohort(model, Cohort((study,)), tmp_path / "out")
    named = Cohort((replace(study, seg=tmp_path / "gone.nii.gz"),))
    assert "gone.nii.gz does not exist" in segment_cohort(model, named, tmp_path / "out")[0].problem
    (result,) = segment_cohort(model, named, tmp_path / "out", CohortOptions(metrics=True))
    assert result.status == "failed"


def test_a_truth_without_the_models_regions_is_refused(model: SegmentationModel, tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="coding 'binary' has no region ET, TC, WT, which the model predicts"):
        segment_cohort(model, Cohort((one(tmp_path),)), tmp_path / "out", CohortOptions(labels="binary"))


def test_a_model_of_other_modalities_is_refused(model: SegmentationModel, tmp_path: Path) -> None:
    path = save(tmp_path / "dwi.nii.gz", np.ones(SHAPE, np.float32))
    with pytest.raises(ModalityError, match="unknown modality 'dwi': expected one of t1, t1ce, t2, flair"):
        segment(model, {"dwi": path})
    with pytest.raises(ModalityError, match="a mae model cannot segment: fine-tune it"):
        segment_cohort(tiny_mae(), Cohort((one(tmp_path),)), tmp_path / "out")


def test_an_image_without_a_brain_or_with_one_slice_is_refused(model: SegmentationModel, tmp_path: Path) -> None:
    study = one(tmp_path)
    nothing = save(tmp_path / "mask.nii.gz", np.zeros(SHAPE, np.uint8))
    with pytest.raises(ImageError, match="no brain voxel found"):
        segment(model, {"t1": study.images["t1"]}, brain_mask=nothing)
    image = nib.load(study.images["t1"])
    flat = tmp_path / "flat.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:, :, 8:9], image.affine), flat)
    with pytest.raises(ImageError, match=r"flat\.nii\.gz holds a single slice \(20, 24, 1\)"):
        segment(model, {"t1": flat})


@pytest.mark.parametrize(
    ("extent", "share", "expected"),
    [
        (20, 0.25, [-2]),
        (24, 0.25, [0]),
        (25, 0.25, [0, 1]),
        (42, 0.25, [0, 18]),
        (43, 0.25, [0, 10, 19]),
        (60, 0.5, [0, 12, 24, 36]),
    ],
)
def test_windows_cover_an_axis_with_the_overlap_asked(extent: int, share: float, expected: list[int]) -> None:
    starts = [start[0] for start in window_starts((extent, 24, 24), SIZE, share)]
    assert starts == expected


def test_fitted_windows_are_as_many_and_cover_all_with_the_overlap() -> None:
    extent, size = (143, 165, 100), (128, 128, 128)
    fitted = fitted_size(extent, size, (16, 16, 16), 0.25)
    assert fitted == (96, 96, 112)
    starts = list(window_starts(extent, fitted, 0.25))
    assert len(starts) == len(list(window_starts(extent, size, 0.25))) == 4
    for axis in range(2):
        first, second = sorted({start[axis] for start in starts})
        assert second - first <= 0.75 * fitted[axis]
        assert second + fitted[axis] == extent[axis]


@pytest.mark.parametrize(("extent", "size", "share"), [(67, 32, 0.1), (57, 32, 0.3), (105, 56, 0.4), (57, 40, 0.6)])
def test_fitted_windows_are_as_many_though_steps_are_whole_voxels(extent: int, size: int, share: float) -> None:
    whole, large, patch = (extent,) * 3, (size,) * 3, (8, 8, 8)
    fitted = fitted_size(whole, large, patch, share)
    assert all(side % 8 == 0 for side in fitted)
    assert len(list(window_starts(whole, fitted, share))) == len(list(window_starts(whole, large, share)))


def test_an_impossible_overlap_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"overlap of windows must lie in \[0, 1\), got 1"):
        list(window_starts(SIZE, SIZE, 1.0))
    with pytest.raises(ConfigError, match=r"overlap of windows must lie in \[0, 1\), got 1.5"):
        SegmentOptions(overlap=1.5)


def test_a_number_is_no_postprocessing_and_is_refused_before_the_work() -> None:
    jaxtyping.config.update("jaxtyping_disable", True)  # as a user runs it
    try:
        with pytest.raises(ConfigError, match=r"postprocess must be a PostprocessConfig or None, got 20\.0"):
            SegmentOptions(postprocess=20.0)  # type: ignore[arg-type]
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def relying(model: SegmentationModel, **tables: dict[str, str]) -> SegmentationModel:
    """The same weights, told what to rely on."""
    other = SegmentationModel(replace(model.config, relied_on=tables)).eval()
    other.load_state_dict(model.state_dict())
    return other


def test_a_region_is_taken_from_what_the_model_relies_on(model: SegmentationModel, tmp_path: Path) -> None:
    study = write_study(tmp_path, ("t1", "flair"))
    alone = replace(study, images={"flair": study.images["flair"]})
    both, less = (prepare_study(each, PreprocessConfig(), model.config.model.modalities) for each in (study, alone))
    expected = segment_prepared(model, both)
    found = segment_prepared(relying(model, TC={"t1+flair": "flair", "t1+t2": "t2"}), both)
    assert np.array_equal(found[[0, 2]], expected[[0, 2]])
    np.testing.assert_allclose(found[1], segment_prepared(model, less)[1], atol=1e-5)
    assert not np.allclose(found[1], expected[1], atol=1e-3)


def test_where_what_is_relied_on_was_not_scanned_all_that_was_is_used(model: SegmentationModel, tmp_path: Path) -> None:
    study = write_study(tmp_path, ("t1", "flair"))
    prepared = prepare_study(study, PreprocessConfig(), model.config.model.modalities)
    index = prepared.names.index("flair")
    gaps = prepared.valid.copy()
    gaps[index, :4] = False
    partial = replace(prepared, valid=gaps)
    trusting = relying(model, **{region: {"t1+flair": "flair"} for region in model.config.regions})
    assert np.array_equal(segment_prepared(trusting, partial), segment_prepared(model, partial))
    assert not np.array_equal(segment_prepared(trusting, prepared), segment_prepared(model, prepared))


@pytest.mark.parametrize("table", [{"XX": {"t1+t2": "t2"}}, {"ET": {"t1+t2": "flair"}}])
def test_a_model_cannot_rely_on_what_is_not_given(model: SegmentationModel, table: dict[str, dict[str, str]]) -> None:
    with pytest.raises(ConfigError, match="cannot be taken from"):
        replace(model.config, relied_on=table)


def test_a_model_is_saved_with_what_it_has_chosen_to_rely_on(
    model: SegmentationModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = Provenance(data="9 real studies", content_hashes=("0" * 64,), metrics={"WT": Metric(0.9)})
    save_model(model, tmp_path / "model", provenance=known)
    describe(model, provenance=Provenance())  # the other tests share it
    cohort(tmp_path / "in").write(tmp_path / "cohort.csv")
    command = ["segment", "--cohort", str(tmp_path / "cohort.csv"), "--out", str(tmp_path / "out")]
    asked = [*command, "--subsets", "--rely", str(tmp_path / "made")]
    assert main([*asked, "--model", str(tmp_path / "model")]) == 0
    assert "chosen on 1 studies; from fewer than 20 patients" in capsys.readouterr().out
    made = load_model(tmp_path / "made")
    assert isinstance(made, SegmentationModel)
    given = {used for table in made.config.relied_on.values() for used in table}
    assert given == {"t1+flair"}
    card = (tmp_path / "made" / "README.md").read_text()
    assert "| changed since | takes regions from the modalities that improved them on 1 studies (`relied_on`) |" in card
    assert "None recorded: evaluate it before you rely on it." in card  # not what its original was measured at
    assert provenance_of(made).seen == known.content_hashes
    assert overlap(made, read_cohort(tmp_path / "cohort.csv")).chosen == ("a",)  # who chose is not new to it
    made.config = replace(made.config, relied_on={"ET": {"t1+flair": "t1"}})
    made.save_pretrained(tmp_path / "made")
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    over = [*command, "--subsets", "--model", str(tmp_path / "model"), "--rely", str(tmp_path / "model")]
    assert main(over) == 2
    assert "model holds a model, which would be written over" in capsys.readouterr().err
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == weights
    for taken in ("in", "out", "new"):  # other files, the results, what will be the results'
        words = [*command, "--subsets", "--model", str(tmp_path / "model"), "--rely", str(tmp_path / taken)]
        assert main([*words, "--out", str(tmp_path / "new")]) == 2
        assert f"{taken} is for other files than a model: name a new or empty folder" in capsys.readouterr().err
        assert not (tmp_path / "new").exists()
    assert main([*asked, "--model", str(tmp_path / "made")]) == 2
    assert "has chosen what to rely on already" in capsys.readouterr().err
    assert main([*command, "--model", str(tmp_path / "model"), "--rely", str(tmp_path / "x")]) == 2
    assert "--subsets" in capsys.readouterr().err
    study = ["segment", "--t1", str(tmp_path / "in" / "a" / "t1.nii.gz"), "--out", str(tmp_path / "seg.nii.gz")]
    assert main([*study, "--model", str(tmp_path / "model"), "--rely", str(tmp_path / "x")]) == 2
    assert "--cohort" in capsys.readouterr().err
    for words in (["--labels", "binary"], ["--part", "test"], ["--splits", "folds.json"]):
        assert main([*study, "--model", str(tmp_path / "model"), *words]) == 2
        assert f"{words[0]}" in capsys.readouterr().err


def test_a_table_of_somebody_else_is_not_replaced(model: SegmentationModel, tmp_path: Path) -> None:
    table = tmp_path / "out" / "cohort.csv"
    table.parent.mkdir()
    table.write_text("subject,t1\n")
    with pytest.raises(OutputError, match=r"cohort.csv is not of an earlier run and would be replaced"):
        segment_cohort(model, Cohort((one(tmp_path / "in"),)), table.parent)
    assert table.read_text() == "subject,t1\n"


def test_blending_leaves_what_all_windows_agree_on(tmp_path: Path) -> None:
    small = tiny_segmentation((16, 16, 16))
    for parameter in small.heads.parameters():
        torch.nn.init.zeros_(parameter)
    bias = small.heads[0].around.bias  # the three regions at each of the eight places
    bias.detach().copy_(bias.new_tensor([-1.0, 0.0, 2.0]).repeat(8))
    prepared = prepare_study(one(tmp_path), PreprocessConfig(), small.config.model.modalities)
    found = segment_prepared(small, prepared, overlap=0.5)
    assert min(prepared.shape) < 16 < max(prepared.shape)
    for values, logit in zip(found, (-1.0, 0.0, 2.0), strict=True):
        assert np.allclose(values[prepared.brain], 1 / (1 + np.exp(-logit)), atol=1e-5)
        assert not values[~prepared.brain].any()


def test_flips_make_a_mirrored_study_the_mirror_image(model: SegmentationModel, tmp_path: Path) -> None:
    image = read_image(one(tmp_path).images["t1"])
    mirrored = replace(image, array=image.array[::-1].copy())
    first, other = (prepare_images(("t1",), [each], PreprocessConfig()) for each in (image, mirrored))
    plain, turned = (segment_prepared(model, study, flips=True) for study in (first, other))
    assert plain.shape == turned.shape
    assert np.allclose(plain, turned[:, ::-1], atol=1e-4)
    assert not np.allclose(
        *(segment_prepared(model, study)[:, :: (1, -1)[i]] for i, study in enumerate((first, other))), atol=1e-3
    )


def test_what_is_given_is_never_written_over(model: SegmentationModel, tmp_path: Path) -> None:
    study = write_study(tmp_path / "a", ("t1", "flair"))
    table = Cohort((replace(study, seg=None),)).write(tmp_path / "cohort.csv")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    with pytest.raises(OutputError, match=r"a/seg.nii.gz is one of the files given, and would be written over"):
        segment_cohort(model, Cohort((study,)), tmp_path)
    with pytest.raises(OutputError, match=r"cohort.csv is one of the files given"):
        segment_cohort(model, read_cohort(table), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


@pytest.mark.parametrize("name", ["metrics.csv", "metrics.md", "subsets.png"])
def test_measurements_of_somebody_else_are_not_removed(model: SegmentationModel, tmp_path: Path, name: str) -> None:
    theirs = tmp_path / "out" / name
    theirs.parent.mkdir()
    theirs.write_text("patient,volume\n")
    with pytest.raises(OutputError, match=rf"{name} is not of an earlier run of `bmmae segment`"):
        segment_cohort(model, Cohort((write_study(tmp_path / "a", ("t1", "flair")),)), theirs.parent)
    assert theirs.read_text() == "patient,volume\n"


def test_a_disk_that_was_full_when_the_metrics_were_written_stops_no_further_run(
    model: SegmentationModel, tmp_path: Path
) -> None:
    (study,), out = cohort(tmp_path / "in").studies[:1], tmp_path / "out"
    (result,) = segment_cohort(model, Cohort((study,)), out)
    with files_of_at_most(0), pytest.raises(OutputError, match=r"cannot write .*metrics\.csv: File too large"):
        write_metrics(out, result.scores, "", plot=False)
    assert segment_cohort(model, Cohort((study,)), out)[0].status == "kept"
    assert (out / "metrics.csv").stat().st_size


def test_a_file_that_no_run_has_made_is_not_replaced(model: SegmentationModel, tmp_path: Path) -> None:
    study = write_study(tmp_path / "a", ("t1", "flair"))
    unlisted = Cohort((replace(study, seg=None),))
    before = study.seg.read_bytes()  # type: ignore[union-attr]
    other = write_study(tmp_path / "data" / "b", ("t1",))
    results = segment_cohort(model, Cohort((*unlisted, other)), tmp_path)
    assert [result.status for result in results] == ["failed", "made"]
    assert "a/seg.nii.gz exists, and no earlier run has made it" in results[0].problem
    assert study.seg.read_bytes() == before  # type: ignore[union-attr]
    for _ in range(2):
        (result,) = segment_cohort(model, unlisted, tmp_path / "out", CohortOptions(probabilities=True))
    assert result.status == "kept"


def test_a_segmentation_corrected_by_hand_is_not_replaced(model: SegmentationModel, tmp_path: Path) -> None:
    studies = Cohort((write_study(tmp_path / "a", ("t1",), labelled=False),))
    segment_cohort(model, studies, tmp_path / "out")
    made = tmp_path / "out" / "a" / "seg.nii.gz"
    save(made, lesion(SHAPE))
    before = made.read_bytes()
    (result,) = segment_cohort(model, studies, tmp_path / "out", CohortOptions(probabilities=True))
    assert result.status == "failed"
    assert "a/seg.nii.gz was changed since an earlier run made it" in result.problem
    assert made.read_bytes() == before


def test_one_study_is_not_written_over_its_own_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bmmae.checkpoint import save_model

    saved = save_model(tiny_segmentation(SIZE), tmp_path / "model", preprocessing=PreprocessConfig())
    image = one(tmp_path / "in").images["t1"]
    command = ["segment", "--model", str(saved), "--t1", str(image), "--out"]
    assert main([*command, str(image)]) == 2
    assert "would be written over" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "seg.txt")]) == 2
    assert "--out names the file to write, .nii or .nii.gz" in capsys.readouterr().err


def test_cleaning_fills_holes_removes_specks_and_says_so() -> None:
    mask = np.zeros((3, 12, 12, 12), bool)
    mask[2, 1:6, 1:6, 1:6] = True
    mask[2, 3, 3, 3] = False
    mask[2, 9, 9, 9] = True
    cleaned, told = clean_regions(mask, BRATS2017, (1.0, 1.0, 2.0), PostprocessConfig(smallest_mm3=3.0))
    assert cleaned[2].sum() == 125
    assert cleaned[2, 3, 3, 3]
    assert (told["WT"].filled_mm3, told["WT"].removed, told["WT"].removed_mm3) == (2.0, 1, 2.0)
    assert (told["ET"].removed, cleaned[0].any()) == (0, False)
    assert str(told["WT"]) == "0.00 ml of holes filled, 1 components (0.00 ml) removed"
    with pytest.raises(ConfigError, match="zero or more mm3"):
        PostprocessConfig(smallest_mm3=-1.0)


def test_a_component_of_the_smallest_size_stays_though_the_header_rounds() -> None:
    masks = np.zeros((3, 12, 12, 12), bool)
    masks[2, 1:6, 1:5, 1] = True
    turned = (0.9999999763, 1.0000000083, 0.9999999840)  # of 1 mm along turned axes, in single precision
    cleaned, _ = clean_regions(masks, BRATS2017, turned, PostprocessConfig(smallest_mm3=20.0))
    assert cleaned[2].sum() == 20


def test_oedema_beside_a_core_is_one_component_with_it() -> None:
    masks = np.zeros((3, 12, 12, 12), bool)
    masks[1, 4:7, 4:7, 4:7] = True  # a core that the mask of the whole tumour leaves out
    masks[2, 3, 4:7, 4:7] = True
    cleaned, told = clean_regions(masks, BRATS2017, (1.0, 1.0, 1.0), PostprocessConfig(smallest_mm3=20.0))
    assert np.array_equal(labels_from_regions(cleaned, BRATS2017), labels_from_regions(masks, BRATS2017))
    assert all(change.removed == 0 for change in told.values())


def test_the_necrosis_within_an_enhancing_ring_is_no_hole() -> None:
    labels = np.zeros((20, 20, 20), np.int16)
    labels[2:18, 2:18, 2:18] = 2
    labels[5:15, 5:15, 5:15] = 4
    labels[7:13, 7:13, 7:13] = 1
    whole = region_masks(labels, BRATS2017)
    kept, told = clean_regions(whole, BRATS2017, (1.0, 1.0, 1.0), PostprocessConfig())
    assert np.array_equal(kept, whole)
    assert all(change.filled_mm3 == 0 for change in told.values())

    labels[9:11, 9:11, 9:11] = 0  # a hole that no region claims belongs to the core, not to the ring
    filled, _ = clean_regions(region_masks(labels, BRATS2017), BRATS2017, (1.0, 1.0, 1.0), PostprocessConfig())
    assert set(np.unique(labels_from_regions(filled, BRATS2017)[9:11, 9:11, 9:11])) == {1}

    one = np.zeros((1, 8, 8, 8), bool)
    one[0, 1:6, 1:6, 1:6] = True
    one[0, 3, 3, 3] = False
    assert clean_regions(one, BINARY, (1.0, 1.0, 1.0), PostprocessConfig())[0][0, 3, 3, 3]


def test_the_command_goes_the_whole_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bmmae.checkpoint import save_model

    saved = save_model(tiny_segmentation(SIZE), tmp_path / "model", preprocessing=PreprocessConfig())
    table = cohort(tmp_path / "in").write(tmp_path / "cohort.csv")
    command = ["segment", "--model", str(saved), "--cohort", str(table), "--out", str(tmp_path / "out")]
    assert main([*command, "--postprocess", "--probabilities", "--cut", "dice"]) == 0
    told = capsys.readouterr().out
    assert "postprocessing, WT: " in told
    assert "2 studies: 2 segmented" in told
    note = json.loads((tmp_path / "out" / "a" / "segmentation.json").read_text())
    assert note["postprocessing"].keys() == {"ET", "TC", "WT"}
    assert len(note["cuts"]) == 3
    assert main([*command, "--t1", "x.nii.gz"]) == 2
    assert "leave out images" in capsys.readouterr().err
    single = ["segment", "--model", str(saved), "--t1", str(tmp_path / "in" / "a" / "t1.nii.gz")]
    assert main([*single, "--out", str(tmp_path / "s.nii.gz"), "--probabilities"]) == 0
    assert (tmp_path / "s_probability_WT.nii.gz").is_file()
    assert " s\n" in capsys.readouterr().out
    assert main([*single, "--out", str(tmp_path / "s.nii.gz"), "--cut", "dice"]) == 0
    assert "cut at ET " in capsys.readouterr().out
    assert main([*single, "--out", str(tmp_path / "s.nii.gz"), "--cut", "2"]) == 2
    assert "between 0 and 1" in capsys.readouterr().err
    assert main([*single, "--out", str(tmp_path / "s.nii.gz"), "--metrics"]) == 2


def test_doubts_about_a_study_of_a_cohort_are_told_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bmmae.checkpoint import save_model

    saved = save_model(tiny_segmentation(SIZE), tmp_path / "model", preprocessing=PreprocessConfig())
    thick = write_study(tmp_path / "thick", ("t1",), spacing=(1, 1, 3), labelled=False)
    fine = write_study(tmp_path / "fine", ("t1",), labelled=False)
    table = Cohort((thick, fine)).write(tmp_path / "cohort.csv")
    for status in ("segmented", "finished before"):
        words = ["segment", "--model", str(saved), "--cohort", str(table), "--out", str(tmp_path / "out")]
        assert main(words) == 0
        told = capsys.readouterr()
        assert "warning: thick: the images' coarsest spacing is 3.0 mm" in told.err
        assert "warning: fine" not in told.err
        assert f"2 studies: 2 {status}; 1 with reasons for doubt (see above)" in told.out


def test_what_many_studies_share_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bmmae.checkpoint import save_model

    saved = save_model(tiny_segmentation(SIZE), tmp_path / "model", preprocessing=PreprocessConfig())
    thick = [write_study(tmp_path / f"p{n}", ("t1",), spacing=(1, 1, 3), labelled=False) for n in range(4)]
    truth = save(tmp_path / "truth.nii.gz", np.full(SHAPE, 9, np.uint8), spacing=(1, 1, 3))
    table = Cohort(tuple(replace(study, seg=truth) for study in thick)).write(tmp_path / "cohort.csv")
    assert main(["segment", "--model", str(saved), "--cohort", str(table), "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr()
    assert told.err.count("warning: p0: ") == told.err.count("not judged: p0: ") == 1
    assert told.err.count("(and 3 more like it: p1, p2, p3)") == 2
    assert "4 studies: 4 segmented; 4 with reasons for doubt (see above); 4 not judged (see above)" in told.out


def test_truth_that_is_a_mask_of_whole_lesions_is_told(model: SegmentationModel, tmp_path: Path) -> None:
    mask = one(tmp_path, seg=save(tmp_path / "mask.nii.gz", (lesion() > 0).astype(np.uint8)))
    empty = replace(mask, subject="q", seg=save(tmp_path / "none.nii.gz", np.zeros(SHAPE, np.uint8)))
    told = "holds 0 and 1 alone, and was read as 'brats2017', where 1 means 'core'.*'binary'.*, only WT means something"
    for _ in ("made", "kept"):
        with pytest.warns(UserWarning, match=told):
            segment_cohort(model, Cohort((mask, empty)), tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        segment_cohort(model, Cohort((mask,)), tmp_path / "named", CohortOptions(labels="brats2017"))
        segment_cohort(model, Cohort((empty,)), tmp_path / "empty")
        coded = write_study(tmp_path / "coded", ("t1",))
        segment_cohort(model, Cohort((mask, coded)), tmp_path / "mixed")
