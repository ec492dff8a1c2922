"""Commands on models: reconstruct, segment, info, convert."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bmmae.cli.command import Commands, add_command, require_writable
from bmmae.errors import ConfigError, ModalityError
from bmmae.modalities import STANDARD, TABLE, title
from bmmae.notice import NOTICE

if TYPE_CHECKING:
    from bmmae.model.pretrained import PretrainedModel


def add_commands(commands: Commands) -> None:
    """Add this module's commands."""
    for add in (_reconstruct, _segment, _info, _convert):
        add(commands)


def _add_images(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", required=True, help="a model folder, a run folder or a hub id")
    for modality in TABLE:
        shown = modality.name in STANDARD
        command.add_argument(
            f"--{modality.name}",
            type=Path,
            metavar="F",
            help=f"the {modality.title} image" if shown else argparse.SUPPRESS,
        )
    command.add_argument(
        "--image", action="append", default=[], metavar="NAME=F", help="an image of any other modality"
    )
    command.add_argument("--brain-mask", type=Path, metavar="F", help="brain mask, for images that are not stripped")


def _images(given: argparse.Namespace) -> dict[str, Path]:
    found = {m.name: getattr(given, m.name) for m in TABLE if getattr(given, m.name) is not None}
    for pair in given.image:
        name, equals, path = pair.partition("=")
        if not equals or not path:
            raise ConfigError(f"--image expects NAME=FILE, got '{pair}'")
        if name in found:
            raise ModalityError(f"modality '{name}' is given twice")
        found[name] = Path(path)
    if not found:
        flags = ", ".join(f"--{m}" for m in STANDARD)
        raise ModalityError(f"no image given: expected at least one of {flags} or --image NAME=FILE")
    return found


def _reconstruct(commands: Commands) -> None:
    summary = f"Synthesise the absent modalities of a study. {NOTICE}"
    command = add_command(commands, "reconstruct", summary, _run_reconstruct)
    _add_images(command)
    command.add_argument("--out", type=Path, required=True, help="folder; one NIfTI file a modality is written")
    command.add_argument("--all", action="store_true", help="write the given modalities as well: a complete set")


def _run_reconstruct(given: argparse.Namespace) -> int:
    from bmmae.inference import reconstruct_to_folder

    images = _images(given)
    require_writable(given.out)
    paths = reconstruct_to_folder(
        _load(given.model), images, given.out, brain_mask=given.brain_mask, complete=given.all
    )
    for name, path in paths.items():
        print(f"{title(name):>6}  {path}")
    print(NOTICE)
    return 0


def _segment(commands: Commands) -> None:
    command = add_command(commands, "segment", f"Segment a study from any of its modalities. {NOTICE}", _run_segment)
    _add_images(command)
    command.add_argument("--out", type=Path, required=True, help="the NIfTI file to write")


def _run_segment(given: argparse.Namespace) -> int:
    from bmmae.inference import save_image, segment

    images = _images(given)
    require_writable(given.out.parent)
    path = save_image(segment(_load(given.model), images, brain_mask=given.brain_mask), given.out)
    print(f"{path}\n{NOTICE}")
    return 0


def _load(source: str) -> PretrainedModel:
    from bmmae.checkpoint import load_model

    return load_model(source)


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
