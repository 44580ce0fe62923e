"""The k nearest other samples of each, in blocks of rows: as float64 distances order them, mostly by float32 products.

A float32 product takes half the time of a float64 one, and its error has a bound: γ (‖a‖² + ‖b‖²) with γ about p 2^-24,
in whatever order it is summed. So each pair is multiplied once, in float32, which leaves each sample a few candidates,
and where the k-th of them is closer to the next than the bound, the candidates' distances are taken in float64. Samples
that are left with many candidates, and everything where k is no small part of n, take float64 products.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stitchkern.similarity.distances import squared, tie_width

#: elements of a block of rows by all samples
_BLOCK = 2**23
#: of a group of rows
_HEIGHT = 8
#: screening pays from this many samples on, and for up to n / this many neighbours
_LEAST, _SHARE = 1024, 64


def nearest(points: Tensor, k: int, metric: str) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows with the k nearest other samples of each, (rows, k), ascending by index.

    Of samples equally far away, to the rounding of the metric (`tie_width`), the first ones are taken. ``points``
    (n, p) as `distances.points` makes them.
    """
    n = len(points)
    if n >= max(_LEAST, _SHARE * k) and _exact_float32(points):
        yield from _Screen(points, k).panels(metric)
        return
    step = max(64, min(512, _BLOCK // n))
    for start in range(0, n, step):
        rows = torch.arange(start, min(start + step, n), device=points.device)
        yield slice(start, start + len(rows)), _of_all(points, rows, k, metric)


def by_distance(points: Tensor, rows: slice, found: Tensor, metric: str) -> Tensor:
    """These neighbours (rows, k), ascending by index, in the order of their distance; ties keep theirs."""
    d = _distances(points, torch.arange(rows.start, rows.stop, device=points.device), found)
    values, order = d.sort(dim=1, stable=True)
    starts = torch.zeros_like(order)
    starts[:, 1:] = values.diff(dim=1) > tie_width(values[:, 1:], metric, are_squared=True)
    key = starts.cumsum(1) * found.shape[1] + order  # within a tie by index
    return found.gather(1, order.gather(1, key.argsort(1)))


def _distances(points: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """‖a − b‖² (m, c) of these rows (m,) and for each of them these columns (m, c), from the differences."""
    found = points.new_empty(columns.shape)
    step = max(1, 2**20 // (columns.shape[1] * points.shape[1]))
    for a in range(0, len(rows), step):
        some = slice(a, a + step)
        found[some] = (points[rows[some], None, :] - points[columns[some]]).square().sum(2)
    return found


def _select(d: Tensor, k: int, metric: str) -> Tensor:
    """Which k of each row (m, c) are the smallest, bool; of ties the first."""
    last = d.topk(k, dim=1, largest=False).values.amax(1, keepdim=True)
    width = tie_width(last, metric, are_squared=True)
    found = d <= last + width
    tied = (found.sum(1) > k).nonzero()[:, 0]
    if len(tied):
        d, last, width = d[tied], last[tied], width[tied]
        sure = d < last - width
        level = found[tied] & ~sure
        found[tied] = sure | (level & (level.cumsum(1) <= k - sure.sum(1, keepdim=True)))
    return found


def _of_all(points: Tensor, rows: Tensor, k: int, metric: str) -> Tensor:
    """From float64 products with all samples."""
    d = squared(points[rows], points)
    d.scatter_(1, rows[:, None], torch.inf)
    return _select(d, k, metric).nonzero()[:, 1].view(len(rows), k)


def _exact_float32(points: Tensor) -> bool:
    """Whether float32 products are what they are called: torch can be told to take fewer digits."""
    told = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    return points.device.type == "cpu" and told in ("none", "ieee")


class _Screen:
    """All panels of rows by the columns from them on, each product once, for both of its samples.

    What is kept of a product is a lower bound of ‖a − b‖², low = (1 − γ)(‖a‖² + ‖b‖²) − 2 a·b in float32; an upper
    bound is low + slack of a + slack of b.
    """

    def __init__(self, points: Tensor, k: int) -> None:
        n, p = points.shape
        self.points, self.k = points, k
        self.width = min(32, n // (8 * k))  # of groups of columns: at least eight times as many as neighbours
        self.panel = max(64, min(512, _BLOCK // n)) // _HEIGHT * _HEIGHT
        padded = -(-n // self.width) * self.width
        gamma = (p + 32) * 2.0**-24  # p + 3 of rounded factors and their sum, the rest for what is made of it here
        norms = torch.linalg.vector_norm(points, dim=1).square() + 2.0**-100  # below which float32 squares are nothing
        self.left = points.new_zeros(padded, p, dtype=torch.float32)
        self.left[:n] = points
        self.right = -2 * self.left
        self.half = points.new_full((padded,), torch.inf, dtype=torch.float32)
        self.half[:n] = (1 - gamma) * norms
        self.slack = points.new_zeros(padded, dtype=torch.float32)
        self.slack[:n] = 2 * gamma * norms

    def panels(self, metric: str) -> Iterator[tuple[slice, Tensor]]:
        n, k = len(self.points), self.k
        self.bound = torch.full((n, k), torch.inf)  # what the k nearest among the samples so far are at most apart
        self.many = torch.zeros(n, dtype=torch.bool)  # rows with too many candidates
        self.count = torch.zeros(n, dtype=torch.int64)
        waiting: list[_Candidates] = []
        space = self.left.new_empty(min(self.panel, n) * len(self.left))
        for start in range(0, n, self.panel):
            rows = slice(start, min(start + self.panel, n))
            # a panel that starts inside a group starts with it: its first columns are then samples of panels before
            columns = slice(start // self.width * self.width, len(self.left))
            low = space[: (rows.stop - start) * (columns.stop - columns.start)].view(rows.stop - start, -1)
            torch.mm(self.left[rows], self.right[columns].T, out=low)
            low.add_(self.half[rows, None]).add_(self.half[columns])
            low[:, : start - columns.start] = torch.inf
            low.diagonal(start - columns.start).fill_(torch.inf)
            own = [c.of(rows) for c in waiting]
            own.append(self._for_rows(low, rows, columns))
            if rows.stop < n:
                waiting.append(self._for_columns(low[:, rows.stop - columns.start : n - columns.start], rows))
            yield rows, self._settle(rows, own, metric)

    def _for_rows(self, low: Tensor, rows: slice, columns: slice) -> _Candidates:
        """Candidates for the rows of a panel among its columns; with those before, all there are."""
        groups = low.view(len(low), -1, self.width)
        minima = groups.amin(2)
        reach = minima + self.slack[columns].view(-1, self.width).amax(1) + self.slack[rows, None]
        self.bound[rows] = torch.cat([self.bound[rows], reach], 1).topk(self.k, dim=1, largest=False).values
        limit = self.bound[rows].amax(1)
        row, group = (minima <= limit[:, None]).nonzero().unbind(1)
        near = groups[row, group]
        hit, lane = (near <= limit[row, None]).nonzero().unbind(1)
        return self._counted(row[hit] + rows.start, columns.start + group[hit] * self.width + lane, near[hit, lane])

    def _for_columns(self, low: Tensor, rows: slice) -> _Candidates:
        """Candidates for the samples after a panel among its rows."""
        later = slice(rows.stop, len(self.points))
        groups = low.unflatten(0, (-1, _HEIGHT))
        minima = groups.amin(1)
        reach = minima + self.slack[rows].view(-1, _HEIGHT).amax(1)[:, None] + self.slack[later]
        self.bound[later] = torch.cat([self.bound[later], reach.T], 1).topk(self.k, dim=1, largest=False).values
        limit = self.bound[later].amax(1)
        row, group = (limit[:, None] >= minima.T).nonzero().unbind(1)
        near = groups[group, :, row]
        hit, lane = (near <= limit[row, None]).nonzero().unbind(1)
        return self._counted(row[hit] + later.start, rows.start + group[hit] * _HEIGHT + lane, near[hit, lane])

    def _counted(self, row: Tensor, column: Tensor, low: Tensor) -> _Candidates:
        """Without those of rows that have too many by now."""
        self.count += row.bincount(minlength=len(self.count))
        self.many |= self.count > 16 * self.k + 64
        keep = ~self.many[row]
        return _Candidates(row[keep], column[keep], low[keep])

    def _settle(self, rows: slice, found: list[_Candidates], metric: str) -> Tensor:
        """Which candidates are the neighbours of these rows."""
        k, count = self.k, rows.stop - rows.start
        many = self.many[rows]
        row, column, value = (torch.cat([getattr(c, f) for c in found]) for f in ("row", "column", "low"))
        keep = (value <= self.bound[rows].amax(1)[row - rows.start]) & ~self.many[row]
        row, column, value = row[keep] - rows.start, column[keep], value[keep]
        row, order = row.sort(stable=True)  # the columns of each row ascend as they are
        column, value = column[order], value[order]

        # a line for each row
        counts = row.bincount(minlength=count)
        place = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
        widest = max(k, int(counts.max()))
        columns = torch.zeros(count, widest, dtype=torch.int64)
        values = torch.full((count, widest), torch.inf)
        columns[row, place], values[row, place] = column, value

        # the k lowest bounds, unless one of them may be further than one of the others
        inside = torch.zeros(count, widest, dtype=torch.bool)
        inside.scatter_(1, values.topk(k, dim=1, largest=False).indices, True)
        worst = torch.where(inside, values + self.slack[columns], -torch.inf).amax(1) + self.slack[rows]
        unsure = ((worst >= torch.where(inside, torch.inf, values).amin(1)) & ~many).nonzero()[:, 0]
        if len(unsure):
            d = _distances(self.points, unsure + rows.start, columns[unsure])
            d[values[unsure].isinf()] = torch.inf
            inside[unsure] = _select(d, k, metric)
        answer = columns[inside].view(count, k)
        if bool(many.any()):
            answer[many] = _of_all(self.points, many.nonzero()[:, 0] + rows.start, k, metric)
        return answer


@dataclass(frozen=True)
class _Candidates:
    """Pairs of samples, ascending by row and then by column, and the lower bounds of their squared distances."""

    row: Tensor
    column: Tensor
    low: Tensor

    def of(self, rows: slice) -> _Candidates:
        a, b = torch.searchsorted(self.row, torch.tensor([rows.start, rows.stop])).tolist()
        return _Candidates(self.row[a:b], self.column[a:b], self.low[a:b])
