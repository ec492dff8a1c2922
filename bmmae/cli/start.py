"""Commands to get started: init, demo."""

from __future__ import annotations

import argparse
from pathlib import Path

from bmmae.cli.command import Commands, add_command


def add_commands(commands: Commands) -> None:
    """Add this module's commands."""
    for add in (_init, _demo):
        add(commands)


def _init(commands: Commands) -> None:
    command = add_command(commands, "init", "Write the training scripts and their configs into a folder.", _run_init)
    command.add_argument("folder", type=Path, help="made if it is not there")


def _run_init(given: argparse.Namespace) -> int:
    from bmmae.starter import write_starter

    for path in write_starter(given.folder):
        print(path)
    tiny = "accelerate launch pretrain/train.py --config configs/pretrain/tiny.yaml --data.cohort"
    print(f"next, in {given.folder}: {tiny} COHORT.csv; pretrain/README.md and finetune/README.md go on from here")
    return 0


def _demo(commands: Commands) -> None:
    summary = "Go through all steps on a synthetic cohort: minutes, nothing is downloaded."
    command = add_command(commands, "demo", summary, _run_demo)
    command.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder for all of it (default: runs/demo)"
    )
    command.add_argument("--quick", action="store_true", help="a minute, to see that everything runs; learns nothing")


def _run_demo(given: argparse.Namespace) -> int:
    from bmmae.demo import run_demo

    code: int = run_demo(given.out, quick=given.quick)
    return code
