"""Direct maps in scikit-learn's words: estimators with ``fit``, ``partial_fit``, ``predict`` and ``score``.

They pass scikit-learn's own estimator checks and agree with its estimators of the same name, but keep moments instead
of data: memory is O((p+q)²), rows may come in pieces, and torch tensors stay where they are, also on a GPU.
scikit-learn itself is an optional dependency: ``pip install stitchkern[sklearn]``.
"""

try:
    from sklearn.utils.validation import validate_data as _  # noqa: F401
except ImportError as e:
    raise ImportError("stitchkern.estimators needs scikit-learn 1.6 or later: pip install stitchkern[sklearn]") from e

from stitchkern.estimators.lasso import ConvergenceWarning, ElasticNet, Lasso, MultiTaskElasticNet, MultiTaskLasso
from stitchkern.estimators.lasso_cv import ElasticNetCV, LassoCV, MultiTaskElasticNetCV, MultiTaskLassoCV
from stitchkern.estimators.regression import LinearRegression, OrthogonalProcrustes, ReducedRankRegression, Ridge
from stitchkern.estimators.ridge_cv import RidgeCV

__all__ = [
    "ConvergenceWarning",
    "ElasticNet",
    "ElasticNetCV",
    "Lasso",
    "LassoCV",
    "LinearRegression",
    "MultiTaskElasticNet",
    "MultiTaskElasticNetCV",
    "MultiTaskLasso",
    "MultiTaskLassoCV",
    "OrthogonalProcrustes",
    "ReducedRankRegression",
    "Ridge",
    "RidgeCV",
]
