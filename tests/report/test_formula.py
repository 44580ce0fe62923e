"""Formulas of docstrings as plain text."""

import inspect
import re

import pytest

from stitchkern import similarity
from stitchkern.report.formula import plain


@pytest.mark.parametrize(
    "tex, text",
    [
        (r"R^2 = 1 - \frac{\min_{M,b} E\|Mx+b-y\|^2}{E\|y-\bar y\|^2}", "R² = 1 − (min_(M,b) E‖Mx+b−y‖²) / (E‖y−ȳ‖²)"),
        (r"\frac1n \sum_i \frac{|N_x(i)|}{k}", "(1 / n) Σ_i (|N_x(i)|) / k"),
        (r"\tfrac12 a,\qquad d = \sqrt{2 - 2s}\ \text{(normalized)}", "(1 / 2) a, d = √(2 − 2s) (normalized)"),
        (r"C_{xx}^{-1/2} C_{xy}B", "C_xx^(−1/2) C_xy B"),
        (r"|\langle h_i, x_j\rangle|", "|⟨h_i, x_j⟩|"),
        (r"\left(\hat x_i^\top A\right)^2", "(x̂_iᵀ A)²"),
        (r"\operatorname{tr}A\operatorname{tr}B", "tr A tr B"),
        (r"\frac{\mathrm{HSIC}(x, y)}{\sqrt{a}} = b", "(HSIC(x, y)) / √a = b"),
    ],
)
def test_formulas_read_as_they_are_meant(tex, text):
    assert plain(tex) == text


def test_no_formula_of_an_index_keeps_tex():
    indices = [getattr(similarity, name) for name in similarity.__all__]
    formulas = [
        part.removeprefix(".. math::")
        for index in indices
        for part in (inspect.getdoc(index) or "").split("\n\n")
        if part.startswith(".. math::")
    ]
    assert len(formulas) >= 10
    for formula in map(plain, formulas):
        sets_aside = re.sub(r"\{\w+ : [^{}]*\}", "", formula)  # {i : …}
        assert not set(sets_aside) & set("\\{}$\n")
        assert formula.count("(") == formula.count(")") and "frac" not in formula and "  " not in formula
