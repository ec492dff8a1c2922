"""Commands on models: reconstruct, segment, info, average, convert."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from bmmae.cli.command import Commands, add_command
from bmmae.cli.images import load
from bmmae.cli.reconstruct import add_reconstruct
from bmmae.cli.segment import add_segment
from bmmae.errors import ConfigError, OutputError, few


def add_commands(commands: Commands) -> None:
    """Add this module's commands."""
    for add in (add_reconstruct, add_segment, _info, _average, _convert):
        add(commands)


def _info(commands: Commands) -> None:
    command = add_command(
        commands, "info", "Show what a model is and where it comes from; draw a run's curves.", _run_info
    )
    command.add_argument("model", help="a model folder, a run folder or a hub id (org/name)")
    command.add_argument("--json", action="store_true", help="print it as JSON, for programs")


def _run_info(given: argparse.Namespace) -> int:
    import json

    from bmmae.checkpoint import info

    run = Path(given.model.removesuffix("@last")).expanduser()
    if (run / "metrics.jsonl").exists() and not given.json:
        from bmmae.report import save_curves

        try:
            print(f"curves: {save_curves(run)}")
        except OutputError as error:  # a colleague's run, or one that has just begun
            print(f"warning: no curves: {error}", file=sys.stderr)
    found = info(given.model)
    print(json.dumps(found.as_dict(), indent=2) if given.json else found.format_table())
    return 0


def _average(commands: Commands) -> None:
    about = "Write the mean of the weights of several fine-tunings from one start, often better than each of them."
    command = add_command(commands, "average", about, _run_average)
    command.add_argument("models", nargs="+", help="model or run folders (RUN@last: a run's last checkpoint)")
    command.add_argument("--out", type=Path, required=True, help="model folder to write")


def _run_average(given: argparse.Namespace) -> int:
    from bmmae.averaging import average_models
    from bmmae.checkpoint import save_model

    twice = [name for name, count in Counter(given.models).items() if count > 1]
    if twice:
        raise ConfigError(f"{few(twice)} given twice: each model counts once")
    model = average_models({name: load(name) for name in given.models})
    print(f"{save_model(model, given.out)}: the mean of {len(given.models)} models; measure it before you rely on it")
    return 0


def _convert(commands: Commands) -> None:
    command = add_command(
        commands, "convert", "Convert published BM-MAE weights (.pth) to a model folder.", _run_convert
    )
    command.add_argument("weights", type=Path, help="the .pth file")
    command.add_argument("--out", type=Path, required=True, help="model folder to write")


def _run_convert(given: argparse.Namespace) -> int:
    from bmmae.checkpoint import convert

    print(convert(given.weights, given.out))
    return 0
