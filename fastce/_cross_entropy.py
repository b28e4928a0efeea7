"""Softmax cross-entropy: the signatures and docstrings of its functions, and the layer. _kernels.pyx runs the calls."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from ._kernels import function
from ._stats import Array, SoftmaxStats


@function("cross_entropy", "loss")
def cross_entropy(
    logits: Any,
    targets: Any,
    *,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    return_stats: bool = False,
    num_threads: int | None = None,
) -> Any:
    """Softmax cross-entropy of logits and targets, without gradient.

    Parameters
    ----------
    logits : array_like
        Scores x of one or more dimensions, with the classes on `axis`. float32 and float64 are computed in their own
        precision, float16 and the bfloat16 of ml_dtypes as float32, integers and bools as float64. A logit of -inf
        masks its class. A row that contains NaN or +inf, or only -inf, has loss NaN.
    targets : array_like
        Class indices, of any integer dtype and the shape of `logits` without `axis`; or probabilities c, of any real
        dtype or bool and the shape of `logits`. Probabilities are finite and >= 0. Their rows need not sum to 1: a mask
        of 0 and 255 counts 255 times.
    weight : array_like of shape (classes,), optional
        The weight w of each class, finite and >= 0. Default: ones.
    sample_weight : array_like of the rows' shape, optional
        A factor of each row's loss, finite and >= 0. Rows with 0 do not count: their loss and gradient are 0, whatever
        their logits and targets are. Default: ones.
    ignore_index : int or None, default -100
        Rows with this class index have loss 0 and gradient 0, whatever their logits are, and are excluded from the
        mean. It may be a class. For probabilities it has no meaning, and is not used.
    label_smoothing : float, default 0.0
        Smoothing eps in [0, 1]: targets become ``(1 - eps)*c + eps/classes``. To give each of the other classes
        eps/(classes - 1) instead, pass ``eps*classes/(classes - 1)``.
    z_loss : float, default 0.0
        A factor >= 0; ``z_loss*logsumexp(x)**2`` is added to each row's loss.
    temperature : float, default 1.0
        What the logits are divided by before everything else, in [1e-15, 1e15]: the loss is that of ``x/temperature``,
        and the gradient with respect to the logits contains ``1/temperature``.
    softcap : float, optional
        A bound that the logits approach, in [1e-15, 1e15]: ``softcap*tanh(x/softcap)`` takes the place of x, before the
        temperature and in `stats` too. A logit of -inf still masks its class. Default: none.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides the sum of the losses by `normalizer`; "none" returns the loss of each row.
    normalizer : float, optional
        What "mean" divides by, > 0: for gradients that are accumulated over parts of a batch. Default: for class
        indices the sum of ``weight[target]*sample_weight`` over the rows that are not ignored, for probabilities the
        sum of `sample_weight`; without these options, the number of rows. If it is 0, the mean is NaN and the gradient
        is 0.
    axis : int, default -1
        The axis of `logits` that contains the classes.
    return_stats : bool, default False
        Whether to return a `SoftmaxStats` too. It saves `cross_entropy_grad` half its work.
    num_threads : int, optional
        The number of threads, >= 1; no more than 256 and one for each 30,000 logits are used. Default: one for small
        arrays, else as many as OpenMP, the CPU affinity and the quota of the process allow. The results are
        bitwise the same for every number of threads.

    Returns
    -------
    loss : scalar or ndarray
        In nats, in the dtype that the logits are computed in. Sums over rows are accumulated in float64. With
        ``reduction="none"``, an array of the rows' shape.
    stats : SoftmaxStats
        With `return_stats`.

    Raises
    ------
    TypeError
        An argument is None or a masked array, or its dtype is not accepted; class indices are not integers.
    ValueError
        A shape does not fit; an option is out of its range; there are no classes; a probability is negative or not
        finite, in a row whose `sample_weight` is not 0.
    IndexError
        A class index is outside ``[0, classes)`` and is not `ignore_index`.

    See Also
    --------
    cross_entropy_with_grad : Loss and gradient in one pass.
    cross_entropy_grad : The gradient alone.
    CrossEntropyLoss : Both as a layer.
    binary_cross_entropy : The two-term form.

    Notes
    -----
    With x divided by `temperature`, ``q = w*((1 - eps)*c + eps/classes)``, where c is one-hot for class indices,
    ``logp = x - logsumexp(x)`` and 0*inf = 0::

        loss = -sum(q*logp) + z_loss*logsumexp(x)**2

    It is computed as ``sum(q)*log1p(tail) + sum(q*(row_max - x)) + z_loss*logsumexp(x)**2``, where ``tail`` is the sum
    of ``exp(x - row_max)`` over all classes except the largest. Every term is >= 0, so nothing cancels, and the loss of
    a confident row keeps its relative accuracy. For class indices without `sample_weight` and `z_loss` this is
    PyTorch's ``cross_entropy``; but where an ignored row contains NaN, PyTorch's gradient is NaN and fastce's is 0. See
    Bridle (1990), "Probabilistic interpretation of feedforward classification network outputs"; Blanchard, Higham and
    Higham (2021), "Accurately computing the log-sum-exp and softmax functions", for log1p; Szegedy et al. (2016),
    "Rethinking the Inception architecture for computer vision", for label smoothing; Chowdhery et al. (2022), "PaLM:
    scaling language modeling with pathways", for the z-loss; Hinton, Vinyals and Dean (2015), "Distilling the knowledge
    in a neural network", for the temperature; Gemma Team (2024), "Gemma 2: improving open language models at a
    practical size", for the softcap. A capped logit has a relative error below 2 eps. This adds up to
    ``4*max(abs(x))*eps/temperature`` to the relative error of each exponential, and so to that of the gradient.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> logits = np.array([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    >>> labels = np.array([0, 2])
    >>> round(float(fastce.cross_entropy(logits, labels)), 6)
    0.669079
    >>> fastce.cross_entropy(logits, labels, reduction="none").round(6)
    array([0.239545, 1.098612])
    >>> print(f"{fastce.cross_entropy(np.float32([[20, 0, 0, 0]]), [0]):.5e}")  # log(1 + 3*exp(-20)), not 0
    6.18346e-09
    >>> round(float(fastce.cross_entropy(logits, labels, temperature=2.0)), 6)  # of logits/2
    0.825029
    >>> round(float(fastce.cross_entropy(logits, labels, softcap=1.0)), 6)  # of tanh(logits)
    0.832732
    """


@function("cross_entropy", "loss", "array")
def cross_entropy_with_grad(
    logits: Any,
    targets: Any,
    *,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    return_stats: bool = False,
    num_threads: int | None = None,
    upstream: Any = 1.0,
    subnormals: str = "keep",
    out: Array | None = None,
) -> Any:
    """`cross_entropy` and its gradient with respect to the logits, in one pass.

    Parameters
    ----------
    logits, targets : array_like
        As in `cross_entropy`.
    weight, sample_weight, ignore_index, label_smoothing, z_loss, temperature, softcap : optional
        As in `cross_entropy`.
    reduction, normalizer, axis, return_stats, num_threads : optional
        As in `cross_entropy`.
    upstream : float or array_like, default 1.0
        Gradient of the final objective with respect to the loss, a factor of the result: a scalar, or with
        ``reduction="none"`` a scalar or an array of the rows' shape.
    subnormals : {"keep", "flush"}, default "keep"
        "flush" makes numbers of the gradient that are smaller than 2**-100 (float64: 2**-900) 0, with their sign. They
        are subnormal, or make the products of a following matrix multiplication subnormal, which many processors
        compute many times slower. The floating-point environment is not touched.
    out : ndarray, optional
        Buffer for the gradient: of the shape and dtype of the logits, writeable, aligned, in native byte order. It may
        be `logits` itself. If it overlaps an input in any other way, the result is the same as without overlap.

    Returns
    -------
    loss : scalar or ndarray
        As `cross_entropy` returns it.
    grad : ndarray
        Of the shape and memory order of the logits, and their dtype (float64 for integers); `out` if it is given. In
        float16 and bfloat16 it is rounded once, after all factors: `upstream` can keep it from becoming 0.
    stats : SoftmaxStats
        With `return_stats`.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `cross_entropy`; `upstream` or `out` does not fit. Nothing has been written to `out` then.

    Notes
    -----
    With p = softmax(x), q as in `cross_entropy`, and Q = sum(q), where x is divided by `temperature`::

        grad = sample_weight * upstream / (denominator*temperature) * ((Q + 2*z_loss*logsumexp(x))*p - q)

    With `softcap` it is multiplied by ``1 - tanh(x/softcap)**2``, which is not formed by subtraction.

    This is ``p - c`` of Bishop (2006), "Pattern recognition and machine learning", equation 4.109, with every option.
    At the largest logit ``p - 1`` is computed as ``-tail/(1 + tail)``, so that the gradient of a confident row is not
    rounded to 0.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> logits = np.array([[0.0, 0.0], [0.0, 0.0]])
    >>> loss, grad = fastce.cross_entropy_with_grad(logits, np.array([0, 1]))
    >>> round(float(loss), 6)  # log(2)
    0.693147
    >>> grad
    array([[-0.25,  0.25],
           [ 0.25, -0.25]])
    >>> fastce.cross_entropy_with_grad(np.float16([[12, 0]]), [0], upstream=2.0**10)[1]  # rounded after the factor
    array([[-0.00629,  0.00629]], dtype=float16)
    """


@function("cross_entropy", "array")
def cross_entropy_grad(
    logits: Any,
    targets: Any,
    *,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    num_threads: int | None = None,
    upstream: Any = 1.0,
    subnormals: str = "keep",
    out: Array | None = None,
    stats: SoftmaxStats | None = None,
) -> Any:
    """The gradient of `cross_entropy` with respect to the logits.

    Parameters
    ----------
    logits, targets : array_like
        As in `cross_entropy`.
    weight, sample_weight, ignore_index, label_smoothing, z_loss, temperature, softcap : optional
        As in `cross_entropy`.
    reduction, normalizer, axis, num_threads : optional
        As in `cross_entropy`.
    upstream : float or array_like, default 1.0
        As in `cross_entropy_with_grad`.
    subnormals : {"keep", "flush"}, default "keep"
        As in `cross_entropy_with_grad`.
    out : ndarray, optional
        As in `cross_entropy_with_grad`.
    stats : SoftmaxStats, optional
        What ``cross_entropy(logits, ..., return_stats=True)`` returned for the same logits, axis, temperature and
        softcap. It saves the pass that finds each row's maximum and sum. It is not compared with the logits.

    Returns
    -------
    grad : ndarray
        As `cross_entropy_with_grad` returns it.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `cross_entropy_with_grad`; `stats` is of another shape or dtype.

    Notes
    -----
    The formula is that of `cross_entropy_with_grad`, where `stats` gives the maximum and ``tail``.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> logits, labels = np.array([[0.0, 0.0]]), np.array([0])
    >>> loss, stats = fastce.cross_entropy(logits, labels, return_stats=True)
    >>> fastce.cross_entropy_grad(logits, labels, stats=stats)
    array([[-0.5,  0.5]])
    """


_SIGNATURE = inspect.signature(cross_entropy)
_OPTIONS = {name: p for name, p in _SIGNATURE.parameters.items() if p.kind is p.KEYWORD_ONLY and name != "return_stats"}
_OF_BACKWARD = [
    inspect.Parameter("subnormals", inspect.Parameter.KEYWORD_ONLY, default="keep", annotation=str),
    inspect.Parameter("reuse_grad", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=bool),
]
_FEW_LOGITS = 8192  # for fewer, to find each row's maximum and sum again takes less time than to store them in arrays


class CrossEntropyLoss:
    """`cross_entropy` as a layer: call it for the loss, then call `backward` for the gradient.

    Parameters
    ----------
    weight, sample_weight, ignore_index, label_smoothing, z_loss, temperature, softcap : optional
        As in `cross_entropy`.
    reduction, normalizer, axis, num_threads : optional
        As in `cross_entropy`.
    subnormals : {"keep", "flush"}, default "keep"
        As in `cross_entropy_with_grad`.
    reuse_grad : bool, default False
        Whether `backward` writes to the same array each time, as long as the shape, dtype and strides of the logits
        stay the same. The gradient that it returned before is overwritten then. This saves the page faults of a new
        array, which take much of the time if the logits are large.

    Raises
    ------
    TypeError
        There is no option of that name.

    Notes
    -----
    The layer keeps references to the logits and targets of its last call, not copies. Modifying them before
    `backward` gives a wrong gradient. Neither they nor the array of `reuse_grad` are copied or pickled with
    the layer.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> ce = fastce.CrossEntropyLoss(reduction="sum")
    >>> round(float(ce(np.zeros((1, 2)), np.array([1]))), 6)
    0.693147
    >>> ce.backward()
    array([[ 0.5, -0.5]])
    """

    __signature__ = inspect.Signature([*_OPTIONS.values(), *_OF_BACKWARD])

    def __init__(self, *, subnormals: str = "keep", reuse_grad: bool = False, **options: Any) -> None:
        self._options = self._checked(options)
        self._subnormals = subnormals
        self._reuse_grad = bool(reuse_grad)
        self._saved: tuple[Any, ...] | None = None
        self._kept: tuple[Any, Array | None] = None, None

    def _checked(self, options: dict[str, Any]) -> dict[str, Any]:
        if unknown := options.keys() - _OPTIONS:
            raise TypeError(f"CrossEntropyLoss has no option {min(unknown)!r}; it has {', '.join(sorted(_OPTIONS))}")
        return options

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_saved": None, "_kept": (None, None)}

    def __repr__(self) -> str:
        options = self._options | ({"subnormals": self._subnormals} if self._subnormals != "keep" else {})
        options = options | ({"reuse_grad": True} if self._reuse_grad else {})
        return f"CrossEntropyLoss({', '.join(f'{name}={value!r}' for name, value in options.items())})"

    def __call__(self, logits: Any, targets: Any, **options: Any) -> Any:
        """The loss.

        Parameters
        ----------
        logits, targets : array_like
            As in `cross_entropy`.
        **options
            Replace the layer's options for this call and its `backward`.

        Returns
        -------
        loss : scalar or ndarray
            As `cross_entropy` returns it.

        Raises
        ------
        TypeError, ValueError, IndexError
            As in `cross_entropy`; there is no option of that name.

        Examples
        --------
        >>> import numpy as np, fastce
        >>> ce = fastce.CrossEntropyLoss()
        >>> ce(np.zeros((1, 2)), [1], reduction="none").round(6)
        array([0.693147])
        """
        options = self._options | self._checked(options) if options else self._options
        if issubclass(type(logits), np.ndarray) and logits.size < _FEW_LOGITS:
            loss = cross_entropy(logits, targets, **options)
        else:
            loss, stats = cross_entropy(logits, targets, return_stats=True, **options)
            options = options | {"stats": stats}
        self._saved = logits, targets, options
        return loss

    def backward(self, upstream: Any = 1.0, *, out: Array | None = None) -> Array:
        """The gradient of the last call's loss with respect to its logits.

        Parameters
        ----------
        upstream : float or array_like, default 1.0
            As in `cross_entropy_with_grad`.
        out : ndarray, optional
            As in `cross_entropy_with_grad`. It takes precedence over `reuse_grad`.

        Returns
        -------
        grad : ndarray
            As `cross_entropy_with_grad` returns it; the array of the last `backward` with `reuse_grad`.

        Raises
        ------
        RuntimeError
            The layer has not been called yet.
        TypeError, ValueError
            As in `cross_entropy_with_grad`.

        Examples
        --------
        >>> import numpy as np, fastce
        >>> ce = fastce.CrossEntropyLoss()
        >>> loss = ce(np.zeros((1, 2)), [1])
        >>> ce.backward(upstream=3.0)
        array([[ 1.5, -1.5]])
        """
        if self._saved is None:
            raise RuntimeError("backward called before the loss was computed")
        logits, targets, options = self._saved
        options = options | {"upstream": upstream, "subnormals": self._subnormals}
        if not self._reuse_grad or out is not None:
            grad: Array = cross_entropy_grad(logits, targets, out=out, **options)
            return grad
        layout = (logits.shape, logits.dtype, logits.strides) if isinstance(logits, np.ndarray) else None
        kept_layout, kept = self._kept
        out = kept if layout == kept_layout else None
        grad = cross_entropy_grad(logits, targets, out=out, **options)
        if layout is not None:
            self._kept = layout, grad
        return grad
