"""The configuration of a run on patients."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bmmae.config import DataConfig
from bmmae.data.augment import AugmentConfig
from bmmae.data.patient_columns import BesideConfig, TargetsConfig
from bmmae.data.preprocess import PreprocessChoice
from bmmae.errors import ConfigError
from bmmae.training import OptimConfig, TrainConfig


@dataclass(frozen=True)
class HeadConfig:
    """How the heads are trained.

    Attributes:
        start: `linear` fits the heads to the encoder's features before the first step (as `mode: features` does), so
            that random heads do not spoil the encoder (Kumar et al., ICLR 2022); needs a smaller learning rate.
        focal: Exponent of the focal loss; 0 is plain cross-entropy.
        importance: Factor on a target's loss, by name.
        token_share: Share of each patient's tokens that training sees; less is faster, and regularises.
        dropout: Before the heads.
        pool_heads: Parts of the embedding that attention weighs apart.
        shares: By one column, how often each of its classes is drawn in an epoch; empty draws each study once.
    """

    start: Literal["random", "linear"] = "random"
    focal: float = 0.0
    importance: dict[str, float] = field(default_factory=dict)
    token_share: float = 1.0
    dropout: float = 0.1
    pool_heads: int = 8
    shares: dict[str, dict[str | int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.token_share <= 1:
            raise ConfigError(f"head.token_share must lie in (0, 1], got {self.token_share}")
        if self.focal < 0:
            raise ConfigError(f"head.focal must be zero or more, got {self.focal}")
        if len(self.shares) > 1:
            raise ConfigError(f"head.shares takes one column, got {', '.join(self.shares)}")


OF_STEPS = ("focal", "importance", "shares")
"""What linear heads on frozen features cannot follow: other losses, and other samples."""


@dataclass(frozen=True)
class PatientConfig:
    """A run on patients.

    Attributes:
        data: Which studies. With folds (`bmmae split`), those of the fold's test part are predicted at the end.
        train: The loop.
        model: Pretrained weights: a folder, a hub id or a run folder; `scratch:RECIPE` starts from random weights.
        targets: What is predicted.
        out: The run folder.
        mode: `features` fits linear heads on frozen features by scikit-learn; `head` trains pooling and heads; `full`
            trains everything.
        modalities: Use only these of the pretrained model's modalities; empty uses all.
        beside: What is given beside the images.
        head: How the heads are trained.
        every_subset: Predict the held-out studies from every subset of their modalities, not only from all of them.
        preprocess: How images become model input, if other than the pretrained weights know.
        augment: Training augmentation.
        optim: Optimiser and schedule.
    """

    data: DataConfig
    train: TrainConfig
    model: str
    targets: TargetsConfig
    out: Path = Path("runs/patients")
    mode: Literal["features", "head", "full"] = "full"
    modalities: tuple[str, ...] = ()
    beside: BesideConfig = field(default_factory=BesideConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    every_subset: bool = True
    preprocess: PreprocessChoice = field(default_factory=PreprocessChoice)
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(modality_dropout=0.5))
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        plain = HeadConfig()
        idle = [name for name in OF_STEPS if getattr(self.head, name) != getattr(plain, name)]
        if self.mode == "features" and idle:
            raise ConfigError(f"head.{idle[0]} has no effect in mode 'features', whose heads are not trained in steps")
        if self.mode != "full" and self.optim.frozen_steps:
            raise ConfigError(
                f"optim.frozen_steps has no effect in mode '{self.mode}', which never trains the encoder: set it to 0"
            )
        if self.head.focal and self.targets.kinds <= {"hazard", "cox"}:
            raise ConfigError("head.focal is about classes, and none are predicted: set it to 0")
        if self.mode != "full" and self.model.startswith("scratch:"):
            raise ConfigError(
                f"mode '{self.mode}' leaves the encoder as it is: random weights from scratch would never learn. Set "
                "mode to full, or name pretrained weights"
            )
        self.data.refuse_labels()
        if not self.data.validation_share:
            raise ConfigError(
                "data.validation_share is 0, and nobody would validate: models of patients need somebody by whom to "
                "choose penalties and checkpoints. Give a share above 0"
            )
