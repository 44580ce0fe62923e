"""Comparing networks that are named by specs."""

import pytest
import torch

import stitchkern as sk
from stitchkern.errors import LayerError, ShapeError, SpecError
from stitchkern.studies.comparing import compare_specs
from stitchkern.studies.names import short_name, short_names

NETS = """
import torch
from torch import nn

def net(seed=0, width=4):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, width), nn.ReLU(inplace=True), nn.Linear(width, 2))

def other():
    return net(1, 5)

class Codes(nn.Module):
    def forward(self, x):
        return x.round().long()

def coded():
    return nn.Sequential(nn.Linear(3, 2), Codes())
"""


@pytest.fixture
def nets(tmp_path):
    (tmp_path / "nets.py").write_text(NETS)
    return f"{tmp_path}/nets.py"


@pytest.fixture
def batches():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    return [(x[:20],), (x[20:],)]


def test_it_is_compare_with_names_and_how_it_was_made(nets, batches):
    stages = []
    found = compare_specs(
        f"{nets}:net", f"{nets}:other", batches, layers_a=["0", "2"], estimator="exact",
        made={"Command": "c"}, progress=lambda *args: stages.append(args),
    )  # fmt: skip
    space: dict = {}
    exec(NETS, space)
    expected = sk.compare(space["net"](), space["other"](), batches, layers_a=["0", "2"], estimator="exact")
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=0)
    torch.testing.assert_close(found.standard_error, expected.standard_error, rtol=0, atol=0)
    assert found.names == ("net", "other") and found.shape == (2, 3)
    assert stages == [("compare", 1, 2), ("compare", 2, 2)]
    assert list(found.made)[:3] == ["Command", "Model A", "Model B"] and found.made["Command"] == "c"
    assert found.made["Model B"] == f"other, 32 parameters, {nets}:other"
    assert expected.made.keys() <= found.made.keys()


def test_without_a_second_one_the_first_is_compared_with_itself(nets, batches):
    found = compare_specs(f"{nets}:net", None, batches, features="pool", estimator="exact")
    assert found.names == ("net", "net") and found.made["Model"].startswith("net, 26 parameters")
    torch.testing.assert_close(found.values.diagonal(), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)
    twice = compare_specs(f"{nets}:net", f"{nets}:net", batches, features="pool", estimator="exact")
    assert twice.names == ("net (a)", "net (b)")
    torch.testing.assert_close(twice.values, found.values, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"measure": "nothing"}, SpecError, "measure must be one of"),
        ({"estimator": "guess"}, SpecError, "estimator must be one of"),
        ({"measure": "rsa", "q": 1}, SpecError, "'q'"),
        ({"layers_a": ["7"]}, LayerError, "no layer '7'"),
    ],
)
def test_what_compare_does_not_take_is_an_error_of_its_kind(nets, batches, options, error, message):
    with pytest.raises(error, match=message):
        compare_specs(f"{nets}:net", f"{nets}:other", batches, **options)


def test_models_and_data_must_fit(nets, batches):
    with pytest.raises(SpecError, match="the data gave no batch"):
        compare_specs(f"{nets}:net", None, [])
    with pytest.raises(ShapeError, match=r"B '.*:other' does not take inputs \(20, 2\)"):
        compare_specs("torch.nn:Identity", f"{nets}:other", [(torch.zeros(20, 2),)])
    with pytest.raises(SpecError, match="must give real floating-point numbers"):
        compare_specs(f"{nets}:coded", f"{nets}:net", batches)


def test_one_name():
    assert short_name("nets.py:small@runs/a.pt") == "a" and short_name("nets:small") == "small"
    assert short_names("nets.py:x@a/w.pt", "nets.py:x@a/w.pt", ("a", "b")) == ("a/w (a)", "a/w (b)")
