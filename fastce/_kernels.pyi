# The compiled module is called by _api.py alone, which has checked every argument; its surface is not typed.
from typing import Any

def __getattr__(name: str) -> Any: ...
