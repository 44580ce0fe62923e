"""The sparse stitch as a module: what it computes, saves, learns and chooses."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.utils.checkpoint
from torch.testing import assert_close

import stitchkern as sk
from stitchkern.errors import NotFiniteError, ShapeError
from stitchkern.nn import SparseStitch, Stitch, cost

KERNELS = ["auto", "sparse", "dense", "compact"]
SHAPES = [(4, 9), (4, 7, 9), (4, 9, 2, 5), (0, 9), (0, 9, 3, 3), (1, 9, 1, 1), (2, 9, 7, 7)]


def matrix(q: int = 12, p: int = 9, density: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows 3 and q − 1 and column 5 are empty."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(q, p, generator=g) * (torch.rand(q, p, generator=g) < density)
    weight[3], weight[-1], weight[:, 5] = 0, 0, 0
    return weight, torch.randn(q, generator=g)


def dense_of(stitch: SparseStitch) -> Stitch:
    bias = None if stitch.bias is None else stitch.bias.detach()
    return Stitch.from_affine(stitch.to_dense().detach(), bias)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", SHAPES)
def test_computes_the_dense_map(kernel, shape, device):
    weight, bias = (t.to(device) for t in matrix())
    for b in (bias, None):
        stitch = SparseStitch.from_dense(weight, b, kernel=kernel)
        x = torch.randn(shape, device=device)
        assert_close(stitch(x), Stitch.from_affine(weight, b)(x))
        if x.ndim == 4:
            assert_close(stitch(x.to(memory_format=torch.channels_last)), Stitch.from_affine(weight, b)(x))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", [(4, 9), (4, 7, 9), (4, 9, 2, 5)])
def test_gradients_are_those_of_the_dense_map(kernel, shape, device):
    weight, bias = (t.double().to(device) for t in matrix())
    stitch, x = SparseStitch.from_dense(weight, bias, kernel=kernel), torch.randn(shape).double().to(device)
    dense = dense_of(stitch)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for module, given in zip((stitch, dense), inputs, strict=True):
        module(given).pow(3).sum().backward()
    assert_close(inputs[0].grad, inputs[1].grad)
    assert_close(stitch.bias.grad, dense.bias.grad)
    assert_close(stitch.values.grad, dense.weight.grad[stitch.row.long(), stitch.col.long()])


@pytest.mark.parametrize("make", [torch.zeros, torch.ones])
@pytest.mark.parametrize("kernel", KERNELS)
def test_no_and_all_connections(kernel, make):
    weight = make(6, 4)
    stitch, x = SparseStitch.from_dense(weight, torch.arange(6.0), kernel=kernel), torch.randn(3, 4, 5, 5)
    assert_close(stitch(x), Stitch.from_affine(weight, torch.arange(6.0))(x))
    stitch(x).sum().backward()
    assert stitch.nonzeros == int(weight.sum()) and stitch.values.grad.shape == (stitch.nonzeros,)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "q, p, shape", [(4, 0, (2, 0, 3, 3)), (0, 4, (2, 4, 3, 3)), (3, 4, (2, 4, 0, 3)), (4, 0, (2, 0))]
)
def test_no_channels_or_positions(q, p, shape, kernel):
    stitch = SparseStitch.from_dense(torch.ones(q, p), torch.arange(float(q)), kernel=kernel)
    y = stitch(torch.randn(shape))
    assert_close(y, torch.arange(float(q)).view(-1, *[1] * (len(shape) - 2)).expand(2, q, *shape[2:]))


@pytest.mark.parametrize("kernel", KERNELS)
def test_shapes_without_data(kernel):
    stitch = SparseStitch.from_dense(*matrix(), kernel=kernel).to("meta")
    assert stitch(torch.empty(2, 9, 4, 4, device="meta")).shape == (2, 12, 4, 4)


def test_from_dense_keeps_what_is_above_the_threshold():
    weight = torch.tensor([[0.0, 0.1, -0.2], [0.3, 0.0, -0.1]])
    assert SparseStitch.from_dense(weight).nonzeros == 4
    stitch = SparseStitch.from_dense(weight, threshold=0.1)
    assert torch.equal(stitch.to_dense(), torch.tensor([[0.0, 0.0, -0.2], [0.3, 0.0, 0.0]]))
    assert stitch.nonzeros == 2 and stitch.density == pytest.approx(1 / 3) and stitch.bias is None
    weight.zero_()
    assert stitch.values.abs().sum() > 0.4


def test_from_an_affine_map():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 9, generator=g), torch.randn(200, 5, generator=g)
    found = sk.least_squares(sk.Moments(9, 5).update(x, y))
    threshold = found.weight.abs().median().item()
    for stitch in (SparseStitch.from_dense(found, threshold=threshold), found.to_module(sparse=threshold)):
        kept = torch.where(found.weight.abs() > threshold, found.weight, 0.0)
        assert torch.equal(stitch.to_dense(), kept.float()) and torch.equal(stitch.bias, found.bias.float())
    module = found.to_module(sparse=0.0, dtype=torch.float64, kernel="sparse", size=(2, 2), resize="nearest")
    assert module.values.dtype == torch.float64 and module.kernel == "sparse" and module.size == (2, 2)
    with pytest.raises(ValueError, match="sparse goes with neither low_rank nor spatial"):
        found.to_module(sparse=0.0, low_rank=True)
    with pytest.raises(ValueError, match="bias must be None beside an AffineMap"):
        SparseStitch.from_dense(found, torch.zeros(5))


def test_learns_with_its_pattern_fixed(device):
    weight = matrix()[0].to(device)
    stitch = SparseStitch.from_dense(torch.where(weight != 0, 1.0, 0.0), kernel="sparse").to(device)
    x = torch.randn(64, 9, 3, 3, generator=torch.Generator().manual_seed(0)).to(device)
    wanted = Stitch.from_affine(weight)(x).detach()
    optimizer = torch.optim.LBFGS(stitch.parameters(), max_iter=50)

    def closure():
        optimizer.zero_grad()
        loss = (stitch(x) - wanted).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert_close(stitch.to_dense(), weight, atol=1e-3, rtol=1e-3)
    assert ((stitch.to_dense() != 0) <= (weight != 0)).all()


def test_draws_by_the_connections_of_an_output():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stitch = SparseStitch(100, 3, torch.tensor([0, 100, 104, 104]), torch.cat([torch.arange(100), torch.arange(4)]))
    first, second = stitch.values[:100].abs(), stitch.values[100:].abs()
    assert 0.08 < first.max() <= 0.1 and second.max() <= 0.5 and second.max() > 0.1
    assert stitch.bias[0].abs() <= 0.1 and stitch.bias[2].abs() <= 1


def test_state_dict_brings_its_pattern():
    weight, bias = matrix()
    stitch = SparseStitch.from_dense(weight, bias)
    assert set(stitch.state_dict()) == {"values", "bias", "crow", "col"}
    other = SparseStitch.from_dense(torch.eye(12, 9), torch.zeros(12))
    optimizer = torch.optim.SGD(other.parameters(), 0.1)
    other.load_state_dict(stitch.state_dict())
    x = torch.randn(2, 9, 4, 4)
    assert torch.equal(other.to_dense(), stitch.to_dense()) and torch.equal(other(x), stitch(x))
    assert other.values is optimizer.param_groups[0]["params"][0]
    other(x).square().sum().backward()
    optimizer.step()
    assert not torch.equal(other.values, stitch.values)
    nested = torch.nn.Sequential(SparseStitch.from_dense(torch.eye(12, 9), torch.zeros(12)))
    nested.load_state_dict(torch.nn.Sequential(stitch).state_dict())
    assert torch.equal(nested(x), stitch(x))
    with pytest.raises(RuntimeError, match="size mismatch for crow"):
        SparseStitch.from_dense(torch.eye(11, 9)).load_state_dict(stitch.state_dict(), strict=False)
    damaged = {**stitch.state_dict(), "col": stitch.col + 5}
    with pytest.raises(ShapeError, match=r"col must rise within each row, without repeats, and be 0 … 8"):
        other.load_state_dict(damaged)


@pytest.mark.parametrize("change", ["no values", "few values", "another q"])
@pytest.mark.parametrize("strict", [False, True])
def test_a_state_that_does_not_fit_changes_no_pattern(change, strict):
    stitch, x = SparseStitch.from_dense(*matrix(), kernel="sparse"), torch.randn(2, 9, 4, 4)
    q = 11 if change == "another q" else 12
    state = SparseStitch.from_dense(torch.eye(q, 9).roll(2, 1), torch.zeros(q)).state_dict()
    if change == "no values":
        del state["values"]
    if change == "few values":
        state["values"] = state["values"][:3]
    before = stitch.to_dense().detach().clone()
    name = "crow" if change == "another q" else "values"
    with pytest.raises(RuntimeError, match=rf"size mismatch for {name}: .*got"):
        stitch.load_state_dict(state, strict=strict)
    assert torch.equal(stitch.to_dense(), before)
    assert_close(stitch(x), dense_of(stitch)(x))


@pytest.mark.parametrize("kernel", KERNELS)
def test_copies_and_pickles_compute_the_same(kernel):
    stitch, x = SparseStitch.from_dense(*matrix(), kernel=kernel), torch.randn(2, 9, 4, 4)
    for other in (copy.deepcopy(stitch), pickle.loads(pickle.dumps(stitch))):
        assert_close(other(x), stitch(x))
        assert other.kernel == kernel


def test_moves_between_types():
    stitch, x = SparseStitch.from_dense(*matrix(), kernel="sparse"), torch.randn(2, 9, 4, 4)
    double = copy.deepcopy(stitch).double()
    assert double(x.double()).dtype == torch.float64 and double.crow.dtype == torch.int32
    assert_close(double(x.double()).float(), stitch(x))
    small = copy.deepcopy(stitch).bfloat16()
    assert_close(small(x.bfloat16()).float(), dense_of(small.float())(x.bfloat16().float()), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kernel", KERNELS)
def test_autocast(kernel, device):
    stitch = SparseStitch.from_dense(*matrix(), kernel=kernel).to(device)
    x = torch.randn(2, 9, 4, 4, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        y = stitch(x)
    assert y.dtype == torch.bfloat16
    assert_close(y.float(), stitch(x), rtol=3e-2, atol=3e-2)
    y.float().square().sum().backward()
    assert stitch.values.grad.dtype == stitch.bias.grad.dtype == torch.float32


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", [(4, 7, 9), (4, 9, 2, 5)])
def test_compiles_to_one_graph(kernel, shape):
    torch.compiler.reset()
    stitch, x = SparseStitch.from_dense(*matrix(), kernel=kernel), torch.randn(shape, requires_grad=True)
    compiled = torch.compile(stitch, fullgraph=True, backend="aot_eager")
    y = compiled(x)
    assert_close(y, stitch(x))
    y.square().sum().backward()
    grad, values = x.grad, stitch.values.grad
    x.grad = stitch.values.grad = None
    stitch(x).square().sum().backward()
    assert_close(grad, x.grad)
    assert_close(values, stitch.values.grad)


def test_functional_transforms():
    stitch, x = SparseStitch.from_dense(*matrix()), torch.randn(2, 9, 4, 4)
    parameters = {k: v.detach() for k, v in stitch.named_parameters()}
    found = torch.func.grad(lambda p: torch.func.functional_call(stitch, p, (x,)).square().sum())(parameters)
    stitch(x).square().sum().backward()
    assert_close(found["values"], stitch.values.grad)
    assert_close(found["bias"], stitch.bias.grad)


def test_functional_transforms_take_the_dense_product(costs):
    """Whatever was fastest before: the sparse op has no rules for them."""
    stitch, x = SparseStitch.from_dense(*matrix()), torch.randn(3, 9, 4, 4)
    stitch.chosen = "sparse"
    with torch.no_grad():
        assert_close(torch.func.vmap(stitch)(x[:, None])[:, 0], stitch(x))
    jacobian = torch.func.jacrev(lambda x: stitch(x).sum((0, 2, 3)))(x[:1])
    assert_close(jacobian[:, 0, :, 0, 0], stitch.to_dense().detach())


def test_resizes_like_the_others():
    weight, bias = matrix()
    x = torch.randn(2, 9, 3, 5)
    stitch = SparseStitch.from_dense(weight, bias, size=(4, 6), resize="bilinear")
    assert_close(stitch(x), Stitch.from_affine(weight, bias, size=(4, 6), resize="bilinear")(x))


# ------------------------------------------------------------------------------------------------ the choice


@pytest.fixture
def costs(monkeypatch):
    """An empty memory, and seconds that the test sets."""
    monkeypatch.setattr(cost, "_measured", {})
    seconds = {"sparse": 3.0, "dense": 2.0, "compact": 1.0}
    calls = []

    def pretend(way, part, *rest):
        calls.append(part.shape)
        way(part)
        return seconds[way.__name__.removeprefix("_")]

    monkeypatch.setattr(cost, "_seconds", pretend)
    return seconds, calls


def test_takes_what_was_measured_to_be_fastest_and_says_so(costs):
    seconds, calls = costs
    stitch, x = SparseStitch.from_dense(*matrix()), torch.randn(2, 9, 4, 4)
    assert stitch.chosen is None and "kernel='auto'" in repr(stitch)
    stitch(x)
    assert stitch.chosen == "compact" and "kernel='auto' (compact)" in repr(stitch) and len(calls) == 3
    for seconds["sparse"], wanted in ((0.5, "sparse"), (9.0, "compact")):
        cost.measured().clear()
        stitch(x)
        assert stitch.chosen == wanted


def test_measures_each_kind_of_input_once(costs):
    _, calls = costs
    stitch, x = SparseStitch.from_dense(*matrix()), torch.randn(2, 9, 4, 4)

    def measured(x) -> bool:
        before = len(calls)
        stitch(x)
        return len(calls) > before

    assert measured(x)
    assert not measured(x) and not measured(torch.randn(1, 9, 6, 6))  # 36 positions are as good as 32
    assert measured(x.to(memory_format=torch.channels_last))
    assert measured(torch.randn(20, 9, 4, 4))
    assert measured(torch.randn(32, 9))
    assert measured(x.clone().requires_grad_())
    with torch.no_grad():
        assert measured(x) and not measured(x)
    assert not measured(torch.randn(0, 9, 4, 4))
    stitch.double()
    assert measured(x.double())
    assert len(cost.measured()) == len(calls) / 3


def test_measures_a_part_of_what_is_large(costs):
    _, calls = costs
    SparseStitch.from_dense(*matrix())(torch.randn(200, 9, 40, 40))
    assert {s[1:] for s in calls} == {(9, 40, 40)} and all(15 <= s[0] <= 20 for s in calls)


def test_nothing_to_leave_out_is_not_measured(costs):
    _, calls = costs
    SparseStitch.from_dense(torch.ones(3, 9))(torch.randn(2, 9, 4, 4))
    assert len(calls) == 2


def test_measuring_leaves_no_trace(monkeypatch):
    monkeypatch.setattr(cost, "_measured", {})
    stitch, x = SparseStitch.from_dense(*matrix()), torch.randn(2, 9, 4, 4, requires_grad=True)
    y = stitch(x)
    assert stitch.values.grad is None and x.grad is None and y.requires_grad
    seconds = next(iter(cost.measured().values()))
    assert set(seconds) == {"sparse", "dense", "compact"} and all(0 < s < 10 for s in seconds.values())
    with torch.inference_mode():
        assert_close(stitch(torch.randn(2, 9, 4, 4)).shape, torch.Size((2, 12, 4, 4)))


@pytest.mark.parametrize("reentrant", [False, True])
def test_measuring_inside_an_activation_checkpoint(reentrant, monkeypatch):
    monkeypatch.setattr(cost, "_measured", {})
    stitch, x = SparseStitch.from_dense(*matrix()), torch.randn(2, 9, 4, 4, requires_grad=True)
    torch.utils.checkpoint.checkpoint(stitch, x, use_reentrant=reentrant).square().sum().backward()
    found, stitch.values.grad = stitch.values.grad, None
    stitch(x).square().sum().backward()
    assert_close(found, stitch.values.grad)


def test_measuring_calls_no_hooks(monkeypatch):
    monkeypatch.setattr(cost, "_measured", {})
    stitch, x = SparseStitch.from_dense(*matrix()), torch.randn(2, 9, 4, 4, requires_grad=True)
    called = []
    for t in (stitch.values, stitch.bias, x):
        t.register_hook(called.append)
    y = stitch(x)
    assert cost.measured() and not called
    y.sum().backward()
    assert len(called) == 3
    cost.measured().clear()
    with torch.autograd.detect_anomaly(check_nan=True):  # x may have NaN where nothing looks at it
        stitch(torch.full((2, 9), torch.nan))


def test_a_named_kernel_is_not_measured(costs):
    _, calls = costs
    for kernel in ("sparse", "dense", "compact"):
        stitch = SparseStitch.from_dense(*matrix(), kernel=kernel)
        stitch(torch.randn(2, 9, 4, 4))
        assert f"kernel='{kernel}'" in repr(stitch) and stitch.chosen is None
    assert not calls


def test_types_without_a_kernel_are_multiplied_densely():
    stitch = SparseStitch.from_dense(*matrix()).half()
    x = torch.randn(2, 9, 4, 4).half()
    assert_close(stitch(x), dense_of(stitch)(x), rtol=1e-2, atol=1e-2)
    stitch.kernel = "sparse"
    with pytest.raises(TypeError, match=r"kernel='sparse' takes float32, bfloat16 and float64; x is torch.float16"):
        stitch(x)


# ------------------------------------------------------------------------------------------------ bad input


def test_bad_input_is_named():
    weight, bias = matrix()
    with pytest.raises(ValueError, match="kernel must be one of auto, sparse, dense, compact; got 'fast'"):
        SparseStitch.from_dense(weight, kernel="fast")
    with pytest.raises(ValueError, match="threshold must be 0 or more; got -1"):
        SparseStitch.from_dense(weight, threshold=-1)
    with pytest.raises(ValueError, match="threshold must be 0 or more; got nan"):
        SparseStitch.from_dense(weight, threshold=float("nan"))
    with pytest.raises(ShapeError, match=r"got \(12, 9\) and \(9,\)"):
        SparseStitch.from_dense(weight, torch.zeros(9))
    with pytest.raises(ShapeError, match=r"weight must be \(q, p\)"):
        SparseStitch.from_dense(weight[0])
    with pytest.raises(NotFiniteError, match="weight holds NaN or Inf"):
        SparseStitch.from_dense(weight.index_fill(1, torch.tensor([2]), float("nan")))
    with pytest.raises(ShapeError, match=r"crow must be \(q \+ 1,\) = \(4,\); got \(3,\)"):
        SparseStitch(5, 3, torch.tensor([0, 1, 1]), torch.tensor([2]))
    stitch = SparseStitch.from_dense(weight, bias)
    with pytest.raises(ShapeError, match="expects 9 channels in dimension 1; got 8"):
        stitch(torch.zeros(2, 8, 3, 3))
    with pytest.raises(TypeError, match=r"x must be torch.float32, the type of the stitch; got torch.float64"):
        stitch(torch.zeros(2, 9).double())
    with pytest.raises(TypeError, match="x must be a tensor; got list"):
        stitch([[0.0] * 9])
    with pytest.raises(TypeError, match="col must be a tensor; got list"):
        SparseStitch(5, 1, torch.tensor([0, 1]), [2])
    with pytest.raises(ShapeError, match="p and q must be at least 0; got -5 and 1"):
        SparseStitch(-5, 1, torch.tensor([0, 0]), torch.tensor([], dtype=torch.long))
    for bad, got in ((weight.long(), "int64"), (weight.to_sparse(), "sparse_coo"), (weight.tolist(), "list")):
        with pytest.raises(TypeError, match=f"weight must be a dense tensor of a floating-point type; got .*{got}"):
            SparseStitch.from_dense(bad)
    with pytest.raises(TypeError, match="bias must be a dense tensor of a floating-point type; got list"):
        SparseStitch.from_dense(weight, bias.tolist())
    with pytest.raises(NotFiniteError, match="bias holds NaN or Inf"):
        SparseStitch.from_dense(weight, bias / 0)
