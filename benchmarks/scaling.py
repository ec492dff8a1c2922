"""Two processes against one: weak-scaling efficiency, and that both compute the same.

python benchmarks/scaling.py [--parts efficiency agreement]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from harness import Figure, arguments, figure, parse, seconds, write_result

ACCUMULATE = 4
MARK = "RESULT "


def main() -> None:
    """Run, or with `--role` be one of the processes that are measured."""
    parser = arguments(__doc__)
    parser.add_argument("--parts", nargs="+", default=["efficiency", "agreement"])
    parser.add_argument("--role", choices=("efficiency", "agreement"), help=argparse.SUPPRESS)
    parser.add_argument("--accumulate", type=int, default=ACCUMULATE, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parse(parser)
    if given.role:
        ROLES[given.role](given)
        return
    headline: dict[str, Figure] = {}
    rows: list[dict[str, Any]] = []
    if "efficiency" in given.parts:
        measure_efficiency(given, headline, rows)
    if "agreement" in given.parts:
        measure_agreement(given, headline, rows)
    write_result("scaling", quick=given.quick, runs=given.runs, headline=headline, rows=rows)


def launch(role: str, world: int, given: argparse.Namespace, *options: str) -> list[str]:
    """Start `world` processes of one thread each; return what each printed after the mark."""
    command = [sys.executable, __file__, "--role", role, "--threads", "1", *options]
    command += ["--quick"] if given.quick else []
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    if world > 1:
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world)}
    runs = []
    for rank in range(world):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {}
        runs.append(subprocess.Popen(command, env=shared | own, stdout=subprocess.PIPE, text=True))
    printed = [process.communicate()[0] for process in runs]
    if any(process.returncode for process in runs):
        raise RuntimeError(f"{role} with {world} processes failed")
    return [line.removeprefix(MARK) for text in printed for line in text.splitlines() if line.startswith(MARK)]


def measure_efficiency(given: argparse.Namespace, headline: dict[str, Figure], rows: list[dict[str, Any]]) -> None:
    """Each process has the same work; efficiency is the time of one alone over the time of two side by side."""
    for accumulate in (ACCUMULATE, 1):
        efficiencies = []
        for _ in range(given.runs):
            took = {}
            for world in (1, 2):
                printed = launch("efficiency", world, given, "--accumulate", str(accumulate))
                took[world] = max(json.loads(line) for line in printed)
            efficiencies.append(took[1] / took[2])
            rows.append({"part": "efficiency", "accumulate": accumulate, "one": took[1], "two": took[2]})
            print(rows[-1])
        name = "two_process_efficiency" if accumulate > 1 else "two_process_efficiency_without_accumulation"
        headline[name] = figure(efficiencies, asked=0.9 if accumulate > 1 else None, floor=1.0, unit="share")


def be_timed(given: argparse.Namespace) -> None:
    """Take optimiser steps on noise, with gradients brought together once a step; print the median seconds."""
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from step_contestants import load_inputs, shipped

    from bmmae.model.mae import MAE
    from bmmae.tasks.reconstruction import ReconstructionTask
    from bmmae.training.optim import OptimConfig, make_optimizer

    accelerator = Accelerator(
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=False, gradient_as_bucket_view=True)]
    )
    if accelerator.num_processes != int(os.environ.get("WORLD_SIZE", "1")):
        raise RuntimeError(f"each process sees {accelerator.num_processes} processes")
    batch = load_inputs(None, given.quick, 1).ours[0]
    torch.manual_seed(0)
    model = MAE(shipped(given.quick).model)
    wrapped, task = accelerator.prepare_model(model), ReconstructionTask(model.config)
    optimizer = make_optimizer(model, OptimConfig())

    def micro() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            output = task.step(wrapped, batch)
        (output.loss_sum / output.loss_count).backward()  # type: ignore[no-untyped-call]

    def step() -> None:
        for number in range(given.accumulate):
            last = number == given.accumulate - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(wrapped):
                micro()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    accelerator.wait_for_everyone()
    print(f"{MARK}{statistics.median(seconds(step) for _ in range(3))}", flush=True)
    accelerator.wait_for_everyone()
    accelerator.end_training()


def measure_agreement(given: argparse.Namespace, headline: dict[str, Figure], rows: list[dict[str, Any]]) -> None:
    """Train `tiny` on the same global batches in one and in two processes, and compare the losses of 20 steps."""
    losses = {}
    with tempfile.TemporaryDirectory() as folder:
        for world in (1, 2):
            run = Path(folder) / str(world)
            launch("agreement", world, given, "--folder", str(run), "--accumulate", str(2 // world))
            lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            losses[world] = [line["train/loss"] for line in lines if "train/loss" in line]
    if len(losses[1]) != len(losses[2]) or not losses[1]:
        raise RuntimeError(f"one process wrote {len(losses[1])} losses, two wrote {len(losses[2])}")
    differences = [abs(one - two) / abs(one) for one, two in zip(losses[1], losses[2], strict=True)]
    rows.append({"part": "agreement", "steps": len(differences), "first": losses[1][0], "last": losses[1][-1]})
    headline["two_process_loss_difference"] = figure(
        [max(differences)], asked=1e-5, floor=0.0, unit="relative, lower is better"
    )


def be_trained(given: argparse.Namespace) -> None:
    """Train `tiny` in float32 through the loop that users run."""
    from step_contestants import NoiseDataset

    from bmmae.model.config import recipe
    from bmmae.model.mae import MAE
    from bmmae.tasks.reconstruction import ReconstructionTask
    from bmmae.training import OptimConfig, TrainConfig, fit

    torch.manual_seed(0)
    model = MAE(recipe("tiny"))
    steps = 4 if given.quick else 20
    train = TrainConfig(
        steps=steps,
        batch_size=2,
        accumulate=given.accumulate,
        precision="no",
        workers=0,
        log_every=1,
        progress=False,
        checkpoint_every=steps,
    )
    fit(
        model,
        ReconstructionTask(model.config),
        NoiseDataset(model.config),
        None,
        train=train,
        optim=OptimConfig(lr=1e-3, warmup_steps=2),
        run_dir=given.folder,
        save_model=MAE.save_pretrained,
    )


ROLES = {"efficiency": be_timed, "agreement": be_trained}

if __name__ == "__main__":
    main()
