"""fastce.integrations.torch: the operators as PyTorch checks them, under torch.compile, and against its own loss."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layouts import peak_bytes

import fastce

torch = pytest.importorskip("torch", reason="torch is not installed")

from fastce.integrations import _torch  # noqa: E402
from fastce.integrations.torch import CrossEntropyLoss, cross_entropy, functional  # noqa: E402

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sum": {"reduction": "sum", "ignore_index": 1},
    "none": {"reduction": "none", "label_smoothing": 0.1},
    "weighted": {"weight": np.array([1.0, 0.5, 2.0, 0.25]), "sample_weight": np.linspace(0.5, 2, 6)},
    "normalizer": {"normalizer": 3.5, "z_loss": 0.01, "temperature": 2.5},
}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def tensors(options: dict[str, Any]) -> dict[str, Any]:
    return {name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in options.items()}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("probabilities", [False, True], ids=["index", "probabilities"])
def test_passes_gradcheck(options: dict[str, Any], probabilities: bool, rng: np.random.Generator) -> None:
    logits = torch.from_numpy(rng.standard_normal((6, 4))).requires_grad_()
    targets = torch.from_numpy(rng.dirichlet(np.ones(4), 6) if probabilities else rng.integers(0, 4, 6))
    options = tensors(options)
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, targets, **options), (logits,))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gives_what_torchs_own_loss_gives(reduction: str, dtype: str, rng: np.random.Generator) -> None:
    loss_of = CrossEntropyLoss(
        axis=1, reduction=reduction, weight=np.arange(1.0, 6.0), label_smoothing=0.2, ignore_index=3
    )
    logits = torch.from_numpy(rng.standard_normal((2, 5, 3, 4)).astype(dtype))
    targets = torch.from_numpy(rng.integers(0, 5, (2, 3, 4)))
    results = []
    theirs = torch.nn.CrossEntropyLoss(
        weight=torch.arange(1, 6, dtype=logits.dtype), ignore_index=3, label_smoothing=0.2, reduction=reduction
    )
    for function in (loss_of, theirs):
        x = logits.clone().requires_grad_()
        loss = function(x, targets)
        (3 * loss.sin().sum()).backward()  # an upstream gradient that is not 1
        results.append((loss, x.grad))
    for mine, wanted in zip(*results, strict=True):
        assert (mine.dtype, mine.shape) == (wanted.dtype, wanted.shape)
        torch.testing.assert_close(mine, wanted)
    assert repr(loss_of).startswith("CrossEntropyLoss(axis=1, reduction=")


@pytest.mark.parametrize("probabilities", [False, True], ids=["index", "probabilities"])
def test_tensors_are_not_copied(probabilities: bool, rng: np.random.Generator) -> None:
    whole = torch.from_numpy(rng.standard_normal((700, 1200)))
    logits = whole[:, ::2].t().detach().requires_grad_()  # strided both ways
    targets = torch.from_numpy(rng.random((600, 700)) if probabilities else rng.integers(0, 700, 600))
    cross_entropy(logits, targets).backward()
    logits.grad = None
    results: list[Any] = []

    def forward_and_backward() -> None:
        loss = cross_entropy(logits, targets)
        results.append(torch.autograd.grad(loss, logits)[0])

    # NumPy allocates the gradient, and little else. A tensor that PyTorch had allocated could be resized.
    gradient_bytes = logits.numel() * logits.element_size()
    assert gradient_bytes <= peak_bytes(forward_and_backward) < 1.2 * gradient_bytes
    (grad,) = results
    assert not grad.untyped_storage().resizable()
    torch.testing.assert_close(grad, torch.autograd.grad(torch.nn.functional.cross_entropy(logits, targets), logits)[0])


def test_backward_can_run_again_and_notices_a_change_of_the_logits() -> None:
    leaf = torch.zeros(2, 2, requires_grad=True)
    logits = leaf * 1
    loss = cross_entropy(logits, torch.tensor([0, 1]))
    for times in (1, 2):
        (2 * loss).backward(retain_graph=True)
        assert leaf.grad.tolist() == [[-0.5 * times, 0.5 * times], [0.5 * times, -0.5 * times]]
    logits += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["C", "F"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype, order: tuple[int, int]) -> None:
    """The loss of the same numbers in float32, and its gradient rounded once."""
    if dtype == torch.bfloat16:
        pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    torch.manual_seed(0)
    half = torch.randn(20, 30).permute(order).to(dtype).requires_grad_()
    single = half.detach().float().requires_grad_()
    labels = torch.arange(len(half)) % half.shape[1]
    loss, expected = cross_entropy(half, labels, reduction="sum"), cross_entropy(single, labels, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    loss.backward()
    expected.backward()
    assert half.grad is not None and half.grad.dtype == dtype
    torch.testing.assert_close(half.grad.float(), single.grad, rtol=torch.finfo(dtype).eps, atol=1e-6)
    compiled = torch.compile(cross_entropy, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(half, labels, reduction="sum"), loss)


@pytest.mark.parametrize("name", ["weight", "sample_weight"])
def test_backward_notices_a_change_of_weights(name: str) -> None:
    logits, weights = torch.zeros(2, 2, requires_grad=True), torch.ones(2)
    loss = cross_entropy(logits, torch.tensor([0, 1]), **{name: weights})
    weights[0] = 5
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    with pytest.raises(TypeError, match=f"{name} has dtype torch.bfloat16"):
        cross_entropy(logits, torch.tensor([0, 1]), **{name: weights.bfloat16()})


def test_refuses_what_it_cannot_differentiate() -> None:
    logits = torch.zeros(2, 2, requires_grad=True)
    labels = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"targets requires grad.*pass targets\.detach\(\)"):
        cross_entropy(logits, torch.full((2, 2), 0.5, requires_grad=True))
    with pytest.raises(ValueError, match="weight requires grad"):
        cross_entropy(logits, labels, weight=torch.ones(2, requires_grad=True))
    with pytest.raises(TypeError, match="return_stats is not an option"):
        cross_entropy(logits, labels, return_stats=True)
    with pytest.raises(TypeError, match=r"logits has dtype torch.float8_e5m2, expected one of torch.float16, "):
        cross_entropy(logits.to(torch.float8_e5m2), labels)
    with pytest.raises(TypeError, match="targets is ndarray, expected a torch.Tensor"):
        cross_entropy(logits, labels.numpy())
    with pytest.raises(TypeError, match="no option 'axes'; it has axis"):
        CrossEntropyLoss(axes=1)
    with pytest.raises(TypeError, match="axes is not an option"):
        cross_entropy(logits, labels, axes=1)
    (grad,) = torch.autograd.grad(cross_entropy(logits, labels), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        grad.sum().backward()


# --- the operators ----------------------------------------------------------------------------------------------------


def memory(kind: str, rng: np.random.Generator) -> tuple[Any, Any, int]:
    """Logits, labels and class axis of four classes, with six rows in the order of memory `kind`."""
    x = torch.from_numpy(rng.standard_normal((2, 3, 4)))
    labels = torch.from_numpy(rng.integers(0, 4, (2, 3)))
    if kind == "rows":
        return x, labels, -1
    if kind == "classes first":
        return x.permute(2, 0, 1).contiguous(), labels, 0
    if kind == "transposed":
        return x.permute(2, 1, 0), labels.t(), 0
    return x.expand(5, 2, 3, 4)[1::2], labels.expand(2, 2, 3), -1


@pytest.mark.parametrize("kind", ["rows", "classes first", "transposed", "expanded"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_operators_pass_opcheck(kind: str, reduction: str, rng: np.random.Generator) -> None:
    """Schema, registration of autograd, fake tensors and their strides, and tracing with dynamic shapes."""
    logits, labels, axis = memory(kind, rng)
    options = {"weight": torch.rand(4), "sample_weight": torch.rand(labels.shape), "axis": axis, "reduction": reduction}
    values = (_torch.DEFAULTS | options).values()
    torch.library.opcheck(_torch.forward_operator, (logits.detach().requires_grad_(), labels, *values))
    loss, row_max, tail = _torch.forward_operator(logits, labels, *values)
    torch.library.opcheck(_torch.backward_operator, (torch.rand(loss.shape), logits, labels, row_max, tail, *values))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.filterwarnings("ignore")
def test_compiles_without_a_break_of_the_graph(options: dict[str, Any], backend: str, rng: np.random.Generator) -> None:
    logits = torch.from_numpy(rng.standard_normal((6, 4), dtype=np.float32)).requires_grad_()
    labels = torch.from_numpy(rng.integers(0, 4, 6))
    options = tensors(options)

    def objective(x: Any, labels: Any) -> Any:
        return cross_entropy(2 * x, labels, **options).sin().sum()

    torch._dynamo.reset()
    compiled = torch.compile(objective, fullgraph=True, backend=backend)
    results = []
    for function in (objective, compiled):
        try:
            loss = function(logits, labels)
        except Exception as error:
            if backend == "inductor":  # there are many reasons, and each has its own class
                pytest.skip(f"torch.compile fails here: {type(error).__name__}: {error}")
            raise
        results.append((loss, *torch.autograd.grad(loss, logits)))
    torch.testing.assert_close(*results)


def test_compiled_module_and_functional(rng: np.random.Generator) -> None:
    logits = torch.from_numpy(rng.standard_normal((2, 4, 3), dtype=np.float32)).requires_grad_()
    labels = torch.from_numpy(rng.integers(0, 4, (2, 3)))
    module = CrossEntropyLoss(axis=1, weight=torch.arange(1.0, 5.0))
    torch._dynamo.reset()
    for function in (module, lambda x, t: functional.cross_entropy(x, t, torch.arange(1.0, 5.0))):
        wanted = function(logits, labels)
        found = torch.compile(function, fullgraph=True, backend="aot_eager")(logits, labels)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(torch.autograd.grad(found, logits), torch.autograd.grad(wanted, logits))


def test_operators_have_every_option_of_the_function() -> None:
    taken = [a.name for a in _torch.forward_operator._schema.arguments]
    parameters = inspect.signature(fastce.cross_entropy).parameters
    assert taken == [name for name in parameters if name != "return_stats"]
    assert _torch.NAMESPACE == fastce.__name__.replace(".", "_")


def test_without_a_gradient_nothing_is_recorded() -> None:
    logits, labels = torch.zeros(2, 2), torch.tensor([0, 1])
    assert not cross_entropy(logits, labels).requires_grad
    with torch.no_grad():
        assert not cross_entropy(logits.requires_grad_(), labels).requires_grad
    with torch.inference_mode():
        assert not cross_entropy(logits, labels).requires_grad
    assert cross_entropy(torch.zeros(2, 2, dtype=torch.int32), labels).dtype == torch.float64


def test_two_copies_of_the_package_have_operators_of_their_own(tmp_path: Path) -> None:
    shutil.copytree(Path(fastce.__file__).parent, tmp_path / "host" / "ce")
    (tmp_path / "host" / "__init__.py").touch()
    script = (
        "import torch, fastce.integrations.torch as a, host.ce.integrations.torch as b\n"
        "x = torch.zeros(2, 2), torch.tensor([0, 1])\n"
        "print(a.cross_entropy(*x) == b.cross_entropy(*x), torch.ops.host_ce.cross_entropy.default)"
    )
    command = [sys.executable, "-P", "-c", f"import sys; sys.path.append({str(tmp_path)!r})\n{script}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("tensor(True) host_ce.cross_entropy.default\n", 0), done.stderr


# --- the signature of PyTorch -----------------------------------------------------------------------------------------


def test_functional_has_torchs_signature() -> None:
    mine, theirs = (
        inspect.signature(function).parameters.values()
        for function in (functional.cross_entropy, torch.nn.functional.cross_entropy)
    )
    assert [(p.name, p.kind, p.default) for p in mine] == [(p.name, p.kind, p.default) for p in theirs]


@pytest.mark.parametrize("probabilities", [False, True], ids=["index", "probabilities"])
@pytest.mark.parametrize("shape", [(5,), (7, 5), (2, 5, 3), (2, 5, 3, 4), (0, 5)], ids=str)
def test_functional_gives_what_torch_gives(
    shape: tuple[int, ...], probabilities: bool, rng: np.random.Generator
) -> None:
    rows = shape[:1] + shape[2:] if len(shape) > 1 else ()
    weight = torch.from_numpy(rng.uniform(0.5, 2, 5))
    targets = torch.from_numpy(rng.random(shape) if probabilities else np.asarray(rng.integers(0, 5, rows)))
    legacy = [{"size_average": a, "reduce": b} for a in (None, False, True) for b in (None, False, True)]
    for options in (
        *({"reduction": reduction} for reduction in ("mean", "sum", "none")),
        {"weight": weight, "label_smoothing": 0.1},
        {} if probabilities else {"ignore_index": 2, "reduction": "sum"},
        *legacy,
    ):
        results = []
        for function in (functional.cross_entropy, torch.nn.functional.cross_entropy):
            x = torch.from_numpy(np.random.default_rng(3).standard_normal(shape)).requires_grad_()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                loss = function(x, targets, **options)
            deprecated = any(options.get(name) is not None for name in ("size_average", "reduce"))
            assert [str(w.message) for w in caught if "deprecated" in str(w.message)] != [] or not deprecated
            results.append((loss, torch.autograd.grad(loss.sin().sum(), x)[0]))
        torch.testing.assert_close(*results, equal_nan=True)


# --- the module -------------------------------------------------------------------------------------------------------


def test_weights_of_the_module_are_buffers() -> None:
    weight = torch.tensor([1.0, 2.0])
    loss_of = CrossEntropyLoss(weight=weight, label_smoothing=0.1)
    assert list(loss_of.state_dict()) == ["weight"] and not list(loss_of.parameters())
    assert loss_of.double().weight.dtype == torch.float64
    other = CrossEntropyLoss(weight=[5, 5], label_smoothing=0.1)
    other.load_state_dict(loss_of.state_dict())
    x, labels = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([0, 1])
    assert other(x, labels) == cross_entropy(x, labels, weight=weight, label_smoothing=0.1)
    assert not CrossEntropyLoss().state_dict()
    with pytest.raises(TypeError, match="weight is a masked array"):
        CrossEntropyLoss(weight=np.ma.array([1.0, 2.0], mask=[0, 1]))
