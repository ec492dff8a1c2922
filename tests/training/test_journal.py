"""metrics.jsonl survives a kill and holds each step once."""

from __future__ import annotations

from pathlib import Path

import pytest
from full_disk import files_of_at_most

from bmmae.errors import OutputError
from bmmae.training.journal import Journal, read_journal


def test_rows_past_the_resumed_step_and_a_torn_line_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    journal = Journal(path, step=2)
    journal.write({"step": 3, "loss": 0.5})
    journal.close()
    assert read_journal(path) == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 0.5}]


def test_an_evaluation_that_is_made_again_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "val/loss": 3}\n{"step": 4, "train/loss": 2}\n{"step": 4, "val/loss": 1}\n')
    Journal(path, step=4, evaluated=4).close()
    assert len(read_journal(path)) == 3
    Journal(path, step=4, evaluated=2).close()
    assert read_journal(path) == [{"step": 2, "val/loss": 3}, {"step": 4, "train/loss": 2}]


def test_a_torn_line_is_left_out_when_reading(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st')
    assert read_journal(path) == [{"step": 1}]


@pytest.mark.parametrize("damage", [b"\xff\xfe\x00", b"\0\0\0\n", b'3\n"step"\n'])
def test_lines_that_are_damaged_otherwise_are_left_out_too(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + damage)
    Journal(path, step=1).close()
    assert read_journal(path) == [{"step": 1}]


def test_a_missing_file_has_no_rows(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "metrics.jsonl") == []


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl", step=0)
    journal.write({"step": 1, "loss": float("nan")})
    journal.close()
    assert read_journal(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": None}]


def test_a_full_disk_is_one_sentence_and_loses_no_earlier_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path, step=0)
    journal.write({"step": 1})
    with files_of_at_most(path.stat().st_size), pytest.raises(OutputError, match=r"metrics\.jsonl cannot be written"):
        journal.write({"step": 2, "loss": 0.5})
    with files_of_at_most(path.stat().st_size):
        journal.close()  # tries to write what is left
    with files_of_at_most(5), pytest.raises(OutputError, match="Free some space and resume"):
        Journal(path, step=1)
    assert read_journal(path) == [{"step": 1}]
    assert list(tmp_path.iterdir()) == [path]
