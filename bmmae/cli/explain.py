"""The command that tells why a model of patients answers as it does."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bmmae.cli.command import Commands, add_command, require_writable
from bmmae.cli.images import add_images, load, required_images
from bmmae.errors import CheckpointError, ConfigError
from bmmae.notice import NOTICE

if TYPE_CHECKING:
    from bmmae.model.patient import PatientModel


def add_commands(commands: Commands) -> None:
    """Add this module's command."""
    summary = f"Tell what a model of patients used for its answer about one study: inputs and places. {NOTICE}"
    command = add_command(commands, "explain", summary, _run_explain)
    add_images(command)
    command.add_argument("--target", help="what is predicted (default: the model's first target)")
    command.add_argument(
        "--outcome", help="class, or column of yes and no, to explain (default: the likeliest; or the risk)"
    )
    command.add_argument(
        "--clinical", nargs="+", default=[], metavar="NAME=VALUE", help="clinical variables (NAME=: not known)"
    )
    command.add_argument("--out", type=Path, required=True, help="folder for the maps and explanation.json")


def _run_explain(given: argparse.Namespace) -> int:
    from bmmae.model.patient import PatientModel
    from bmmae.patient_explain import NOTE, explain_patient, write_explanation

    images = required_images(given)
    require_writable(given.out)
    model = load(given.model)
    if not isinstance(model, PatientModel):
        raise CheckpointError(
            f"{given.model} holds a model of kind '{model.kind}', which predicts nothing of a patient"
        )
    found = explain_patient(
        model,
        images,
        target=given.target,
        outcome=given.outcome,
        clinical=_clinical(model, given.clinical),
        brain_mask=given.brain_mask,
    )
    print(f"{found.target}: {found.outcome} {found.answer:.3f}; of anybody one would say {found.base:.3f}")
    for name, value in sorted(found.shapley.items(), key=lambda item: -abs(item[1])):
        share = f"   attention {found.attention[name]:.0%}" if name in found.attention else ""
        print(f"  {value:+.3f}  {name}{share}")
    for path in (*write_explanation(found, given.out).values(), given.out / NOTE):
        print(path)
    return 0


def _clinical(model: PatientModel, pairs: Sequence[str]) -> dict[str, str | float | None]:
    """What is given of the model's clinical variables, numbers as numbers, None for what is said not to be known.

    Raises:
        ConfigError: If an argument is no pair, names no variable of the model or one twice, or a number is none.
    """
    from bmmae.clinical import point_wanted
    from bmmae.data.tables import is_blank

    kinds = {variable.name: variable.kind for variable in model.config.clinical}
    found: dict[str, str | float | None] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name not in kinds:
            raise ConfigError(f"--clinical expects NAME=VALUE of {', '.join(kinds) or 'no variable'}, got '{pair}'")
        if name in found:
            raise ConfigError(f"--clinical gives {name} twice: expected each variable once")
        if is_blank(value):
            found[name] = None
            continue
        try:
            found[name] = float(value) if kinds[name] == "numeric" else value
        except ValueError as error:
            raise ConfigError(f"--clinical {name} expects a number{point_wanted(value)}, got '{value}'") from error
    return found
