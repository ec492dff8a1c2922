"""The page of a check stands alone, shows every study, and never takes a name for markup."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from tiny_studies import lesion, write_study

from bmmae.arrays import Array
from bmmae.check_page import CheckPage
from bmmae.cli import main
from bmmae.data.check import check_cohort
from bmmae.data.cohort import Cohort, Study
from bmmae.data.planes import COLOURS, colour_of, draw_planes
from bmmae.data.scans import Grid
from bmmae.errors import OutputError


def page_of(cohort: Cohort, path: Path, most: int = 200) -> str:
    page = CheckPage(most)
    report = check_cohort(cohort, progress=False, show=page.add)
    return page.write(path, report, "cohort.csv").read_text()


def cohort(folder: Path) -> Cohort:
    return Cohort((write_study(folder / "a", seed=1), write_study(folder / "b", ("t1", "flair"), seed=2)))


def test_the_page_has_a_picture_of_every_image_and_loads_nothing(tmp_path: Path) -> None:
    html = page_of(cohort(tmp_path), tmp_path / "new" / "check.html")
    assert len(re.findall("<img ", html)) == 6
    assert not re.findall(r'(?:src|href)="(?!data:|#)', html)
    assert "2 studies, 8 files" in html
    assert "the patient's right (sagittal: the front) is on the left" in html
    for word in ("20x24x16 voxels of 1x1x1 mm: 6", "RAS: 6", "0, 1, 2, 4: 2", "FLAIR: 2", "100%"):
        assert word in html
    HTMLParser().feed(html)
    assert html.count("<table>") == html.count("</table>")


def test_findings_are_listed_and_link_to_their_study(tmp_path: Path) -> None:
    studies = cohort(tmp_path)
    studies[1].images["t1"].write_bytes(b"")
    html = page_of(studies, tmp_path / "check.html")
    assert '<a href="#b">b</a>' in html
    assert '<div class=study id="b">' in html
    assert "<span class=error>1 error</span>" in html
    assert len(re.findall("<img ", html)) == 5


def test_findings_about_the_table_link_to_no_study(tmp_path: Path) -> None:
    studies = [write_study(tmp_path / name, ("t1", "t2"), seed=seed) for seed, name in enumerate(("p1_v1", "p1_v2"))]
    html = page_of(Cohort(tuple(studies)), tmp_path / "check.html")
    assert "<td>the table</td><td>visits</td><td>p1_v1 and p1_v2 look like visits" in html
    assert "<p>Note: no study has T1ce, FLAIR: if there are such images" in html
    assert '<a href="#the' not in html


def test_beyond_a_number_of_studies_only_figures_are_given(tmp_path: Path) -> None:
    html = page_of(cohort(tmp_path), tmp_path / "check.html", most=1)
    assert len(re.findall("<img ", html)) == 4
    assert "The first 1 studies are drawn" in html
    assert html.count("flair.nii.gz") == 2


def test_names_are_never_markup(tmp_path: Path) -> None:
    study = write_study(tmp_path / "a", ("t1",))
    html = page_of(Cohort((Study("<b>&", study.images),)), tmp_path / "check.html")
    assert "<b>" not in html


def test_the_command_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, page = cohort(tmp_path).write(tmp_path / "cohort.csv"), tmp_path / "check.html"
    assert main(["check", str(table), "--labels", "brats2017", "--html", str(page)]) == 0
    assert f"page: {page}" in capsys.readouterr().out
    assert "Check of cohort.csv" in page.read_text()


def test_a_page_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write the report"):
        page_of(cohort(tmp_path), tmp_path / "file" / "check.html")


def pixels(png: bytes) -> Array:
    return np.asarray(imread(io.BytesIO(png), format="png"))[..., :3]


def test_planes_are_upright_and_the_same_whatever_the_orientation_of_the_file() -> None:
    array = np.full((12, 16, 10), np.float32(1e-6))
    array[6:, 12:, 8:] = 1  # right, front, top
    array[7, 13, 9] = 2
    ras = Grid(array.shape, np.diag([1.0, 1, 1, 1]))
    drawn = pixels(draw_planes(array, ras, (0.0, 1.0), (array > 1).astype(np.int16)))
    axial = drawn[:, :143]  # 12 * 180 / 16 pixels, and a margin on both sides
    assert axial[:44].any()
    assert not axial[46:].any()
    assert axial[:, :72].sum() == axial.sum()
    lps = Grid((10, 16, 12), np.array([[0, 0, -1.0, 0], [0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]))
    stored = np.ascontiguousarray(array.transpose(2, 1, 0)[:, ::-1, ::-1])
    assert np.array_equal(pixels(draw_planes(stored, lps, (0.0, 1.0), (stored > 1).astype(np.int16))), drawn)


def test_outlines_have_the_colour_of_their_value_in_all_studies_of_a_kind() -> None:
    label = lesion()
    grid = Grid(label.shape, np.eye(4))
    drawn = (
        255 * pixels(draw_planes(np.zeros(label.shape, np.float32), grid, (0.0, 1.0), label, (0, 1, 2, 4)))
    ).round()
    seen = {tuple(int(c) for c in colour) for colour in drawn.reshape(-1, 3)} - {(0, 0, 0)}
    assert seen == set(COLOURS[:3])
    assert colour_of(4, (0, 1, 2, 4)) == COLOURS[2]


def test_the_picture_is_small_text(tmp_path: Path) -> None:
    html = page_of(cohort(tmp_path), tmp_path / "check.html")
    for source in re.findall(r"base64,([^\"]+)", html):
        assert base64.b64decode(source).startswith(b"\x89PNG")
        assert len(source) < 200_000
