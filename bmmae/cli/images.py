"""How a command is told of a model and of one study's images."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from bmmae.errors import ConfigError, ModalityError
from bmmae.modalities import STANDARD, TABLE

if TYPE_CHECKING:
    from bmmae.model.pretrained import PretrainedModel


def add_images(command: argparse.ArgumentParser) -> None:
    """Let the user name a model, and one file a modality."""
    command.add_argument("--model", required=True, help="a model folder, a run folder or a hub id (org/name)")
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


def given_images(given: argparse.Namespace) -> dict[str, Path]:
    """Return the files given, by modality; none is fine.

    Raises:
        ConfigError: If an argument is no pair of name and file.
        ModalityError: If a modality is given twice.
    """
    found = {m.name: getattr(given, m.name) for m in TABLE if getattr(given, m.name) is not None}
    for pair in given.image:
        name, equals, path = pair.partition("=")
        if not equals or not path:
            raise ConfigError(f"--image expects NAME=FILE, got '{pair}'")
        if name in found:
            raise ModalityError(f"modality '{name}' is given twice")
        found[name] = Path(path)
    return found


def required_images(given: argparse.Namespace) -> dict[str, Path]:
    """Return the files given, by modality.

    Raises:
        ConfigError: If an argument is no pair of name and file.
        ModalityError: If none is given, or one twice.
    """
    found = given_images(given)
    if not found:
        flags = ", ".join(f"--{m}" for m in STANDARD)
        raise ModalityError(f"no image given: expected at least one of {flags} or --image NAME=FILE")
    return found


def load(source: str) -> PretrainedModel:
    """Load a model onto the processor that this machine computes best with.

    Raises:
        CheckpointError: If there is none, or it does not fit.

    Warns:
        UserWarning: If it is of a run that has not finished.
    """
    import torch

    from bmmae.checkpoint import load_model
    from bmmae.sources import unfinished

    model = load_model(source, device="cuda" if torch.cuda.is_available() else "cpu")
    state = unfinished(source)
    if state is not None:
        warnings.warn(f"the run {source} has not finished ({state}): used is what it has learned so far", stacklevel=2)
    return model
