"""What stitched networks do beside the end, counted sample by sample; how their weights and layers look."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stitchkern.errors import NotFiniteError, ShapeError
from stitchkern.matching import Evaluation, behaviour, best_partners, evaluate, match_direct, spectrum
from stitchkern.matching.scores import auroc, fpr_at
from stitchkern.models import StitchedModel
from stitchkern.nn import LowRankStitch, Stitch
from tests.matching.task.networks import batches, conv


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(x) for x, _ in batches()])


def test_it_is_what_counting_gives() -> None:
    front, end = conv(0), conv(1)
    fitted = match_direct(front, end, ["bn1", "bn2"], batches())
    stitches = {(layer, layer): fit.to_module(dtype=torch.float64) for layer, fit in fitted.items()}
    found = behaviour(front, end, stitches, batches())
    labels, own = torch.cat([y for _, y in batches()]), outputs(end)
    tested = evaluate(front, end, stitches, batches())
    assert list(found) == list(stitches)
    for key, b in found.items():
        z = outputs(StitchedModel(front, end, *key, stitches[key]))
        added = F.cross_entropy(z, labels, reduction="none") - F.cross_entropy(own, labels, reduction="none")
        right, own_right = z.argmax(1) == labels, own.argmax(1) == labels
        assert b.penalty == pytest.approx(added.mean().item())
        assert b.penalty_se == pytest.approx(added.std().item() / math.sqrt(48))
        assert b.agreement == pytest.approx((z.argmax(1) == own.argmax(1)).double().mean().item())
        assert b.soft_agreement == pytest.approx(1 - (z.softmax(1) - own.softmax(1)).abs().sum(1).mean().item() / 2)
        shares = [(right & own_right), (right & ~own_right), (~right & own_right), (~right & ~own_right)]
        got = [b.both_right, b.only_stitched, b.only_end, b.none_right]
        assert got == pytest.approx([s.double().mean().item() for s in shares])
        assert sum(got) == pytest.approx(1) and b.both_right + b.only_stitched == pytest.approx(tested.accuracy[key])
        s, e = right.double().mean().item(), own_right.double().mean().item()
        chance = s * e + (1 - s) * (1 - e)
        assert b.error_consistency == pytest.approx(
            ((right == own_right).double().mean().item() - chance) / (1 - chance)
        )
        assert b.energy_auroc == pytest.approx(auroc(own.logsumexp(1), z.logsumexp(1)))
        assert b.energy_fpr95 == pytest.approx(fpr_at(own.logsumexp(1), z.logsumexp(1)))
        assert b.not_finite == 0


def test_the_identity_is_no_different() -> None:
    model = conv(0)
    b = behaviour(model, model, {("bn1", "bn1"): nn.Identity()}, batches())["bn1", "bn1"]
    assert (b.penalty, b.penalty_se, b.agreement, b.error_consistency) == (0, 0, 1, 1)
    assert b.soft_agreement == pytest.approx(1) and b.energy_auroc == 0.5 and b.energy_fpr95 >= 0.95


def test_outputs_that_are_not_finite_are_counted() -> None:
    model = conv(0)
    broken = Stitch.identity(4).double()
    with torch.no_grad():
        broken.bias.fill_(math.nan)
    b = behaviour(model, model, {("bn1", "bn1"): broken}, batches())["bn1", "bn1"]
    assert b.not_finite == 48 and b.penalty == math.inf and b.agreement == b.both_right == b.soft_agreement == 0
    assert b.energy_auroc == 1 and b.energy_fpr95 == 0 and math.isnan(b.penalty_se)
    with torch.no_grad():
        model.fc.bias.fill_(math.inf)
    with pytest.raises(NotFiniteError, match="the end's own outputs hold NaN or Inf"):
        behaviour(conv(0), model, {("bn1", "bn1"): nn.Identity()}, batches())


def test_labels_are_needed() -> None:
    with pytest.raises(ValueError, match="accuracy needs labels"):
        behaviour(conv(0), conv(1), {}, [x for x, _ in batches()])
    with pytest.raises(ShapeError, match="labels must be 0 … 2, the classes of the end; got"):
        behaviour(conv(0), conv(1), {}, [(x, y + 3) for x, y in batches()])


def test_intervals_hold_their_share() -> None:
    made = Evaluation(100, 0.9, 0.9, {("a", "a"): 0.8}, {("a", "a"): 0.9}, {("a", "a"): 0.05})
    assert made.interval(("a", "a")) == pytest.approx((0.9 - 1.959964 * 0.05, 0.9 + 1.959964 * 0.05))
    assert made.interval(("a", "a"), 0.5) == pytest.approx((0.9 - 0.67449 * 0.05, 0.9 + 0.67449 * 0.05), rel=1e-5)
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\); got 95"):
        made.interval(("a", "a"), 95)


# ------------------------------------------------------------------------------------------ spectrum


def test_the_spectrum_of_a_stitch() -> None:
    weight = torch.diag(torch.tensor([4.0, 2.0, 1.0, 0.0]))
    found = spectrum(Stitch.from_affine(weight))
    assert found.rank == 3 and found.condition == math.inf and found.singular_values.tolist() == [4, 2, 1, 0]
    shares = [4 / 7, 2 / 7, 1 / 7]
    assert found.effective_rank == pytest.approx(math.exp(-sum(s * math.log(s) for s in shares)))
    assert spectrum(Stitch.from_affine(weight[:3])).condition == pytest.approx(4)
    assert spectrum(Stitch.from_affine(weight * 1e-30)).rank == 3
    assert spectrum(LowRankStitch(6, 5, 2)).rank == 2
    zero = spectrum(Stitch.from_affine(torch.zeros(2, 3)))
    assert (zero.rank, zero.condition, zero.effective_rank) == (0, math.inf, 0)


def test_what_has_no_spectrum() -> None:
    with pytest.raises(TypeError, match=r"with a weight \(q, p\); got Identity"):
        spectrum(nn.Identity())
    with pytest.raises(NotFiniteError, match="weight of the stitch holds NaN or Inf"):
        spectrum(Stitch.from_affine(torch.full((2, 2), torch.nan)))


# ------------------------------------------------------------------------------------------ partners


def evaluation(relative: dict[tuple[str, str], float]) -> Evaluation:
    return Evaluation(100, 0.9, 0.9, relative, relative, dict.fromkeys(relative, 0.03))


def test_partners_are_the_best_and_of_equals_the_namesake() -> None:
    a, b = best_partners(
        evaluation({("a", "a"): 0.8, ("b", "a"): 0.9, ("a", "b"): 0.7, ("b", "b"): 0.7, ("c", "b"): math.nan})
    )
    assert (a.layer, a.best, a.relative, a.namesake, a.is_namesake) == ("a", "b", 0.9, 0.8, False)
    assert a.behind == pytest.approx(0.1 / (0.03 * 2**0.5))
    assert (b.best, b.behind, b.is_namesake) == ("b", 0, True)


def test_partners_without_a_namesake() -> None:
    (only,) = best_partners(evaluation({("x", "a"): 0.5, ("y", "a"): 0.6}))
    assert only.best == "y" and math.isnan(only.namesake) and math.isnan(only.behind)
    with pytest.raises(ValueError, match="one stitch for each"):
        best_partners(evaluation({("a", "a", 1): 0.5}))  # type: ignore[dict-item]


def test_a_network_matches_its_own_layers_best() -> None:
    model = conv(0)
    layers = ["bn1", "relu1"]
    pairs = [(a, b) for a in layers for b in layers]
    stitches = {
        pair: f.to_module(dtype=torch.float64) for pair, f in match_direct(model, model, pairs, batches()).items()
    }
    assert all(p.is_namesake for p in best_partners(evaluate(model, model, stitches, batches())))
