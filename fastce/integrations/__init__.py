"""fastce inside other libraries, one small module for each: `autograd`, `dask`, `jax`, `lightgbm`, `mpi`, `scipy`,
`sklearn`, `torch`, `xgboost`.

Import the one that is wanted (``from fastce.integrations import torch``); it imports its library, and nothing else here
or in fastce does. Nothing in fastce needs them: a vendored copy works without this folder.
"""
