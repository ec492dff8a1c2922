"""Mean Dice of every method from every subset, one panel a region."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
from paired import by_patient

from bmmae.evaluation.subsets import all_subsets
from bmmae.modalities import subset_label

OURS, DEDICATED = "ours", "dedicated:"
STYLES = (("-", "o"), ("--", "s"), (":", "^"))
"""Of lines, one after the other when colours are used up."""


def plot_subsets(runs: Mapping[str, list[dict[str, Any]]], path: Path, title: str) -> None:
    """Write the plot; models that were dedicated to one subset each are marks without a line."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    labels = [subset_label(subset) for subset in all_subsets()]
    scored = {method: by_patient(rows) for method, rows in runs.items() if rows}
    regions = list(dict.fromkeys(r for scores in scored.values() for places in scores.values() for _, r in places))
    if not regions:
        return
    most = max(map(len, scored.values()))
    looks = _looks(list(scored))
    figure, panels = plt.subplots(
        len(regions), 1, figsize=(9, 3 * len(regions) + 1), sharex=True, squeeze=False, layout="constrained"
    )
    for region, panel in zip(regions, panels[:, 0], strict=True):
        for method, scores in scored.items():
            means = {}
            for label in labels:
                values = [places[label, region] for places in scores.values() if (label, region) in places]
                if values:
                    means[label] = fmean(values)
            said = _name(method) if len(scores) == most else f"{_name(method)}, {len(scores)} of {most} patients"
            panel.plot([labels.index(label) for label in means], list(means.values()), label=said, **looks[method])
        panel.set_ylabel(f"Dice, {region}")
        panel.set_ylim(0, 1)
        panel.grid(alpha=0.3)
    panels[-1, 0].set_xticks(range(len(labels)), labels, rotation=60, ha="right")
    panels[0, 0].set_title(f"Mean Dice by the modalities given, {title}")
    handles, names = panels[0, 0].get_legend_handles_labels()
    told = dict(zip(names, handles, strict=True))  # the dedicated models are told once
    figure.legend(told.values(), told.keys(), fontsize=8, ncol=3, loc="outside lower center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _name(method: str) -> str:
    return "dedicated, one model a subset" if method.startswith(DEDICATED) else method.replace("_", " ")


def _looks(methods: list[str]) -> dict[str, dict[str, Any]]:
    """How each method is drawn: no two in one colour with one style."""
    colours = mpl.color_sequences["tab10"]
    others = cycle((style, colour) for style in STYLES for colour in colours[1:])
    looks: dict[str, dict[str, Any]] = {}
    for method in methods:
        if method == OURS:
            looks[method] = {"color": colours[0], "linewidth": 2.5, "marker": "o", "markersize": 4, "zorder": 3}
        elif method.startswith(DEDICATED):
            looks[method] = {"color": "black", "linestyle": "none", "marker": "D", "markersize": 5, "zorder": 4}
        else:
            (line, marker), colour = next(others)
            looks[method] = {"color": colour, "linestyle": line, "marker": marker, "markersize": 3, "linewidth": 1.0}
    return looks
