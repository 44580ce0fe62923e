"""Similarity indices against their n × n definitions, on the data that breaks others."""

from __future__ import annotations

import math

import pytest
import torch

import stitchkern as sk
from stitchkern import reference
from stitchkern.errors import ShapeError, StatisticsError


def features(name: str, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    n, p, q = {"n < p": (40, 300, 200)}.get(name, (400, 48, 32))
    x = torch.randn(n, p, generator=g)
    y = x @ torch.randn(p, q, generator=g) / p**0.5 + torch.randn(n, q, generator=g)
    match name:
        case "independent":
            y = torch.randn(n, q, generator=g)
        case "offset 10":
            x, y = x + 10, y + 10
        case "offset 1000":
            x, y = x + 1000, y + 1000
        case "scale 1e-3":
            x, y = x * 1e-3, y * 1e-3
        case "scale 1e6":
            x, y = x * 1e6, y * 1e6
        case "low rank":
            x = x[:, :3] @ torch.randn(3, p, generator=g)
        case "dead":
            x[:, 5] = 0
        case "outlier":
            x[:, 5] *= 1e3
    return x, y


CASES = [
    "plain",
    "independent",
    "offset 10",
    "offset 1000",
    "scale 1e-3",
    "scale 1e6",
    "low rank",
    "dead",
    "outlier",
    "n < p",
]


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_cka_and_hsic(name, unbiased, device, generator):
    x, y = (t.to(device) for t in features(name, generator))

    def h(a, b):
        return reference.hsic_linear(a.cpu(), b.cpu(), unbiased=unbiased).item()

    expected = h(x, y) / math.sqrt(h(x, x) * h(y, y))
    m = sk.Moments(x.shape[1], y.shape[1])
    for a in range(0, len(x), 150):
        m.update(x[a : a + 150], y[a : a + 150])
    for value in (sk.cka(x, y, unbiased=unbiased), sk.cka(m, unbiased=unbiased)):
        assert value == pytest.approx(expected, abs=1e-6)
    assert sk.hsic(x, y, unbiased=unbiased) == pytest.approx(h(x, y), rel=1e-5, abs=1e-6 * math.sqrt(h(x, x) * h(y, y)))
    same = sk.Moments(x.shape[1], x.shape[1], precision="float64").update(x, x)
    assert sk.cka(same, unbiased=unbiased) == pytest.approx(1, abs=1e-12)


def test_numpy_bfloat16_and_aliases(generator):
    x, y = features("plain", generator)
    assert sk.cka(x.numpy(), y.numpy()) == sk.cka(x, y)
    assert sk.cka(x, y, debiased=True) == sk.cka(x, y, unbiased=True)
    half = sk.cka(x.bfloat16(), y.bfloat16())
    assert half == pytest.approx(sk.cka(x.bfloat16().double(), y.bfloat16().double()), abs=1e-6)


def test_unbiased_with_mask_equals_the_rows_kept(generator):
    x, y = features("plain", generator)
    keep = torch.rand(len(x), generator=generator) > 0.4
    m = sk.Moments(48, 32).update(x, y, weight=keep)
    assert sk.cka(m, unbiased=True) == pytest.approx(sk.cka(x[keep], y[keep], unbiased=True), abs=1e-7)
    weighted = sk.Moments(48, 32).update(x, y, weight=torch.rand(len(x), generator=generator))
    assert 0 < sk.cka(weighted) < 1
    with pytest.raises(StatisticsError, match="weights of 0 or 1"):
        sk.cka(weighted, unbiased=True)


def test_unbiased_can_be_negative(generator):
    values = [sk.cka(*(torch.randn(12, 3, generator=generator) for _ in "xy"), unbiased=True) for _ in range(20)]
    assert min(values) < 0 < max(values)


def test_undefined_is_an_error(generator):
    x = torch.randn(10, 3, generator=generator)
    for match, call in [
        ("y does not vary", lambda: sk.cka(x, torch.ones(10, 2))),
        ("x does not vary", lambda: sk.cka(torch.zeros(10, 2), x)),
        ("at least 4 samples; got 3", lambda: sk.cka(x[:3], x[:3], unbiased=True)),
        ("at least two samples", lambda: sk.cka(x[:1], x[:1])),
    ]:
        with pytest.raises(StatisticsError, match=match):
            call()
    assert sk.hsic(x, torch.ones(10, 2)) == 0
    with pytest.raises(ShapeError, match="same n"):
        sk.cka(x, x[:9])
    with pytest.raises(ValueError, match="y is missing"):
        sk.cka(x)
    with pytest.raises(ValueError, match="they hold both sides"):
        sk.cka(sk.Moments(3, 3), x)


def test_cka_of_statistics_is_that_of_their_moments(generator):
    moments = [
        sk.Moments(5, 4).update(torch.randn(50, 5, generator=generator), torch.randn(50, 4, generator=generator))
        for _ in range(3)
    ]
    found = sk.cka(sk.Statistics.of(moments))
    assert found.tolist() == pytest.approx([sk.cka(m) for m in moments])
    dead = sk.Statistics.of(sk.Moments(5, 4).update(torch.ones(50, 5), torch.randn(50, 4, generator=generator)))
    with pytest.raises(StatisticsError, match="x does not vary"):
        sk.cka(dead)
    with pytest.raises(ValueError, match="biased"):
        sk.cka(dead, unbiased=True)
