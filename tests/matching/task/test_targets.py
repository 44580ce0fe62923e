"""Every target's loss is what its formula says, of each stitch by itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

import stitchkern as sk
from stitchkern.matching.task.config import TaskConfig
from stitchkern.matching.task.losses import hint_losses, hits, latent_losses, output_losses, wanted_outputs
from stitchkern.models import StitchedModel, activations
from stitchkern.nn import Stitch
from tests.matching.task.networks import PLAIN, batches, conv

N, K, C = 7, 3, 5


@pytest.fixture
def fields() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    end, front = (3 * torch.randn(N, C, generator=g, dtype=torch.float64) for _ in range(2))
    return {"end": end, "front": front, "labels": torch.randint(C, (N,), generator=g)}


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(N, K, C, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3


SOFT = [
    (target, loss, temperature)
    for target in ("soft", "soft_front", "soft_mean", "soft_mean_logits")
    for loss in ("cross_entropy", "kl", "binary")
    for temperature in (1.0, 0.5, 3.0)
    if (target, loss) != ("soft_mean_logits", "binary") or temperature == 1
]


@pytest.mark.parametrize("target, loss, temperature", SOFT)
def test_soft_targets(target: str, loss: str, temperature: float, fields: dict, logits: Tensor) -> None:
    config = TaskConfig(target=target, loss=loss, temperature=temperature)
    squash = torch.sigmoid if loss == "binary" else lambda z: z.softmax(1)
    p, q = squash(fields["end"] / temperature), squash(fields["front"] / temperature)
    both = squash((fields["end"] + fields["front"]) / 2 / temperature)
    wanted = {"soft": p, "soft_front": q, "soft_mean": (p + q) / 2, "soft_mean_logits": both}[target]
    assert_close(wanted_outputs(config, fields), wanted)
    got = output_losses(config, logits, wanted)
    for k in range(K):
        z = logits[:, k] / temperature
        if loss == "binary":
            expected = F.binary_cross_entropy_with_logits(z, wanted)
        elif loss == "kl":
            expected = F.kl_div(z.log_softmax(1), wanted, reduction="batchmean")
        else:
            expected = F.cross_entropy(z, wanted)
        assert_close(got[k], expected * temperature**2)


def test_labels(fields: dict, logits: Tensor) -> None:
    config = TaskConfig(target="hard")
    got = output_losses(config, logits, wanted_outputs(config, fields))
    for k in range(K):
        assert_close(got[k], F.cross_entropy(logits[:, k], fields["labels"]))
    shares = hits(config, logits, fields["labels"])
    assert_close(shares, (logits.argmax(2) == fields["labels"][:, None]).float().mean(0))


def test_several_labels_per_sample(fields: dict, logits: Tensor) -> None:
    config = TaskConfig(target="hard", loss="binary")
    labels = (fields["end"] > 0).float()
    got = output_losses(config, logits, labels)
    for k in range(K):
        assert_close(got[k], F.binary_cross_entropy_with_logits(logits[:, k], labels.double()))
    assert_close(hits(config, logits, labels)[0], ((logits[:, 0] > 0) == labels.bool()).float().mean())


def test_targets_of_certainty_stay_finite(logits: Tensor) -> None:
    fields = {"end": torch.tensor([[1e4, 0.0, -1e4, 0.0, 0.0]], dtype=torch.float64).expand(N, C)}
    for loss in ("cross_entropy", "kl", "binary"):
        config = TaskConfig(loss=loss)
        assert bool(output_losses(config, logits, wanted_outputs(config, fields)).isfinite().all())


def test_distances_of_activations() -> None:
    g = torch.Generator().manual_seed(0)
    own = [torch.randn(N, 4, 2, 2, generator=g), torch.zeros(N, 3), torch.randn(N, 3, generator=g)]
    stitched = [torch.randn(N, K, *b.shape[1:], generator=g) for b in own]
    stitched[2][:, 1] = own[2]
    got = latent_losses(stitched, own)
    for k in range(K):  # the dead layer does not count
        expected = [(stitched[i][:, k] - own[i]).norm() / own[i].norm() for i in (0, 2)]
        assert_close(got[k], sum(expected) / 2)
    got = hint_losses(stitched[0], own[0])
    for k in range(K):
        assert_close(got[k], (stitched[0][:, k] - own[0]).square().mean())


def test_a_distance_of_zero_has_a_gradient() -> None:
    own = torch.ones(2, 3)
    stitched = own[:, None].clone().requires_grad_()
    latent_losses([stitched], [own]).sum().backward()
    assert bool((stitched.grad == 0).all())


@pytest.mark.parametrize("named", [None, ("relu2", "fc")])
def test_latent_alignment_trains_on_the_layers_that_follow(named: tuple[str, ...] | None) -> None:
    front, end = conv(0), conv(1)
    configs = [{"target": "latent", "target_layers": named, "init": "identity"}, {"target": "hint", "init": "identity"}]
    found, _ = sk.match_tasks(front, end, "bn1", batches(), configs, **PLAIN)
    layers = ["bn1", *(named or ("relu1", "conv2", "bn2", "relu2", "fc"))]

    stitch = Stitch.identity(4).double()
    model, steps = StitchedModel(front, end, "bn1", "bn1", stitch), torch.optim.SGD(stitch.parameters(), lr=0.2)
    for inputs, _ in batches():
        own = activations(end, layers, inputs)
        heard = {"bn1": stitch(activations(front, ["bn1"], inputs)["bn1"])}
        handles = [
            end.get_submodule(name).register_forward_hook(
                lambda m, a, y, name=name, heard=heard: heard.update({name: y.clone()})
            )
            for name in layers[1:]
        ]
        model._tail(heard["bn1"], inputs)
        for handle in handles:
            handle.remove()
        steps.zero_grad()
        sum((heard[n] - own[n]).norm() / own[n].norm() for n in layers).div(len(layers)).backward()
        steps.step()
    assert_close(found.stitch.weight, stitch.weight, rtol=1e-5, atol=1e-6)
    assert not any(m._forward_hooks for m in end.modules())


def test_many_kinds_of_targets_train_together_as_they_do_alone() -> None:
    configs = [
        {"target": "latent"}, {"target": "hard"}, {"target": "hint"}, {"target": "soft", "temperature": 2.0},
        {"target": "soft_mean"}, {"target": "latent", "target_layers": ["bn2"], "init": "random"}, {},
    ]  # fmt: skip
    together = sk.match_tasks(conv(0), conv(1), "bn1", batches(), configs, **PLAIN)
    for config, match in zip(configs, together, strict=True):
        (alone,) = sk.match_tasks(conv(0), conv(1), "bn1", batches(), [config], **PLAIN)
        assert_close(match.stitch.weight, alone.stitch.weight)
        assert match.history.loss == pytest.approx(alone.history.loss, rel=1e-6)


def test_several_labels_beside_a_target_that_is_no_output() -> None:
    data = [(x, F.one_hot(y, 3)) for x, y in batches()]
    configs = [{"target": "latent"}, {"target": "hard", "loss": "binary"}, {"loss": "binary"}]
    latent, hard, soft = sk.match_tasks(conv(0), conv(1), "bn1", data, configs, epochs=3, learning_rate=0.05)
    assert hard.history.loss[-1] < hard.history.loss[1]
    for match in (latent, hard, soft):
        with torch.no_grad():
            z = torch.cat([match.model(x) for x, _ in data])
        again = sk.match_tasks(conv(0), conv(1), "bn1", data, [{"loss": "binary", "init": match.stitch}], epochs=1,
                               batch_size=100, learning_rate=0.0)[0]  # fmt: skip
        expected = ((z > 0) == torch.cat([y for _, y in data]).bool()).double().mean()
        assert again.history.accuracy[0] == pytest.approx(expected.item())
