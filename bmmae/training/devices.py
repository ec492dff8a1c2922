"""Device, processes and precision, by Accelerate; and the little that ranks tell each other."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch import Tensor

from bmmae.data.loaders import Batch
from bmmae.data.packing import unpack
from bmmae.errors import BmmaeError, ConfigError, TrainingError
from bmmae.training.plan import TrainConfig
from bmmae.training.resume import Progress

_DATA_PARALLEL = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_NPU", "MULTI_XPU", "MULTI_MLU", "FSDP")


def start_accelerator() -> Any:
    """An Accelerator for this process, as `accelerate launch` set it up or for one process.

    Raises:
        ConfigError: The launch configuration asks for something other than data-parallel training.
    """
    accelerator = _start(cpu=None)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes < world:  # without a GPU, Accelerate takes each process for a run of its own
        accelerator = _start(cpu=True)
    if accelerator.num_processes < world:
        raise ConfigError(
            f"{world} processes were started, but they do not find each other (each sees "
            f"{accelerator.num_processes}): start them with `accelerate launch` and one of configs/accelerate/."
        )
    if accelerator.distributed_type.value not in _DATA_PARALLEL:
        raise ConfigError(
            f"Training runs data-parallel (DDP, FSDP) or on one device; the launch configuration says "
            f"{accelerator.distributed_type.value}. Use one of configs/accelerate/."
        )
    if accelerator.num_processes > 1:
        atexit.register(_leave)
    return accelerator


def _leave() -> None:
    """End the process group before the interpreter ends: threads of it that still run then abort the process.

    After an exception other ranks may be waiting in it, and to end it could mean to wait for them: the process then
    ends here, with what it has to say written.
    """
    failure = getattr(sys, "last_value", None)
    if failure is not None:
        _exit_now(128 + signal.SIGINT if isinstance(failure, KeyboardInterrupt) else 1)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def end_process(code: int) -> NoReturn:
    """End a training script: as `sys.exit`, but that one of several processes ends before the interpreter is torn down.

    Threads of the process group may run on while something still refers to it; the end of the interpreter then aborts
    the process (signal 6), and a finished run counts as failed. What is registered with `atexit` is done.

    Args:
        code: The exit code.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        sys.exit(code)
    atexit._run_exitfuncs()
    _exit_now(code)


def _exit_now(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed, or nobody reads it any more
            stream.flush()
    os._exit(code)


def _start(cpu: bool | None) -> Any:
    # Its state outlives a run in the same process, and would refuse another precision.
    AcceleratorState._reset_state(reset_partial_state=cpu is not None)
    # Every parameter has a gradient in every step, so DDP need not search for those that have none.
    ddp = DistributedDataParallelKwargs(find_unused_parameters=False, gradient_as_bucket_view=True)
    # Autocast is entered around the task, which covers its loss too; Accelerate's own way would rewrite the model's
    # forward for good.
    return Accelerator(cpu=bool(cpu), kwargs_handlers=[ddp], mixed_precision="no")


def uses_bf16(precision: Literal["auto", "no", "bf16"], device: torch.device) -> bool:
    """Whether to compute in bf16: if asked, or by `auto` where the hardware is faster in it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and _cpu_is_faster_in_bf16()


def _cpu_is_faster_in_bf16() -> bool:
    """Whether the CPU has matrix tiles, or is one of AMD's with AVX512-BF16: those double float32's rate.

    Intel's cores with AVX512-BF16 whose tiles are absent or masked (in many virtual machines) need twice float32's
    time for products and convolutions, and more for attention (benchmarks/LOG.md, 2026-11-26).
    """
    if torch.cpu._is_amx_tile_supported():
        return True
    return bool(torch.cpu._is_avx512_bf16_supported()) and _cpu_vendor() == "AuthenticAMD"


def _cpu_vendor() -> str:
    """Return the vendor as the processor names itself; empty where the system does not tell (not Linux)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch's tensors and unpack them there; copies from pinned memory overlap with computation."""
    return unpack(
        {
            key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }
    )


def exact_dtype(device: torch.device) -> torch.dtype:
    """The dtype to add up sums and counts in: double, but for devices that have none."""
    return torch.float32 if device.type == "mps" else torch.float64


def seed_from_address(*address: int) -> None:
    """Seed torch from integers alone, so that dropout needs no saved state to be the same after a resume."""
    torch.manual_seed(int(np.random.SeedSequence(address).generate_state(1, np.uint64)[0]))


def gather(value: Any) -> list[Any]:
    """The ranks' values, in order of rank, on every rank."""
    gathered: list[Any] = gather_object([value])
    return gathered


def tells_of_lost_process(error: RuntimeError) -> bool:
    """Whether another process of the run ended while this one waited for it, by what gloo and NCCL say then."""
    said = str(error)
    return any(words in said for words in ("Connection closed by peer", "Connection reset by peer", "process exited"))


@contextlib.contextmanager
def explained_failures(progress: Progress, train: TrainConfig) -> Iterator[None]:
    """Turn a lack of memory, or of a compiler for torch.compile, into an error that says which settings to change."""
    try:
        yield
    except BmmaeError:
        raise
    except RuntimeError as error:
        text = str(error)
        if train.compile and type(error).__module__.startswith(("torch._inductor.", "torch._dynamo.")):
            raise TrainingError(
                f"torch.compile failed at step {progress.step}: {text.splitlines()[0]} Set train.compile to false, or "
                "install what it needs (a compiler such as g++; for GPUs also triton)."
            ) from error
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in text:
            raise
        raise TrainingError(
            f"Out of memory at step {progress.step}: lower train.batch_size (now {train.batch_size}; raise "
            f"train.accumulate, now {train.accumulate}, by the same factor to keep the global batch, or let "
            f"train.find_batch_size do both on a GPU), set train.recompute=true (now {train.recompute}) or "
            f"train.precision=bf16 (now {train.precision}), or take a smaller recipe or crop. {text.splitlines()[0]}"
        ) from error
