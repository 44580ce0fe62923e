"""The kernel matrix of one linear side, made at once: against its definition."""

from __future__ import annotations

import pytest
import torch

from stitchkern import ops, reference

FLOAT32 = 2.0**-24


def check(x: torch.Tensor) -> None:
    """Errors are relative to |a||b|, with no sample smaller than the usual: float64 rounding below 128 samples, that of
    float32 products of some hundred channels beyond; a far mean costs nothing but its rounding in float64."""
    found, wanted = ops.hsic_gram(x), reference.kernel_matrix(x.double(), "linear")
    far = x.double().square().sum(1).max() * 2.0**-50
    narrow = x.dtype != torch.float64 and len(x) >= 128
    size = wanted.diagonal().abs().sqrt()
    size += size.median()
    allowed = torch.outer(size, size) * (40 * FLOAT32 if narrow else 1e-14) + far
    assert found.shape == wanted.shape and found.dtype == torch.float64
    assert bool(((found - wanted).abs() <= allowed).all())
    assert torch.equal(found, found.T)


@pytest.mark.parametrize("n", [1, 2, 3, 15, 16, 17, 95, 96, 97, 127, 128, 129, 300])
@pytest.mark.parametrize("p", [1, 7, 511, 512, 513, 9000])
def test_sizes(n, p, generator):
    check(torch.randn(n, p, generator=generator))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_types_and_strides(dtype, cpu_path, generator):
    x = torch.randn(200, 700, generator=generator).to(dtype)
    for view in (x, x.T, x[::2, ::3], x.flip(0)[:150], x[:, :1].expand(-1, 40)):
        check(view)


HOSTILE = ["far mean", "one far sample", "far pilots", "two clusters", "tiny", "dead", "equal"]


@pytest.mark.parametrize("samples", HOSTILE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_hostile(samples, dtype, generator):
    x = torch.randn(256, 2000, generator=generator, dtype=torch.float64)
    if samples == "far mean":
        x += 1000
    elif samples == "one far sample":
        x[0] *= 1000  # the first is a pilot
    elif samples == "far pilots":
        x[::16] += 300
    elif samples == "two clusters":
        x[128:] += 1000
    elif samples == "tiny":
        x *= 1e-30
    elif samples == "dead":
        x[:, ::2] = 3.7
    else:
        x[:] = x[:1]
    x = x.to(dtype)
    check(x)
    if samples == "equal":
        assert not bool(ops.hsic_gram(x).any())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite_shows(bad, generator):
    x = torch.randn(200, 30, generator=generator)
    x[7, 3] = bad
    assert not bool(ops.hsic_gram(x).diagonal().isfinite().all())


def test_same_bits_for_any_number_of_threads(generator):
    x = torch.randn(256, 9000, generator=generator)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(ops.hsic_gram(x))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_no_samples():
    assert ops.hsic_gram(torch.empty(0, 5)).shape == (0, 0)


def test_checks_its_argument(generator):
    for wrong in (torch.ones(3), torch.ones(3, 0), torch.ones(2, 2, dtype=torch.int64)):
        with pytest.raises(RuntimeError, match="x must be"):
            ops.hsic_gram(wrong)


def test_is_well_formed(generator):
    torch.library.opcheck(torch.ops.stitchkern.hsic_gram, (torch.randn(20, 30, generator=generator),))
