"""The report of a check as one HTML page that needs nothing else: what is wrong, and what each study looks like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from bmmae.data.check import ImageGlance, StudyGlance
from bmmae.data.findings import WHOLE, CheckReport, Finding, looked_at
from bmmae.data.planes import colour_of, draw_planes
from bmmae.data.problems import counted
from bmmae.errors import OutputError
from bmmae.modalities import title
from bmmae.page import document, figure, table

PLANES = (
    "Pictures: axial, coronal and sagittal planes where most of the lesion is, else through the middle; the patient's "
    "right (sagittal: the front) is on the left. Black and white are the 1 % and 99 % intensities of each image."
)


@dataclass
class CheckPage:
    """Gathers studies while they are checked; `add` is what `check_cohort` calls.

    Attributes:
        most: Studies that are drawn; of the others the figures are listed. A drawn study takes about 150 kB.
    """

    most: int = 200
    _glances: list[StudyGlance] = field(default_factory=list)
    _pictures: dict[str, str] = field(default_factory=dict)

    def add(self, glance: StudyGlance) -> None:
        """Draw a study, and keep its figures."""
        if len(self._pictures) < self.most:
            self._pictures[glance.study.name] = _pictures(glance)
        bare = [ImageGlance(i.modality, i.path, i.grid, i.extremes, i.percentiles, i.coverage) for i in glance.images]
        self._glances.append(StudyGlance(glance.study, tuple(bare), glance.labels))

    def write(self, path: str | Path, report: CheckReport, name: str) -> Path:
        """Write the page.

        Args:
            path: The file.
            report: What was found.
            name: What the cohort is called.

        Raises:
            OutputError: If it cannot be written.
        """
        path = Path(path).expanduser()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self._html(report, name), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write the report {path}: {error.strerror or error}") from error
        return path

    def _html(self, report: CheckReport, name: str) -> str:
        parts = [
            f"<h1>Check of {escape(name)}</h1>",
            f"<p>{looked_at(report)}. {_verdict(report)}</p>",
            *([f"<p>Note: {escape(report.note)}.</p>"] if report.note else []),
            _findings(report.findings, linked=True),
            _overview(self._glances),
            *([f"<p>{PLANES}</p>"] if any(self._pictures.values()) else []),
            *(self._card(glance, report) for glance in self._glances),
        ]
        if len(self._glances) > len(self._pictures):
            parts.insert(
                2, f"<p>The first {len(self._pictures)} studies are drawn; of the others figures are listed.</p>"
            )
        return document(f"Check of {name}", parts)

    def _card(self, glance: StudyGlance, report: CheckReport) -> str:
        study = glance.study
        own = [finding for finding in report.findings if finding.study == study.name]
        split = f" ({study.split})" if study.split else ""
        found = _findings(own) if own else "<p class=fine>nothing wrong</p>"
        head = f'<div class=study id="{escape(study.name)}"><h2>{escape(study.name)}{split}</h2>'
        return "\n".join((head, found, self._pictures.get(study.name, ""), _figures(glance), "</div>"))


def _verdict(report: CheckReport) -> str:
    counts = Counter(finding.severity for finding in report.findings)
    if not counts:
        return "<span class=fine>Nothing wrong.</span>"
    texts = [
        f"<span class={kind}>{counted(counts[kind], kind, f'{kind}s')}</span>"
        for kind in ("error", "warning")
        if counts[kind]
    ]
    return ", ".join(texts) + ". Errors must be mended before training; warnings are for a person to judge."


def _findings(findings: Sequence[Finding], *, linked: bool = False) -> str:
    if not findings:
        return ""
    rows = []
    for found in findings:
        name = WHOLE if found.study == WHOLE else f'<a href="#{escape(found.study)}">{escape(found.study)}</a>'
        cells = [f"<span class={found.severity}>{found.severity}</span>", found.code, escape(found.message)]
        rows.append([cells[0], name, *cells[1:]] if linked else cells)
    head = ["", "study", "kind", "what was found"] if linked else ["", "kind", "what was found"]
    return table(head, rows)


def _overview(glances: Sequence[StudyGlance]) -> str:
    """Figures that should be few: an odd one out is a study to look at."""
    images = [image for glance in glances for image in glance.images]
    kinds = (
        ("modalities", Counter(title(image.modality) for image in images)),
        ("grids", Counter(str(image.grid) for image in images)),
        ("orientations", Counter(image.grid.orientation for image in images)),
        ("label values", Counter(", ".join(map(str, glance.labels)) for glance in glances if glance.labels)),
    )
    return table(("", "how often"), [(name, _counted(counts)) for name, counts in kinds if counts])


def _counted(counts: Counter[str], most: int = 8) -> str:
    listed = [f"{escape(name)}: {count}" for name, count in counts.most_common(most)]
    return "<br>".join([*listed, *([f"and {len(counts) - most} more"] if len(counts) > most else [])])


def _figures(glance: StudyGlance) -> str:
    head = ("", "file", "grid", "axes", "intensities (1 % to 99 %)", "all", "covers of the brain")
    rows = [
        (
            title(image.modality),
            escape(image.path.name),
            str(image.grid),
            image.grid.orientation,
            "{:.4g} to {:.4g}".format(*image.percentiles),
            "{:.4g} to {:.4g}".format(*image.extremes),
            "not known" if image.coverage is None else f"{image.coverage:.0%}",
        )
        for image in glance.images
    ]
    return table(head, rows) + _key(glance.labels)


def _key(labels: Sequence[int]) -> str:
    named = [value for value in labels if value]
    spans = "".join(f'<span style="background: rgb{colour_of(value, labels)}"></span>{value}' for value in named)
    return f"<p class=key>label values {spans}</p>" if named else ""


def _pictures(glance: StudyGlance) -> str:
    figures = []
    for image in glance.images:
        if image.thin is not None:
            label = glance.outline
            fits = label is not None and glance.outline_grid is not None and image.grid.same(glance.outline_grid)
            png = draw_planes(image.thin, image.grid, image.percentiles, label if fits else None, glance.labels)
            name = title(image.modality)
            figures.append(figure(png, f"{name}: axial, coronal, sagittal", name))
    return f"<div class=planes>{''.join(figures)}</div>"
