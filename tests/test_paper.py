"""The authors' own networks give the authors' own numbers (Csiszárik et al. 2021, figure 2, least squares)."""

import os
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from stitchkern.matching import collect_moments, evaluate
from stitchkern.models import load_data, load_model
from stitchkern.solvers import least_squares

DATA = os.environ.get("STITCHKERN_PAPER_DATA")
pytestmark = pytest.mark.skipif(
    not DATA, reason="STITCHKERN_PAPER_DATA does not name the folder with the paper's weights and images"
)

MODELS = Path(__file__).parent.parent / "examples" / "paper" / "models.py"
PAPER = runpy.run_path(str(MODELS))
LAYERS = PAPER["TINY10_LAYERS"]
PAIRS = [(0, 1), (2, 3), (4, 5)]
FIGURE_2 = [0.999, 0.855, 0.846, 0.872, 0.872, 0.938, 0.958, 0.984]
BASE_ACCURACY = {0: 0.873, 1: 0.878, 2: 0.873}


def network(name, seed):
    return load_model(f"{MODELS}:{name}@{DATA}/weights/{'tiny10' if name == 'tiny10' else 'resnet20-w1'}-seed{seed}.pt")


def images(split):
    return load_data(
        f"{DATA}/cifar10/cifar10-original-subset.npz",
        split=split,
        mean=PAPER["MEAN"],
        std=PAPER["STD"],
        batch_size=128,
    )


@pytest.fixture(scope="module")
def evaluations():
    """Both accuracies and every layer's stitch, for each pair of seeds."""
    train, test = images("train"), images("test")
    assert (train.count, test.count) == (5085, 1017)
    found = {}
    for seeds in PAIRS:
        front, end = (network("tiny10", seed) for seed in seeds)
        moments = collect_moments(front, end, [(layer, layer) for layer in LAYERS], train)
        stitches = {pair: least_squares(m).to_module() for pair, m in moments.items()}
        found[seeds] = evaluate(front, end, stitches, test)
    return found


def test_networks_classify_as_measured(evaluations):
    measured = {}
    for (a, b), evaluation in evaluations.items():
        measured |= {a: evaluation.front_accuracy, b: evaluation.end_accuracy}
    for seed, accuracy in BASE_ACCURACY.items():
        assert measured[seed] == pytest.approx(accuracy, abs=0.01), f"seed {seed}"


def test_relative_accuracy_by_layer_agrees_with_figure_2(evaluations):
    ours = np.mean([[e.relative[layer, layer] for layer in LAYERS] for e in evaluations.values()], axis=0)
    table = "\n".join(f"{n}: {o:.3f}, paper {p:.3f}" for n, o, p in zip(LAYERS, ours, FIGURE_2, strict=True))
    assert np.abs(ours - FIGURE_2).max() <= 0.06, table


@pytest.mark.parametrize("name, parameters", [("tiny10", 86_778), ("resnet20", 272_474)])
def test_architectures_have_the_stated_parameters_and_load_strictly(name, parameters):
    model = PAPER[name]()
    assert sum(p.numel() for p in model.parameters()) == parameters
    file = f"{DATA}/weights/{'tiny10' if name == 'tiny10' else 'resnet20-w1'}-seed0.pt"
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True), strict=True)


def test_resnet_is_tapped_after_the_addition_and_before_relu():
    model = network("resnet20", 0)
    block, x = model.layer2[0], torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        branch = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x)))))
        taken = []
        handle = block.add.register_forward_hook(lambda module, args, output: taken.append(output))
        out = block(x)
        handle.remove()
    assert torch.equal(taken[0], branch + block.downsample(x)) and torch.equal(out, taken[0].relu())
