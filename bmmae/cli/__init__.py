"""The command line: `bmmae ...`. Each command is a thin wrapper around a function of the library."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from bmmae._version import __version__
from bmmae.cli import data, explain, models, patient, raw, start
from bmmae.errors import BmmaeError
from bmmae.notice import NOTICE, print_warning

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 fine, 1 findings (`check`), 2 an error that the user can mend."""
    warnings.showwarning = print_warning
    parsed = build_parser().parse_args(arguments)
    for name, value in vars(parsed).items():
        if isinstance(value, Path):  # shells leave the ~ of `--out=~/x` as it is
            setattr(parsed, name, Path(os.path.expanduser(value)))
    try:
        code: int = parsed.run(parsed)
    except BmmaeError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader (`| head`) has seen enough; nothing may be flushed to it any more
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 0
    return code


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(prog="bmmae", description=f"Masked pretraining for brain MRI. {NOTICE}")
    parser.add_argument("--version", action="version", version=f"bmmae {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (data, raw, models, patient, explain, start):
        module.add_commands(commands)
    return parser
