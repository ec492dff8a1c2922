"""What every model that can be saved and shared has in common."""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_type_hints

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import nn

from bmmae._version import __version__
from bmmae.card import model_card
from bmmae.errors import CheckpointError, ConfigError
from bmmae.hub import fetch_model, hub_errors
from bmmae.keys import KeyReport, load_state, require_finite
from bmmae.modalities import table_names
from bmmae.model.config import ModelConfig
from bmmae.model_folder import WEIGHTS, SavedConfig, read_config, read_weights, write_folder
from bmmae.schema import from_dict, to_dict

Model = TypeVar("Model", bound="PretrainedModel")


@dataclass(frozen=True)
class ModelMetadata:
    """What travels with the weights beside the model's own config, as JSON holds it.

    Attributes:
        preprocessing: How images become input; typed by `bmmae.checkpoint.preprocessing_of`.
        provenance: What it was trained on and how; typed by `bmmae.checkpoint.provenance_of`.
    """

    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)


class PretrainedModel(nn.Module, PyTorchModelHubMixin):
    """A model that is built from its config alone, saved as a folder and shared through a hub.

    A subclass names its `kind` and takes one argument, `config`, annotated with its dataclass: `ModelConfig`, or one
    with a `ModelConfig` among its fields. Without a kind of its own it is saved as the class that it derives from, and
    is loaded by its own `from_pretrained` alone. The hub mixin's loading is replaced: that one loads what fits, prints,
    and falls back to pickles.

    Attributes:
        kind: What config.json calls the class.
        config: Its shape.
        metadata: What travels with the weights.
        key_report: What became of the keys when it was loaded, or None.
    """

    kind: ClassVar[str] = ""
    registry: ClassVar[dict[str, type[PretrainedModel]]] = {}
    config: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.__dict__.get("kind"):  # who derives from a model without a new kind does not stand in for it
            return
        known = cls.registry.get(cls.kind, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ConfigError(
                f"{cls.__name__} cannot be of kind '{cls.kind}', which is {known.__module__}.{known.__qualname__}: "
                "give it a kind of its own"
            )
        cls.registry[cls.kind] = cls

    def __init__(self) -> None:
        super().__init__()
        self.metadata = ModelMetadata()
        self.key_report: KeyReport | None = None

    @classmethod
    def config_class(cls) -> type[Any]:
        """Return the dataclass of this class's config.

        Raises:
            ConfigError: If its argument `config` is not annotated with one.
        """
        kind: type[Any] | None = get_type_hints(cls.__init__).get("config")
        if not is_dataclass(kind):
            raise ConfigError(f"{cls.__name__}.__init__ must annotate its argument config with a dataclass, got {kind}")
        return kind

    @classmethod
    def checked(cls, config: Any) -> Any:
        """Return a config if it is this class's.

        Raises:
            ConfigError: If it is of another class: the models' configs hold one another.
        """
        wanted = cls.config_class()
        if not isinstance(config, wanted):
            raise ConfigError(f"{cls.__name__} takes a {wanted.__name__}, got {_said(config)}")
        return config

    @classmethod
    def from_config(cls: type[Model], config: Any) -> Model:
        """Build a model with new weights."""
        build: Callable[[Any], Model] = cls
        return build(config)

    @property
    def model_config(self) -> ModelConfig:
        """The encoder's shape and the modalities, wherever in the config they stand."""
        return find_model_config(self.config)

    def saved_config(self) -> SavedConfig:
        """Return what config.json will hold."""
        return SavedConfig(
            kind=self.kind,
            model=to_dict(self.config),
            preprocessing=dict(self.metadata.preprocessing),
            provenance=dict(self.metadata.provenance),
        )

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        config: object = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: object = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Save config.json, model.safetensors and the model card, all or nothing.

        Args:
            save_directory: Folder to write; a model that is already there is replaced.
            config: Not used: a model's own config is what is saved.
            repo_id: Where to push to; by default the folder's name.
            push_to_hub: Push the model as well.
            model_card_kwargs: Not used: the card is written from the metadata.
            **push_to_hub_kwargs: Passed to `push_to_hub`.

        Returns:
            The commit's address if the model was pushed.

        Raises:
            ConfigError: If a config or card arguments are given.
            OutputError: If the folder cannot be written.
            HubError: If the push fails.
        """
        if config is not None or model_card_kwargs is not None:
            raise ConfigError(
                "save_pretrained takes no config and no card arguments: it saves model.config and model.metadata"
            )
        folder = Path(save_directory)
        saved = self.saved_config()
        card = model_card(saved, self.model_config.modalities, self.parameter_count())
        write_folder(folder, saved, self.state_dict(), card)
        return self.push_to_hub(repo_id or folder.name, **push_to_hub_kwargs) if push_to_hub else None

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload the saved folder as one commit; creates the repository if there is none.

        Args:
            repo_id: `org/name`.
            **kwargs: Those of the hub mixin: `private`, `token`, `branch`, `commit_message`, `create_pr` ...

        Returns:
            The commit's address.

        Raises:
            HubError: If the hub cannot be reached or refuses.
        """
        with hub_errors(repo_id, pushing=True):
            return super().push_to_hub(repo_id, **kwargs)

    def parameter_count(self) -> int:
        """Return how many trainable values the model has."""
        return sum(parameter.numel() for parameter in self.parameters())

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        partial: bool = False,
        **model_kwargs: Any,
    ) -> PretrainedModel:
        """Load a model folder or a hub repository, strictly and silently.

        Args:
            pretrained_model_name_or_path: A folder, or `org/name`.
            force_download: Fetch the files again though the cache has them.
            token: The hub's access token.
            cache_dir: Where downloads are kept.
            local_files_only: Use the cache alone.
            revision: Branch, tag or commit.
            partial: Load the keys that fit and leave the others; see `key_report`.
            **model_kwargs: None are taken.

        Returns:
            The model in eval mode, of the class that its config names, or of this one if that derives from it without a
            kind of its own.

        Raises:
            HubError: If it cannot be fetched.
            CheckpointError: If it is not a saved model, does not fit, or is of another class.
        """
        if model_kwargs:
            raise ConfigError(f"from_pretrained takes no {', '.join(model_kwargs)}: a model's shape is in its config")
        folder = Path(pretrained_model_name_or_path).expanduser()
        if not folder.is_dir():
            folder = fetch_model(
                str(pretrained_model_name_or_path),
                revision,
                force_download=force_download,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
            )
        return cls._from_folder(folder, partial)

    @classmethod
    def _from_folder(cls, folder: Path, partial: bool) -> PretrainedModel:
        saved = read_config(folder)
        target = class_of_kind(saved.kind)
        target = cls if cls.kind == saved.kind and issubclass(cls, target) else target
        if not issubclass(target, cls):
            raise CheckpointError(
                f"{folder} holds a model of kind '{saved.kind}', expected '{cls.kind}': load it with bmmae.load_model"
            )
        try:
            config = from_dict(target.config_class(), saved.model, "model")
            # Initial weights are drawn, and then overwritten: the caller's random state stays as it was.
            with torch.random.fork_rng(devices=[]):
                model = target.from_config(config)
        except ConfigError as error:
            raise CheckpointError(
                f"the config of {folder}, written by bmmae {saved.bmmae_version}, describes no model of this library: "
                f"{error}"
            ) from error
        _check_order(config, saved, folder)
        weights = read_weights(folder / WEIGHTS)
        # A new model's own infinities are meant, such as those of a mask for attention.
        meant = {name for name, buffer in model.named_buffers() if not bool(buffer.isfinite().all())}
        require_finite({key: value for key, value in weights.items() if key not in meant}, str(folder / WEIGHTS))
        model.key_report = load_state(model, weights, str(folder), partial=partial)
        model.metadata = ModelMetadata(saved.preprocessing, saved.provenance)
        return model.eval()


def _check_order(config: Any, saved: SavedConfig, folder: Path) -> None:
    """Refuse weights that a library with another table of modalities laid out: each would be another's.

    Raises:
        CheckpointError: If the config lists the modalities in another order than they get here.
    """
    ours = find_model_config(config).modalities
    place = None if config is find_model_config(config) else name_of_model_config(config)
    listed = (saved.model if place is None else saved.model.get(place, {})).get("modalities", ours)
    if table_names(listed) != ours:
        raise CheckpointError(
            f"the config of {folder}, written by bmmae {saved.bmmae_version}, has the modalities {', '.join(listed)}, "
            f"which bmmae {__version__} puts in the order {', '.join(ours)}: the weights of one would be taken for "
            "another's. Load it with the version that wrote it; in a config written by hand, list them in that order, "
            "and the weights as well"
        )


def _said(value: object) -> str:
    """Name what came in place of a config; a text may be meant as a recipe's or a model's name."""
    if isinstance(value, str | Path):
        return f"'{value}': build a new model of bmmae.recipe(...), or load one with bmmae.load_model(...)"
    return f"a {type(value).__name__}"


def find_model_config(config: Any) -> ModelConfig:
    """Return the `ModelConfig` that a config is or holds.

    Raises:
        ConfigError: If it holds none.
    """
    if isinstance(config, ModelConfig):
        return config
    values = [getattr(config, item.name) for item in fields(config)] if is_dataclass(config) else []
    for value in values:
        if isinstance(value, ModelConfig):
            return value
    raise ConfigError(f"{type(config).__name__} holds no ModelConfig")


def with_model_config(config: Any, new: ModelConfig) -> Any:
    """Return a config with another `ModelConfig` in the place of the one that it is or holds."""
    old = find_model_config(config)
    if config is old:
        return new
    return replace(config, **{name_of_model_config(config): new})


def name_of_model_config(config: Any) -> str:
    """Return the field of a config that holds its `ModelConfig`."""
    old = find_model_config(config)
    return next(item.name for item in fields(config) if getattr(config, item.name) is old)


def digest(model: PretrainedModel) -> str:
    """Return the sha256 of a model: of its weights, its shape and how its input is prepared."""
    saved = model.saved_config()
    total = hashlib.sha256(json.dumps([saved.model, saved.preprocessing], sort_keys=True, default=str).encode())
    for name, value in model.state_dict().items():
        total.update(name.encode())
        total.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def class_of_kind(kind: str) -> type[PretrainedModel]:
    """Return the model class of a kind.

    Raises:
        CheckpointError: If no class of this library has it.
    """
    if kind not in PretrainedModel.registry:
        package = importlib.import_module("bmmae.model")
        for module in pkgutil.iter_modules(package.__path__, "bmmae.model."):
            importlib.import_module(module.name)
    if kind not in PretrainedModel.registry:
        known = ", ".join(sorted(PretrainedModel.registry))
        raise CheckpointError(
            f"unknown kind of model '{kind}': this library has {known}. A newer one may have it, or a "
            "module that is not imported."
        )
    return PretrainedModel.registry[kind]
