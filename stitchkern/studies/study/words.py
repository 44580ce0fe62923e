"""What the numbers of several studies mean, as (name, meaning, formula)."""

from __future__ import annotations


def counted(count: int, what: str) -> str:
    """1 pair, 2 pairs."""
    return f"{count} {what}{'s' * (count != 1)}"


ACCURACY = (
    "Relative accuracy",
    "Accuracy of the stitched network on the test samples, as a share of the end network’s own.",
    "a(front ▷ stitch ▷ end) / a(end)",
)
LEAST_SQUARES = (
    "Least squares",
    "Direct matching: the affine map of least squared error at all positions. It never sees the task.",
    "min over W, b of Σ ‖W x + b − y‖²",
)
TASK_LOSS = (
    "Task loss",
    "The stitch is trained, between frozen networks, so that the stitched network says what the end network says: "
    "cross-entropy to its probabilities, Adam, from the least-squares map where nothing else is said.",
    "min over W, b of E ℓ(end(W x + b), softmax(end(y)))",
)
CKA = (
    "CKA",
    "Linear centred kernel alignment of the stitched activation with the end’s own, every position a sample.",
    "‖cov(x, y)‖² / (‖cov(x, x)‖ · ‖cov(y, y)‖)",
)
R2 = ("R²", "Share of the end layer’s variance that the stitch explains.", "1 − Σ ‖W x + b − y‖² / Σ ‖y − ȳ‖²")
PENALTY = (
    "Stitching penalty",
    "Mean cross-entropy of the stitched network to the labels, less that of the end network itself.",
    "E ℓ(front ▷ stitch ▷ end) − E ℓ(end)",
)
AGREEMENT = ("Agreement", "Share of test samples that stitched network and end put in the same class.", "")
ERROR_CONSISTENCY = (
    "Error consistency",
    "Cohen’s κ of being right (Geirhos et al. 2020): 1 where both err on the same samples, 0 where as chance has it.",
    "",
)
ENERGY = (
    "Energy AUROC",
    "How well the energy of the outputs tells stitched activations from the end’s own: .5 not at all, 1 without fail. "
    "Far above .5 the end is right about activations that it takes for foreign.",
    "",
)
PAPER = (
    "Paper",
    "Read off Csiszárik, Kőrösi-Szabó, Matszangosz, Papp, Varga: Similarity and Matching of Neural Network "
    "Representations, NeurIPS 2021 (arXiv 2110.14633); networks trained and tested on all of CIFAR-10.",
    "",
)
