"""Repair a Linux wheel: `auditwheel repair` copies libgomp into it, and its licence is added.

python .ci/repair.py WHEEL FOLDER

auditwheel is found on the PATH."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

LICENCE = Path(__file__).with_name("LICENSE-libgomp.txt")


def with_licence(wheel: Path, to: Path) -> None:
    """Copy a wheel. If it contains libgomp, the copy contains its licence, and the metadata name that."""
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as target:
        names = source.namelist()
        (metadata,) = (name for name in names if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        record = metadata.replace("METADATA", "RECORD")
        contents = {name: source.read(name) for name in names if name != record}
        if any(re.match(r"[^/]+\.libs/libgomp", name) for name in names):
            contents[metadata.replace("METADATA", f"licenses/{LICENCE.name}")] = LICENCE.read_bytes()
            contents[metadata] = re.sub(
                rb"(?m)^License-File: .*$",
                rb"\g<0>\nLicense-File: " + LICENCE.name.encode(),
                contents[metadata],
                count=1,
            )
        lines = []
        for name, content in contents.items():
            info = source.getinfo(name) if name in names else zipfile.ZipInfo(name, source.getinfo(metadata).date_time)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = info.external_attr or 0o644 << 16
            target.writestr(info, content)
            if not name.endswith("/"):
                digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                lines.append(f"{name},sha256={digest},{len(content)}\n")
        target.writestr(record, "".join([*lines, f"{record},,\n"]))


def main() -> None:
    wheel, folder = map(Path, sys.argv[1:])
    with tempfile.TemporaryDirectory() as work:
        subprocess.run(["auditwheel", "repair", "--strip", "--wheel-dir", work, str(wheel)], check=True)
        (repaired,) = Path(work).glob("*.whl")
        folder.mkdir(parents=True, exist_ok=True)
        with_licence(repaired, folder / repaired.name)


if __name__ == "__main__":
    main()
