"""fastce inside other libraries, one small module for each: `autograd`, `jax`, `lightgbm`, `scipy`, `sklearn`, `torch`,
`xgboost`.

Import the one that is wanted (``from fastce.integrations import torch``); it imports its library, and nothing else here
or in fastce does. Each uses fastce's public functions only: a vendored copy of fastce works without this folder.
"""
