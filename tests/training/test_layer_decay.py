"""Learning rates fall from the heads down to the embedding, in the models that are trained."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import nn

from bmmae.model.config import EncoderConfig, ModelConfig
from bmmae.model.mae import MAE
from bmmae.model.segmentation import SegmentationConfig, SegmentationModel
from bmmae.training.optim import OptimConfig, make_optimizer, set_learning_rate

SHAPE = replace(ModelConfig(patch=(8, 8, 8), size=(16, 16, 16)), encoder=EncoderConfig(dim=24, depth=2, heads=2))


@pytest.mark.parametrize("model", [MAE(SHAPE), SegmentationModel(SegmentationConfig(SHAPE))], ids=lambda m: m.kind)
def test_rates_fall_with_depth(model: nn.Module) -> None:
    optimizer = make_optimizer(model, OptimConfig(layer_decay=0.5))
    set_learning_rate(optimizer.param_groups, 1.0)
    rates = {id(value): group["lr"] for group in optimizer.param_groups for value in group["params"]}
    decays = {id(value): group["weight_decay"] for group in optimizer.param_groups for value in group["params"]}
    by_name = {name: rates[id(value)] for name, value in model.named_parameters()}
    expected = {"encoder.embedding.": 0.125, "encoder.cls_token": 0.125, "encoder.blocks.0.": 0.25}
    expected |= {"encoder.blocks.1.": 0.5, "encoder.norm.": 0.5}
    for name, rate in by_name.items():
        assert rate == next((value for start, value in expected.items() if name.startswith(start)), 1.0), name
    plain = model.no_weight_decay()  # type: ignore[operator]
    assert all(decays[id(value)] == 0 for name, value in model.named_parameters() if name in plain)
