"""The chains as a GPU's kernels compute them, here uncompiled, against those of the CPU, and both against autograd."""

import pytest
import torch

from tunesmith.models import elementwise
from tunesmith.models.elementwise import gate, gate_backward, rms_norm, rms_norm_backward, rotate

KERNELS = pytest.mark.parametrize("is_kernel", [False, True], ids=["chain", "kernel"])


@pytest.fixture
def drawn(monkeypatch, request):
    """Draw tensors; as if on a GPU, with the kernels uncompiled, where the test asks for them."""
    if request.getfixturevalue("is_kernel"):
        monkeypatch.setattr(elementwise, "compiled", lambda kernel, x: kernel)
    torch.manual_seed(0)
    return lambda *shape: torch.randn(*shape, dtype=torch.float64).float().requires_grad_()


@KERNELS
def test_rms_norm(drawn, is_kernel):
    x, weight, gradient = drawn(5, 16), drawn(16), drawn(5, 16)
    expected = torch.nn.functional.rms_norm(x, (16,), weight, 1e-5)
    wide = torch.zeros(5, 19)
    with torch.no_grad():
        output, normalised, inverse = rms_norm(x, weight, 1e-5, wide[:, :16])
        made = rms_norm_backward(gradient, weight, normalised, inverse)
        alone = rms_norm(x, weight, 1e-5)[0]
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(wide[:, :16], expected)
    torch.testing.assert_close(alone, expected)
    assert not wide[:, 16:].any()
    torch.testing.assert_close(made, torch.autograd.grad(expected, x, gradient)[0])


@KERNELS
def test_gate(drawn, is_kernel):
    gate_up, gradient = drawn(5, 12), drawn(5, 6)
    expected = torch.nn.functional.silu(gate_up[:, :6]) * gate_up[:, 6:]
    output = torch.empty(5, 6)
    with torch.no_grad():
        opened = gate(gate_up, output)
        made, again = gate_backward(gradient.detach().clone(), gate_up, opened)
    assert (again is None) is not is_kernel
    if is_kernel:
        torch.testing.assert_close(again, expected)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(made, torch.autograd.grad(expected, gate_up, gradient)[0])


@KERNELS
def test_rotation_and_back(drawn, is_kernel):
    x, angles = drawn(5, 3, 8), drawn(5, 1, 4)
    with torch.no_grad():
        turned = rotate(x, angles.cos(), angles.sin())
        pairs, expected = (torch.complex(each[..., :4], each[..., 4:]) for each in (x, turned))
        torch.testing.assert_close(pairs * torch.polar(torch.ones_like(angles), angles), expected)
        back = torch.empty(5, 2, 3, 8)
        rotate(turned, angles.cos(), -angles.sin(), back[:, 1])
        torch.testing.assert_close(back[:, 1], x.detach())
