"""What a check of a cohort finds, and the table of it for the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bmmae import modalities as table
from bmmae.data.location import File
from bmmae.data.problems import NamedProblem, counted, gathered

Severity = Literal["error", "warning"]
MOST_NAMES = 5
"""Studies named beside the first with warnings of one kind; with errors, which have to be mended, all are."""

WHOLE = "the table"
"""Stands for the study in a finding about none alone; no study's name has a blank."""


@dataclass(frozen=True)
class Finding:
    """One thing wrong with a study, or with the table.

    Attributes:
        study: The study's name, or `WHOLE`.
        severity: An error must be mended before training; a warning is for a person to judge.
        code: `bare`, `file`, `constant`, `grid`, `labels`, `empty`, `head`, `coverage`, `swapped`, `synthetic`, `axes`,
            `thin`, `duplicate`, `visits` or `column`.
        path: The file concerned.
        message: What was expected, what came, what to do.
    """

    study: str
    severity: Severity
    code: str
    path: File
    message: str


@dataclass(frozen=True)
class CheckReport:
    """The findings in the order of the table, and what was looked at.

    Attributes:
        findings: Those about the whole table first.
        studies: How many.
        files: How many.
        absent: Modalities asked for that no study has; that may well be so.
    """

    findings: tuple[Finding, ...]
    studies: int
    files: int
    absent: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether there is any error: the command's exit code is then 1."""
        return any(finding.severity == "error" for finding in self.findings)

    @property
    def note(self) -> str:
        """A sentence about modalities that no study has; empty where there are none."""
        names = ", ".join(map(table.title, self.absent))
        return f"no study has {names}: if there are such images, look at the table's column names" if names else ""


def looked_at(report: CheckReport) -> str:
    """Return how much was looked at: `2 studies, 9 files`."""
    return f"{counted(report.studies, 'study', 'studies')}, {counted(report.files, 'file', 'files')}"


def format_table(report: CheckReport) -> str:
    """Return the findings as a table for the terminal, with a closing line that counts them.

    What many studies have alike is one row: see `gathered`.
    """
    kinds: dict[tuple[Severity, str], list[NamedProblem]] = {}
    for finding in report.findings:
        kinds.setdefault((finding.severity, finding.code), []).append((finding.study, finding.message))
    rows = [
        (severity, study, code, told)
        for (severity, code), problems in kinds.items()
        for study, told in gathered(problems, None if severity == "error" else MOST_NAMES)
    ]
    head = ("", "study", "code", "what was found")
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(3)]
    lines = ["  ".join((*map(str.ljust, row[:3], widths), row[3])).rstrip() for row in (head, *rows)] if rows else []
    errors = sum(finding.severity == "error" for finding in report.findings)
    lines += [f"note: {report.note}"] if report.note else []
    found = ", ".join(
        (counted(errors, "error", "errors"), counted(len(report.findings) - errors, "warning", "warnings"))
    )
    lines.append(f"{looked_at(report)}: {found}" + ("" if rows else "; nothing wrong"))
    return "\n".join(lines)
