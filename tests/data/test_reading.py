"""Whatever is wrong with a file ends in one sentence; whatever is right comes back unchanged."""

import errno
import gzip
import os
import re
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bmmae.data.reading import array_hash, content_hash, read_header, read_image, read_labels
from bmmae.data.writing import write_image
from bmmae.errors import ImageError, LabelError, OutputError

AFFINE = np.array([[-1.2, 0, 0, 30], [0, 1, 0.1, -20], [0, 0, 5.5, 7], [0, 0, 0, 1]], dtype=float)
RAMP = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)


def save(path: Path, array: np.ndarray = RAMP, affine: np.ndarray = AFFINE, kind: type = nib.Nifti1Image) -> Path:
    nib.save(kind(array, affine), path)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.img", "a.mgz"])
def test_every_format_gives_the_same_voxels(tmp_path: Path, name: str) -> None:
    kind = nib.MGHImage if name.endswith("mgz") else nib.Nifti1Pair if name.endswith("img") else nib.Nifti1Image
    image = read_image(save(tmp_path / name, kind=kind))
    np.testing.assert_array_equal(image.array, RAMP)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
    assert image.array.dtype == np.float32
    assert image.affine.dtype == np.float64
    assert image.spacing == pytest.approx((1.2, 1.0, 5.5), abs=0.01)


def test_nifti2_and_big_endian_are_read(tmp_path: Path) -> None:
    two = save(tmp_path / "two.nii.gz", kind=nib.Nifti2Image)
    big = tmp_path / "big.nii"
    nib.save(nib.Nifti1Image(RAMP, AFFINE, nib.Nifti1Header(endianness=">")), big)
    for path in (two, big):
        np.testing.assert_array_equal(read_image(path).array, RAMP)
        assert read_header(path).shape == RAMP.shape


def test_content_not_the_name_tells_whether_a_file_is_compressed(tmp_path: Path) -> None:
    plain = save(tmp_path / "a.nii")
    disguised = tmp_path / "b.nii.gz"
    disguised.write_bytes(plain.read_bytes())
    zipped = tmp_path / "c.nii"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    for path in (disguised, zipped):
        np.testing.assert_array_equal(read_image(path).array, RAMP)
        assert read_header(path).shape == RAMP.shape


def test_the_scale_factor_is_applied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(RAMP, AFFINE)
    image.header.set_slope_inter(2.0, -3.0)
    image.to_filename(tmp_path / "a.nii.gz")
    image = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(read_image(tmp_path / "a.nii.gz").array, image.get_fdata())


def test_huge_values_are_kept(tmp_path: Path) -> None:
    assert read_image(save(tmp_path / "a.nii", RAMP * np.float32(1e30))).array.max() == np.float32(119e30)


def test_trailing_axes_of_length_one_are_dropped(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", RAMP[..., None])
    assert read_image(path).shape == read_header(path).shape == RAMP.shape


def test_a_header_is_read_without_its_voxels(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", np.random.default_rng(0).integers(0, 999, (40, 40, 40)).astype(np.int16))
    path.write_bytes(path.read_bytes()[:2000])
    header = read_header(path)
    assert (header.shape, header.dtype) == ((40, 40, 40), np.int16)
    np.testing.assert_allclose(header.affine, AFFINE, atol=1e-5)
    assert header.spacing == pytest.approx((1.2, 1, 5.5), abs=0.01)


def truncated(path: Path) -> None:
    save(path, np.random.default_rng(0).integers(0, 999, (20, 20, 20)).astype(np.int16))
    path.write_bytes(path.read_bytes()[:-3000])


def corrupt(path: Path) -> None:
    save(path)
    content = bytearray(path.read_bytes())
    content[-6] ^= 0xFF
    path.write_bytes(bytes(content))


def with_value(value: float):
    def write(path: Path) -> None:
        array = RAMP.astype(np.float64)
        array[0, 0, :2] = value
        save(path, array)

    return write


BROKEN = {
    "missing": (lambda path: None, "does not exist"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "no image": (lambda path: path.write_text("<html>404</html>"), "cannot be read as an image"),
    "empty file": (lambda path: path.touch(), "cannot be read as an image"),
    "truncated": (truncated, "is truncated"),
    "wrong checksum": (corrupt, "truncated or corrupt.*CRC"),
    "four axes": (lambda path: save(path, np.stack([RAMP] * 3, -1)), r"expected 3 axes, got shape \(4, 5, 6, 3\)"),
    "two axes": (lambda path: save(path, RAMP[0]), r"expected 3 axes, got shape \(5, 6\)"),
    "all zeros": (lambda path: save(path, np.zeros_like(RAMP)), "holds only zeros"),
    "one value": (lambda path: save(path, np.full_like(RAMP, 7)), "holds the value 7 alone"),
    "NaN": (with_value(np.nan), "2 voxels of .* are not finite"),
    "infinite": (with_value(np.inf), "2 voxels of .* are not finite"),
    "beyond float32": (with_value(1e300), "2 voxels of .* are not finite"),
    "complex": (lambda path: save(path, RAMP.astype(np.complex64)), "expected real numbers"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_each_broken_file_is_explained(tmp_path: Path, case: str) -> None:
    make, sentence = BROKEN[case]
    path = tmp_path / "scan.nii.gz"
    make(path)
    with pytest.raises(ImageError, match=sentence) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_analyze_files_leave_right_and_left_open_unless_spm_says(tmp_path: Path) -> None:
    nib.save(nib.AnalyzeImage(RAMP, np.diag([-1.0, 1, 1, 1])), tmp_path / "plain.img")
    plain = read_image(tmp_path / "plain.img")
    assert plain.open_axes == (
        "which way the axes of plain.img point is open: its format, Analyze, does not say; LAS is assumed"
    )
    affine = np.diag([2.0, -3, 4, 1])
    nib.save(nib.Spm99AnalyzeImage(RAMP, affine), tmp_path / "spm.img")
    stated = read_image(tmp_path / "spm.img")
    assert not stated.open_axes
    for read in (stated, read_header(tmp_path / "spm.img")):
        np.testing.assert_allclose(read.affine, affine)


def test_a_file_that_may_not_be_opened_is_not_taken_for_a_broken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a.nii")

    def locked(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    # Root may open all, so the system's refusal is played: of the file, and of its folder.
    for call in ("read_bytes", "stat"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, call, locked)
            with pytest.raises(ImageError, match=r"a\.nii cannot be opened \(Permission denied\): check its per"):
                read_image(path)


def test_a_truncated_plain_file_is_explained(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ImageError, match="is truncated: expected 240 bytes, got 200 bytes"):
        read_image(path)


def test_a_singular_affine_is_explained(tmp_path: Path) -> None:
    header = nib.Nifti1Image(RAMP, AFFINE).header
    header["sform_code"] = 1
    header["srow_x"] = header["srow_y"]
    (tmp_path / "a.nii").write_bytes(header.binaryblock + b"\0" * 4 + RAMP.tobytes(order="F"))
    for reader in (read_image, read_header, read_labels):
        with pytest.raises(ImageError, match="singular affine"):
            reader(tmp_path / "a.nii")


def with_unit(path: Path, size: float, unit: str, codes: tuple[int, int] = (0, 2)) -> Path:
    """Voxels of one size, in a unit of the header's, off the origin by ten of them."""
    affine = np.diag([size, size, size, 1.0])
    affine[:3, 3] = 10 * size
    image = nib.Nifti1Image(RAMP, affine)
    image.set_qform(affine, code=codes[0])
    image.set_sform(affine, code=codes[1])
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    return path


@pytest.mark.parametrize(("size", "unit"), [(2000, "micron"), (0.002, "meter"), (2, "mm"), (2, "micron"), (2, "meter")])
def test_units_are_converted_where_that_gives_possible_voxels(tmp_path: Path, size: float, unit: str) -> None:
    path = with_unit(tmp_path / "a.nii.gz", size, unit)
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = 20
    for found in (read_image(path).affine, read_header(path).affine, read_labels(path)[1]):
        np.testing.assert_allclose(found, affine, rtol=1e-5)


@pytest.mark.parametrize(("size", "unit"), [(2000, "mm"), (0.04, "mm"), (21, "mm"), (40, "micron"), (0.03, "meter")])
def test_voxels_of_an_impossible_size_are_explained(tmp_path: Path, size: float, unit: str) -> None:
    path = with_unit(tmp_path / "a.nii.gz", size, unit)
    told = re.escape(f"a.nii.gz has voxels of {size:g} x {size:g} x {size:g} mm by its header: expected 0.05 to 20 mm")
    for reader in (read_image, read_header, read_labels):
        with pytest.raises(ImageError, match=told):
            reader(path)


def test_a_file_without_any_place_is_not_converted(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="voxels of 2000 x 2000 x 2000 mm"):
        read_header(with_unit(tmp_path / "a.nii.gz", 2000, "micron", (0, 0)))


@pytest.mark.parametrize("size", [0.05, 20])
def test_limits_are_possible_sizes(tmp_path: Path, size: float) -> None:
    assert read_image(with_unit(tmp_path / "a.nii.gz", size, "mm")).spacing == pytest.approx((size,) * 3)


@pytest.mark.parametrize("codes", [(0, 2), (1, 0), (1, 1)])
@pytest.mark.parametrize(("size", "unit"), [(2000, "micron"), (0.002, "meter")])
def test_what_is_written_opens_over_an_input_in_another_unit(
    tmp_path: Path, size: float, unit: str, codes: tuple[int, int]
) -> None:
    given = read_image(with_unit(tmp_path / "in.nii.gz", size, unit, codes))
    before = nib.load(given.path)
    write_image(tmp_path / "out.nii.gz", RAMP, given.affine, like=given.path)
    written = nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_allclose(written.affine, before.affine, rtol=1e-5)
    assert written.header.get_zooms() == pytest.approx(before.header.get_zooms())
    assert written.header.get_xyzt_units() == before.header.get_xyzt_units()
    np.testing.assert_allclose(read_image(tmp_path / "out.nii.gz").affine, given.affine, rtol=1e-5)
    for shear in (0, 0.3):  # another grid keeps the unit too
        moved = given.affine.copy()
        moved[0, 1], moved[0, 3] = shear, 33
        write_image(tmp_path / "out.nii.gz", RAMP, moved, like=given.path)
        np.testing.assert_allclose(read_image(tmp_path / "out.nii.gz").affine, moved, rtol=1e-5, atol=1e-4)
        assert nib.load(tmp_path / "out.nii.gz").header.get_xyzt_units()[0] == unit


@pytest.mark.parametrize(
    ("text", "synthetic"),
    [
        ("bmmae SYNTHETIC T2, not acquired; scale: given", True),
        ("bmmae deviation of SYNTHETIC T2; scale: given", True),
        ("bmmae preprocess", False),
        ("bmmae synth 3", False),
        ("SYNTHETIC FLAIR (a sequence of the scanner)", False),
    ],
)
def test_a_header_tells_what_no_scanner_has_taken(tmp_path: Path, text: str, synthetic: bool) -> None:
    assert read_image(write_image(tmp_path / "a.nii.gz", RAMP, AFFINE, description=text)).synthetic == synthetic
    assert not read_image(save(tmp_path / "a.mgz", kind=nib.MGHImage)).synthetic


def test_remarks_of_the_library_stay_inside(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image = nib.Nifti1Image(RAMP, AFFINE)
    image.header["pixdim"][0] = 5  # nibabel prints "pixdim[0] (qfac) should be 1 ..."
    (tmp_path / "a.nii").write_bytes(image.header.binaryblock + b"\0" * 4 + RAMP.tobytes(order="F"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(tmp_path / "a.nii")
        read_header(tmp_path / "a.nii")
    assert capfd.readouterr() == ("", "")


def test_labels_may_be_stored_as_whole_floats_and_be_empty(tmp_path: Path) -> None:
    labels, affine = read_labels(save(tmp_path / "a.nii.gz", (RAMP % 4).astype(np.float32)))
    np.testing.assert_array_equal(labels, RAMP % 4)
    assert labels.dtype == np.int16
    np.testing.assert_allclose(affine, AFFINE, atol=1e-5)
    assert not read_labels(save(tmp_path / "b.nii", np.zeros_like(RAMP)))[0].any()


@pytest.mark.parametrize(("value", "count"), [(0.5, 1), (70000.0, 0)])
def test_fractions_and_huge_numbers_are_no_labels(tmp_path: Path, value: float, count: int) -> None:
    array = np.zeros((3, 3, 3), np.float32)
    array[0, 0, 0] = value
    with pytest.raises(LabelError, match=f"is not a segmentation.*got {count} other voxels"):
        read_labels(save(tmp_path / "a.nii.gz", array))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32, np.float64, bool])
def test_what_is_written_is_read_back(tmp_path: Path, dtype: type) -> None:
    array = (RAMP % 100 if dtype is not bool else RAMP % 2).astype(dtype)
    path = write_image(tmp_path / "new" / "a.nii.gz", array, AFFINE)
    np.testing.assert_array_equal(read_image(path).array, array.astype(np.float32))
    np.testing.assert_allclose(read_image(path).affine, AFFINE, atol=1e-4)


@pytest.mark.parametrize("codes", [(1, 1), (0, 2), (4, 4), (2, 0), (0, 0)])
def test_codes_and_units_follow_the_input(tmp_path: Path, codes: tuple[int, int]) -> None:
    rigid = np.array([[-2.0, 0, 0, 30], [0, 1, 0, -20], [0, 0, 3, 7], [0, 0, 0, 1]])
    image = nib.Nifti1Image(RAMP, rigid)
    image.set_qform(rigid, code=codes[0])
    image.set_sform(rigid, code=codes[1])
    image.header.set_xyzt_units("mm", "sec")
    image.to_filename(tmp_path / "in.nii.gz")
    given = read_image(tmp_path / "in.nii.gz")
    for like in (given.path, read_header(given.path)):
        write_image(tmp_path / "out.nii.gz", RAMP.astype(np.float32), given.affine, like=like, description="x" * 200)
        written = nib.load(tmp_path / "out.nii.gz")
        kept = (int(written.header["qform_code"]), int(written.header["sform_code"]))
        assert kept == codes
        assert written.header.get_xyzt_units() == ("mm", "sec")
        np.testing.assert_allclose(written.affine, given.affine, atol=1e-5)


def test_matrices_that_differ_are_both_kept(tmp_path: Path) -> None:
    turned = np.array([[0.0, -2, 0, 3], [2, 0, 0, 4], [0, 0, 2, 5], [0, 0, 0, 1]])
    image = nib.Nifti1Image(RAMP, np.diag([2.0, 2, 2, 1]))
    image.set_qform(turned, code=1)
    image.set_sform(np.diag([2.0, 2, 2, 1]), code=2)
    image.to_filename(tmp_path / "in.nii")
    given = read_image(tmp_path / "in.nii")
    write_image(tmp_path / "out.nii", RAMP, given.affine, like=given.path)
    written = nib.load(tmp_path / "out.nii")
    np.testing.assert_allclose(written.get_qform(), turned, atol=1e-5)
    np.testing.assert_allclose(written.get_sform(), np.diag([2.0, 2, 2, 1]), atol=1e-5)


@pytest.mark.parametrize("folder", ["scan", "moved"])
def test_without_codes_a_result_lies_where_its_input_does_or_says_where(tmp_path: Path, folder: str) -> None:
    image = nib.Nifti1Image(RAMP, None)
    image.header.set_zooms((1, 2, 3))
    image.to_filename(tmp_path / "in.nii")
    affine = read_image(tmp_path / "in.nii").affine.copy()
    affine[0, 3] += 10 * (folder == "moved")
    write_image(tmp_path / "out.nii", RAMP, affine, like=tmp_path / "in.nii")
    written = nib.load(tmp_path / "out.nii")
    assert int(written.header["sform_code"]) == int(folder == "moved")
    np.testing.assert_allclose(written.affine, affine)


def test_a_qform_that_is_no_rotation_is_not_kept_beside_an_sform(tmp_path: Path) -> None:
    image = nib.Nifti1Image(RAMP, AFFINE)
    image.set_qform(np.eye(4), code=1)
    image.to_filename(tmp_path / "in.nii")
    content = bytearray((tmp_path / "in.nii").read_bytes())
    content[256:264] = np.full(2, 0.8, np.float32).tobytes()  # two parts of the quaternion
    (tmp_path / "in.nii").write_bytes(content)
    write_image(tmp_path / "out.nii", RAMP, read_image(tmp_path / "in.nii").affine, like=tmp_path / "in.nii")
    written = nib.load(tmp_path / "out.nii")
    assert (int(written.header["qform_code"]), int(written.header["sform_code"])) == (0, 2)
    np.testing.assert_allclose(written.affine, AFFINE, atol=1e-5)


def test_a_shear_survives_a_header_that_has_only_a_qform(tmp_path: Path) -> None:
    image = nib.Nifti1Image(RAMP, np.diag([1.0, 1, 2, 1]))
    image.set_qform(image.affine, code=1)
    image.set_sform(None, code=0)
    image.to_filename(tmp_path / "in.nii")
    write_image(tmp_path / "out.nii", RAMP, AFFINE, like=tmp_path / "in.nii")
    np.testing.assert_allclose(read_image(tmp_path / "out.nii").affine, AFFINE, atol=1e-4)


def test_writing_twice_gives_the_same_bytes_and_leaves_nothing_else(tmp_path: Path) -> None:
    first = write_image(tmp_path / "a.nii.gz", RAMP, AFFINE).read_bytes()
    assert write_image(tmp_path / "a.nii.gz", RAMP, AFFINE).read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]


def test_what_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="expected a name ending in"):
        write_image(tmp_path / "a.png", RAMP, AFFINE)
    with pytest.raises(OutputError, match="cannot write"):
        write_image(tmp_path / "file" / "a.nii.gz", RAMP, AFFINE)
    (tmp_path / "taken.nii.gz").mkdir()
    with pytest.raises(OutputError, match=re.escape(str(tmp_path / "taken.nii.gz"))):
        write_image(tmp_path / "taken.nii.gz", RAMP, AFFINE)
    assert not list(tmp_path.glob(".*"))


def test_the_hash_sees_voxels_and_nothing_else(tmp_path: Path) -> None:
    one = content_hash(save(tmp_path / "patient_a.nii.gz"))
    assert one == content_hash(save(tmp_path / "b.nii", RAMP.astype(np.float32), np.eye(4)))
    assert one == array_hash(np.ascontiguousarray(RAMP.astype(np.float32)))
    changed = RAMP.copy()
    changed[1, 1, 1] += 1
    assert len({one, content_hash(save(tmp_path / "c.nii", changed)), array_hash(RAMP.astype(np.float32).T)}) == 3


@pytest.mark.real
def test_real_images_are_written_over_themselves(real: Path, tmp_path: Path) -> None:
    path = next(real.glob("kirby21/**/*_T1w.nii.gz"))
    image = read_image(path)
    copy = write_image(tmp_path / "copy.nii.gz", image.array, image.affine, like=path)
    assert content_hash(copy) == array_hash(image.array)
    np.testing.assert_array_equal(read_header(copy).affine, read_header(path).affine)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_header_without_voxel_sizes_is_refused(tmp_path: Path, name: str, kind: type) -> None:
    header = kind(RAMP, np.diag([2.0, 2, 2, 1])).header
    header["qform_code"], header["sform_code"] = 1, 0
    header["pixdim"][2] = 0
    content = header.binaryblock + b"\0" * 4 + RAMP.tobytes(order="F")
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    for read in (read_image, read_header):
        with pytest.raises(ImageError, match=r"voxels of 2 x 0 x 2 mm \(pixdim\), and no sform.*convert it"):
            read(tmp_path / name)


@pytest.mark.skipif(os.sep != "/", reason="there, such paths are usual")
@pytest.mark.parametrize("path", ["p1\\t1.nii.gz", "C:\\p1\\t1.nii.gz", "\\\\server\\p1\\t1.nii.gz"])
def test_a_path_as_windows_writes_it_is_told(path: str) -> None:
    with pytest.raises(ImageError, match=r"does not exist: .*; it is written as on Windows, write / and no drive"):
        read_image(path)
