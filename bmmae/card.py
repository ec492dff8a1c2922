"""The model card: what people read about a model before they use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def model_card(saved: Mapping[str, Any], parameters: int) -> str:
    """Return the card of a saved model in Markdown."""
    return f"# {saved['kind']}\n\n{parameters} parameters\n"
