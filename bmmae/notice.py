"""What every use of a model says about itself, and how warnings reach people."""

from __future__ import annotations

import sys

NOTICE = "Research software: not a medical device. Synthesised images are guesses; do not read diagnoses from them."


def print_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """Print one line a warning: a path into the library says nothing to its user. For `warnings.showwarning`."""
    if not issubclass(category, DeprecationWarning):
        print(f"warning: {message}", file=sys.stderr)
