"""The processes that train one run together, and the check that they do.

Sums are taken by all-reduce: for the same number of processes in the same order, so that a run that continues gets the same bits (gloo; NCCL
where its algorithm does not change). Started the wrong way, each process believes that it is alone and trains a copy of the same run, with no
error from any library: so every process says how many it expects, and one all-reduce counts who is there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from tunesmith.errors import BackendError

_BUCKET_ELEMENTS = 2**23
_TIMEOUT = timedelta(minutes=30)


class Processes:
    """The processes of one run; alone by default.

    Attributes:
        rank: Number of this process, 0 for the one that writes.
        size: How many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @classmethod
    def join(cls, expected: int) -> Processes:
        """Meet the processes that torchrun started beside this one, and count them.

        Args:
            expected: How many train the run.

        Raises:
            BackendError: there are more or fewer.
        """
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return cls().checked(expected)
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=_TIMEOUT)
        return cls(dist.get_rank(), dist.get_world_size()).checked(expected)

    def checked(self, expected: int) -> Processes:
        """Count who is there by one all-reduce, and return these processes.

        Raises:
            BackendError: there are not `expected` of them, or torchrun started several that have not met.
        """
        present = round(self.sum([1.0])[0])
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if present != expected or started != expected:
            raise BackendError(
                f"{expected} {'process' if expected == 1 else 'processes'} must train this run together (launch.nproc_per_node x launch.nnodes). "
                f"Received: {present} that met, WORLD_SIZE {started}. Each group would train a copy of the same run.",
                hint="tunesmith train --set launch.launcher=torchrun --set launch.nproc_per_node=2 starts the processes itself.",
            )
        return self

    @property
    def is_first(self) -> bool:
        """Whether this process writes checkpoints, losses and weights."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums of numbers over all processes."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self._device)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def largest(self, value: float) -> float:
        """Return the largest of all processes' numbers."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self._device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return float(tensor)

    def any(self, flag: bool) -> bool:
        """Return whether any process says yes."""
        return self.sum([float(flag)])[0] > 0

    def sum_in_place(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one dtype by their sums over all processes, some 32 MB a message."""
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        for position, tensor in enumerate(tensors):
            bucket.append(tensor)
            if position == len(tensors) - 1 or sum(each.numel() for each in bucket) >= _BUCKET_ELEMENTS:
                flat = torch.cat([each.flatten() for each in bucket]).to(self._device)
                dist.all_reduce(flat)
                for each, part in zip(bucket, torch.split(flat, [each.numel() for each in bucket]), strict=True):
                    each.copy_(part.view_as(each))
                bucket = []

    @property
    def _device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that is shared out among the processes as a whole one; all of them ask for it. Others are returned as they are."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def placed_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Return a whole tensor on a parameter's device, and shared out where the parameter is."""
    tensor = tensor.to(parameter.device)
    if not hasattr(parameter, "placements") or tensor.ndim == 0:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)  # type: ignore[attr-defined]
