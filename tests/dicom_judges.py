"""Validators that judge the DICOM objects we write: dciodvfy of dicom3tools, DicomSRValidator of pixelmed, dcmtk.

`python -m tests.dicom_judges` prints their versions, as LOG.md records them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

# the template rules of pixelmed have more expressions than newer Javas allow by default
_JAVA = "-Djdk.xml.xpathTotalOpLimit=0 -Djdk.xml.xpathExprOpLimit=0 -Djdk.xml.xpathExprGrpLimit=0"
# Items that are not in the validator's copy of a template (2022); the templates are extensible: more may stand in them.
BESIDE_TEMPLATES = {
    "Geometric purpose of region": "TID 1410 has it since CP-1852; the validator is older",
    "Observer Type": "who drew a box by hand, of TID 1002",
    "Person Observer Name": "who drew a box by hand, of TID 1003",
    "Question asked": "our own",
    "Answer given": "our own",
    "Comment": "research only",
}
PACKAGES = ("dicom3tools", "pixelmed-apps", "libpixelmed-java", "dcmtk", "orthanc", "orthanc-dicomweb")

needs_dciodvfy = pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dicom3tools is not here: make pacs")
needs_pixelmed = pytest.mark.skipif(not shutil.which("DicomSRValidator"), reason="pixelmed is not here: make pacs")


def find_errors(file: Path) -> list[str]:
    """The errors of dciodvfy."""
    done = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True, timeout=60)
    return [line for line in done.stderr.splitlines() if line.startswith("Error")]


def find_template_faults(file: Path, *more: str) -> list[str]:
    """What DicomSRValidator says of a report, but for the items in BESIDE_TEMPLATES and `more`."""
    environment = os.environ | {"JAVA_TOOL_OPTIONS": f"{_JAVA} -XX:TieredStopAtLevel=1"}
    done = subprocess.run(["DicomSRValidator", str(file)], capture_output=True, text=True, timeout=300, env=environment)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("Picked up")]
    assert "IOD validation complete" in lines, lines
    steps = ("Found ComprehensiveSR IOD", "Found Root Template TID_1500", "Root Template Validation", "IOD validation")
    beside = [f'"{meaning}"): Content Item not in template' for meaning in (*BESIDE_TEMPLATES, *more)]
    return [line for line in lines if not line.startswith(steps) and not line.endswith(tuple(beside))]


def list_versions() -> dict[str, str]:
    """The installed Debian packages of the judges and the archive."""
    query = ["dpkg-query", "--show", "--showformat", "${Package} ${Version}\n", *PACKAGES]
    done = subprocess.run(query, capture_output=True, text=True)
    return dict(line.split() for line in done.stdout.splitlines() if len(line.split()) == 2)


if __name__ == "__main__":
    from importlib.metadata import version

    for name, number in {**list_versions(), **{n: version(n) for n in ("highdicom", "pydicom")}}.items():
        print(f"{name} {number}")
