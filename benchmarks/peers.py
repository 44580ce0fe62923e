"""The packages that the benchmarks stand beside, called as their users call them; `make bench-peers` installs them.

Each function imports its package itself; a missing one skips its cases. What a package imports at load that cannot be
had beside a CPU build of torch, or that its indices do not use, is stood in for.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

#: packages whose __init__ loads models and data, of which only one room is wanted
ONLY_ROOMS = ("latentis", "pu", "thingsvision")
#: modules that are imported for parts that are not called here
STAND_INS = ("latentis.space", "uutils", "uutils.torch_uu")


class _StandIn(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def room(name: str) -> Any:
    """A module of a package, or a skipped case where the package is not installed."""
    package = name.split(".")[0]
    if package not in sys.modules:
        spec = importlib.util.find_spec(package)
        if spec is None:
            pytest.skip(f"{package} is not installed: make bench-peers")
        if package in ONLY_ROOMS:
            sys.modules[package] = types.ModuleType(package)
            sys.modules[package].__path__ = list(spec.submodule_search_locations or [])
    for stand_in in STAND_INS:
        sys.modules.setdefault(stand_in, _StandIn(stand_in))
    try:
        return importlib.import_module(name)
    except ImportError as e:
        pytest.skip(f"{name} cannot be imported: {e}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Progress bars and advice elsewhere than into the table."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def _loader(images: Tensor, batch: int) -> DataLoader:
    """Batches (images, labels) that are there already: collation is not what is compared."""
    return DataLoader([(x, torch.zeros(len(x))) for x in images.split(batch)], batch_size=None)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ all layers of two models
# (model_a, model_b, images, batch, layers) -> (layers, layers)


def cka_pytorch(a: nn.Module, b: nn.Module, images: Tensor, batch: int, layers: list[str]) -> Tensor:
    calculator = room("cka_pytorch").CKACalculator(a, b, layers, layers, verbose=False)
    return calculator.calculate_cka_matrix(_loader(images, batch), num_epochs=1)


def pytorch_cka(a: nn.Module, b: nn.Module, images: Tensor, batch: int, layers: list[str]) -> Tensor:
    return room("cka").compute_cka(a, b, _loader(images, batch), layers=layers, progress=False)[0]


def torch_cka(a: nn.Module, b: nn.Module, images: Tensor, batch: int, layers: list[str]) -> Tensor:
    with _quiet():
        cka = room("torch_cka").CKA(a, b, "a", "b", layers, layers)
        cka.compare(_loader(images, batch))
    return cka.export()["CKA"]


def simtorch(a: nn.Module, b: nn.Module, images: Tensor, batch: int, layers: list[str]) -> Tensor:
    with _quiet():
        models = (room("simtorch.model").SimilarityModel(m, layers_to_include=layers) for m in (a, b))
        found = room("simtorch.similarity").CKA(*models).compute(_loader(images, batch))
    return torch.from_numpy(found)


def ckatorch(a: nn.Module, b: nn.Module, images: Tensor, batch: int, layers: list[str]) -> Tensor:
    """Its layers have to give (batches, n, p): what ours give goes through such ones."""

    class Flat(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model
            self.taps = nn.ModuleDict({name: nn.Identity() for name in layers})
            for name, tap in self.taps.items():
                model.get_submodule(name).register_forward_hook(partial(self.show, tap))

        @staticmethod
        def show(tap: nn.Module, _module: nn.Module, _input: tuple, output: Tensor) -> None:
            tap(output.flatten(1)[None])

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)

    names = [f"taps.{name}" for name in layers]
    with _quiet():
        cka = room("ckatorch").CKA(Flat(a), Flat(b), names, names)
        return cka(_loader(images, batch), 1, lambda pair: {"x": pair[0]}, {})


MODELS: dict[str, Callable] = {
    "cka-pytorch": cka_pytorch,
    "pytorch-cka": pytorch_cka,
    "torch_cka": torch_cka,
    "simtorch": simtorch,
    "ckatorch": ckatorch,
}

# ------------------------------------------------------------------------------------------------- stored features


def pytorch_cka_features(xs: list[Tensor], ys: list[Tensor]) -> Tensor:
    """The unbiased estimator."""
    return room("cka").cka_from_features(xs, ys)


# -------------------------------------------------------------------------------------------------- two matrices
# (x, y) float32 -> number


def anatome_cka(x: Tensor, y: Tensor) -> float:
    return 1 - room("anatome.similarity").linear_cka_distance(x, y, reduce_bias=False).item()


def anatome_svcca(x: Tensor, y: Tensor) -> float:
    return 1 - room("anatome.similarity").svcca_distance(x, y, accept_rate=0.99, backend="svd").item()


def anatome_pwcca(x: Tensor, y: Tensor) -> float:
    with _quiet():
        found = room("anatome.similarity").pwcca_distance_choose_best_layer_matrix(
            x, y, backend="svd", use_layer_matrix="x"
        )
    return 1 - found.item()


def cca_zoo(x: Tensor, y: Tensor) -> float:
    views = [x.numpy(), y.numpy()]
    return room("cca_zoo.linear").CCA(min(x.shape[1], y.shape[1])).fit(views).score(views)


def latentis_svcca(x: Tensor, y: Tensor) -> float:
    return room("latentis.measure.functional.svcca").svcca(x, y, variance_percentage=0.99).item()


def platonic_universe_mknn(x: Tensor, y: Tensor, k: int) -> float:
    return float(room("pu.metrics").mknn(x.numpy(), y.numpy(), k))


def rsatoolbox_rsa(x: Tensor, y: Tensor) -> float:
    """Squared distances, whose ranks are the same."""
    data, rdm = room("rsatoolbox.data"), room("rsatoolbox.rdm")
    sides = [rdm.calc_rdm(data.Dataset(t.numpy()), method="euclidean") for t in (x, y)]
    return float(rdm.compare(*sides, method="spearman")[0, 0])


def thingsvision_rsa(x: Tensor, y: Tensor) -> float:
    rsa = room("thingsvision.core.rsa")
    return float(rsa.correlate_rdms(*(rsa.compute_rdm(t.numpy(), "euclidean") for t in (x, y)), correlation="spearman"))
