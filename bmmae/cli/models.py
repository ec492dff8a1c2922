"""Commands on models: reconstruct, segment, info, convert."""

from __future__ import annotations

import argparse
from pathlib import Path

from bmmae.cli.command import Commands, add_command, require_writable
from bmmae.cli.images import add_images, load, required_images
from bmmae.cli.reconstruct import add_reconstruct
from bmmae.notice import NOTICE


def add_commands(commands: Commands) -> None:
    """Add this module's commands."""
    for add in (add_reconstruct, _segment, _info, _convert):
        add(commands)


def _segment(commands: Commands) -> None:
    command = add_command(commands, "segment", f"Segment a study from any of its modalities. {NOTICE}", _run_segment)
    add_images(command)
    command.add_argument("--out", type=Path, required=True, help="the NIfTI file to write")


def _run_segment(given: argparse.Namespace) -> int:
    from bmmae.inference import save_image, segment

    images = required_images(given)
    require_writable(given.out.parent)
    path = save_image(segment(load(given.model), images, brain_mask=given.brain_mask), given.out)
    print(f"{path}\n{NOTICE}")
    return 0


def _info(commands: Commands) -> None:
    command = add_command(
        commands, "info", "Show what a model is and where it comes from; draw a run's curves.", _run_info
    )
    command.add_argument("model")
    command.add_argument("--json", action="store_true", help="for programs")


def _run_info(given: argparse.Namespace) -> int:
    import json

    from bmmae.checkpoint import info

    run = Path(given.model.removesuffix("@last"))
    if (run / "metrics.jsonl").exists() and not given.json:
        from bmmae.report import save_curves

        print(f"curves: {save_curves(run)}")
    found = info(given.model)
    print(json.dumps(found.as_dict(), indent=2) if given.json else found.format_table())
    return 0


def _convert(commands: Commands) -> None:
    command = add_command(
        commands, "convert", "Convert published BM-MAE weights (.pth) to a model folder.", _run_convert
    )
    command.add_argument("weights", type=Path)
    command.add_argument("--out", type=Path, required=True)


def _run_convert(given: argparse.Namespace) -> int:
    from bmmae.checkpoint import convert

    print(convert(given.weights, given.out))
    return 0
