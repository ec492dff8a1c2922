"""The training scripts and their configs, for those who installed the package instead of cloning the repository."""

from __future__ import annotations

import shutil
from pathlib import Path

from bmmae.errors import OutputError

FOLDERS = ("pretrain", "finetune", "configs")


def starter_root() -> Path:
    """Return the folder that holds the scripts and configs: the clone, or where the wheel put them.

    A wheel's data go to `share` in the prefix that its packages go to, be that an environment's, a user's
    (`pip install --user`) or one that was named (`--prefix`, `--target`).

    Raises:
        OutputError: If they are in neither place.
    """
    clone, *above = Path(__file__).parents[1:]
    for place in (clone, *(folder / "share" / "bmmae" for folder in (clone, *above))):
        if (place / "pretrain" / "train.py").is_file():
            return place
    raise OutputError(
        f"the training scripts are not in {clone}, nor in share/bmmae there or above it: install bmmae again"
    )


def write_starter(folder: Path) -> list[Path]:
    """Copy scripts and configs into a folder, where they can be changed.

    Returns:
        The files written.

    Raises:
        OutputError: If one of them is there already, or the folder cannot be written.
    """
    root = starter_root()
    taken = [folder / name for name in FOLDERS if (folder / name).exists()]
    if taken:
        raise OutputError(f"{taken[0]} exists already: name an empty folder, or move it away")
    try:
        for name in FOLDERS:
            shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    except OSError as error:
        for name in FOLDERS:  # none of them was there before: the command can be given again
            shutil.rmtree(folder / name, ignore_errors=True)
        reason = error.args[0][0][-1] if isinstance(error, shutil.Error) else error.strerror or error
        raise OutputError(f"cannot write to {folder}: {reason}") from error
    return sorted(path for name in FOLDERS for path in (folder / name).rglob("*") if path.is_file())
