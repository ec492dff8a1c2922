"""The libraries that only raw scans need; without one, the error says how to install it."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

from bmmae.errors import ConfigError

PACKAGES = {"SimpleITK": "SimpleITK", "pydicom": "pydicom", "nilearn": "nilearn", "dcm2niix": "dcm2niix"}
"""Module to the name it has on PyPI."""


def require(module: str, purpose: str) -> Any:
    """Import a library of the extra `raw`.

    Args:
        module: Its import name, submodules included (`"nilearn.datasets"`).
        purpose: What needs it, as the start of a sentence.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(_missing(module.partition(".")[0], purpose)) from error


def dcm2niix_program() -> str:
    """Return the path of the dcm2niix program: that of its Python package, else the one on PATH.

    Raises:
        ConfigError: If there is neither.
    """
    try:
        packaged = Path(importlib.import_module("dcm2niix").bin)
    except ImportError:
        packaged = Path()
    # The package's name has no suffix, the file on Windows has one.
    found = shutil.which(str(packaged)) if packaged.name else None
    found = found or shutil.which("dcm2niix")
    if found is None:
        raise ConfigError(_missing("dcm2niix", "Converting DICOM"))
    return found


def _missing(module: str, purpose: str) -> str:
    return (
        f"{purpose} needs {module}, which is not installed: run `pip install {PACKAGES.get(module, module)}`, or "
        "`pip install 'bmmae[raw]'` for all that raw scans need"
    )
