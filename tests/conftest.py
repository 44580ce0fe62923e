"""Fixtures that every test may use: devices, the test executor, and small hostile data."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

# a GPU's float32 is float32, and the same every time
torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.deterministic = True

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device there is: the same test runs on each."""
    return torch.device(request.param)


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def cpu_path(request: pytest.FixtureRequest) -> Iterator[str]:
    """The CPU kernels of every instruction set that this CPU has, one after the other."""
    from stitchkern import _C

    before = _C.cpu_path()
    try:
        _C.use_cpu_path(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    _C.use_cpu_path(before)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def loaded():
    """The test executor, built once."""
    from tests.executor.play import Executor

    return Executor()


@pytest.fixture
def executor(loaded, monkeypatch: pytest.MonkeyPatch):
    """The native ops are the CUDA kernels, run on the CPU by the test executor."""
    from stitchkern import ops

    monkeypatch.setattr(ops, "_library", torch.ops.stitchkern_executor)
    loaded.play()
    return loaded


def layouts() -> dict[str, tuple]:
    """name -> function(generator, n, c) that makes n·positions rows of c channels in that memory layout."""

    def randn(g: torch.Generator, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    return {
        "nc": lambda g, n, c: randn(g, n, c),
        "nc-transposed": lambda g, n, c: randn(g, c, n).T,
        "nc-sliced": lambda g, n, c: randn(g, 2 * n, c + 3)[::2, 2 : c + 2],
        "ntc": lambda g, n, c: randn(g, n, 3, c),
        "nchw": lambda g, n, c: randn(g, n, c, 5, 4),
        "nchw-49": lambda g, n, c: randn(g, n, c, 7, 7),
        "channels_last": lambda g, n, c: randn(g, n, c, 5, 4).to(memory_format=torch.channels_last),
        "cropped": lambda g, n, c: randn(g, n, c, 9, 8)[:, :, 1:-1, 2:-1],
        "expanded": lambda g, n, c: randn(g, n, c, 1, 1).expand(n, c, 3, 2),
    }
