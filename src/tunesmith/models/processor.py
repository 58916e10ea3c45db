"""What computes on this machine can do, the GPU or the cores of the CPU: passes side by side, precision, and speed of matrix products."""

from __future__ import annotations

import os
import time

import torch

# Below torch, oneDNN and ideep each keep what they prepared for 1,024 shapes of matrix products. Batches differ in shape, and what is kept
# grows by some 15 MB a step until it takes a gigabyte. A step of two workers needs about 150 at a time. Read at the first product.
for _cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "256")
# A GPU's memory is handed out in blocks, between which gaps stay where batches differ in shape; blocks that can grow leave few.
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def n_workers() -> int:
    """Return how many forward passes run side by side: one on a GPU, else one a core, of which processes that torchrun started together share out."""
    if torch.cuda.is_available():
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def what_computes() -> str:
    """Name the GPU, or say how many workers the CPU has."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{n_workers()} workers"


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16 products; without them float32 is faster."""
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def matmul_flops_per_second(dtype: torch.dtype, *, seconds: float = 0.3) -> float:
    """Measure matrix products for a moment: of a GPU (4096 x 4096 by 4096 x 4096), else of one core (1024 x 1024 by 1024 x 1024)."""
    if torch.cuda.is_available():
        return _gpu_flops_per_second(dtype, seconds)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a, b = torch.randn(1024, 1024).to(dtype), torch.randn(1024, 1024).to(dtype)
        a @ b  # the first product sets the library up
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            a @ b
            count += 1
        return count * 2 * 1024**3 / (time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)


def _gpu_flops_per_second(dtype: torch.dtype, seconds: float) -> float:
    size = 4096
    a, b = torch.randn(size, size, device="cuda").to(dtype), torch.randn(size, size, device="cuda").to(dtype)
    a @ b
    torch.cuda.synchronize()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        for _ in range(10):
            a @ b
        torch.cuda.synchronize()  # products are only asked for until then
        count += 10
    return count * 2 * size**3 / (time.perf_counter() - started)
