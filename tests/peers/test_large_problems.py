"""The examples of .docs/large_problems.md run, one after the other, each where its library is installed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / ".docs" / "large_problems.md"


@pytest.mark.skipif(not PAGE.exists(), reason="there is no checkout")
@pytest.mark.parametrize(
    ("section", "library"),
    [("Logits in a file", "numpy"), ("Classes in blocks", "numpy"), ("Dask", "dask"), ("MPI", "mpi4py")],
)
def test_examples_of_the_page(section: str, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(library, reason=f"{library} is not installed")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for title, text in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.M | re.S):
        if title in ("Logits in a file", section):  # the first one imports NumPy and writes the file
            blocks = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
            assert blocks
            for block in blocks:
                exec(block, names)
    if section == "Logits in a file":
        assert names["total"] / 4000 == pytest.approx(6.2146, abs=1e-4)  # log(500)
    elif section == "Classes in blocks":
        assert names["loss"] == pytest.approx(6.2146, abs=1e-4)
        assert [grad.shape for grad in names["grads"]] == [(4000, 200), (4000, 300)]
    else:
        assert {"loss", "grad"} <= names.keys()
