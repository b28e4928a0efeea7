"""fastce as LightGBM's custom objective for multiclass models: gradient and diagonal hessian of softmax cross-entropy.

LightGBM hands over scores as Fortran-ordered float64 of shape (rows, classes), and labels as floats; it gets both
arrays back in the same layout. The hessian has the factor classes/(classes - 1) of LightGBM's own "multiclass", so that
models with ``boost_from_average=False`` are the same.

With a custom objective, LightGBM does not know what the scores mean, so predictions are raw scores. `fastce.softmax`
makes probabilities of them.
"""

from __future__ import annotations

from typing import Any

from ._boosting import grad_and_hess

__all__ = ["multiclass", "sklearn_multiclass"]


def multiclass(preds: Any, train_data: Any) -> Any:
    """The objective for `lightgbm.train`: ``params["objective"] = multiclass``, with ``params["num_class"]``.

    Parameters
    ----------
    preds : ndarray of shape (rows, classes)
        Raw scores.
    train_data : lightgbm.Dataset
        Its labels are class indices; its weights count.

    Returns
    -------
    grad, hess : ndarray of shape (rows, classes)
        In the dtype and memory order of `preds`.

    Raises
    ------
    ValueError, IndexError
        Labels that are no integers, or no classes; scores that are not of two dimensions.

    Notes
    -----
    ``grad = w*(p - onehot(label))`` and ``hess = classes/(classes - 1)*w*p*(1 - p)``, the diagonal. Friedman (2001),
    "Greedy function approximation: a gradient boosting machine"; the factor is that of the library's own objective.

    With this objective, ``predict`` returns the raw scores, of shape (rows, classes), with or without
    ``raw_score=True``. Probabilities are ``fastce.softmax(scores)``, classes ``fastce.predict(scores)``.

    Examples
    --------
    >>> import fastce, lightgbm, numpy as np
    >>> from fastce.integrations.lightgbm import multiclass
    >>> x, y = np.linspace(0, 1, 90)[:, None], np.repeat([0, 1, 2], 30)
    >>> params = {"objective": multiclass, "num_class": 3, "num_threads": 1, "verbosity": -1}
    >>> model = lightgbm.train(params, lightgbm.Dataset(x, y), num_boost_round=5)
    >>> scores = model.predict(x)
    >>> bool(np.mean(fastce.predict(scores) == y) > 0.9)
    True
    >>> probabilities = fastce.softmax(scores)
    >>> bool(np.allclose(probabilities.sum(axis=1), 1))
    True
    """
    return sklearn_multiclass(train_data.get_label(), preds, train_data.get_weight())


def sklearn_multiclass(y_true: Any, y_pred: Any, weight: Any) -> Any:
    """The same for ``lightgbm.LGBMClassifier(objective=sklearn_multiclass)``.

    Parameters
    ----------
    y_true : ndarray of shape (rows,)
        Class indices.
    y_pred : ndarray of shape (rows, classes)
        Raw scores.
    weight : ndarray of shape (rows,) or None
        Weight of each row.

    Returns
    -------
    grad, hess : ndarray of shape (rows, classes)
        In the dtype and memory order of `y_pred`.

    Raises
    ------
    ValueError, IndexError
        Labels that are no integers, or no classes; scores that are not of two dimensions.

    Notes
    -----
    ``grad = w*(p - onehot(label))`` and ``hess = classes/(classes - 1)*w*p*(1 - p)``, the diagonal. Friedman (2001),
    "Greedy function approximation: a gradient boosting machine"; the factor is that of the library's own objective.

    With this objective, the classifier's ``predict`` and ``predict_proba`` warn, and both return the raw scores, of
    shape (rows, classes). Probabilities are ``fastce.softmax(scores)``, and ``fastce.predict(scores)`` is the index of
    the class in ``classes_``. With ``raw_score=True`` there is no warning.

    Examples
    --------
    >>> import numpy as np
    >>> from fastce.integrations.lightgbm import sklearn_multiclass
    >>> grad, hess = sklearn_multiclass(np.array([0.0, 1.0]), np.zeros((2, 2)), None)
    >>> grad, hess
    (array([[-0.5,  0.5],
           [ 0.5, -0.5]]), array([[0.5, 0.5],
           [0.5, 0.5]]))
    """
    return grad_and_hess(y_pred, y_true, weight, y_pred.shape[-1] / max(y_pred.shape[-1] - 1, 1))
