"""Chunked log-probabilities against the plain softmax over the whole vocabulary."""

import pytest
import torch

from pipeline.model.logprobs import chunked_logps

ROWS, WIDTH, VOCABULARY = 13, 8, 29


def inputs(dtype=torch.float64, bias=True):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, WIDTH, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=dtype).requires_grad_()
    target = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    offset = torch.randn(VOCABULARY, generator=generator, dtype=dtype).requires_grad_() if bias else None
    return hidden, weight, target, offset


def plain(hidden, weight, target, bias, softcap):
    logits = hidden @ weight.T + (0 if bias is None else bias)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logps = torch.log_softmax(logits, dim=-1)
    return logps.gather(1, target[:, None])[:, 0], torch.logsumexp(2 * logps, dim=-1)


@pytest.mark.parametrize("chunk_rows", [1, 4, 13, 100])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_equals_the_plain_formula(chunk_rows, softcap):
    """In float64, where the order of sums leaves 1e-12."""
    hidden, weight, target, bias = inputs()
    ours, squares = chunked_logps(
        hidden,
        weight,
        target,
        bias_V=bias,
        softcap=softcap,
        squares=True,
        chunk_rows=chunk_rows,
    )
    expected, expected_squares = plain(hidden, weight, target, bias, softcap)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(squares, expected_squares, rtol=1e-12, atol=1e-12)
    assert not squares.requires_grad
    pull = torch.linspace(-1, 1, ROWS, dtype=torch.float64)
    found = torch.autograd.grad((ours * pull).sum(), [hidden, weight, bias])
    wanted = torch.autograd.grad((expected * pull).sum(), [hidden, weight, bias])
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("chunk_rows", [3, 100])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_gradcheck(chunk_rows, softcap):
    hidden, weight, target, bias = inputs()

    def logps(hidden, weight, bias):
        return chunked_logps(hidden, weight, target, bias_V=bias, softcap=softcap, chunk_rows=chunk_rows)[0]

    assert torch.autograd.gradcheck(logps, (hidden, weight, bias))


def test_frozen_projection_gets_no_gradient():
    hidden, weight, target, _ = inputs(bias=False)
    ours, _ = chunked_logps(hidden, weight.detach(), target)
    ours.sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_half_precision_sums_in_float32():
    """bfloat16 holds 8 bits: products of width 8 are off by up to 1%, while the log-sum-exp adds nothing to that."""
    hidden, weight, target, _ = inputs(torch.float32, bias=False)
    with torch.autocast("cpu", torch.bfloat16):
        ours, _ = chunked_logps(hidden, weight, target)
    assert ours.dtype == torch.float32
    expected, _ = plain(hidden, weight, target, None, None)
    torch.testing.assert_close(ours, expected, rtol=0.02, atol=0.05)
    ours.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32


def test_only_a_chunk_of_logits_is_kept():
    """What the graph holds for the backward pass: inputs and one number a token, never [N, V] when there are
    several chunks.
    """
    hidden, weight, target, _ = inputs(bias=False)
    kept: list[int] = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ours, _ = chunked_logps(hidden, weight, target, chunk_rows=4)
    assert max(kept) == VOCABULARY * WIDTH < ROWS * VOCABULARY
    assert ours.grad_fn.kept is None


def test_half_precision_gradients_do_not_lose_by_chunks():
    """Upstream gradients of one sign, so that sums grow. A single product in bfloat16 is off by 0.3% here; summed over
    128 chunks in bfloat16 it would be off by 1.3%.
    """
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2048, 64, generator=generator)
    weight = (torch.randn(500, 64, generator=generator) * 0.2).requires_grad_()
    target = torch.randint(500, (2048,), generator=generator)
    upstream = torch.rand(2048, generator=generator)

    def gradient(chunk_rows, half):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            ours, _ = chunked_logps(hidden, weight, target, chunk_rows=chunk_rows)
        return torch.autograd.grad((ours * upstream).sum(), weight)[0]

    exact = gradient(2048, half=False)
    for chunk_rows in (2048, 16):
        error = (gradient(chunk_rows, half=True) - exact).norm() / exact.norm()
        assert error < 0.005
