"""Seconds and memory of a pretraining step and of encoding: the published implementation against ours, in one run.

python benchmarks/pretrain_step.py [--study DIR] [--threads N]
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import step_contestants as contestants
import torch
from harness import ROOT, Figure, alternate, arguments, figure, parse, ratios, seconds, write_result
from published import generator
from published_model import PublishedMAE
from step_contestants import BATCH, CONTESTANTS, Contestant, Inputs
from step_growth import grow, plot_growth

from bmmae.model.mae import MAE
from bmmae.model.operations import encoder_operations
from bmmae.patches import patch_grid
from bmmae.training.throughput import matrix_rate

TOLERANCE = 1e-4
FORMS = ("published_fp32", "published_bf16", "exact_fp32", "exact_bf16", "best_fp32", "best_bf16")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
REFERENCE = ROOT / "tests" / "reference" / "published.npz"


def main() -> None:
    """Run, or with `--memory-of` be the fresh process that one contestant's memory is measured in."""
    parser = arguments(__doc__)
    parser.add_argument("--study", type=Path, default=contestants.STUDY, help="folder of one study, four modalities")
    parser.add_argument("--draws", type=int, default=4, help="batches that the steps take turns with")
    parser.add_argument("--parts", nargs="+", default=["step", "memory", "encode", "growth"])
    parser.add_argument("--memory-of", choices=FORMS, help=argparse.SUPPRESS)
    parser.add_argument("--inputs", type=Path, help=argparse.SUPPRESS)
    given = parse(parser)
    if given.memory_of:
        print(json.dumps(peak_memory(given.memory_of, given.inputs, given.quick)))
        return
    inputs = contestants.load_inputs(given.study, given.quick, given.draws)
    print(f"{inputs.source}; {inputs.background:.0%} of the windows' patches are background")
    headline: dict[str, Figure] = {}
    rows: list[dict[str, Any]] = [{"part": "input", "source": inputs.source, "background": inputs.background}]
    for name in given.parts:
        part_headline, part_rows = PARTS[name](inputs, given)
        headline |= part_headline
        rows += part_rows
    write_result("pretrain_step", quick=given.quick, runs=given.runs, headline=headline, rows=rows)


Part = tuple[dict[str, Figure], list[dict[str, Any]]]


def measure_steps(inputs: Inputs, given: argparse.Namespace) -> Part:
    """Time whole steps of all contestants in turn, once they are shown to be what they claim to be."""
    built = {name: build(inputs, given.quick) for name, build in CONTESTANTS.items()}
    checked = check(built, given.quick)
    works = {form: partial(timed_step, built, form) for form in FORMS}
    took = alternate(works, given.runs)
    rates = {name: matrix_rate(torch.device("cpu"), dtype, seconds=2.0) for name, dtype in DTYPES.items()}
    operations = {name: statistics.mean(map(one.operations, one.batches)) for name, one in built.items()}
    floors = {form: operations[form.split("_")[0]] / rates[form.split("_")[1]] for form in FORMS}
    slow = {name: statistics.median(took[f"published_{name}"]) for name in DTYPES}
    headline = {
        f"best_vs_published_{name}": figure(
            ratios(took[f"published_{name}"], took["best_bf16"]), asked=asked, floor=slow[name] / floors["best_bf16"]
        )
        for name, asked in (("fp32", 15.0), ("bf16", 10.0))
    }
    headline["exact_vs_published_fp32"] = figure(
        ratios(took["published_fp32"], took["exact_fp32"]), asked=2.5, floor=slow["fp32"] / floors["exact_fp32"]
    )
    rows = [
        {"part": "step", "form": form, "seconds_a_sample": statistics.median(took[form]), "low": min(took[form])}
        | {
            "high": max(took[form]),
            "cpu_seconds_a_sample": _cpu_seconds(built, form),
            "floor_seconds": floors[form],
            "gflop_a_sample": operations[form.split("_")[0]] / 1e9,
        }
        for form in FORMS
    ]
    rows += [{"part": "rate", "form": name, "tflop_a_second": rate / 1e12} for name, rate in rates.items()]
    return headline, [*rows, {"part": "check", **checked}]


def _cpu_seconds(built: dict[str, Contestant], form: str) -> float:
    """Processor seconds a sample, of all threads: with `--threads 1` little disturbed by other processes."""
    name, precision = form.split("_")
    return statistics.median(built[name].cpu_seconds[precision == "bf16"][1:]) / BATCH


def timed_step(built: dict[str, Contestant], form: str) -> float:
    """Take one step in a form; return seconds a sample."""
    name, precision = form.split("_")
    return seconds(partial(built[name].step, precision == "bf16")) / BATCH


def check(built: dict[str, Contestant], quick: bool) -> dict[str, float]:
    """Show that (a) is the published model and that (c) gives its outputs.

    Raises:
        RuntimeError: If either is not so.
    """
    found = {"exact_differs_by": contestants.outputs_differ_by(built["published"], built["exact"])}
    if not quick:
        model = built["published"].model
        assert isinstance(model, PublishedMAE)
        found["reference_differs_by"] = differs_from_reference(model)
    print(", ".join(f"{name} {value:.2g}" for name, value in found.items()))
    if max(found.values()) > TOLERANCE:
        raise RuntimeError(f"not the published model: {found} exceeds {TOLERANCE}")
    return found


@torch.no_grad()
def differs_from_reference(model: PublishedMAE) -> float:
    """Return the largest difference from the recorded outputs of the published implementation."""
    names, counts = model.config.modalities, (200, 0, 250, 62)
    shape = (1, 1, *model.config.size)
    drawn = [generator(f"input/{n}").standard_normal(shape).astype(np.float32) for n in names]
    images, mask = torch.from_numpy(np.concatenate(drawn, axis=1)), torch.ones(1, len(names), 512, dtype=torch.bool)
    for index, (name, count) in enumerate(zip(names, counts, strict=True)):
        mask[0, index, generator(f"mask/{name}").permutation(512)[:count]] = False
    with np.load(REFERENCE) as file:
        expected = dict(file)
    predicted = model(images, mask)
    tokens = model.encode(images, (0, 2))
    found = [np.abs(tokens[0, ::64].numpy() - expected["encoder/t1+t2"]).max()]
    for index, name in enumerate(names):
        theirs = expected[f"reconstruction/{name}"]
        step = {16: 32, 8: 64}[len(theirs)]
        found.append(np.abs(predicted[0, index, ::step, :: 4096 // theirs.shape[1]].numpy() - theirs).max())
    return float(max(found))


def measure_memory(inputs: Inputs, given: argparse.Namespace) -> Part:
    """Run two steps of each contestant in a fresh process each, and read its peak."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {"ours": Path(folder) / "ours.pt", "published": Path(folder) / "published.pt"}
        torch.save(inputs.ours[:1], paths["ours"])
        torch.save(inputs.published[:1], paths["published"])
        command = [sys.executable, __file__, "--threads", str(torch.get_num_threads())]
        command += ["--quick"] if given.quick else []
        peaks = {}
        for form in FORMS:
            path = paths["ours" if form.startswith("best") else "published"]
            done = subprocess.run(
                [*command, "--memory-of", form, "--inputs", str(path)], check=True, capture_output=True, text=True
            )
            peaks[form] = float(json.loads(done.stdout.splitlines()[-1]))
            print(f"{form}: {peaks[form]:.2f} GB")
    share = peaks["best_bf16"] / peaks["published_fp32"]
    rows = [{"part": "memory", "form": form, "gigabytes": peak} for form, peak in peaks.items()]
    return {"memory_share": figure([share], asked=0.4, unit="share, lower is better")}, rows


def peak_memory(form: str, path: Path, quick: bool) -> float:
    """Return this process's peak memory over two steps, less that after imports, in GB."""
    importlib.import_module("timm.models.vision_transformer")  # our blocks' imports come late, and count as imports
    before = resident()
    saved = torch.load(path, weights_only=True)
    name, precision = form.split("_")
    contestant = CONTESTANTS[name](Inputs("", 0.0, ours=saved, published=saved), quick)
    for _ in range(2):
        contestant.step(precision == "bf16")
    return (resident("VmHWM") - before) / 1e9


def resident(field: str = "VmRSS") -> float:
    """Return bytes of this process in memory now, or at their peak (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def measure_encoding(inputs: Inputs, given: argparse.Namespace) -> Part:
    """Time the encoding of all patches of 1, 2 and 4 modalities, like with like."""
    theirs = contestants.published_contestant(inputs, given.quick).model
    ours = contestants.exact_contestant(inputs, given.quick).model.eval()
    assert isinstance(theirs, PublishedMAE)
    assert isinstance(ours, MAE)
    images = contestants._tensor(inputs.published[0], "images")[:1]
    places = math.prod(patch_grid(images.shape[-3:], ours.config.patch))
    rates = {name: matrix_rate(torch.device("cpu"), dtype, seconds=2.0) for name, dtype in DTYPES.items()}
    headline, rows = {}, []
    for count in (1, 2, 4):
        for name in DTYPES:
            pair = {
                "published": partial(timed_encoding, partial(theirs.encode, images, tuple(range(count))), name),
                "ours": partial(timed_encoding, partial(ours.encode, _named(ours, images, count)), name),
            }
            took = alternate(pair, given.runs)
            faster = ratios(took["published"], took["ours"])
            floor = encoder_operations(ours.config, [count * places]) / rates[name]
            rows.append(
                {"part": "encode", "modalities": count, "precision": name, "ratio": statistics.median(faster)}
                | {"floor_seconds": floor}
                | {kind: statistics.median(values) for kind, values in took.items()}
            )
            if count == 4:
                best = statistics.median(took["published"]) / floor
                headline[f"encode_{name}"] = figure(faster, asked={"fp32": 1.5, "bf16": 3.0}[name], floor=best)
    return headline, rows


def _named(model: MAE, images: torch.Tensor, count: int) -> dict[str, torch.Tensor]:
    return {name: images[:, [index]] for index, name in enumerate(model.config.modalities[:count])}


@torch.inference_mode()
def timed_encoding(work: Callable[[], object], precision: str) -> float:
    """Return the seconds of one encoding."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        return seconds(work)


def measure_growth(inputs: Inputs, given: argparse.Namespace) -> Part:
    """See how cost grows with tokens; see `step_growth`."""
    rows = grow(contestants.shipped(given.quick).model, given.quick, inputs)
    if not given.quick:
        plot_growth(rows, ROOT / "benchmarks" / "results" / "pretrain_step_growth.png")
    return {}, rows


PARTS = {"step": measure_steps, "memory": measure_memory, "encode": measure_encoding, "growth": measure_growth}

if __name__ == "__main__":
    main()
