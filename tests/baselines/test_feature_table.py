"""Tables become blocks of columns by modality; what is not of one sequence is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bmmae.baselines.feature_table import SHAPE, FeatureTable, hide, modality_of, read_feature_tables
from bmmae.errors import CohortError, ModalityError

REAL = Path(__file__).parents[3] / "shared" / "radiomics"
HEADER = "ID,Date,VOLUME_ET,Mean_ET_T1Gd,Mean_ED_T1,Mean_ET_FLAIR,Ratio_T1_FLAIR\n"


def tables(
    folder: Path, gbm: str = "a,1,1,2,3,4,5\nb,1,1,,nan,#DIV/0!,5\n", lgg: str = "c,1,1,2,inf,4,5\n"
) -> FeatureTable:
    return read_feature_tables(paths(folder, gbm, lgg))


def paths(folder: Path, gbm: str, lgg: str, header: str = HEADER) -> dict[str, Path]:
    for name, rows, head in (("GBM", gbm, HEADER), ("LGG", lgg, header)):
        (folder / f"{name}.csv").write_text(head + rows)
    return {name: folder / f"{name}.csv" for name in ("GBM", "LGG")}


def test_columns_are_blocks_in_table_order(tmp_path: Path) -> None:
    table = tables(tmp_path)
    assert table.columns == ("Mean_ET_T1Gd", "Mean_ED_T1", "Mean_ET_FLAIR")
    assert dict(table.blocks) == {"t1": (1,), "t1ce": (0,), "flair": (2,)}
    assert table.subjects == ("a", "b", "c")
    assert table.labels.tolist() == ["GBM", "GBM", "LGG"]
    assert dict(table.dropped) == dict.fromkeys(("VOLUME_ET", "Ratio_T1_FLAIR"), "not of one sequence")


def test_empty_cells_and_those_without_a_number_are_absent(tmp_path: Path) -> None:
    table = tables(tmp_path)
    np.testing.assert_array_equal(table.features, [[2, 3, 4], [np.nan] * 3, [2, np.nan, 4]])
    assert table.repaired == 2


def test_columns_of_no_sequence_can_be_a_modality(tmp_path: Path) -> None:
    table = read_feature_tables(paths(tmp_path, "a,1,1,2,3,4,5\n", "c,1,1,2,3,4,5\n"), shape=True)
    assert table.modalities == ("t1", "t1ce", "flair", SHAPE)
    assert [table.columns[place] for place in table.blocks[SHAPE]] == ["VOLUME_ET", "Ratio_T1_FLAIR"]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("TEXTURE_GLCM_ET_T1Gd_Energy", "t1ce"),
        ("INTENSITY_Mean_ED_T1", "t1"),
        ("HISTO_NET_FLAIR_Bin1", "flair"),
        ("TGM_T_1", None),
        ("VOLUME_ET", None),
        ("Ratio_T1_T2", None),
        ("Mean_ET_T1_Gd", "t1ce"),
        ("original_firstorder_Mean_ET_t1_ce", "t1ce"),
        ("CE_T1w_Mean", "t1ce"),
        ("Gd_T1_Mean", None),
        ("Mean_T2_FLAIR", "flair"),
        ("TEXTURE_GLCM_ET_T1_Contrast", "t1"),
    ],
)
def test_a_column_is_of_the_one_modality_it_names(column: str, expected: str | None) -> None:
    assert modality_of(column) == expected


def test_columns_can_be_left_out(tmp_path: Path) -> None:
    table = tables(tmp_path).without(r"_ET(_|$)")
    assert table.columns == ("Mean_ED_T1",)
    assert table.modalities == ("t1",)
    assert table.dropped["Mean_ET_FLAIR"].startswith("matches")
    with pytest.raises(CohortError, match="no column of 1 is left"):
        table.without("Mean")


def test_modalities_can_be_chosen_in_any_order(tmp_path: Path) -> None:
    table = tables(tmp_path).restricted(["FLAIR", "t1"])
    assert table.columns == ("Mean_ED_T1", "Mean_ET_FLAIR")
    assert dict(table.blocks) == {"t1": (0,), "flair": (1,)}
    with pytest.raises(ModalityError, match="unknown modality 't2': expected one of t1, flair"):
        table.restricted(["t2"])
    with pytest.raises(ModalityError, match="each once"):
        table.restricted(["t1", "t1"])


def test_hidden_modalities_are_absent_and_the_table_stays(tmp_path: Path) -> None:
    table = tables(tmp_path)
    hidden = hide(table.features, table.blocks, ["t1ce"])
    assert np.isnan(hidden[:, 1:]).all()
    assert hidden[0, 0] == table.features[0, 0]
    assert table.features[0, 1] == 3


def test_subsets_are_all_that_are_not_empty(tmp_path: Path) -> None:
    assert tables(tmp_path).subsets() == (
        ("t1",), ("t1ce",), ("flair",), ("t1", "t1ce"), ("t1", "flair"), ("t1ce", "flair"), ("t1", "t1ce", "flair"),
    )  # fmt: skip


def test_broken_tables_are_refused(tmp_path: Path) -> None:
    row = "a,1,1,2,3,4,5\n"
    with pytest.raises(CohortError, match="patient 'a' occurs twice"):
        tables(tmp_path, row, row)
    with pytest.raises(CohortError, match="column 'Mean_ED_T1' holds 'high': expected numbers"):
        tables(tmp_path, row, "c,1,1,2,high,4,5\n")
    with pytest.raises(CohortError, match="column 'Mean_ED_T1' holds '0,5': expected numbers; write decimals with a p"):
        tables(tmp_path, row, 'c,1,1,2,"0,5",4,5\n')
    with pytest.raises(CohortError, match=r"^patient 'c' of 'LGG': column 'Mean_ED_T1' holds 'high'"):
        tables(tmp_path, row, "c,1,1,2,high,4,5\n")
    with pytest.raises(CohortError, match="column 'ID' of the table of 'LGG' is blank in a row"):
        tables(tmp_path, row, ",1,1,2,3,4,5\n")
    with pytest.raises(CohortError, match=r"other columns .* \('Mean_ET_T1Gd', 'Mean_ET_T2' in one of them alone\)"):
        read_feature_tables(paths(tmp_path, row, "c,1,1,2,3,4,5\n", HEADER.replace("T1Gd", "T2")))
    with pytest.raises(CohortError, match="the table of 'LGG' has other columns"):
        read_feature_tables(paths(tmp_path, row, "c,1,1,2,3,4,5\n", HEADER.replace("T1Gd", "T2")))
    with pytest.raises(CohortError, match="has no column 'subject'"):
        read_feature_tables(paths(tmp_path, row, "c,1,1,2,3,4,5\n"), subject="subject")
    with pytest.raises(CohortError, match="at least one patient, got none"):
        read_feature_tables({})
    (tmp_path / "x.csv").write_text("ID,Volume\na,1\n")
    with pytest.raises(CohortError, match="none of 1 columns names a modality"):
        read_feature_tables({"GBM": tmp_path / "x.csv"})


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="the radiomics tables (../shared/radiomics) are not on this machine")
def test_the_real_tables_have_equal_blocks_and_telling_gaps() -> None:
    table = read_feature_tables({name: REAL / f"{name}.csv" for name in ("GBM", "LGG")})
    assert {name: len(block) for name, block in table.blocks.items()} == dict.fromkeys(
        ("t1", "t1ce", "t2", "flair"), 165
    )
    assert len(table.dropped) == 64
    gaps = np.isnan(table.features).any(axis=1)
    assert not gaps[table.labels == "GBM"].any()
    assert round(gaps[table.labels == "LGG"].mean(), 2) == 0.32
    assert np.isnan(table.without(r"_ET(_|$)").features).any(axis=1).sum() == 1
