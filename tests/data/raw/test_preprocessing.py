"""Raw scans on grids of their own come out on one, can go back, and one broken study stops no other."""

import json
import os
import stat
import sys
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from synthetic_brain import errors, rigid, synthetic_brain

from bmmae.cli import main
from bmmae.data.check import check_study
from bmmae.data.cohort import Cohort, Study, read_cohort
from bmmae.data.loaders import end_with_parent
from bmmae.data.origin import GENERATOR_FILE, generator_of
from bmmae.data.raw import cohort_pipeline, study_pipeline
from bmmae.data.raw.cohort_pipeline import preprocess_cohort
from bmmae.data.raw.native import read_registration, to_native, write_native
from bmmae.data.raw.resampling import Grid, Volume, coverage, resample
from bmmae.data.raw.study_pipeline import PipelineConfig, prepare_study, reference_of
from bmmae.data.reading import read_image, read_labels
from bmmae.data.writing import write_image
from bmmae.errors import CohortError, ConfigError, ImageError, ModalityError, OutputError
from bmmae.modalities import STANDARD

pytest.importorskip("SimpleITK")
T1, T1CE, T2, FLAIR = STANDARD
MOVED = rigid((6, 3, -4), (5, -4, 3))
COARSE = PipelineConfig(spacing=4.0)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def raw_study(folder: Path, names: tuple[str, ...] = (T1CE, T2), subject: str = "a") -> Study:
    """A study whose scans were taken with the head elsewhere; brain mask and segmentation are drawn on T1ce."""
    made = synthetic_brain()
    affine = made["affine"]
    # Thicker slices than the source's, and its axes in another order.
    grid = Grid((48, 48, 44), affine @ np.diag([1, 1, 48 / 44, 1.0]))
    images = {}
    for name in names:
        source = Volume(made[name].astype(np.float32), affine)
        if name != T1CE:
            source = Volume(resample(source, np.linalg.inv(MOVED), grid), grid.affine)
        images[name] = write_image(folder / f"{name}.nii.gz", source.array, source.affine)
    seg = write_image(folder / "seg.nii.gz", made["seg"].astype(np.uint8), affine)
    mask = write_image(folder / "brain.nii.gz", (made[T1CE] > 0).astype(np.uint8), affine)
    return Study(subject=subject, images=images, seg=seg, brain_mask=mask, values={"age": 61.0})


# Registering takes a few seconds, once for all tests of the module.
@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Study, Path]:
    """A raw study, the same prepared, and where."""
    folder = tmp_path_factory.mktemp("raw")
    study = raw_study(folder / "in")
    report = preprocess_cohort(Cohort((study,)), folder / "out", COARSE, progress=False)
    assert not report.failures
    return study, read_cohort(report.table)[0], folder / "out"


def test_scans_come_out_on_one_grid_that_the_check_accepts(prepared: tuple[Study, Study, Path]) -> None:
    _, study, _ = prepared
    assert set(study.images) == {T1CE, T2}
    assert study.values["age"] == 61
    assert not [finding for finding in check_study(study) if finding.severity == "error"]


def test_displaced_scans_come_back_to_the_reference(prepared: tuple[Study, Study, Path]) -> None:
    _, _, out = prepared
    natives = read_registration(out / "a").natives
    assert np.array_equal(natives[T1CE].matrix, np.eye(4))
    millimetres, degrees = errors(natives[T2].matrix, MOVED)
    assert millimetres < 1
    assert degrees < 1
    assert natives[T2].after > natives[T2].before


def test_the_brain_alone_is_left_and_its_zeros_still_count_as_scanned(prepared: tuple[Study, Study, Path]) -> None:
    _, study, _ = prepared
    brain, _ = read_labels(study.brain_mask)
    assert np.array_equal(read_image(study.images[T1CE]).array != 0, brain > 0)
    assert (read_image(study.images[T2]).array[brain == 0] == 0).all()


def test_the_segmentation_goes_along_and_returns_to_each_scan(
    prepared: tuple[Study, Study, Path], tmp_path: Path
) -> None:
    raw, study, out = prepared
    labels, _ = read_labels(study.seg)
    truth, affine = read_labels(raw.seg)
    assert set(np.unique(labels)) == set(np.unique(truth))
    back = to_native(labels, out / "a", T1CE, "label")
    assert np.allclose(back.affine, affine)
    assert dice(back.array > 0, truth > 0) > 0.97
    path = write_native(tmp_path / "t2_seg.nii.gz", labels, out / "a", T2, "label")
    there, there_affine = read_labels(path)
    scan = read_image(raw.images[T2])
    expected = resample(Volume(truth, affine), np.linalg.inv(MOVED), Grid(there.shape, scan.affine), "label")
    assert np.allclose(there_affine, scan.affine)
    assert dice(there > 0, expected > 0) > 0.85


@pytest.mark.parametrize("degrees", [0, 10, 25])
def test_no_lesion_is_too_small_to_go_along(degrees: float) -> None:
    thick = np.diag([1.3, 1.3, 3.3, 1.0])
    labels = np.zeros((30, 30, 14), np.int16)
    places = [(x, y, z) for x in (6, 12, 18, 24) for y in (6, 12, 18, 24) for z in (3, 6, 9)]
    for number, place in enumerate(places, 1):
        labels[place] = number
    turn = nib.affines.from_matvec(nib.eulerangles.euler2mat(np.deg2rad(degrees), 0, np.deg2rad(degrees / 2)))
    fine = Grid((70, 70, 70), nib.affines.from_matvec(np.eye(3), (-10, -10, -10)))
    moved = resample(Volume(labels, thick), turn, fine, "label")
    assert set(np.unique(moved)) == set(range(len(places) + 1))
    assert moved.dtype == labels.dtype


def test_scans_whose_header_leaves_right_and_left_open_are_told(tmp_path: Path) -> None:
    study = raw_study(tmp_path)
    assert study_pipeline._open_axes(study) == ()
    image = nib.load(study.images[T2])
    image.set_qform(None, 0)
    image.set_sform(None, 0)
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32), None, image.header), study.images[T2])
    (told,) = study_pipeline._open_axes(study)
    assert told.startswith("right and left of its T2 may be swapped: which way the axes point, its header does not say")


def test_returning_asks_for_the_right_grid_and_modality(prepared: tuple[Study, Study, Path], tmp_path: Path) -> None:
    _, _, out = prepared
    with pytest.raises(ImageError, match="on the study's grid, got"):
        to_native(np.zeros((3, 3, 3)), out / "a", T2)
    with pytest.raises(ModalityError, match="the study has no t1: expected one of t1ce, t2"):
        to_native(np.zeros((3, 3, 3)), out / "a", T1)
    with pytest.raises(ImageError, match="expected the file that `bmmae preprocess` leaves"):
        read_registration(tmp_path)


def test_a_finished_study_is_kept_until_its_sources_or_settings_change(
    prepared: tuple[Study, Study, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, study, out = prepared
    before = study.images[T2].stat().st_mtime_ns
    again = preprocess_cohort(Cohort((raw,)), out, COARSE, progress=False)
    assert study.images[T2].stat().st_mtime_ns == before
    assert read_cohort(again.table)[0] == study
    state = study_pipeline.state_of(raw, COARSE, None)
    assert state != study_pipeline.state_of(raw, replace(COARSE, spacing=3.0), None)
    swapped = {T1CE: raw.images[T2], T2: raw.images[T1CE]}  # a table whose columns were corrected
    assert state != study_pipeline.state_of(replace(raw, images=swapped), COARSE, None)
    os.utime(raw.images[T2])
    assert state != study_pipeline.state_of(raw, COARSE, None)


def test_columns_added_to_the_prepared_table_are_kept(tmp_path: Path) -> None:
    study = Study(subject="a", images={T1: tmp_path / "t1.nii.gz"}, values={"age": 61.0})
    (tmp_path / "cohort.csv").write_text("subject,t1,brain_mask,age,idh\na,a/t1.nii.gz,a/brain_mask.nii.gz,61,1\n")
    with pytest.raises(OutputError, match="lacks its columns idh: choose another --out"):
        preprocess_cohort(Cohort((study,)), tmp_path, COARSE, progress=False)


def test_a_broken_study_is_reported_and_stops_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = raw_study(tmp_path / "good", (T1CE,), "good")
    broken = raw_study(tmp_path / "broken", (T1CE,), "broken")
    content = broken.images[T1CE].read_bytes()
    broken.images[T1CE].write_bytes(content[: len(content) // 2])
    table = Cohort((broken, good)).write(tmp_path / "cohort.csv")
    call = ["preprocess", str(table), "--out", str(tmp_path / "out"), "--no-atlas", "--spacing", "4"]
    assert main(call) == 1
    captured = capsys.readouterr()
    assert "failed: broken: " in captured.err
    assert "is truncated or corrupt" in captured.err
    assert "1 of 2 studies are in" in captured.out
    assert [study.subject for study in read_cohort(tmp_path / "out" / "cohort.csv")] == ["good"]
    with pytest.raises(CohortError, match="no study could be prepared: broken"):
        preprocess_cohort(Cohort((broken,)), tmp_path / "none", COARSE, progress=False)


@pytest.mark.slow
def test_a_study_is_aligned_to_an_atlas_that_the_user_names(tmp_path: Path) -> None:
    made = synthetic_brain()
    away = rigid((7, -4, 3), (6, 5, -4))
    atlas = resample(
        Volume(made[T1].astype(np.float32), made["affine"]), np.linalg.inv(away), Grid((48,) * 3, made["affine"])
    )
    path = write_image(tmp_path / "atlas.nii.gz", atlas, made["affine"])
    study = raw_study(tmp_path / "in", (T1CE,))
    out = tmp_path / "out"
    preprocess_cohort(Cohort((study,)), out, replace(COARSE, atlas=str(path), keep_n4=True), progress=False)
    registration = read_registration(out / "a")
    millimetres, degrees = errors(registration.natives[T1CE].matrix, np.linalg.inv(away))
    assert registration.atlas == "atlas.nii.gz"
    assert millimetres < 1
    assert degrees < 1
    image = read_image(out / "a" / f"{T1CE}.nii.gz")
    assert np.allclose(image.affine, made["affine"])
    # The atlas was interpolated twice, which widens its rim of non-zero voxels.
    assert dice(image.array != 0, atlas != 0) > 0.9


def test_synthetic_scans_stay_known_as_synthetic(tmp_path: Path) -> None:
    study = raw_study(tmp_path / "in", (T1CE,))
    (tmp_path / "in" / GENERATOR_FILE).write_text(json.dumps({"generator_version": "7"}))
    report = preprocess_cohort(Cohort((study,)), tmp_path / "out", COARSE, progress=False)
    made = read_cohort(report.table)
    assert generator_of(made, made.studies) == "7"


def test_without_a_mask_a_program_on_the_path_strips_the_skull(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = replace(raw_study(tmp_path / "in", (T1CE,)), brain_mask=None)
    scan = read_image(study.images[T1CE])
    head = scan.array + 50
    write_image(study.images[T1CE], head, scan.affine)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    left = preprocess_cohort(Cohort((study,)), tmp_path / "head", COARSE, progress=False)
    assert "its skull stays: no brain mask is given and no program is installed" in left.remarks[0][1]
    again = preprocess_cohort(Cohort((study,)), tmp_path / "head", COARSE, progress=False)
    assert again.remarks == left.remarks
    program = tmp_path / "bin" / "mri_synthstrip"
    program.parent.mkdir()
    program.write_text(f"""#!{sys.executable}
import sys, numpy as np, nibabel as nib
scan = nib.load(sys.argv[2])
nib.save(nib.Nifti1Image(np.where(scan.get_fdata() > 50, scan.get_fdata(), 0), scan.affine), sys.argv[4])
""")
    program.chmod(stat.S_IRWXU)
    report = preprocess_cohort(Cohort((study,)), tmp_path / "brain", COARSE, progress=False)
    brain, _ = read_labels(tmp_path / "brain" / "a" / "brain_mask.nii.gz")
    assert not report.remarks
    assert dice(brain > 0, scan.array > 0) > 0.99
    program.write_text("#!/bin/sh\necho no licence >&2\nexit 3\n")
    with pytest.raises(CohortError, match=r"mri_synthstrip found no brain \(no licence\)"):
        preprocess_cohort(Cohort((study,)), tmp_path / "failed", COARSE, progress=False)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    cohort = Cohort(tuple(raw_study(tmp_path / name, (T1CE,), name) for name in ("a", "b")))
    made = [preprocess_cohort(cohort, tmp_path / str(n), COARSE, workers=n, progress=False) for n in (1, 2)]
    for study in read_cohort(made[0].table):
        twin = made[1].table.parent / study.subject / f"{T1CE}.nii.gz"
        assert study.images[T1CE].read_bytes() == twin.read_bytes()


def test_raw_scans_are_never_overwritten(tmp_path: Path) -> None:
    study = raw_study(tmp_path / "a", (T1CE,))
    with pytest.raises(OutputError, match="holds the raw scans themselves"):
        study_pipeline.prepare_study(study, tmp_path / "a", COARSE, None)
    assert study.images[T1CE].is_file()


@pytest.mark.parametrize("name", ["seg.nii.gz", "brain_mask.nii.gz"])
def test_what_no_run_has_made_stays_and_is_not_taken_for_a_result(tmp_path: Path, name: str) -> None:
    whole = raw_study(tmp_path / "in", (T1CE,))
    bare, out = replace(whole, seg=None, brain_mask=None), tmp_path / "out"
    preprocess_cohort(Cohort((bare,)), out, COARSE, progress=False)
    drawn = out / "a" / name
    drawn.write_bytes(b"drawn by hand")
    for _ in range(2):
        os.utime(bare.images[T1CE])
        report = preprocess_cohort(Cohort((bare,)), out, COARSE, progress=False)
        again = preprocess_cohort(Cohort((bare,)), out, COARSE, progress=False)
        assert not report.failures + again.failures
        assert read_cohort(again.table)[0].brain_mask is None
        assert drawn.read_bytes() == b"drawn by hand"
    with pytest.raises(CohortError, match=f"{name} exists, and no earlier run has made it: move it away, or choose"):
        preprocess_cohort(Cohort((whole,)), out, COARSE, progress=False)
    assert drawn.read_bytes() == b"drawn by hand"
    assert (out / "a" / f"{T1CE}.nii.gz").is_file()


def test_what_earlier_runs_have_made_is_replaced(tmp_path: Path) -> None:
    study, out = raw_study(tmp_path / "in", (T1CE,)), tmp_path / "out"
    preprocess_cohort(Cohort((study,)), out, COARSE, progress=False)
    note = out / "a" / "registration.json"
    content = json.loads(note.read_text())
    assert content.pop("files") == ["t1ce.nii.gz", "brain_mask.nii.gz", "seg.nii.gz"]
    note.write_text(json.dumps(content))  # as earlier versions wrote it
    finer = replace(COARSE, spacing=3.0)
    preprocess_cohort(Cohort((study,)), out, finer, progress=False)
    grids = {read_image(out / "a" / f"{name}.nii.gz").shape for name in (T1CE, "seg", "brain_mask")}
    assert len(grids) == 1
    study_pipeline.prepare_study(replace(study, seg=None, brain_mask=None), out / "a", finer, None)
    assert sorted(path.name for path in (out / "a").iterdir()) == ["registration.json", "t1ce.nii.gz"]


def test_a_killed_run_is_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, out = raw_study(tmp_path / "in", (T1CE,)), tmp_path / "out"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(study_pipeline, "_write_segmentation", killed)
        with pytest.raises(KeyboardInterrupt):
            preprocess_cohort(Cohort((study,)), out, COARSE, progress=False)
    assert (out / "a" / f"{T1CE}.nii.gz").is_file()
    report = preprocess_cohort(Cohort((study,)), out, COARSE, progress=False)
    assert not report.failures
    assert all(path.is_file() for path in read_cohort(report.table)[0].files())


@pytest.mark.parametrize(("module", "config"), [("SimpleITK", COARSE), ("nilearn", PipelineConfig(atlas="mni152"))])
def test_a_missing_library_is_named_with_the_way_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, config: PipelineConfig
) -> None:
    study = Study(subject="a", images={T1: tmp_path / "a.nii.gz"})
    for name in (module, f"{module}.datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=f"needs {module}, which is not installed: run `pip install {module}`"):
        preprocess_cohort(Cohort((study,)), tmp_path / "out", config, progress=False)


def test_the_reference_is_t1ce_or_the_best_present() -> None:
    here = Path("x.nii.gz")
    found = [
        reference_of(Study(subject="a", images=dict.fromkeys(names, here)))
        for names in (STANDARD, (T2, FLAIR), ("ct",))
    ]
    assert found == [T1CE, FLAIR, "ct"]


def test_studies_of_an_earlier_cohort_stay_in_the_prepared_table(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text("subject,session,t1\nfirst,1,a/t1.nii.gz\nsecond,,b/t1.nii.gz\n")
    second = Study(subject="second", images={T1: tmp_path / "t1.nii.gz"})
    with pytest.raises(OutputError, match="lacks its rows first 1: choose another --out"):
        preprocess_cohort(Cohort((second,)), tmp_path, COARSE, progress=False)


def test_a_scan_too_thin_to_register_is_told_by_its_size(tmp_path: Path) -> None:
    path = write_image(tmp_path / "t1.nii.gz", np.random.default_rng(0).random((20, 20, 3), np.float32), np.eye(4))
    with pytest.raises(ImageError, match=r"20 x 20 x 3 voxels: expected at least 4 along each axis, as registration"):
        prepare_study(Study("a", {T1: path}), tmp_path / "out", COARSE, None)


def test_a_segmentation_that_lies_beside_the_scans_does_not_come_out_empty(tmp_path: Path) -> None:
    study = raw_study(tmp_path, (T1CE,))
    beside = read_image(study.seg).affine.copy()
    beside[:3, 3] += 1000
    seg = write_image(tmp_path / "beside.nii.gz", read_image(study.seg).array.astype(np.uint8), beside)
    with pytest.raises(ImageError, match=r"segmentation .*beside\.nii\.gz lies beside the scans"):
        prepare_study(replace(study, seg=seg), tmp_path / "out", COARSE, None)


def test_a_drawing_with_other_axes_belongs_to_the_scan_with_its_voxels() -> None:
    grids = {T1CE: Grid((9, 8, 7), np.eye(4)), T2: Grid((9, 8, 7), rigid((5, 4, 3), (1, 2, 3)))}
    for name, grid in grids.items():
        turned = grid.reoriented()
        drawing = Volume(np.zeros(turned.shape, np.uint8), turned.affine)
        assert turned.affine[0, 0] < 0
        assert study_pipeline._owner(drawing, grids, T1CE) == name


def test_sheared_scans_come_out_at_right_angles_where_they_were(tmp_path: Path) -> None:
    affine = np.array([[3.0, -0.4, 1.5, -60], [-0.3, 4, 0, -72], [0, 0, 5, -75], [0, 0, 0, 1]])
    slanted, place = Grid((40, 36, 30), affine), np.array([12.0, -20.0, 24.0])
    assert coverage(slanted.at_right_angles(), np.eye(4), slanted).all()
    there = np.moveaxis(np.indices(slanted.shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    head = np.linalg.norm(there / (50, 60, 55), axis=-1) < 1
    array = np.where(head, 100 + there[..., 0], 0) + 900.0 * (np.linalg.norm(there - place, axis=-1) < 14)
    scan = write_image(tmp_path / "t1.nii.gz", array, affine)
    report = preprocess_cohort(
        Cohort((Study("a", {T1: scan}),)), tmp_path / "out", replace(COARSE, spacing=3.0), progress=False
    )
    (study,) = read_cohort(report.table)
    assert not [finding for finding in check_study(study) if finding.severity == "error"]
    image = read_image(study.images[T1])
    bright = np.argwhere(image.array > 600)
    assert np.linalg.norm(image.affine[:3, :3] @ bright.mean(axis=0) + image.affine[:3, 3] - place) < 1
    assert len(bright) * 27 == pytest.approx(4 / 3 * np.pi * 14**3, rel=0.1)


def test_adc_and_ct_keep_their_values(tmp_path: Path) -> None:
    made = synthetic_brain()
    measured = np.where(made[T1] > 0, 800.0, 0).astype(np.float32)
    shade = np.linspace(0.5, 1.5, 48)[:, None, None] * np.where(made[T1] > 0, made[T1] + 100, 0)
    affine, images = made["affine"], {}
    for name, array in ((T1, shade), ("adc", measured * np.linspace(0.9, 1.1, 48)[:, None, None])):
        images[name] = write_image(tmp_path / f"{name}.nii.gz", array.astype(np.float32), affine)
    raw, _ = study_pipeline._read(Study("a", images))
    assert np.array_equal(raw.copies["adc"].array, raw.images["adc"].array)
    assert not np.allclose(raw.copies[T1].array, raw.images[T1].array)


def test_a_grid_too_large_for_the_memory_is_one_failed_study(tmp_path: Path) -> None:
    study = replace(raw_study(tmp_path / "a", (T1CE,)), brain_mask=None)
    with pytest.raises(CohortError, match=r"interpolation onto a grid of \d+ x .* voxels failed \(Failed to allocate"):
        preprocess_cohort(Cohort((study,)), tmp_path / "out", PipelineConfig(spacing=0.01), progress=False)


def test_a_study_without_memory_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def starved(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(cohort_pipeline, "prepare_study", starved)
    with pytest.raises(CohortError, match="a: there was not enough memory"):
        preprocess_cohort(Cohort((raw_study(tmp_path / "a", (T1CE,)),)), tmp_path / "out", COARSE, progress=False)


class KilledPool:
    """A pool one of whose processes is killed."""

    def __init__(self, *_: object, initializer: object, **__: object) -> None:
        assert initializer is end_with_parent  # else the others would wait for ever if this process were killed

    def __enter__(self) -> "KilledPool":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def map(self, *_: object) -> Iterator[object]:
        raise BrokenProcessPool
        yield


def test_a_killed_process_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort_pipeline, "ProcessPoolExecutor", KilledPool)
    cohort = Cohort((raw_study(tmp_path / "a", (T1CE,)),))
    with pytest.raises(OutputError, match="what is finished is kept: run the same command again with fewer --workers"):
        preprocess_cohort(cohort, tmp_path / "out", COARSE, workers=2, progress=False)
