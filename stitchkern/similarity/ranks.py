"""Ranks of very many distances, ties to rounding included: what Spearman's correlation is made of.

Sorting whole numbers in place is many times faster than finding the order of floats. So each distance becomes one
number: its leading bits (those of a non-negative float ascend as it does) above its position. Where neighbours in that
order agree in nearly all of their bits, what they are decides: those few distances are sorted by themselves.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stitchkern.similarity.distances import tie_width

_CHUNK = 2**16


def doubled_ranks(d: Tensor, metric: str) -> Tensor:
    """Twice the ranks 1 … m of distances d (m,) ≥ 0, whole numbers; ties (`tie_width` apart) share their mean rank.

    About 24 bytes for each distance, its own 8 among them.
    """
    m = len(d)
    bits = d.view(torch.int64)
    least = int(bits.min())
    position = max(1, (m - 1).bit_length())  # bits that hold it
    shift = max(0, (int(bits.max()) - least).bit_length() - (63 - position))
    keys = torch.empty_like(bits)
    for a in range(0, m, _CHUNK):
        chunk = keys[a : a + _CHUNK]
        torch.sub(bits[a : a + _CHUNK], least, out=chunk)
        chunk >>= shift
        chunk <<= position
        chunk += torch.arange(a, a + len(chunk), device=d.device)
    if keys.device.type == "cpu":
        keys.numpy().sort()
    else:
        keys = keys.sort().values

    near = _near(keys, position, shift, least, metric)
    order = keys.bitwise_and_((1 << position) - 1)
    ranks = torch.arange(2, 2 * m + 2, 2, dtype=torch.int32 if m < 2**30 else torch.int64, device=d.device)
    if len(near):
        among = torch.zeros(m, dtype=torch.bool, device=d.device)
        among[near], among[near - 1] = True, True
        slots = among.nonzero()[:, 0]  # in runs whose values do not overlap, so that they can be sorted as one
        values, by_value = d[order[slots]].sort(stable=True)
        order[slots] = order[slots][by_value]
        tied = values[1:] - values[:-1] <= tie_width(values[1:], metric, are_squared=False)
        _share(ranks, slots[1:][tied & (slots.diff() == 1)])
    return torch.empty_like(ranks).scatter_(0, order, ranks)


def _share(ranks: Tensor, tied: Tensor) -> None:
    """The mean for each run of ties; ``tied``: places that are tied with the one before them, ascending."""
    if not len(tied):
        return
    starts = torch.ones(len(tied), dtype=torch.bool, device=tied.device)
    starts[1:] = tied.diff() != 1
    first = tied[starts] - 1
    length = torch.cat([starts.nonzero()[:, 0], torch.tensor([len(tied)], device=tied.device)]).diff()
    mean = (2 * first + length + 2).to(ranks.dtype)  # twice that of first + 1 … first + length + 1
    ranks[first] = mean
    ranks[tied] = mean.repeat_interleave(length)


def _near(keys: Tensor, position: int, shift: int, least: int, metric: str) -> Tensor:
    """Where a distance may be tied with the one before it, or the other way round in truth, by their leading bits."""
    found = []
    for a in range(1, len(keys), _CHUNK):
        leading = keys[a - 1 : a + _CHUNK] >> position
        # the lowest of these is where ties reach furthest in relative terms, so in bits
        low = ((leading[:1] << shift) + least).view(torch.float64)
        reach = (tie_width(low, metric, are_squared=False) / low).item() * 2**53 if bool(low > 0) else math.inf
        reach = int(min(reach, 2.0**62)) // 2**shift + 2
        found.append((leading.diff() <= reach).nonzero()[:, 0] + a)
    return torch.cat(found) if found else keys.new_empty(0)
