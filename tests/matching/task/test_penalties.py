"""Penalties: where a run settles, loss plus penalty is least; CKA follows its sign."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import stitchkern as sk
from stitchkern.matching.task.closeness import Closeness
from tests.matching.task.networks import batches, conv


class Linear(nn.Module):
    """A network whose first layer is the data: a hint from it is plain regression."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.first, self.fc = nn.Linear(*weight.shape[::-1], bias=False, dtype=torch.float64), nn.Linear(5, 3).double()
        with torch.no_grad():
            self.first.weight.copy_(weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.first(x))


@pytest.fixture(scope="module")
def regression() -> tuple[Linear, Linear, list[tuple[Tensor, Tensor]], Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    n, p = 60, 5
    x = torch.randn(n, p, generator=g, dtype=torch.float64) * torch.tensor([1.0, 0.3, 2.0, 1.0, 0.5])
    x[:, 3] = x[:, 0] + 0.3 * x[:, 3]
    weight = torch.randn(p, p, generator=g, dtype=torch.float64) * torch.tensor([1.0, 0.02, 1.0, 0.01, 0.3])
    front, end = Linear(torch.eye(p, dtype=torch.float64)), Linear(weight)
    data = [(x.repeat(40, 1), torch.zeros(40 * n, dtype=torch.long))]  # an epoch is 40 steps over the same samples
    return front, end, data, x, x @ weight.T


@pytest.mark.parametrize(
    "run",
    [
        {"optimizer": "adam", "learning_rate": 0.1, "epochs": 40, "decay": 0.1},
        {"optimizer": "sgd", "learning_rate": 0.05, "epochs": 30, "milestones": ()},
    ],
)
def test_where_a_run_settles_the_conditions_of_the_penalties_hold(regression, run: dict) -> None:
    front, end, data, x, y = regression
    strength = 0.06
    configs = [
        {"target": "hint", "l1": strength},
        {"target": "hint", "l1": 25 * strength, "l1_mean": True},
        {"target": "hint", "group_l1": strength},
    ]
    plain, mean, grouped = sk.match_tasks(front, end, "first", data, configs, batch_size=60, shuffle=False, **run)
    for match in (plain, mean, grouped):
        w, b = match.stitch.weight.detach(), match.stitch.bias.detach()
        residual = x @ w.T + b - y
        gradient = 2 * residual.T @ x / residual.numel()
        if match is grouped:
            norms = w.square().sum(0).sqrt()
            dropped = norms == 0
            assert 0 < dropped.sum() < 5 and match.history.zeros[-1] == dropped.double().mean()
            assert bool((gradient.square().sum(0).sqrt()[dropped] <= strength).all())
            assert_close(gradient[:, ~dropped], (-strength * w / norms)[:, ~dropped], rtol=0, atol=1e-3 * strength)
        else:
            zero = w == 0
            assert 0 < zero.sum() < w.numel() and match.history.zeros[-1] == zero.double().mean()
            assert bool((gradient.abs()[zero] <= strength * 1.001).all())
            assert_close(gradient[~zero], (-strength * w.sign())[~zero], rtol=0, atol=1e-3 * strength)


def test_cka_as_a_penalty_takes_it_either_way() -> None:
    front, end = conv(0), conv(0)
    configs = [{"cka": 0.3}, {}, {"cka": -0.3}]
    down, plain, up = sk.match_tasks(
        front,
        end,
        "bn1",
        batches(),
        [{"init": "random", **config} for config in configs],
        epochs=20,
        learning_rate=0.02,
    )
    assert down.history.cka[-1] < plain.history.cka[-1] - 0.05 < up.history.cka[-1] - 0.1


def test_closeness_is_that_of_the_features_and_can_be_differentiated() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(50, 4, generator=g, dtype=torch.float64) + 5,
        torch.randn(50, 3, generator=g, dtype=torch.float64),
    )
    y = y + x[:, :3] * 0.5
    weight, bias = torch.randn(3, 4, generator=g, dtype=torch.float64), torch.randn(3, generator=g, dtype=torch.float64)
    for scale in (1.0, 1e-120, 1e60):
        close = Closeness(sk.Statistics.of(sk.Moments(4, 3, precision="float64").update(x * scale, y * scale)))
        assert float(close.cka(weight)) == pytest.approx(sk.cka(x @ weight.T, y), rel=1e-9)
        assert float(close.cka(weight * 1e-90)) == pytest.approx(sk.cka(x @ weight.T, y), rel=1e-9)
    close = Closeness(sk.Statistics.of(sk.Moments(4, 3, precision="float64").update(x, y)))
    z = x @ weight.T + bias
    expected = 1 - (z - y).square().sum() / (y - y.mean(0)).square().sum()
    assert float(close.r2(weight, bias)) == pytest.approx(float(expected), rel=1e-9)
    assert torch.autograd.gradcheck(close.cka, weight.requires_grad_())
    assert float(close.cka(torch.zeros(3, 4, dtype=torch.float64))) == 0
