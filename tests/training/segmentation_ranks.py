"""One of two ranks that share a segmentation model's weights and distil; `test_sharding.py` starts it."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_models import flags, tiny_segmentation, volumes

from bmmae.tasks.segmentation import DistillConfig, SegmentationTask
from bmmae.training.devices import end_process
from bmmae.training.optim import OptimConfig, make_optimizer
from bmmae.training.sharding import shard


def main() -> None:
    """Train three steps: the first rank has four modalities to take some away from, the second has one."""
    dist.init_process_group("gloo")
    rank, accelerator = dist.get_rank(), SimpleNamespace(device=torch.device("cpu"), num_processes=2)
    model = tiny_segmentation()
    before = model.heads[0].around.weight.detach().clone()
    optim = OptimConfig(kind="muon_convolutions")
    sharded = shard(model, make_optimizer(model, optim), partial(make_optimizer, config=optim), accelerator)
    task = SegmentationTask(model.config, DistillConfig(weight=1.0, dropout=1.0), seed=1)
    available = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]][rank]).bool().expand(2, -1)
    for step in range(3):
        batch = {
            "images": volumes(2),
            "available": available,
            "valid": available[:, :, None, None, None].expand(-1, -1, 16, 16, 16),
            "label": flags(2, 3, 16, 16, 16, share=0.1),
            "brain": flags(2, 16, 16, 16, share=0.5),
            "address": [(step, index) for index in range(2)],
        }
        output = task.step(sharded.model, batch)
        (output.loss_sum / output.loss_count).backward()
        sharded.optimizer.step()
        sharded.optimizer.zero_grad()
    sharded.refresh()
    assert not torch.equal(sharded.whole.heads[0].around.weight, before)
    dist.destroy_process_group()
    end_process(0)


if __name__ == "__main__":
    main()
