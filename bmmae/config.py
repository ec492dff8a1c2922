"""Run configurations: the components' dataclasses, composed; read from YAML and the command line.

Every key is a field of a dataclass; unknown keys are errors. YAML files hold values only.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_type_hints

import yaml

from bmmae.data.augment import AugmentConfig
from bmmae.data.cache import StudyCache
from bmmae.data.caching import warn_of_other_entries
from bmmae.data.cohort import Cohort, Study, read_cohort
from bmmae.data.preprocess import PreprocessChoice, PreprocessConfig
from bmmae.data.splits import train_and_validation
from bmmae.errors import BmmaeError, ConfigError
from bmmae.masking import MaskingConfig
from bmmae.model.config import ModelConfig
from bmmae.model.convolution import FusionKind
from bmmae.model.synthesis import MOST_MODALITIES
from bmmae.notice import print_warning
from bmmae.tasks.segmentation import DistillConfig
from bmmae.training import OptimConfig, TrainConfig
from bmmae.training.devices import end_process, tells_of_lost_process
from bmmae.training.signals import EXIT_INTERRUPTED, EXIT_STOPPED, ScriptStop, StoppedEarly

T = TypeVar("T")


@dataclass(frozen=True)
class DataConfig:
    """Which studies, and where their prepared form is kept.

    Attributes:
        cohort: The cohort table (CSV or Parquet), written by `bmmae index` or by hand.
        cache: Folder of prepared studies, see `bmmae cache`; those that are not in it are prepared when first needed,
            and stored if the folder can be written. Null keeps none on disk.
        validation_share: Share of the patients to validate on, where the table has no column `split`. With 0 nobody is
            held back to validate, whatever the table or the folds say: all but test studies train, and the last step is
            the model. For the last training of all, when it is known how long to train; not for patients.
        splits: Folds that `bmmae split` made for this cohort; they come before the table's own column `split`.
        fold: Which of them, from 0.
        labels: Label coding: `brats2017`, `brats2023`, `brats2024-post`, `binary`, or a YAML file with `classes`; null
            proposes one from file names and values, and stops where they leave it open.
        skip_broken: Leave studies out that cannot be read, and say how many, instead of stopping.
        memory_mb: Most that each loading process keeps in memory of prepared studies that are not in the cache.
    """

    cohort: Path
    cache: Path | None = None
    validation_share: float = 0.1
    splits: Path | None = None
    fold: int = 0
    labels: str | None = None
    skip_broken: bool = False
    memory_mb: int = 512

    def __post_init__(self) -> None:
        if self.memory_mb < 0:
            raise ConfigError(f"data.memory_mb must be zero or more, got {self.memory_mb}")
        if not 0 <= self.validation_share < 1:
            raise ConfigError(f"data.validation_share must lie between 0 and 1, got {self.validation_share}")
        if self.fold and self.splits is None:
            raise ConfigError(
                f"data.fold is {self.fold}, but no folds are given: name the file of `bmmae split` in data.splits"
            )

    def refuse_labels(self) -> None:
        """Refuse a label coding where no label value is read.

        Raises:
            ConfigError: If one is given.
        """
        if self.labels is not None:
            raise ConfigError(
                f"data.labels ('{self.labels}') is about segmentation, and no label value is read here: leave it out"
            )

    def read(self, columns: Sequence[str]) -> Cohort:
        """Read the cohort, with these columns as its images; raises as `read_cohort`.

        Folds are those of the whole table: studies without any of these modalities leave the others where they were.
        """
        return read_cohort(self.cohort, columns, set_bare_apart=self.splits is not None)

    def divide(self, cohort: Cohort, seed: int, cache: StudyCache) -> tuple[list[Study], list[Study]]:
        """Return the studies to train and to validate on; raises and warns as `train_and_validation`.

        Warns of a cache that was made otherwise.
        """
        warn_of_other_entries(cache, cohort.studies)
        return train_and_validation(
            cohort,
            validation_share=self.validation_share,
            seed=seed,
            splits=self.splits,
            fold=self.fold,
            cache=cache,
        )


@dataclass(frozen=True)
class PretrainConfig:
    """A pretraining run.

    Attributes:
        data: Which studies.
        train: The loop.
        start: Weights of an earlier pretraining to go on from: a folder, a hub id or a run folder; null for random
            ones. `model` must be as theirs, but for its window, regression and targets.
        out: The run folder: checkpoints, metrics.jsonl, pictures.
        model: Shape of the masked autoencoder.
        preprocess: How images become model input.
        masking: Which tokens are hidden.
        augment: Training augmentation.
        optim: Optimiser and schedule.
    """

    data: DataConfig
    train: TrainConfig
    start: str | None = None
    out: Path = Path("runs/pretrain")
    model: ModelConfig = field(default_factory=ModelConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        self.data.refuse_labels()
        if self.model.synthesis.units and len(self.model.modalities) > MOST_MODALITIES:
            raise ConfigError(
                f"voxel-wise synthesis knows subsets of at most {MOST_MODALITIES} modalities, and model.modalities has "
                f"{len(self.model.modalities)}: set model.synthesis.units to 0"
            )


@dataclass(frozen=True)
class SegmentConfig:
    """A fine-tuning run for segmentation.

    Attributes:
        data: Which studies; those without a segmentation are left out.
        train: The loop.
        model: Pretrained weights: a folder, a hub id or a run folder; `scratch:RECIPE` starts from random weights.
        out: The run folder.
        width: Half the decoder's channels at half resolution; doubled at each further halving.
        decoder: `light`, or `unetr` with skips from the encoder's intermediate layers.
        fusion: How features of the available modalities become one: `mean_max`, `mean_variance` or `attention`.
        supervision: How many of the coarser resolutions predict the regions too.
        visible_share: Share of a sample's tokens that the encoder sees in training, drawn as in pretraining; in use it
            sees all. The convolutions see everything.
        hardest_share: Share of a window's voxels whose cross-entropy counts, those that are most wrong; 0.01 for small
            lesions, which all the others outvote.
        classes: Class name to label value, for segmentations of the user's own; instead of `data.labels`.
        regions: Region name to the label values that it unites; by default each of `classes` is a region.
        frozen: Leave the pretrained encoder as it is; `optim.frozen_steps` does so for a while.
        distill: What hard subsets learn from the full set.
        preprocess: How images become model input, if other than the pretrained weights know.
        augment: Training augmentation.
        optim: Optimiser and schedule.
    """

    data: DataConfig
    train: TrainConfig
    model: str
    out: Path = Path("runs/segmentation")
    width: int = 8
    decoder: Literal["light", "unetr"] = "light"
    fusion: FusionKind = "mean_max"
    supervision: int = 0
    visible_share: float = 0.25
    hardest_share: float = 1.0
    classes: dict[str, int] = field(default_factory=dict)
    regions: dict[str, list[int]] = field(default_factory=dict)
    frozen: bool = False
    distill: DistillConfig = field(default_factory=DistillConfig)
    preprocess: PreprocessChoice = field(default_factory=PreprocessChoice)
    augment: AugmentConfig = field(
        default_factory=lambda: AugmentConfig(modality_dropout=0.8, single_share=0.5, lesion_share=0.5)
    )
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ConfigError(f"width must be at least 1, got {self.width}")
        if not 0 < self.visible_share <= 1:
            raise ConfigError(f"visible_share must lie in (0, 1], got {self.visible_share}")
        if not 0 < self.hardest_share <= 1:
            raise ConfigError(f"hardest_share must lie in (0, 1], got {self.hardest_share}")
        _require_distillation(self.distill, self.augment)
        if self.classes and self.data.labels:
            raise ConfigError(f"give classes or data.labels ('{self.data.labels}'), not both")
        if len(set(self.classes.values())) < len(self.classes):
            raise ConfigError(f"each of classes needs a label value of its own, got {self.classes}")
        if self.frozen and self.model.startswith("scratch:"):
            raise ConfigError("frozen leaves the encoder as it is: random weights from scratch would never learn")
        if self.regions and not self.classes:
            raise ConfigError("regions unite the label values of classes: give classes too")


def _require_distillation(distill: DistillConfig, augment: AugmentConfig) -> None:
    if distill.weight and augment.modality_dropout:
        raise ConfigError(
            "distill.weight and augment.modality_dropout do not go together: the teacher has to see every "
            "modality. Set augment.modality_dropout to 0; distill.dropout takes its place"
        )
    if distill.weight and not distill.dropout:
        raise ConfigError(
            "distill.weight teaches subsets, and distill.dropout 0 draws none: set distill.dropout above 0, or "
            "distill.weight to 0"
        )
    if not distill.weight and distill != DistillConfig():
        raise ConfigError("distill.dropout and distill.single_share need distill.weight above 0, got 0")


def parse(kind: type[T], arguments: Sequence[str] | None = None) -> T:
    """Build a configuration from `--config FILE.yaml` and `--key.subkey value` arguments, later ones winning.

    Raises:
        ConfigError: Naming the key that is unknown or the value that does not fit.

    Paths may hold `~` and `$NAME`, which no shell expands in a YAML file.
    """
    from jsonargparse import ArgumentError, ArgumentParser, set_loader

    words = list(sys.argv[1:] if arguments is None else arguments)
    _refuse_empty(words)
    set_loader("yaml_once", _load_once, (yaml.YAMLError,))
    parser = ArgumentParser(
        exit_on_error=False,
        parser_mode="yaml_once",
        description=(kind.__doc__ or "").splitlines()[0],
        allow_abbrev=False,  # the beginning of a key is an unknown key
    )
    parser.add_argument("--config", action="config", help="YAML file of values; arguments after it win")
    parser.add_class_arguments(kind, as_group=False)
    try:
        given = parser.parse_args(words)
        _refuse_blanks(kind, given)
        parsed = parser.instantiate(given)
    except ArgumentError as error:
        raise ConfigError(_explain(str(error), list(_keys(kind)))) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"configuration: the file is not UTF-8 text ({error}): save it as UTF-8") from error
    return _expanded(kind(**{item.name: getattr(parsed, item.name) for item in fields(cast(Any, kind))}))


def script(main: Callable[[], int | None]) -> None:
    """Run a training script, and exit.

    Errors that the user can mend end in one line and exit code 2, without a traceback, and so does the loss of another
    process; SIGTERM, SIGUSR1 and SIGHUP before the training loop and after it in exit code 75, Ctrl-C in 130
    (in it, see `bmmae.training.signals`). Of the processes on a machine, which read the same data, the first one warns.
    """
    warnings.showwarning = print_warning if os.environ.get("LOCAL_RANK", "0") == "0" else _say_nothing
    try:
        with ScriptStop():
            code = main()
    except StoppedEarly as stop:
        print(f"stopped by {stop} outside the training loop: start the same command again to go on", file=sys.stderr)
        code = EXIT_STOPPED
    except KeyboardInterrupt:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise  # `bmmae.training.devices` then ends the process without waiting for the others
        print("interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except BmmaeError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except RuntimeError as error:
        if not tells_of_lost_process(error):
            raise
        print(
            "error: another process of this run has ended, and its own message says why, unless it was killed; start "
            "the same command again with --train.resume auto to go on from the last checkpoint",
            file=sys.stderr,
        )
        code = 2
    end_process(code or 0)


def _say_nothing(*_: object, **__: object) -> None:
    """For `warnings.showwarning`."""


def _expanded(config: T, prefix: str = "") -> T:
    """Expand `~` and `$NAME` in paths, and in names of models that may be paths.

    Raises:
        ConfigError: If a variable is not set: its name would become that of a folder.
    """
    changed: dict[str, Any] = {}
    for item in fields(cast(Any, config)):
        value, key = getattr(config, item.name), prefix + item.name
        if is_dataclass(value):
            changed[item.name] = _expanded(value, f"{key}.")
        elif isinstance(value, Path) or (isinstance(value, str) and re.match(r"~/|.*\$", value)):
            text = os.path.expandvars(os.path.expanduser(value))
            if unset := re.search(r"\$\{?\w+\}?", text):
                raise ConfigError(f"configuration key '{key}' is {value}, and {unset[0]} is not set in the environment")
            changed[item.name] = type(value)(text)
    return cast(T, replace(cast(Any, config), **changed))


def _load_once(text: str) -> Any:
    """Read YAML as jsonargparse does, but refuse a key that is given twice: the first would be lost."""
    from jsonargparse import get_loader

    try:
        root = yaml.compose(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # as jsonargparse chooses
    except yaml.YAMLError as error:
        if tab := re.search(r"^ *\t", text, re.MULTILINE):
            line = text.count("\n", 0, tab.start()) + 1
            raise ConfigError(f"configuration: line {line} is indented with a tab, and YAML takes blanks") from error
        raise
    _refuse_repeats(root)
    return get_loader("yaml")(text)


def _refuse_repeats(node: yaml.Node | None, prefix: str = "") -> None:
    lines: dict[str, int] = {}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        name, line = f"{prefix}{key.value}", key.start_mark.line + 1
        if name in lines:
            raise ConfigError(f"'{name}' is given twice, in lines {lines[name]} and {line}: keep one of them")
        lines[name] = line
        _refuse_repeats(value, f"{name}.")


def _refuse_empty(words: Sequence[str]) -> None:
    """Refuse empty values, as shells make of variables that are not set: an empty path would be the working folder."""
    for before, word in pairwise(["", *words]):
        if not word or re.fullmatch(r"--[\w.]+=", word):
            raise ConfigError(
                f"the value after {word or before} is empty: fill it in (is a variable of the shell not set?), or "
                "leave both out"
            )


def _refuse_blanks(kind: Any, given: Any, prefix: str = "") -> None:
    """Refuse null where a value is needed, which the parser takes for any type, and a value where keys are expected."""
    hints = get_type_hints(kind)
    for item in fields(kind):
        value, key, hint = getattr(given, item.name), prefix + item.name, hints[item.name]
        if is_dataclass(hint):
            if not hasattr(value, "__dict__"):
                shown = "null" if value is None else value
                raise ConfigError(
                    f"configuration key '{key}' holds keys of its own, got {shown}: write them below it or leave it out"
                )
            _refuse_blanks(hint, value, f"{key}.")
        elif value is None and type(None) not in get_args(hint):
            what = "a path" if hint is Path else "a value"
            raise ConfigError(f"configuration key '{key}' needs {what}, got null: fill it in, or leave the key out")


def _keys(kind: Any, prefix: str = "") -> Iterator[str]:
    """Every key of a nested dataclass, dotted."""
    hints = get_type_hints(kind)
    for item in fields(kind):
        yield prefix + item.name
        if is_dataclass(hints[item.name]):
            yield from _keys(hints[item.name], f"{prefix}{item.name}.")


def _explain(message: str, known: list[str]) -> str:
    """Turn the parser's message into one sentence, with the nearest known key if a key is unknown."""
    line = " ".join(message.split())
    in_file = re.search(r"(?:[Gg]roup '([\w.]+)' )?does not accept option '([\w.]+)'", line)
    in_file = in_file or re.search(r"Option ()'([\w.]+)' is not accepted", line)
    in_arguments = re.search(r"unrecognized arguments: --([\w.]+)", line)
    if in_file is None and in_arguments is None:
        return f"configuration: {_in_plain_words(line)}"
    key = ".".join(part for match in (in_file, in_arguments) if match for part in match.groups() if part)
    if key in known:  # jsonargparse appends by `--key+`, to some types of lists
        return f"configuration key '{key}' cannot be added to: give the whole list, as in --{key} '[a, b]'"
    last = key.rsplit(".", 1)[-1]
    elsewhere = [name for name in known if name.rsplit(".", 1)[-1] == last]  # `lr`, `train.lr`: right but for its place
    near = difflib.get_close_matches(key, elsewhere, n=1, cutoff=0) or difflib.get_close_matches(key, known, n=1)
    near = near or difflib.get_close_matches(last, known, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"unknown configuration key '{key}'.{hint} See --help for all keys"


def _in_plain_words(line: str) -> str:
    """Say which value does not fit as YAML writes types, without the parser's list of what it tried."""
    line = re.sub(
        r"Does not validate .* Subtypes: \[(.*?\]?)\] Errors: .* Given value: ", r"Expected \1. Got value: ", line
    )
    if line.startswith("Unexpected config:"):
        return "the file of --config holds no value of any key: expected YAML such as `train: {steps: 1000}`"
    group = re.match(r"Parser key \"([\w.]+)\": Unable to load config '(.*?)'", line)
    if group is not None:
        weights = "; weights to go on from are named by --start" if group[1] == "model" else ""
        return f"'{group[1]}' holds keys of its own, and '{group[2]}' is no YAML file of them{weights}"
    line = re.sub(r"<class '(\w+)'>", r"\1", line).replace("NoneType", "null")
    line = re.sub(r"(?:\ba )?typing\.Literal", "one of ", line).replace(' in "<unicode string>", line', " in line")
    line = line.replace("Expected a tuple", "Expected a list")
    if listed := re.search(r"Expected a list\b.*\. Got value: (?!None$)([^\[{].*)$", line):
        return f"{line}: write '[{', '.join(listed[1].replace(',', ' ').split())}]'"
    if line.endswith("Got value: False") and "'no'" in line:
        return f"{line}, as which YAML reads a bare no: write 'no', in quotes"
    return line
