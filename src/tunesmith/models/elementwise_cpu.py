"""The chains of `elementwise.py` in bfloat16 on a CPU, each one loop: read once, computed in float32, rounded once, written once.

torch reads and writes a tensor for each operation of a chain, and rounds it. These loops are compiled by Numba for the vectors of the CPU at hand and cached
beside this file (or where NUMBA_CACHE_DIR says). A thread runs them alone and without the interpreter's lock, so that a pass's workers do not wait
for each other.

Loops take the address of a tensor's first element and its strides, in elements; the last dimension has stride 1. Not-a-numbers stay such.

Shapes: N tokens; D hidden size; I inner size of the MLP; H heads; d head size.
Source: Moshier 1992, Cephes (the polynomial of 2^x).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

__all__ = ["gate", "gate_backward", "rms_norm", "rms_norm_backward", "rotate", "softmax", "softmax_backward"]

_F, _I, _U = np.float32, np.int32, np.uint32
_HALF, _SINGLE, _WORD = ir.IntType(16), ir.FloatType(), ir.IntType(32)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, output: Tensor) -> tuple[Tensor, Tensor]:
    """Write the norm of x, (N, D), to `output`; return the normalised input, (N, D), and the inverse root mean square, (N, 1)."""
    normalised, inverse = torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(len(x), 1)
    _rms_norm(*x.shape, epsilon, *_rows(x), _first(weight), *_rows(output), _first(normalised), _first(inverse))
    return normalised, inverse


def rms_norm_backward(gradient: Tensor, weight: Tensor, normalised: Tensor, inverse: Tensor) -> Tensor:
    """Return the gradient of the norm's input, (N, D)."""
    made = torch.empty_like(gradient, memory_format=torch.contiguous_format)
    _rms_norm_backward(*gradient.shape, *_rows(gradient), _first(weight), _first(normalised), _first(inverse), _first(made))
    return made


def gate(gate_up: Tensor, output: Tensor) -> None:
    """Write silu(g) u to `output`, (N, I), of [g, u], (N, 2 I)."""
    _gate(*output.shape, *_rows(gate_up), *_rows(output))


def gate_backward(gradient: Tensor, gate_up: Tensor, output: Tensor, inner: Tensor | None = None) -> None:
    """Write the gradient of [g, u] to `output`, both (N, 2 I), from that of silu(g) u, (N, I), and that itself to `inner` when given, (N, I)."""
    if inner is not None:
        gate(gate_up, inner)
    _gate_backward(*gradient.shape, *_rows(gradient), *_rows(gate_up), *_rows(output))


def rotate(x: Tensor, cos: Tensor, sin: Tensor, output: Tensor) -> None:
    """Write to `output` the pairs (x_i, x_{i + d/2}) of x, (N, ..., d), turned by their token's angle; cos and sin: (N, 1, d/2)."""
    x, output = x.flatten(1, -2), output.view(len(x), -1, x.shape[-1])
    _rotate(*x.shape, *_rows(x), x.stride(1), _first(cos), _first(sin), *_rows(output), output.stride(1))


def softmax(scores: Tensor, n_queries: int, scale: float) -> None:
    """Turn scores into weights in their place, by a softmax of scale * score over the keys that a query sees.

    Args:
        scores: (n, m n_queries, n_keys). The last query sees every key, the one before it one key less; keys that are not seen get 0.
        n_queries: Queries in a row of them.
        scale: What scores are multiplied by.
    """
    _softmax(scores.shape[0] * scores.shape[1], n_queries, scores.shape[2], scale, _first(scores))


def softmax_backward(gradient: Tensor, weights: Tensor, n_queries: int) -> None:
    """Turn the gradient of weights into that of scaled scores in its place. Shapes and `n_queries` as `softmax` has them."""
    _softmax_backward(weights.shape[0] * weights.shape[1], n_queries, weights.shape[2], _first(gradient), _first(weights))


def _first(tensor: Tensor) -> int:
    if not tensor.is_contiguous():
        raise ValueError(f"A loop over a whole tensor needs it in one piece, not with strides {tensor.stride()}.")
    return tensor.data_ptr()


def _rows(tensor: Tensor) -> tuple[int, int]:
    if tensor.stride(-1) != 1:
        raise ValueError(f"A loop needs neighbours in the last dimension, not strides of {tensor.stride()}.")
    return tensor.data_ptr(), tensor.stride(0)


def _loop(*flags: str) -> Callable[[Any], Any]:
    """Compile at the first call, and keep that where there is a place for it. Sums may be taken in the order of the vectors with the flag `reassoc`."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz", *flags}}

    def compiled(function: Any) -> Any:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # neither this folder nor the home can be written to
            return njit(**options)(function)

    return compiled


@intrinsic  # type: ignore[untyped-decorator]
def _single(_: Any, bits: Any) -> Any:
    return types.float32(types.uint32), lambda context, builder, signature, given: builder.bitcast(given[0], _SINGLE)


@intrinsic  # type: ignore[untyped-decorator]
def _bits(_: Any, number: Any) -> Any:
    return types.uint32(types.float32), lambda context, builder, signature, given: builder.bitcast(given[0], _WORD)


@intrinsic  # type: ignore[untyped-decorator]
def _load(_: Any, address: Any, index: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.load(builder.gep(builder.inttoptr(given[0], _HALF.as_pointer()), [given[1]]), align=2)

    return types.uint16(types.int64, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _store(_: Any, address: Any, index: Any, half: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        builder.store(given[2], builder.gep(builder.inttoptr(given[0], _HALF.as_pointer()), [given[1]]), align=2)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.uint16), generate


@_loop()
def _read(address: Any, index: Any) -> Any:
    """Return a bfloat16 as float32: its upper half."""
    return _single(_U(_load(address, index)) << _U(16))


@_loop()
def _write(address: Any, index: Any, number: Any) -> None:
    """Round to the nearest bfloat16, ties to even."""
    bits = _bits(number)
    _store(address, index, np.uint16((bits + _U(0x7FFF) + ((bits >> _U(16)) & _U(1))) >> _U(16)))


@_loop()
def _exp(x: Any) -> Any:
    """Return e^x, to 2e-7 of it; x beyond 87 counts as 87."""
    powers = x * _F(1.44269504088896341)
    powers = _F(-126.0) if powers < _F(-126.0) else powers
    powers = _F(126.0) if powers > _F(126.0) else powers
    shifted = powers + _F(12582912.0)  # 1.5 * 2^23: the whole part stands in the lowest bits
    rest = powers - (shifted - _F(12582912.0))
    made = _F(1.535336188319500e-4) * rest + _F(1.339887440266574e-3)
    made = made * rest + _F(9.618437357674640e-3)
    made = made * rest + _F(5.550332471162809e-2)
    made = made * rest + _F(2.402264791363012e-1)
    made = made * rest + _F(6.931472028550421e-1)
    return (made * rest + _F(1)) * _single((_bits(shifted) + _U(127)) << _U(23))


@_loop("reassoc")
def _rms_norm(n: int, width: int, epsilon: float, x: int, x_step: int, weight: int, output: int, output_step: int, normalised: int, inverse: int) -> None:
    for row in range(n):
        at, to, kept = row * x_step, row * output_step, row * width
        square_sum = _F(0)
        for j in range(width):
            square_sum += _read(x, at + j) * _read(x, at + j)
        factor = _F(1) / np.sqrt(square_sum / _F(width) + _F(epsilon))
        _write(inverse, row, factor)
        for j in range(width):
            value = _read(x, at + j) * factor
            _write(normalised, kept + j, value)
            _write(output, to + j, value * _read(weight, j))


@_loop("reassoc")
def _rms_norm_backward(n: int, width: int, gradient: int, gradient_step: int, weight: int, normalised: int, inverse: int, made: int) -> None:
    for row in range(n):
        at, kept = row * gradient_step, row * width
        total = _F(0)
        for j in range(width):
            total += _read(gradient, at + j) * _read(weight, j) * _read(normalised, kept + j)
        mean, factor = total / _F(width), _read(inverse, row)
        for j in range(width):
            _write(made, kept + j, (_read(gradient, at + j) * _read(weight, j) - _read(normalised, kept + j) * mean) * factor)


@_loop()
def _gate(n: int, width: int, gate_up: int, step: int, output: int, output_step: int) -> None:
    for row in range(n):
        closed, up, to = row * step, row * step + width, row * output_step
        for j in range(width):
            value = _read(gate_up, closed + j)
            _write(output, to + j, value / (_F(1) + _exp(-value)) * _read(gate_up, up + j))


@_loop()
def _gate_backward(n: int, width: int, gradient: int, gradient_step: int, gate_up: int, step: int, output: int, output_step: int) -> None:
    for row in range(n):
        at, closed, up, to = row * gradient_step, row * step, row * step + width, row * output_step
        for j in range(width):
            value, given = _read(gate_up, closed + j), _read(gradient, at + j)
            share = _F(1) / (_F(1) + _exp(-value))
            opened = value * share
            _write(output, to + j, given * _read(gate_up, up + j) * (share + opened * (_F(1) - share)))
            _write(output, to + width + j, given * opened)


@_loop()
def _rotate(n: int, heads: int, width: int, x: int, x_step: int, x_head: int, cos: int, sin: int, output: int, output_step: int, output_head: int) -> None:
    half = width // 2
    for row in range(n):
        turn = row * half
        for head in range(heads):
            at, to = row * x_step + head * x_head, row * output_step + head * output_head
            for j in range(half):
                first, second = _read(x, at + j), _read(x, at + half + j)
                _write(output, to + j, first * _read(cos, turn + j) - second * _read(sin, turn + j))
                _write(output, to + half + j, second * _read(cos, turn + j) + first * _read(sin, turn + j))


@_loop("reassoc")
def _softmax(n: int, n_queries: int, n_keys: int, scale: float, scores: int) -> None:
    raised = np.empty(n_keys, np.float32)
    for row in range(n):
        at, n_seen = row * n_keys, n_keys - n_queries + row % n_queries + 1
        highest = _I(-32768)  # bfloat16 numbers have the order of their bits, negative ones turned around
        for j in range(n_seen):
            bits = _I(np.int16(_load(scores, at + j)))
            highest = max(highest, bits ^ ((bits >> _I(15)) & _I(0x7FFF)))
        highest ^= (highest >> _I(15)) & _I(0x7FFF)
        most, total = _single(_U(highest) << _U(16)), _F(0)
        for j in range(n_seen):
            raised[j] = _exp((_read(scores, at + j) - most) * _F(scale))
            total += raised[j]
        share = _F(1) / total
        for j in range(n_seen):
            _write(scores, at + j, raised[j] * share)
        for j in range(n_seen, n_keys):
            _store(scores, at + j, np.uint16(0))


@_loop("reassoc")
def _softmax_backward(n: int, n_queries: int, n_keys: int, gradient: int, weights: int) -> None:
    for row in range(n):
        at, n_seen, total = row * n_keys, n_keys - n_queries + row % n_queries + 1, _F(0)
        for j in range(n_seen):
            total += _read(gradient, at + j) * _read(weights, at + j)
        for j in range(n_seen):
            _write(gradient, at + j, (_read(gradient, at + j) - total) * _read(weights, at + j))
        for j in range(n_seen, n_keys):
            _store(gradient, at + j, np.uint16(0))
