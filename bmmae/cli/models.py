"""Commands on models: reconstruct, segment, info, convert."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bmmae.cli.command import Commands, add_command
from bmmae.cli.reconstruct import add_reconstruct
from bmmae.cli.segment import add_segment
from bmmae.errors import OutputError


def add_commands(commands: Commands) -> None:
    """Add this module's commands."""
    for add in (add_reconstruct, add_segment, _info, _convert):
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
