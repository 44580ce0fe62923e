"""One iterable for both models, or one for each: then their samples must be the same, in one order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import stitchkern as sk
from stitchkern.errors import SampleMismatchError, ShapeError
from tests.comparison.conftest import cnn, images, split

LAYERS = dict(layers_a=["0"], layers_b=["4"])


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:  # and no identifiers
        return self.fc(x)


def test_each_model_reads_its_own_inputs() -> None:
    a, b = cnn(0), cnn(1)
    inputs, labels = images(30)
    ours = split((inputs, labels), 10, 20)
    theirs = split((inputs.flip(3) * 2, labels), 10, 20)
    flipped = nn.Sequential(Flip(), b)
    found = sk.compare(a, b, (ours, theirs), **LAYERS)
    wanted = sk.compare(a, flipped, ours, layers_a=["0"], layers_b=["1.4"])
    torch.testing.assert_close(found.values, wanted.values, rtol=1e-6, atol=0)
    assert found.samples == 30
    twice = sk.compare(a, a, (ours, theirs), **LAYERS)  # one model, different inputs: two forwards
    assert abs(twice.values - sk.compare(a, a, ours, **LAYERS).values) > 1e-3


class Flip(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flip(3) * 2


def test_loaders_and_generators_make_a_pair_and_a_tuple_of_two_batches_does_not() -> None:
    a, b = cnn(0), cnn(1)
    inputs, labels = images(30)
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=15)
    plain = sk.compare(a, b, split((inputs, labels), 15, 15), **LAYERS)
    for batches in (
        loader,
        (loader, loader),
        (loader, (batch for batch in loader)),
        tuple(split((inputs, labels), 15, 15)),
        (inputs[:15], inputs[15:]),
    ):
        assert torch.equal(sk.compare(a, b, batches, **LAYERS).values, plain.values)
    with pytest.raises(ValueError, match="these two look like batches: give them as a list"):
        sk.compare(a, b, tuple([x, y] for x, y in split((inputs, labels), 15, 15)), **LAYERS)


def test_another_order_is_found_by_identifiers() -> None:
    a, b = cnn(0), cnn(1)
    inputs, labels = images(30)
    names = [f"image {i}" for i in range(30)]
    order = list(range(30))
    order[17], order[18] = 18, 17

    def batches(order: list[int], as_names) -> list:
        return [(inputs[part], labels[part], as_names([names[i] for i in part])) for part in (order[:10], order[10:])]

    for as_names in (list, tuple):
        same = sk.compare(a, b, (batches(list(range(30)), as_names), batches(list(range(30)), list)), **LAYERS)
        assert same.samples == 30
    with pytest.raises(
        SampleMismatchError, match=r"batch 1 .* same samples in another order: 'image 17' and 'image 18' at position 7"
    ):
        sk.compare(a, b, (batches(list(range(30)), list), batches(order, list)), **LAYERS)
    order[18] = 5
    with pytest.raises(SampleMismatchError, match=r"batch 1 .* different samples: 'image 17' and 'image 18'"):
        sk.compare(a, b, (batches(list(range(30)), list), batches(order, list)), **LAYERS)
    numbers = [(x, y, torch.arange(len(x))) for x, y in split((inputs, labels), 10, 20)]
    assert sk.compare(a, b, (numbers, numbers), **LAYERS).samples == 30
    with pytest.raises(SampleMismatchError, match="of model_a have identifiers in batch 0, those of model_b do not"):
        sk.compare(a, b, (numbers, split((inputs, labels), 10, 20)), **LAYERS)
    with pytest.raises(SampleMismatchError, match="batch 0 of model_b has 10 identifiers for 9 samples"):
        shorter = [(inputs[:9], labels[:9], torch.arange(10))]
        sk.compare(a, b, ([(inputs[:9], labels[:9], torch.arange(9))], shorter), **LAYERS)


def test_identifiers_in_mappings_are_compared_and_not_shown_to_models() -> None:
    model, x = Keywords(), torch.randn(12, 4)
    ours = [{"x": x, "id": torch.arange(12)}]
    found = sk.compare(model, model, ours)
    assert found.samples == 12
    torch.testing.assert_close(sk.compare(model, model, (ours, ours)).values, found.values, rtol=1e-12, atol=0)
    theirs = [{"x": x, "id": torch.arange(12).flip(0)}]
    with pytest.raises(SampleMismatchError, match="another order: 0 and 11 at position 0"):
        sk.compare(model, model, (ours, theirs))
    renamed = [{"x": x, "index": torch.arange(12)}]
    assert sk.compare(model, model, (renamed, renamed), identifiers="index").samples == 12
    assert sk.compare(model, model, ([(ours[0], torch.zeros(12))], ours)).samples == 12


def test_without_identifiers_sizes_and_labels_are_compared() -> None:
    a, b = cnn(0), cnn(1)
    inputs, labels = images(30)
    labels[12], labels[13] = 0, 1
    ours = split((inputs, labels), 10, 20)
    order = torch.arange(30)
    order[12], order[13] = 13, 12
    with pytest.raises(SampleMismatchError, match=r"batch 1 has other labels .* first at position 2"):
        sk.compare(a, b, (ours, split((inputs[order], labels[order]), 10, 20)), **LAYERS)
    with pytest.raises(SampleMismatchError, match="batch 0 holds 10 samples for model_a and 15 for model_b"):
        sk.compare(a, b, (ours, split((inputs, labels), 15, 15)), **LAYERS)
    with pytest.raises(SampleMismatchError, match="the batches of model_b end after 1, those of model_a go on"):
        sk.compare(a, b, (ours, ours[:1]), **LAYERS)
    with pytest.raises(SampleMismatchError, match="the batches of model_a end after 1, those of model_b go on"):
        sk.compare(a, b, (ours[:1], ours), **LAYERS)
    with pytest.raises(SampleMismatchError, match=r"labels \(10,\) for model_a and \(10, 1\) for model_b"):
        sk.compare(a, b, (ours, [(x, y[:, None]) for x, y in ours]), **LAYERS)
    assert sk.compare(a, b, (ours, [x for x, _ in ours]), **LAYERS).samples == 30  # nothing to compare but sizes
    nothing = [(x, torch.full((len(x),), torch.nan)) for x, _ in ours]
    assert sk.compare(a, b, (nothing, nothing), **LAYERS).samples == 30


def test_masks_of_two_tokenisers_must_keep_as_many_tokens() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(9, 6)

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return self.embed(input_ids)

    a, b = Tokens(), Tokens()
    ids = torch.randint(9, (6, 4), generator=torch.Generator().manual_seed(0))
    first, second = torch.ones(6, 4), torch.ones(6, 4)
    first[0, 3] = second[1, 3] = 0
    sides = [[{"input_ids": ids, "attention_mask": mask}] for mask in (first, second)]
    with pytest.raises(SampleMismatchError, match="masks of the two sides keep different tokens"):
        sk.compare(a, b, tuple(sides), features="positions")
    second[0, 2] = 0
    with pytest.raises(ShapeError, match="needs the same positions"):
        sk.compare(a, b, tuple(sides), features="positions")
    assert sk.compare(a, b, (sides[0], sides[0]), features="positions").samples == 6


def test_what_is_no_batch() -> None:
    a = cnn(0)
    with pytest.raises(ValueError, match=r"must yield inputs or \(inputs, labels\) or .*; got a tuple of 4"):
        sk.compare(a, a, [(1, 2, 3, 4)])
    with pytest.raises(ShapeError, match="batches hold no tensor of samples; got a str"):
        sk.compare(a, a, [("x", "y")])
