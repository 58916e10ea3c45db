"""The chains one by one, as a GPU's kernels compute them (here uncompiled), and as loops in bfloat16, each against autograd."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tunesmith.models import elementwise, elementwise_cpu
from tunesmith.models.elementwise import (
    compiled,
    gate,
    gate_backward,
    rms_norm,
    rms_norm_backward,
    rotate,
    softmax_backward_kernel,
    softmax_kernel,
)

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
        again = torch.empty(5, 6) if is_kernel else None
        made = gate_backward(gradient.detach().clone(), gate_up, opened, again)
    assert (opened is None) is is_kernel
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


def halves(*shape):
    """Draw numbers of bfloat16 of usual and of large size, and zeros."""
    elements = st.floats(-200, 200, width=16)
    return arrays(np.float32, shape, elements=elements).map(lambda drawn: torch.from_numpy(drawn).bfloat16())


def assert_rounded_once(made, expected, terms=0.0):
    """Assert that bfloat16 numbers are what they should be, to one rounding, and to what float32 loses of terms that nearly cancel out."""
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made.double(), expected.double(), rtol=2**-8 + 1e-5, atol=1e-5 * float(torch.as_tensor(terms).abs().max()) + 1e-30)


@settings(deadline=None)
@given(halves(3, 20), halves(12), halves(3, 15))
def test_loops_of_the_norm_round_once(x, weight, gradient):
    x, weight, gradient = x[:, :12], weight, gradient[:, 3:]  # with strides
    wide = torch.full((3, 19), 7.0, dtype=torch.bfloat16)
    expected = torch.nn.functional.rms_norm(x.double(), (12,), weight.double(), 1e-5)
    _, normalised, inverse = rms_norm(x, weight, 1e-5, wide[:, :12])
    assert_rounded_once(wide[:, :12], expected)
    assert (wide[:, 12:] == 7).all()
    assert_rounded_once(inverse, (x.double().square().mean(1, keepdim=True) + 1e-5).rsqrt())
    by_weight = gradient.double() * weight.double()
    mean = (by_weight * normalised.double()).mean(1, keepdim=True)
    assert_rounded_once(
        rms_norm_backward(gradient, weight, normalised, inverse), (by_weight - normalised.double() * mean) * inverse.double(), by_weight * inverse.double()
    )


@settings(deadline=None)
@given(halves(3, 14), halves(3, 9))
def test_loops_of_the_gate_round_once(gate_up, gradient):
    gradient = gradient[:, :7]
    exact, output, again = gate_up.double().requires_grad_(), torch.empty(3, 7, dtype=torch.bfloat16), torch.empty(3, 7, dtype=torch.bfloat16)
    expected = torch.nn.functional.silu(exact[:, :7]) * exact[:, 7:]
    assert gate(gate_up, output) is None
    made = gate_backward(gradient, gate_up, None, again)
    assert_rounded_once(output, expected.detach())
    assert torch.equal(again, output)
    assert_rounded_once(made, torch.autograd.grad(expected, exact, gradient.double())[0])


@settings(deadline=None)
@given(halves(3, 40), arrays(np.float32, (3, 1, 4), elements=st.floats(0, 6, width=32)))
def test_loops_of_the_rotation_round_once(x, angles):
    x = x[:, :32].view(3, 4, 8)[:, :3]
    cos, sin = (torch.from_numpy(each).bfloat16() for each in (np.cos(angles), np.sin(angles)))
    into = torch.zeros(3, 2, 3, 8, dtype=torch.bfloat16)
    rotate(x, cos, sin, into[:, 1])
    assert_rounded_once(into[:, 1], rotate(x.double(), cos.double(), sin.double()), x)
    assert not into[:, 0].any()
    assert torch.equal(rotate(x.view(3, 1, 3, 8), cos[:, None], sin[:, None])[:, 0], into[:, 1])


@pytest.mark.parametrize("make", ["kernel", "loop"])
@settings(deadline=None)
@given(data=st.data())
def test_softmax_and_back(make, data):
    group, n_queries, n_hidden = data.draw(st.tuples(*[st.integers(1, 3)] * 3))
    n_keys = n_queries + n_hidden
    scores, gradient = (data.draw(halves(2, group * n_queries, n_keys)) for _ in range(2))
    exact = scores.double().requires_grad_()
    is_seen = torch.ones(n_queries, n_keys).tril(n_keys - n_queries).bool().repeat(group, 1)
    expected = (exact * 0.125).masked_fill(~is_seen, -torch.inf).softmax(-1)
    forward, backward = (compiled(each, scores) if make == "loop" else each for each in (softmax_kernel, softmax_backward_kernel))
    forward(scores, n_queries, 0.125)
    assert_rounded_once(scores, expected.detach())
    assert not scores[:, ~is_seen].any()
    weights = scores.double()
    of_scores = weights * (gradient.double() - (weights * gradient.double()).sum(-1, keepdim=True))
    terms = weights * gradient.double()
    backward(gradient, scores, n_queries)
    assert_rounded_once(gradient, of_scores, terms)


@pytest.mark.parametrize("nothing", [float("nan"), -float("nan"), float("inf")])
def test_not_a_number_stays_in_its_row(nothing):
    def with_nothing(*shape):
        made = torch.ones(shape, dtype=torch.bfloat16)
        made[0, 0] = nothing
        return made

    normed = rms_norm(with_nothing(2, 8), torch.ones(8, dtype=torch.bfloat16), 1e-5)[0]
    gated, weights = torch.empty(2, 4, dtype=torch.bfloat16), with_nothing(2, 8)[:, None].contiguous()
    gate(with_nothing(2, 8), gated)
    elementwise_cpu.softmax(weights, 1, 1.0)
    assert normed[0].isnan().any()
    assert not gated[0, 0].isfinite()
    assert weights[0].isnan().any()
    assert all(each[1].isfinite().all() for each in (normed, gated, weights))


def test_a_loop_refuses_what_it_would_read_wrongly():
    x = torch.ones(4, 8, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="neighbours"):
        elementwise_cpu.gate(x.t(), torch.empty(8, 2, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="in one piece"):
        elementwise_cpu.softmax(x[None, :, :4], 4, 1.0)
