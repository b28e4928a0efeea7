"""fastce as XGBoost's custom objective for multiclass models: gradient and diagonal hessian of softmax cross-entropy.

XGBoost hands over scores as float32 of shape (rows, classes), and labels as floats. The hessian has the factor 2 of
XGBoost's own "multi:softprob", so that models with ``base_score=0.5`` are the same but for rounding.

With a custom objective, ``predict(..., output_margin=True)`` returns raw scores. `fastce.softmax` makes probabilities
of them.
"""

from __future__ import annotations

from typing import Any

from ._boosting import grad_and_hess

__all__ = ["multiclass", "sklearn_multiclass"]


def multiclass(predt: Any, dtrain: Any) -> Any:
    """The objective for ``xgboost.train({"num_class": ...}, ..., obj=multiclass)``.

    Parameters
    ----------
    predt : ndarray of shape (rows, classes)
        Raw scores.
    dtrain : xgboost.DMatrix
        Its labels are class indices; its weights count.

    Returns
    -------
    grad, hess : ndarray of shape (rows, classes)
        In the dtype of `predt`.

    Raises
    ------
    ValueError, IndexError
        Labels that are no integers, or no classes; scores that are not of two dimensions.

    Notes
    -----
    ``grad = w*(p - onehot(label))`` and ``hess = 2*w*p*(1 - p)``, the diagonal. Friedman (2001),
    "Greedy function approximation: a gradient boosting machine"; the factor is that of the library's own objective.

    With this objective, ``predict(data, output_margin=True)`` returns the raw scores, of shape (rows, classes).
    Probabilities are ``fastce.softmax(scores)``, classes ``fastce.predict(scores)``. Without `output_margin`, XGBoost 3
    returns the classes, as floats of shape (rows,), and no probabilities.

    Examples
    --------
    >>> import fastce, numpy as np, xgboost
    >>> from fastce.integrations.xgboost import multiclass
    >>> x, y = np.linspace(0, 1, 90)[:, None], np.repeat([0, 1, 2], 30)
    >>> params = {"num_class": 3, "nthread": 1, "disable_default_eval_metric": True}
    >>> model = xgboost.train(params, xgboost.DMatrix(x, y), num_boost_round=5, obj=multiclass)
    >>> scores = model.predict(xgboost.DMatrix(x), output_margin=True)
    >>> bool(np.mean(fastce.predict(scores) == y) > 0.9)
    True
    >>> probabilities = fastce.softmax(scores)
    >>> bool(np.allclose(probabilities.sum(axis=1), 1))
    True
    """
    return sklearn_multiclass(dtrain.get_label(), predt, dtrain.get_weight())


def sklearn_multiclass(y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
    """The same for ``xgboost.XGBClassifier(objective=sklearn_multiclass)``.

    Parameters
    ----------
    y_true : ndarray of shape (rows,)
        Class indices.
    y_pred : ndarray of shape (rows, classes)
        Raw scores.
    sample_weight : ndarray of shape (rows,), optional
        Weight of each row.

    Returns
    -------
    grad, hess : ndarray of shape (rows, classes)
        In the dtype of `y_pred`.

    Raises
    ------
    ValueError, IndexError
        Labels that are no integers, or no classes; scores that are not of two dimensions.

    Notes
    -----
    ``grad = w*(p - onehot(label))`` and ``hess = 2*w*p*(1 - p)``, the diagonal. Friedman (2001),
    "Greedy function approximation: a gradient boosting machine"; the factor is that of the library's own objective.

    With this objective, the classifier's ``predict`` returns classes, and ``predict_proba`` probabilities in XGBoost 3.
    ``fastce.softmax(model.predict(data, output_margin=True))`` are the same probabilities.

    Examples
    --------
    >>> import numpy as np
    >>> from fastce.integrations.xgboost import sklearn_multiclass
    >>> grad, hess = sklearn_multiclass(np.array([0.0, 1.0]), np.zeros((2, 2)), None)
    >>> grad, hess
    (array([[-0.5,  0.5],
           [ 0.5, -0.5]]), array([[0.5, 0.5],
           [0.5, 0.5]]))
    """
    return grad_and_hess(y_pred, y_true, sample_weight, 2.0)
