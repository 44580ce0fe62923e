"""The demo's networks: good enough to mean something, and the same every time."""

import subprocess
import sys

import pytest
import torch

from stitchkern.errors import SpecError
from stitchkern.studies import digits

pytest.importorskip("sklearn")


def test_split_is_fixed_disjoint_and_complete():
    train, test = digits.digits()
    again, _ = digits.digits()
    assert (len(train.inputs), len(test.inputs)) == (1198, 599)
    assert torch.equal(train.inputs, again.inputs)
    seen = {tuple(image.flatten().tolist()) for image in train.inputs}
    assert not any(tuple(image.flatten().tolist()) in seen for image in test.inputs)
    assert sum(len(labels) for _, labels in train) == 1198 and len(list(train)) == len(train)
    assert torch.bincount(test.labels, minlength=10).min() > 40


def test_training_reaches_97_percent_and_leaves_the_global_generator_alone():
    train, test = digits.digits()
    state = torch.random.get_rng_state()
    done = []
    model = digits.train(0, train, progress=lambda epoch, epochs: done.append((epoch, epochs)))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert done[-1] == (len(done), len(done)) and not model.training
    with torch.no_grad():
        accuracy = (model(test.inputs).argmax(1) == test.labels).double().mean()
    assert accuracy >= 0.97


def test_a_seed_determines_the_network():
    train, _ = digits.digits()
    torch.manual_seed(1)
    first = digits.train(3, train, epochs=1)
    torch.manual_seed(2)
    second, other = digits.train(3, train, epochs=1), digits.train(4, train, epochs=1)
    weights, again = first.state_dict(), second.state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert not torch.equal(first.conv1.weight, other.conv1.weight)


def test_shifts_are_by_one_pixel_at_most():
    images = torch.zeros(200, 1, 8, 8)
    images[:, :, 4, 4] = 1.0
    places = {
        tuple(place) for place in digits.shifted(images, torch.Generator().manual_seed(0)).nonzero()[:, 2:].tolist()
    }
    assert places == {(y, x) for y in (3, 4, 5) for x in (3, 4, 5)}


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SpecError, match=r"pip install 'stitchkern\[demo\]'"):
        digits.digits()


def test_importing_the_study_needs_no_scikit_learn():
    code = "import sys; sys.modules['sklearn'] = None; import stitchkern.studies.digits"
    subprocess.run([sys.executable, "-c", code], check=True)
