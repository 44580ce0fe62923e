"""What Csiszárik et al. 2021 (arXiv 2110.14633) state, read off its figures (± about .001) and tables.

Networks by the names that `kind_of` gives; relative accuracies as fractions.
"""

from __future__ import annotations

TINY10, RESNET20 = "Tiny-10", "ResNet-20"

#: figure 2: means of ten pairs, by network and layer: (task loss, least squares)
DIRECT_VS_TASK: dict[str, dict[str, tuple[float, float]]] = {
    TINY10: {
        "bn1": (0.999, 0.999),
        "bn2": (0.954, 0.855),
        "bn3": (0.964, 0.846),
        "bn4": (0.966, 0.872),
        "bn5": (0.962, 0.872),
        "bn6": (0.980, 0.938),
        "bn7": (0.994, 0.958),
        "bn8": (0.999, 0.984),
    },
    RESNET20: {
        "bn1": (0.821, 0.523),
        "layer1.0.add": (0.990, 0.963),
        "layer1.1.add": (0.985, 0.927),
        "layer2.0.add": (0.987, 0.828),
        "layer2.1.add": (0.981, 0.887),
        "layer3.0.add": (0.978, 0.584),
        "layer3.1.add": (0.990, 0.650),
    },
}

#: figure 7, Tiny-10, five runs: the ranks, and by layer relative accuracy at each of them, the last being the full rank
RANKS: tuple[int | str, ...] = (4, 8, 16, "full")
RANK_TASK: dict[str, tuple[float, ...]] = {
    "bn1": (0.80, 0.97, 0.97, 0.96),
    "bn2": (0.71, 0.88, 0.93, 0.91),
    "bn3": (0.63, 0.90, 0.94, 0.95),
    "bn4": (0.63, 0.85, 0.94, 0.96),
    "bn5": (0.69, 0.82, 0.93, 0.95),
    "bn6": (0.80, 0.90, 0.95, 0.98),
    "bn7": (0.87, 0.95, 0.97, 0.99),
    "bn8": (0.90, 0.99, 0.99, 1.0),
}
RANK_DIRECT: dict[str, tuple[float, ...]] = {
    "bn1": (0.78, 0.99, 1.0, 1.0),
    "bn2": (0.36, 0.71, 0.78, 0.78),
    "bn3": (0.28, 0.60, 0.81, 0.84),
    "bn4": (0.25, 0.54, 0.81, 0.86),
    "bn5": (0.23, 0.45, 0.78, 0.85),
    "bn6": (0.30, 0.54, 0.83, 0.93),
    "bn7": (0.33, 0.58, 0.84, 0.95),
    "bn8": (0.62, 0.86, 0.98, 0.98),
}
PROCRUSTES: dict[str, float] = {
    "bn1": 0.86, "bn2": 0.58, "bn3": 0.68, "bn4": 0.80, "bn5": 0.82, "bn6": 0.93, "bn7": 0.95, "bn8": 0.99,
}  # fmt: skip

#: figure 8, Tiny-10: (share of zeros, relative accuracy)
SPARSITY_DIRECT: tuple[tuple[float, float], ...] = ((0.0, 0.9464), (0.565, 0.8337), (0.798, 0.6364), (0.974, 0.1160))
SPARSITY_TASK: tuple[tuple[float, float], ...] = ((0.0, 0.9770), (0.449, 0.9608), (0.837, 0.9170), (0.968, 0.7742))

#: width of ResNet-20, task loss: layer -> relative accuracy at width 1, 2, 3, 4; and the accuracies of the networks
WIDTHS = (1, 2, 3, 4)
WIDTH: dict[str, tuple[float, ...]] = {
    "layer1.0.add": (0.9904, 0.9968, 0.9973, 0.9961),
    "layer1.1.add": (0.9854, 0.9943, 0.9958, 0.9960),
    "layer2.0.add": (0.9868, 0.9943, 0.9944, 0.9946),
    "layer2.1.add": (0.9813, 0.9928, 0.9945, 0.9948),
    "layer3.0.add": (0.9779, 0.9900, 0.9918, 0.9908),
    "layer3.1.add": (0.9903, 0.9975, 0.9984, 0.9968),
}
WIDTH_ACCURACY = (0.9195, 0.9397, 0.9459, 0.9477)

#: figure 4, Tiny-10 layer 3, 5,000 iterations from least squares: at the start and at the end
SIMILARITY_WHILE_TRAINING = {"cka": (0.921, 0.910), "r2": (0.9590, 0.9556), "cross-entropy": (0.921, 0.421)}

#: figure 5, self-stitch of a ResNet of width 3 at layer 2.0, CKA penalty 0.1: at the start and after two epochs
LOW_CKA = {"cka": (0.974, 0.702), "relative accuracy": (1.0, 0.978)}

#: appendix B, Tiny-10 layer 2: least squares, and weighted by B⁴
WEIGHTED = (0.85, 0.925)
