"""A cohort is completed study by study: what is finished is kept, what fails is counted, nothing is half-written."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tiny_models import tiny_mae
from tiny_studies import brain, picture, save, write_study

from bmmae.checkpoint import Provenance, describe, load_model, save_model
from bmmae.cli import main
from bmmae.data.cohort import Cohort, read_cohort
from bmmae.data.preprocess import PreprocessConfig
from bmmae.data.reading import content_hash
from bmmae.errors import OutputError
from bmmae.inference import ReconstructOptions, reconstruct, reconstruct_cohort, reconstruct_to_folder
from bmmae.model.mae import MAE
from bmmae.model.pretrained import digest
from bmmae.reconstruction_page import study_page

SIZE = (24, 24, 24)
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def mae() -> MAE:
    return tiny_mae(SIZE, kind="cross", colocated=True)


@pytest.fixture(scope="module")
def saved(mae: MAE, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "mae"
    return save_model(mae, folder, preprocessing=PreprocessConfig(), provenance=Provenance(content_hashes=("ab" * 32,)))


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    """Three studies: one complete, two with different subsets."""
    data = tmp_path / "data"
    subsets = {"a": ("t1", "t1ce", "t2", "flair"), "b": ("t1", "t2"), "c": ("flair",)}
    studies = tuple(write_study(data / name, names, seed=i) for i, (name, names) in enumerate(subsets.items()))
    table = Cohort(studies).write(tmp_path / "cohort.csv")
    return read_cohort(table)


def statuses(mae: MAE, cohort: Cohort, out: Path, **options: object) -> list[str]:
    made = reconstruct_cohort(mae, cohort, out, ReconstructOptions(**options))  # type: ignore[arg-type]
    return [outcome.status for outcome in made]


def stamps(out: Path) -> dict[str, int]:
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.glob("*/*")}


def command(saved: Path, cohort: Cohort, out: Path, *words: str) -> int:
    return main(["reconstruct", "--model", str(saved), "--cohort", str(cohort.path), "--out", str(out), *words])


def test_a_cohort_that_lacks_nothing_can_be_gone_through_again(mae: MAE, cohort: Cohort, tmp_path: Path) -> None:
    complete = Cohort(cohort.studies[:1], cohort.modalities)
    assert statuses(mae, complete, tmp_path / "out") == ["complete"]
    assert statuses(mae, cohort, tmp_path / "out") == ["complete", "made", "made"]  # patients may have joined
    assert statuses(mae, complete, tmp_path / "out") == ["complete"]
    assert read_cohort(tmp_path / "out" / "cohort.csv")[0].synthesised == ()


def test_every_study_is_completed_as_it_would_be_alone(mae: MAE, cohort: Cohort, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert statuses(mae, cohort, out) == ["complete", "made", "made"]
    assert sorted(path.name for path in out.iterdir()) == ["b", "c", "cohort.csv"]
    alone = reconstruct(mae, {"flair": str(cohort[2].images["flair"])})
    for name in ("t1", "t1ce", "t2"):
        assert np.array_equal(nib.load(out / "c" / f"{name}.nii.gz").dataobj, alone[name].dataobj)
    completed = read_cohort(out / "cohort.csv")
    assert [tuple(study.images) for study in completed] == [("t1", "t1ce", "t2", "flair")] * 3
    assert [study.values["synthetic"] for study in completed] == [None, "t1ce+flair", "t1+t1ce+t2"]
    assert completed[1].images["flair"] == out / "b" / "flair.nii.gz"
    assert Path(str(completed[1].images["t1"])).resolve() == Path(str(cohort[1].images["t1"])).resolve()


def test_what_is_finished_is_kept_and_what_is_not_is_made_again(mae: MAE, cohort: Cohort, tmp_path: Path) -> None:
    out = tmp_path / "out"
    statuses(mae, cohort, out)
    before = stamps(out)
    assert statuses(mae, cohort, out) == ["complete", "kept", "kept"]
    assert stamps(out) == before
    (out / "b" / "flair.nii.gz").unlink()  # no longer complete
    assert statuses(mae, cohort, out) == ["complete", "made", "kept"]
    save(
        Path(str(cohort[2].images["flair"])), np.where(brain(), nib.load(cohort[2].images["flair"]).get_fdata() * 2, 0)
    )
    assert statuses(mae, cohort, out) == ["complete", "kept", "made"]
    moved = nib.load(cohort[1].images["t2"])
    for name in cohort[1].images:
        image = nib.load(cohort[1].images[name])
        save_as = nib.Nifti1Image(np.asarray(image.dataobj), moved.affine @ np.diag([1.2, 1.2, 1.2, 1.0]))
        nib.save(save_as, cohort[1].images[name])
    assert statuses(mae, cohort, out) == ["complete", "made", "kept"]  # the same voxels, of another size
    other = tiny_mae(SIZE, kind="cross")
    assert digest(other) != digest(mae)
    assert statuses(other, cohort, out) == ["complete", "made", "made"]


def test_other_options_replace_what_was_made_and_leave_nothing_of_it(mae: MAE, cohort: Cohort, tmp_path: Path) -> None:
    out = tmp_path / "out"
    statuses(mae, cohort, out)
    (out / "c" / "mine.txt").write_text("not ours")
    assert statuses(mae, cohort, out, only=("T1ce",), intensity="zscore") == ["complete", "made", "made"]
    assert sorted(path.name for path in (out / "c").iterdir()) == ["mine.txt", "reconstruction.json", "t1ce.nii.gz"]


def test_a_subset_hides_the_rest_and_is_judged_by_it(mae: MAE, cohort: Cohort, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcomes = reconstruct_cohort(mae, cohort, out, ReconstructOptions(subset=("t1", "t2")))
    assert [outcome.status for outcome in outcomes] == ["made", "made", "skipped"]
    assert outcomes[2].problem == "it has none of T1, T2"
    note = json.loads((out / "a" / "reconstruction.json").read_text())
    assert note["given"] == {"t1": "t1.nii.gz", "t2": "t2.nii.gz"}
    assert note["hidden"] == {"t1ce": "t1ce.nii.gz", "flair": "flair.nii.gz"}
    assert set(note["agreement"]["flair"]) == {"psnr", "psnr_fitted", "ssim", "covered"}
    assert json.loads((out / "b" / "reconstruction.json").read_text())["agreement"] == {}
    with (out / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["subject"], row["modality"]) for row in rows] == [("a", "t1ce"), ("a", "flair")]
    assert {row["seen_in_training"] for row in rows} == {"no"}
    assert [float(row["covered"]) for row in rows] == [1, 1]
    assert float(rows[1]["ssim"]) == pytest.approx(note["agreement"]["flair"]["ssim"])
    shown = {name: str(cohort[0].images[name]) for name in ("t1", "t2")}
    assert np.array_equal(nib.load(out / "a" / "flair.nii.gz").dataobj, reconstruct(mae, shown)["flair"].dataobj)
    assert [study.subject for study in read_cohort(out / "cohort.csv")] == ["a", "b"]


@pytest.mark.parametrize("told_by", ["header", "table"])
def test_nothing_is_judged_by_a_synthetic_image(mae: MAE, cohort: Cohort, tmp_path: Path, told_by: str) -> None:
    reconstruct_cohort(mae, cohort, tmp_path / "once")
    if told_by == "table":  # whatever has processed the images since has lost their headers' words
        for path in (tmp_path / "once").glob("*/*.nii.gz"):
            save(path, np.asarray(nib.load(path).dataobj))
    completed = read_cohort(tmp_path / "once" / "cohort.csv")
    made = reconstruct_cohort(mae, completed, tmp_path / "twice", ReconstructOptions(subset=("t1",)))
    assert [tuple(outcome.agreement) for outcome in made] == [("t1ce", "t2", "flair"), ("t2",), ("flair",)]


def test_what_an_earlier_run_has_synthesised_is_still_told(mae: MAE, cohort: Cohort, tmp_path: Path) -> None:
    statuses(mae, cohort, tmp_path / "once", only=("t2",))
    (found,) = (study for study in read_cohort(tmp_path / "once" / "cohort.csv") if study.subject == "c")
    elsewhere = replace(found, values={"synthetic": "t2+dwi"})
    (outcome,) = reconstruct_cohort(mae, Cohort((elsewhere,)), tmp_path / "twice")
    assert outcome.remarks[0] == "T2 is synthetic by the header: a guess is made from guesses"
    (again,) = read_cohort(tmp_path / "twice" / "cohort.csv")
    assert again.synthesised == ("t2", "dwi", "t1", "t1ce")


def test_figures_of_training_studies_say_that_they_are(mae: MAE, cohort: Cohort, tmp_path: Path) -> None:
    seen = content_hash(cohort[0].images["flair"])
    folder = save_model(mae, tmp_path / "model", provenance=Provenance(content_hashes=(seen,)))
    options, out = ReconstructOptions(subset=("t1", "t2")), tmp_path / "out"
    for status in ("made", "kept"):
        first, second, _ = reconstruct_cohort(load_model(folder), cohort, out, options, page=study_page)
        assert (first.status, first.seen, second.seen) == (status, True, False)
        with (out / "metrics.csv").open() as stream:
            assert {row["seen_in_training"] for row in csv.DictReader(stream)} == {"yes"}
    told = "the model was trained on this study"
    assert any(remark.startswith(told) for remark in first.remarks)
    assert told in (out / "a" / "report.html").read_text()
    assert "the patient's right (sagittal: the front) is on the left" in (out / "a" / "report.html").read_text()
    assert told not in (out / "b" / "report.html").read_text()


def test_one_study_says_how_close_it_came(saved: Path, cohort: Cohort, tmp_path: Path, capsys: Capture) -> None:
    images = [word for name, path in cohort[0].images.items() for word in (f"--{name}", str(path))]
    words = ["--model", str(saved), "--out", str(tmp_path / "out"), "--subset", "t1", "--only", "t2"]
    assert main(["reconstruct", *images, *words]) == 0
    told = r"    T2  PSNR [\d.-]+ dB \(as written [\d.-]+\), SSIM [\d.-]+, compared with the real one"
    assert re.search(told, capsys.readouterr().out)


def test_the_command_says_how_close_it_came(saved: Path, cohort: Cohort, tmp_path: Path, capsys: Capture) -> None:
    assert command(saved, cohort, tmp_path / "out", "--subset", "t1", "t2", "--only", "flair") == 0
    printed = capsys.readouterr().out
    assert re.search(r" FLAIR  PSNR [\d.-]+ dB \(as written [\d.-]+\), SSIM [\d.-]+: mean over 1 studies", printed)
    assert "in the model's training" in printed
    assert command(saved, cohort, tmp_path / "out") == 0
    assert "all figures" not in capsys.readouterr().out
    assert not (tmp_path / "out" / "metrics.csv").exists()


def test_a_study_without_the_subset_is_skipped_and_no_failure(
    saved: Path, cohort: Cohort, tmp_path: Path, capsys: Capture
) -> None:
    assert command(saved, cohort, tmp_path / "out", "--subset", "t1", "t2") == 0
    told = capsys.readouterr()
    assert "3 studies: 2 made, 1 skipped, with nothing of the subset" in told.out
    assert f"skipped: {cohort[2].name}: it has none of T1, T2" in told.err


def test_studies_that_are_skipped_are_named_in_one_line(saved: Path, cohort: Cohort, tmp_path: Path, capsys) -> None:
    flairs = [replace(cohort[2], subject=f"f{number}", group="") for number in range(7)]
    many = read_cohort(Cohort((cohort[1], *flairs)).write(tmp_path / "many.csv"))
    assert command(saved, many, tmp_path / "out", "--subset", "t1") == 0
    told = capsys.readouterr().err
    assert told.count("skipped") == 1
    assert "skipped: f0, f1, f2, f3, f4 and 2 more: it has none of T1\n" in told


def test_a_note_from_before_a_figure_existed_leaves_it_open(
    saved: Path, cohort: Cohort, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "out"
    assert command(saved, cohort, out, "--subset", "t1", "t2") == 0
    note = json.loads((out / "a" / "reconstruction.json").read_text())
    for figures in note["agreement"].values():
        del figures["covered"]
    (out / "a" / "reconstruction.json").write_text(json.dumps(note))
    assert command(saved, cohort, out, "--subset", "t1", "t2") == 0
    assert "2 finished before" in capsys.readouterr().out
    with (out / "metrics.csv").open() as stream:
        assert [row["covered"] for row in csv.DictReader(stream)] == ["", ""]


def test_a_subset_that_no_study_has_is_an_error(saved: Path, cohort: Cohort, tmp_path: Path, capsys: Capture) -> None:
    flair = Cohort((cohort[2],)).write(tmp_path / "flair.csv")
    assert command(saved, read_cohort(flair), tmp_path / "out", "--subset", "t1", "t2") == 2
    assert "flair.csv has T1 or T2: name others in the subset" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_real_images_are_never_written_over(mae: MAE, cohort: Cohort, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    with pytest.raises(OutputError, match=r"cohort.csv is one of the files given"):
        reconstruct_cohort(mae, cohort, tmp_path)
    with pytest.raises(OutputError, match=r"a/t1ce.nii.gz is one of the files given, and would be written over"):
        reconstruct_cohort(mae, cohort, tmp_path / "data", ReconstructOptions(subset=("t1", "t2")))
    images = {"t1": tmp_path / "data" / "b" / "t1.nii.gz"}
    with pytest.raises(OutputError, match=r"b/t1.nii.gz is one of the files given"):
        reconstruct_to_folder(mae, images, tmp_path / "data" / "b", complete=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_a_file_that_no_run_has_made_is_not_replaced(mae: MAE, tmp_path: Path) -> None:
    study = write_study(tmp_path / "a", ("t1", "t2"))
    images = {"t1": study.images["t1"]}
    before = study.images["t2"].read_bytes()
    with pytest.raises(OutputError, match=r"a/t2.nii.gz exists, and no earlier run has made it"):
        reconstruct_to_folder(mae, images, tmp_path / "a")
    assert study.images["t2"].read_bytes() == before
    for _ in range(2):
        assert (reconstruct_to_folder(mae, images, tmp_path / "out")["t2"]).exists()


def test_an_image_changed_by_hand_is_not_removed_as_what_is_not_made_again(mae: MAE, tmp_path: Path) -> None:
    images = {"t1": write_study(tmp_path / "a", ("t1",)).images["t1"]}
    made = reconstruct_to_folder(mae, images, tmp_path / "out")
    theirs = made["t2"].read_bytes() + b"more"
    made["t2"].write_bytes(theirs)
    with pytest.raises(OutputError, match=r"out/t2.nii.gz was changed since an earlier run made it"):
        reconstruct_to_folder(mae, images, tmp_path / "out", options=ReconstructOptions(only=("flair",)))
    assert made["t2"].read_bytes() == theirs


def test_a_study_whose_place_is_taken_stops_no_other(mae: MAE, cohort: Cohort, tmp_path: Path) -> None:
    out = tmp_path / "out"
    save(out / "b" / "flair.nii.gz", picture())
    theirs = (out / "b" / "flair.nii.gz").read_bytes()
    assert statuses(mae, cohort, out) == ["complete", "failed", "made"]
    assert (out / "b" / "flair.nii.gz").read_bytes() == theirs
    (out / "b" / "flair.nii.gz").unlink()
    assert statuses(mae, cohort, out) == ["complete", "made", "kept"]


def test_reports_and_tables_of_somebody_else_are_not_replaced(mae: MAE, cohort: Cohort, tmp_path: Path) -> None:
    report, table = tmp_path / "out" / "c" / "report.html", tmp_path / "out" / "cohort.csv"
    report.parent.mkdir(parents=True)
    report.write_text("theirs")
    outcomes = reconstruct_cohort(mae, cohort, tmp_path / "out", page=study_page)
    assert [outcome.status for outcome in outcomes] == ["complete", "made", "failed"]
    assert report.read_text() == "theirs"
    table.write_text("subject,t1\n")
    with pytest.raises(OutputError, match=r"cohort.csv is not of an earlier run and would be replaced"):
        reconstruct_cohort(mae, cohort, tmp_path / "out")


@pytest.mark.parametrize("moves", range(6))
def test_a_run_killed_while_it_writes_is_made_good(
    mae: MAE, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    """Before, between and after the moves into place: a first time, and over what an earlier run has left."""
    out, real = tmp_path / "out", Path.replace

    def killed(path: Path, target: Path) -> Path:
        nonlocal left
        left -= ".partial-" in path.parent.name
        if left < 0:
            raise KeyboardInterrupt
        return real(path, target)

    for options in ({}, {"only": ("t1ce",)}):
        left = moves
        monkeypatch.setattr(Path, "replace", killed)
        with contextlib.suppress(KeyboardInterrupt):
            statuses(mae, cohort, out, **options)
        monkeypatch.undo()
        assert "failed" not in statuses(mae, cohort, out, **options)
        assert statuses(mae, cohort, out, **options) == ["complete", "kept", "kept"]
    assert {path.name for path in (out / "b").iterdir()} == {"t1ce.nii.gz", "reconstruction.json"}


def test_nothing_of_an_incomplete_earlier_run_is_left(mae: MAE, cohort: Cohort, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert statuses(mae, cohort, out) == ["complete", "made", "made"]
    (out / "b" / "t1ce.nii.gz").unlink()
    assert statuses(mae, cohort, out, only=("t1ce",)) == ["complete", "made", "made"]
    assert {path.name for path in (out / "b").iterdir()} == {"t1ce.nii.gz", "reconstruction.json"}


def test_broken_studies_are_counted_and_stop_no_other(
    saved: Path, cohort: Cohort, tmp_path: Path, capsys: Capture
) -> None:
    broken = Path(str(cohort[1].images["t2"]))
    broken.write_bytes(broken.read_bytes()[:-300])
    lost = write_study(tmp_path / "data" / "d", ("t1",), seed=8)
    with_nan = nib.load(lost.images["t1"]).get_fdata()
    with_nan[2, 2, 2] = np.nan
    save(Path(str(lost.images["t1"])), with_nan.astype(np.float32))
    folder = write_study(tmp_path / "data" / "e", ("t1",), seed=9)
    Path(str(folder.images["t1"])).unlink()
    Path(str(folder.images["t1"])).mkdir()
    Cohort((*cohort, lost, folder)).write(tmp_path / "cohort.csv")
    assert command(saved, cohort, tmp_path / "out") == 1
    printed = capsys.readouterr()
    assert re.search(r"failed: b: .*t2\.nii\.gz is truncated", printed.err)
    assert re.search(r"failed: d: 1 voxels of .*t1\.nii\.gz are not finite", printed.err)
    assert re.search(r"failed: e: .*t1\.nii\.gz is a folder", printed.err)
    assert "5 studies: 1 made, 1 have nothing absent, 3 FAILED" in printed.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["c", "cohort.csv"]


def test_commands_that_make_no_sense_are_refused(saved: Path, cohort: Cohort, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    empty = tmp_path / "empty.csv"
    empty.write_text("subject,t1\n")
    for words, message in (
        (["--cohort", str(empty)], "has no rows"),
        (["--cohort", str(tmp_path)], str(tmp_path)),
        (["--cohort", str(cohort.path), "--t1", "a.nii.gz"], "leave out images and --brain-mask"),
        (["--cohort", str(cohort.path), "--only", "fliar"], "Did you mean 'flair'?"),
        (["--cohort", str(cohort.path), "--uncertainty"], "without an uncertainty output"),
    ):
        assert main(["reconstruct", "--model", str(saved), "--out", str(out), *words]) == 2
        assert message in capsys.readouterr().err
        assert not out.exists()


def test_a_full_disk_ends_the_run_and_keeps_what_is_finished(
    mae: MAE, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bmmae.inference.writing as writing

    real = writing.save_image

    def full(image: nib.Nifti1Image, path: Path) -> Path:
        if "c" in path.parts[-3:]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(image, path)

    monkeypatch.setattr(writing, "save_image", full)
    with pytest.raises(OutputError, match="No space left on device; what is finished is kept: make room and run"):
        statuses(mae, cohort, tmp_path / "out")
    assert (tmp_path / "out" / "b" / "reconstruction.json").exists()
    assert not any((tmp_path / "out" / "c").iterdir())
    monkeypatch.undo()
    assert statuses(mae, cohort, tmp_path / "out") == ["complete", "kept", "made"]


def test_a_model_of_one_modality_has_nothing_to_reconstruct(tmp_path: Path, cohort: Cohort) -> None:
    config = tiny_mae(SIZE).config
    only_flair = MAE(type(config)(**{**vars(config), "modalities": ("flair",)})).eval()
    assert statuses(only_flair, cohort, tmp_path / "out") == ["complete", "failed", "complete"]


def test_the_report_shows_given_made_real_and_difference_and_needs_no_other_file(
    mae: MAE, cohort: Cohort, tmp_path: Path
) -> None:
    images = {name: str(path) for name, path in cohort[0].images.items()}
    out = tmp_path / "<b>odd"
    options = ReconstructOptions(subset=("t1", "t2"))
    reconstruct_to_folder(mae, images, out, options=options, page=study_page)
    html = (out / "report.html").read_text()
    assert html.count("<img ") == 2 + 2 * 3
    assert not re.findall(r'(?:src|href)="(?!data:|#)', html)
    for words in ("T1ce, FLAIR: synthetic, not acquired", "not a medical device", "real, hidden", "difference", "SSIM"):
        assert words in html
    assert "<b>odd" not in html
    assert "&lt;b&gt;odd" in html
    psnr = json.loads((out / "reconstruction.json").read_text())["agreement"]["flair"]["psnr_fitted"]
    assert f"<td>{psnr:.2f}</td>" in html
    assert "after the affine map, in the real image's units" in html
    assert "standard deviation is in" not in html
    assert "max-width: 100%" in html  # five columns of pictures fit a narrow window
    HTMLParser().feed(html)


def test_the_report_of_a_study_without_truth_claims_nothing(mae: MAE, cohort: Cohort, tmp_path: Path) -> None:
    images = {name: str(path) for name, path in cohort[1].images.items()}
    reconstruct_to_folder(mae, images, tmp_path / "out", page=study_page)
    html = (tmp_path / "out" / "report.html").read_text()
    assert html.count("<img ") == 4
    assert "nothing can be said of how close they are" in html
    assert "real, hidden" not in html
    assert "synthetic data" not in html


@pytest.mark.parametrize(
    ("provenance", "told"),
    [
        (Provenance(synthetic=True), "The model was trained on synthetic data: its output means nothing"),
        (Provenance(parent_synthetic=True), "The model was pretrained on synthetic data: measure it"),
    ],
)
def test_the_report_says_that_weights_were_trained_on_synthetic_images(
    cohort: Cohort, tmp_path: Path, provenance: Provenance, told: str
) -> None:
    describe(toy := tiny_mae(), PreprocessConfig(), provenance)
    images = {name: str(path) for name, path in cohort[1].images.items()}
    reconstruct_to_folder(toy, images, tmp_path / "out", page=study_page)
    html = (tmp_path / "out" / "report.html").read_text()
    assert html.index(told) < html.index("<img ")
