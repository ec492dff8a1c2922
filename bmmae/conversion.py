"""The published weights: from the authors' state dict to a model of this library, value by value."""

from __future__ import annotations

import itertools
import math
import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bmmae.arrays import Tensor
from bmmae.errors import CheckpointError, ConfigError, ModalityError, few
from bmmae.keys import KeyReport, compare, require_complete, require_finite, strip_prefixes
from bmmae.modalities import in_table_order, table_names
from bmmae.model.config import DecoderConfig, EncoderConfig, ModelConfig
from bmmae.model.embed import sincos_positions
from bmmae.model.mae import MAE
from bmmae.model_folder import pointer_told
from bmmae.patches import Triple, as_triple, patch_grid

PUBLISHED_HEADS = 12
"""Attention heads of encoder and decoder alike: the one number that leaves no trace in the shapes."""

_DEAD = re.compile(r"\.(norm_cross_attn|cross_attn)\.")
"""Parameters that later MONAI versions put into every block, and that self-attention never reads."""

_POSITIONS = "position_embeddings"
_PATCHES = re.compile(r"tokenizers\.(\w+)\.patch_embedding\.patch_embeddings\.(weight|bias)")
_OF_MODALITY = re.compile(r"^(tokenizers|decoder\.modality_embeddings)\.(\w+)")
_DECODER_MODALITY = re.compile(r"decoder\.modality_embeddings\.(\w+)")
_RENAMED = (
    (re.compile(r"^decoder\.mask_tokens$"), "decoder.mask_token"),
    (re.compile(r"^decoder\.decoder_pred\."), "head."),
    (re.compile(r"^decoder\.decoder_"), "decoder."),
    (re.compile(r"^(blocks\.|norm\.|cls_token$)"), r"encoder.\1"),
    (re.compile(r"\.attn\.out_proj\."), ".attn.proj."),
    (re.compile(r"\.mlp\.linear(\d)\."), r".mlp.fc\1."),
)
_TOLERANCE = 1e-4
"""Of position tables in float32; one of less precision may be as far off as its rounding."""


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Read a PyTorch file's state dict without running what it contains.

    Raises:
        CheckpointError: If the file is absent, holds more than tensors, is truncated, or has no state dict.
    """
    try:
        with warnings.catch_warnings():
            # A pickle written by another protocol warns before it is judged; the judgement is what counts.
            warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}") from None
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(path, str(error))) from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except (RuntimeError, EOFError, ValueError, LookupError, struct.error) as error:
        raise CheckpointError(f"{path} is truncated or damaged: download it again") from error
    return _state_dict(content, path)


def _refusal(path: Path, reason: str) -> str:
    if told := pointer_told(path):
        return f"cannot read {path}: {told}"
    with path.open("rb") as file:
        plain_pickle = file.read(1) == pickle.PROTO
    if plain_pickle or "Unsupported global" in reason or "Unsupported class" in reason:
        return (
            f"{path} is refused: besides tensors it contains Python objects, and loading those can run any code. Ask "
            "its author for a plain state dict or a safetensors file"
        )
    return f"{path} is no PyTorch file, or is damaged: download it again"


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """Find the state dict in what a training script saved."""
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        held = f"a dict of {few(map(str, content))}" if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            f"{path} holds no state dict: expected tensors by name, got {held}; they may stand under state_dict, "
            "model_state_dict or model"
        )
    return strip_prefixes({str(key): value for key, value in content.items()})


def convert_state(state: Mapping[str, Tensor], source: str, *, partial: bool = False) -> MAE:
    """Build the model that a published state dict describes, with its values.

    The published encoder has no modality embedding: ours is zero. Modalities spelt otherwise than in the table (`t1c`,
    `FLAIR`) get its names.

    Args:
        state: By the authors' key names, prefixes removed.
        source: How messages name where it came from.
        partial: Keep new weights where keys are missing or misshapen.

    Returns:
        The model in eval mode; `key_report` says what became of the keys.

    Raises:
        CheckpointError: If it is of another architecture, its position tables are not the fixed ones, keys are
            missing, unexpected or misshapen, or values are NaN or infinite.
    """
    state = _with_table_names(state)
    config = infer_config(state, source)
    dead = [key for key in state if _DEAD.search(key)]
    kept = {key: value for key, value in state.items() if key not in dead}
    report = compare(kept, published_shapes(config), dead)
    if not partial:
        require_complete(report, source, "the published architecture")
    require_finite(kept, source)
    tables = [key for key in report.loaded if _POSITIONS in key]
    _check_tables({key: kept[key] for key in tables}, config, source)
    with torch.random.fork_rng(devices=[]):
        model = MAE(config)
    _fill(model, {key: kept[key] for key in report.loaded if key not in tables})
    model.key_report = KeyReport(
        loaded=tuple(key for key in report.loaded if key not in tables),
        missing=report.missing,
        unexpected=report.unexpected,
        misshapen=report.misshapen,
        dropped=(*dead, *tables),
    )
    return model.eval()


def _with_table_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Call modalities as the table does, unless two would then be one."""
    names = {match[2] for key in state if (match := _OF_MODALITY.match(key))}
    ours = dict(zip(names, table_names(names), strict=True))
    return {_OF_MODALITY.sub(lambda match: f"{match[1]}.{ours[match[2]]}", key): state[key] for key in state}


def infer_config(state: Mapping[str, Tensor], source: str) -> ModelConfig:
    """Read modalities, dims, depths, patch and window off the shapes of a published state dict.

    Raises:
        CheckpointError: If it is of another architecture.
    """
    names = [match[1] for key in state if (match := _PATCHES.fullmatch(key)) and match[2] == "weight"]
    if "encoder.embedding.modality" in state:
        raise CheckpointError(
            f"{source} holds weights of this library without the config that says of which model: build that model, "
            "model.load_state_dict(torch.load(...)), and save it with bmmae.save_model(model, FOLDER)"
        )
    if not names or "cls_token" not in state:
        raise CheckpointError(
            f"{source} is no BM-MAE state dict: expected cls_token, tokenizers.<modality>.patch_embedding..., "
            f"blocks.0...; found {', '.join(list(state)[:6])}"
        )
    first = f"tokenizers.{names[0]}.patch_embedding."
    patch = tuple(state[first + "patch_embeddings.weight"].shape[2:])
    grid = _grid_of(state.get(first + _POSITIONS), source)
    try:
        return ModelConfig(
            modalities=in_table_order(names),
            patch=as_triple(patch),
            size=as_triple([g * p for g, p in zip(grid, patch, strict=True)]),
            encoder=_encoder_config(state),
            decoder=_decoder_config(state),
            tissue_only=False,
        )
    except (ConfigError, ModalityError, ValueError) as error:
        raise CheckpointError(f"the shapes of {source} describe no BM-MAE: {error}") from error


def _encoder_config(state: Mapping[str, Tensor]) -> EncoderConfig:
    dim = int(state["cls_token"].shape[-1])
    return EncoderConfig(dim, _depth(state, "blocks"), PUBLISHED_HEADS, _ratio(state, "blocks", dim))


def _decoder_config(state: Mapping[str, Tensor]) -> DecoderConfig:
    """Its shape, or the published one where the decoder is missing (which only a partial load accepts)."""
    published = DecoderConfig()
    if "decoder.mask_tokens" not in state:
        return published
    dim, blocks = int(state["decoder.mask_tokens"].shape[-1]), "decoder.decoder_blocks"
    depth = _depth(state, blocks) or published.depth
    return DecoderConfig(dim=dim, depth=depth, heads=PUBLISHED_HEADS, mlp_ratio=_ratio(state, blocks, dim))


def _depth(state: Mapping[str, Tensor], blocks: str) -> int:
    numbers = [int(m[1]) for key in state if (m := re.match(rf"{re.escape(blocks)}\.(\d+)\.", key))]
    return 1 + max(numbers, default=-1)


def _ratio(state: Mapping[str, Tensor], blocks: str, dim: int) -> float:
    hidden = state.get(f"{blocks}.0.mlp.linear1.weight")
    return 4.0 if hidden is None else hidden.shape[0] / dim


def _grid_of(table: Tensor | None, source: str) -> Triple:
    """Find the grid whose position table this is; without a table, the published 8 x 8 x 8."""
    if table is None:
        return (8, 8, 8)
    count = int(table.shape[-2])
    sides = [n for n in range(1, count + 1) if count % n == 0]
    # From the most cubic on: that is the likely one, and each trial computes a table.
    grids = [(h, w, count // (h * w)) for h, w in itertools.product(sides, sides) if count % (h * w) == 0]
    for grid in sorted(grids, key=sum):
        if _is_computed(table, grid):
            return grid
    raise CheckpointError(_other_tables(source, "tokenizers"))


def _check_tables(tables: Mapping[str, Tensor], config: ModelConfig, source: str) -> None:
    """The tables are dropped, because positions are computed: they must be what is computed."""
    grid = patch_grid(config.size, config.patch)
    for key, table in tables.items():
        if not _is_computed(table, grid):
            raise CheckpointError(_other_tables(source, key))


def _is_computed(table: Tensor, grid: Triple) -> bool:
    """Whether a table is that of a grid, as precisely as its numbers can say."""
    rounding = torch.finfo(table.dtype).eps if table.is_floating_point() else 0.0
    return torch.allclose(table[0].float(), sincos_positions(grid, table.shape[-1]), atol=max(_TOLERANCE, rounding))


def _other_tables(source: str, key: str) -> str:
    return (
        f"the position table of {source} ({key}) is not the fixed sine-cosine one of the published model: it was "
        "trained with other positions, which this library does not have"
    )


def published_shapes(config: ModelConfig) -> dict[str, Tensor]:
    """Return the published state dict's keys, each with a tensor of its shape that holds no memory."""
    encoder, decoder = config.encoder, config.decoder
    places, voxels = math.prod(patch_grid(config.size, config.patch)), math.prod(config.patch)
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, encoder.dim)}
    for name in config.modalities:
        prefix = f"tokenizers.{name}.patch_embedding."
        shapes[prefix + _POSITIONS] = (1, places, encoder.dim)
        shapes[prefix + "patch_embeddings.weight"] = (encoder.dim, 1, *config.patch)
        shapes[prefix + "patch_embeddings.bias"] = (encoder.dim,)
        shapes[f"decoder.modality_embeddings.{name}"] = (1, 1, decoder.dim)
    shapes["decoder.mask_tokens"] = (1, 1, decoder.dim)
    shapes[f"decoder.{_POSITIONS}"] = (1, places, decoder.dim)
    shapes |= _linear("decoder.decoder_embed", encoder.dim, decoder.dim)
    shapes |= _linear("decoder.decoder_pred", decoder.dim, voxels)
    shapes |= _norm("decoder.decoder_norm", decoder.dim) | _norm("norm", encoder.dim)
    for stem, part in (("blocks", encoder), ("decoder.decoder_blocks", decoder)):
        for number in range(part.depth):
            shapes |= _block(f"{stem}.{number}", part.dim, int(part.dim * part.mlp_ratio))
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, dim: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def _block(name: str, dim: int, hidden: int) -> dict[str, tuple[int, ...]]:
    return (
        _linear(f"{name}.mlp.linear1", dim, hidden)
        | _linear(f"{name}.mlp.linear2", hidden, dim)
        | _norm(f"{name}.norm1", dim)
        | _linear(f"{name}.attn.out_proj", dim, dim)
        | _linear(f"{name}.attn.qkv", dim, 3 * dim)
        | _norm(f"{name}.norm2", dim)
    )


@torch.no_grad()
def _fill(model: MAE, published: Mapping[str, Tensor]) -> None:
    """Copy each published value to where it belongs."""
    ours = model.state_dict()
    ours["encoder.embedding.modality"].zero_()
    for key, value in published.items():
        name, modality = destination(key)
        slot = ours[name] if modality is None else ours[name][model.config.modalities.index(modality)]
        slot.copy_(value.reshape(slot.shape))


def destination(key: str) -> tuple[str, str | None]:
    """Return our name of a published key, and the modality if it is one modality's slice."""
    if match := _PATCHES.fullmatch(key):
        return f"encoder.embedding.{match[2]}", match[1]
    if match := _DECODER_MODALITY.fullmatch(key):
        return "decoder.modality", match[1]
    for pattern, replacement in _RENAMED:
        key = pattern.sub(replacement, key)
    return key, None
