"""What is packed comes out as it went in, wherever the modalities go."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bmmae.arrays import Array
from bmmae.data.loaders import collate
from bmmae.data.packing import PackedStudy, flag_type, pack_flags, pack_sample, packed_tokens, unpack, unpack_arrays
from bmmae.patches import any_in_patch


def random_sample(modalities: int, size: tuple[int, int, int] = (8, 8, 16)) -> dict[str, Array]:
    rng = np.random.default_rng(modalities)
    return {
        "images": rng.normal(size=(modalities, *size)).astype(np.float16).astype(np.float32),
        "valid": rng.random((modalities, *size)) < 0.5,
        "brain": rng.random(size) < 0.5,
        "available": np.ones(modalities, bool),
    }


def equal(first: dict[str, Array], second: dict[str, Array]) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("modalities", [1, 4, 7, 8, 30, 31, 40])
def test_unpacking_undoes_packing(modalities: int) -> None:
    sample = random_sample(modalities)
    packed = pack_sample(sample)
    assert equal(unpack_arrays(packed), sample)
    tensors = unpack({key: torch.from_numpy(array) for key, array in packed.items()})
    assert equal({key: tensor.numpy() for key, tensor in tensors.items()}, sample)


def test_a_batch_is_unpacked_like_its_samples() -> None:
    samples = [pack_sample(random_sample(4)), pack_sample(random_sample(4))]
    batch = unpack(collate(samples))
    for index, sample in enumerate(samples):
        assert equal({key: value[index].numpy() for key, value in batch.items()}, unpack_arrays(sample))


def test_what_is_not_packed_is_left_alone() -> None:
    batch = {"images": torch.zeros(1), "subject": ["a"]}
    assert unpack(batch) == batch


def test_half_the_bytes_travel() -> None:
    sample = random_sample(4)
    stored = {**pack_sample(sample), "images": sample["images"].astype(np.float16)}
    assert sum(array.nbytes for array in stored.values()) < 0.45 * sum(array.nbytes for array in sample.values())


def test_four_modalities_fit_into_a_byte() -> None:
    assert [flag_type(count) for count in (4, 7, 8, 31)] == [np.uint8, np.uint8, np.int32, np.int64]


@pytest.mark.parametrize("tissue_only", [True, False])
@pytest.mark.parametrize("patch", [(8, 8, 8), (4, 2, 16), (1, 8, 4)])
def test_tokens_are_patches_with_any_flagged_voxel(patch: tuple[int, int, int], tissue_only: bool) -> None:
    sample = random_sample(4)
    sample["valid"] &= np.random.default_rng(1).random((4, 8, 8, 16)) < 0.01
    flags = pack_flags(sample["valid"], sample["brain"])
    expected = any_in_patch(sample["valid"] & sample["brain"] if tissue_only else sample["valid"], patch)
    assert np.array_equal(packed_tokens(flags, 4, patch, tissue_only=tissue_only), expected)
    assert expected.any()
    assert not expected.all()


@pytest.mark.parametrize("stored", [("t1", "t2"), ("t2", "t1"), ("t2",)])
@pytest.mark.parametrize("start", [(0, 0, 0), (-2, 3, 1)])
@pytest.mark.parametrize("extra", [0, 8])
def test_modalities_go_to_their_slots(stored: tuple[str, ...], start: tuple[int, int, int], extra: int) -> None:
    """With eight modalities more than the study has, flags need a wider type than it is stored in."""
    sample = random_sample(len(stored))
    label = sample["brain"].astype(np.int16)
    flags = pack_flags(sample["valid"], sample["brain"])
    study = PackedStudy(stored, sample["images"].astype(np.float16), flags, label, np.zeros((0, 3), np.int16))
    slots = ("t1", "flair", *(f"m{number}" for number in range(extra)), "t2")
    cut = unpack_arrays(study.sample(start, (8, 4, 8), slots))
    window = study.window(start, (8, 4, 8))
    assert cut["available"].tolist() == [name in stored for name in slots]
    assert np.array_equal(cut["brain"], window.brain)
    assert window.label is not None
    assert np.array_equal(cut["label"], window.label)
    for slot, name in enumerate(slots):
        if name in stored:
            assert np.array_equal(cut["images"][slot], window.images[stored.index(name)])
            assert np.array_equal(cut["valid"][slot], window.valid[stored.index(name)])
        else:
            assert not cut["images"][slot].any()
            assert not cut["valid"][slot].any()


def test_a_label_that_is_not_wanted_is_not_read() -> None:
    sample = random_sample(1)
    study = PackedStudy(
        ("t1",),
        sample["images"].astype(np.float16),
        pack_flags(sample["valid"], sample["brain"]),
        np.zeros((8, 8, 16), np.int16),
        np.zeros((0, 3), np.int16),
    )
    assert "label" not in study.sample((0, 0, 0), (8, 8, 8), ("t1",), labelled=False)
