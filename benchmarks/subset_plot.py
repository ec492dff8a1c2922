"""Mean Dice of every method from every subset, one panel a region."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
from paired import by_patient

from bmmae.evaluation.subsets import all_subsets
from bmmae.modalities import subset_label


def plot_subsets(runs: Mapping[str, list[dict[str, Any]]], path: Path, title: str) -> None:
    """Write the plot; methods that were scored on one subset alone are single marks."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    labels = [subset_label(subset) for subset in all_subsets()]
    scored = {method: by_patient(rows) for method, rows in runs.items() if rows}
    regions = list(dict.fromkeys(r for scores in scored.values() for places in scores.values() for _, r in places))
    if not regions:
        return
    most = max(map(len, scored.values()))
    figure, panels = plt.subplots(len(regions), 1, figsize=(9, 3 * len(regions)), sharex=True, squeeze=False)
    for region, panel in zip(regions, panels[:, 0], strict=True):
        for method, scores in scored.items():
            means = {}
            for label in labels:
                values = [places[label, region] for places in scores.values() if (label, region) in places]
                if values:
                    means[label] = fmean(values)
            bold = 2.5 if method == "ours" else 1.0
            places = [labels.index(label) for label in means]
            said = method if len(scores) == most else f"{method}, {len(scores)} of {most} patients"
            panel.plot(places, list(means.values()), marker="o", markersize=3, linewidth=bold, label=said)
        panel.set_ylabel(f"Dice, {region}")
        panel.set_ylim(0, 1)
        panel.grid(alpha=0.3)
    panels[-1, 0].set_xticks(range(len(labels)), labels, rotation=60, ha="right")
    panels[0, 0].legend(fontsize=7, ncol=3, loc="lower right")
    panels[0, 0].set_title(f"Mean Dice by the modalities given, {title}")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
