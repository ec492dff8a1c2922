"""State dicts: which keys fit a model, which do not, and what was done about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from bmmae.arrays import Tensor
from bmmae.errors import CheckpointError, few

PREFIXES = ("module.", "model.", "_orig_mod.")
"""What wrappers put before every key: distributed training, Lightning, torch.compile."""


@dataclass(frozen=True)
class KeyReport:
    """What became of the keys of a checkpoint.

    Attributes:
        loaded: Keys whose values are now in the model.
        missing: Keys of the model that the checkpoint lacks; they keep the values they had.
        unexpected: Keys of the checkpoint that the model lacks; they were not used.
        misshapen: Keys of both whose shapes differ, with both shapes; they were not used.
        dropped: Keys known to carry nothing (fixed tables, parameters that nothing reads).
    """

    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every key of the checkpoint and of the model met its counterpart."""
        return not (self.missing or self.unexpected or self.misshapen)

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} keys loaded"]
        for name in ("missing", "unexpected", "misshapen", "dropped"):
            keys: tuple[str, ...] = getattr(self, name)
            if keys:
                parts.append(f"{len(keys)} {name}: {few(keys, most=12, quote='')}")
        return "; ".join(parts)


def strip_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes of wrappers, nested ones included, where every key carries them."""
    stripped = dict(state)
    found = True
    while found and stripped:
        found = False
        for prefix in PREFIXES:
            if all(key.startswith(prefix) for key in stripped):
                stripped = {key[len(prefix) :]: value for key, value in stripped.items()}
                found = True
    return stripped


def compare(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], dropped: Sequence[str] = ()) -> KeyReport:
    """Return how the keys and shapes of a state dict fit the expected ones."""
    shared = [key for key in state if key in expected]
    fits = {key: state[key].shape == expected[key].shape for key in shared}
    return KeyReport(
        loaded=tuple(key for key in shared if fits[key]),
        missing=tuple(key for key in expected if key not in state),
        unexpected=tuple(key for key in state if key not in expected),
        misshapen=tuple(
            f"{key} (expected {tuple(expected[key].shape)}, got {tuple(state[key].shape)})"
            for key in shared
            if not fits[key]
        ),
        dropped=tuple(dropped),
    )


class KeyMismatchError(CheckpointError):
    """Keys of a checkpoint and of a model do not all fit.

    Attributes:
        report: All of them; the message lists the first of each kind.
    """

    def __init__(self, message: str, report: KeyReport) -> None:
        super().__init__(message)
        self.report = report


def require_complete(report: KeyReport, source: str, target: str) -> None:
    """Refuse keys that do not all fit.

    Raises:
        KeyMismatchError: If keys are missing, unexpected or misshapen; it lists them.
    """
    if not report.complete:
        raise KeyMismatchError(
            f"the weights of {source} do not fit {target}: {report}. Load weights of the same architecture, or pass "
            "partial=True to load only the keys that fit",
            report,
        )


def require_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that turn every result into NaN.

    Raises:
        CheckpointError: If a value is NaN or infinite.
    """
    broken = [key for key, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if broken:
        raise CheckpointError(
            f"{source} holds NaN or infinity in {few(broken, quote='')}: its training diverged, or half precision was "
            "too narrow for them. Take an earlier checkpoint, or save it in float32"
        )


def load_state(
    module: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    *,
    partial: bool = False,
    dropped: Sequence[str] = (),
) -> KeyReport:
    """Copy a state dict into a module: all of it, or nothing.

    Args:
        module: What receives the values.
        state: The values by key.
        source: How messages name where they came from.
        partial: Copy the keys that fit and leave the others; the caller must then show the report.
        dropped: Keys left out before, for the report.

    Raises:
        KeyMismatchError: If keys are missing, unexpected or misshapen; under `partial`, if not one fits.
    """
    report = compare(state, module.state_dict(), dropped)
    if not partial:
        require_complete(report, source, type(module).__name__)
    if not report.loaded:
        raise KeyMismatchError(f"nothing in {source} fits {type(module).__name__}: {report}", report)
    module.load_state_dict({key: state[key] for key in report.loaded}, strict=False)
    return report
