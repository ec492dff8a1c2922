"""What every benchmark shares: repeated timings in one run, figures with their spread, and the JSON of a result.

A script calls `arguments` for its command line, times its contestants with `alternate`, forms figures, and ends with
`write_result`. Full results land in `benchmarks/results/`, those of `--quick` in `benchmarks/results/quick/`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Figure:
    """One headline figure.

    Attributes:
        value: The median over the runs.
        low: The smallest run.
        high: The largest run.
        floor: What arithmetic or hardware allows at best, or the trivial competitor reaches; None if not known.
        asked: What the design asks for; None if nothing.
        unit: Unit, and `lower is better` where that is so.
    """

    value: float
    low: float
    high: float
    floor: float | None = None
    asked: float | None = None
    unit: str = "ratio"


def figure(
    runs: Sequence[float], *, asked: float | None = None, floor: float | None = None, unit: str = "ratio"
) -> Figure:
    """Return median and range of the runs."""
    return Figure(statistics.median(runs), min(runs), max(runs), floor, asked, unit)


def ratios(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
    """Return how many times faster `fast` was, run by run: neighbours in time meet the same machine."""
    return [one / other for one, other in zip(slow, fast, strict=True)]


def seconds(work: Callable[[], object], repeat: int = 1) -> float:
    """Return the wall time of one call, as the mean of `repeat` calls."""
    started = time.perf_counter()
    for _ in range(repeat):
        work()
    return (time.perf_counter() - started) / repeat


def alternate(contestants: Mapping[str, Callable[[], float]], runs: int, warmup: int = 1) -> dict[str, list[float]]:
    """Let the contestants take turns, so that whatever else the machine does hits all of them alike.

    Args:
        contestants: By name, what returns the seconds (or any other measure) of one run.
        runs: How many times each is measured.
        warmup: Rounds that are thrown away first.

    Returns:
        The measures of each contestant, in order of the rounds.
    """
    measured: dict[str, list[float]] = {name: [] for name in contestants}
    for round_number in range(warmup + runs):
        for name, measure in contestants.items():
            value = measure()
            if round_number >= warmup:
                measured[name].append(value)
    return measured


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return the command line that every benchmark has: `--quick`, `--runs`, `--threads`."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small and short: shows that the script works, no more")
    parser.add_argument("--runs", type=int, default=None, help="repetitions (default: 5; 2 with --quick)")
    parser.add_argument("--threads", type=int, default=None, help="torch threads (default: torch's own choice)")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line and apply what concerns the whole process."""
    given = parser.parse_args()
    given.runs = given.runs or (2 if given.quick else 5)
    if given.threads:
        torch.set_num_threads(given.threads)
    return given


def refuse_unknown(what: str, asked: Iterable[object] | None, known: Iterable[object]) -> None:
    """Stop if the command line names what is not there: it would do nothing, or fail after hours.

    Args:
        what: As the message calls it: `fold`.
        asked: What is named; None if nothing.
        known: What there is.

    Raises:
        SystemExit: If something is unknown.
    """
    there = list(map(str, known))
    unknown = [name for name in map(str, asked or ()) if name not in there]
    if unknown:
        sys.exit(f"error: unknown {what} {', '.join(unknown)}: expected some of {', '.join(there)}")


def machine() -> dict[str, Any]:
    """Describe the hardware and the libraries that decide speed; no host name."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": _memory_gb(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpus": gpus,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def commit() -> str:
    """Return the commit of the working tree, with `+` if it has changes; `unknown` outside a checkout."""
    try:
        name = _git("rev-parse", "--short=12", "HEAD")
        return name + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_result(
    name: str,
    *,
    quick: bool,
    runs: int,
    headline: Mapping[str, Figure],
    rows: Sequence[Mapping[str, Any]],
    measured: bool = True,
) -> Path:
    """Write `results/NAME.json` in one step, print the headline, and return the path.

    Args:
        name: The script's name, without suffix.
        quick: Whether this was a quick run, which feeds no table.
        runs: Repetitions behind each figure.
        headline: The figures that the README shows.
        rows: Everything else that was measured, as flat dictionaries.
        measured: Whether anything was measured in this process; if all was there, the machine stays that of the result
            before, as the one that only reports may be another.
    """
    path = (RESULTS / "quick" if quick else RESULTS) / f"{name}.json"
    content = {
        "quick": quick,
        "machine": machine() if measured or not path.exists() else json.loads(path.read_text())["machine"],
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "command": shlex.join(["python", _relative(Path(sys.argv[0])), *sys.argv[1:]]),
        "runs": runs,
        "headline": {key: asdict(value) for key, value in headline.items()},
        "rows": list(rows),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)
    for key, value in headline.items():
        asked = "" if value.asked is None else f", asked {value.asked:g}"
        print(f"{key}: {value.value:.4g} ({value.low:.4g} to {value.high:.4g}{asked}) {value.unit}")
    print(f"written: {_relative(path)}")
    return path


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _memory_gb() -> float | None:
    if not hasattr(os, "sysconf"):
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _git(*command: str) -> str:
    return subprocess.run(["git", *command], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def _relative(path: Path) -> str:
    path = path.resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
