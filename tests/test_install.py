"""What is installed: the wheel, torch from a place of its own, sizes told before, the container's file."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from clinkd import __version__
from conftest import SMALL_RUN

ROOT = Path(__file__).parents[1]
WHEEL = f"clinkd-{__version__}-py3-none-any.whl"
PACKED = ("src", "Makefile", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")


def copy_project(folder: Path) -> Path:
    """What a wheel is built from, with a .venv that is the Python of these tests."""
    for name in PACKED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(ROOT / name, folder / name)
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (folder / ".venv" / ".made").touch()
    return folder


def clean_environment() -> dict[str, str]:
    """The variables of this process without those of a source tree, and of the make that may run these tests."""
    dropped = ("PYTHONPATH", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "SOURCE_DATE_EPOCH")
    return {name: value for name, value in os.environ.items() if name not in dropped}


def run(*words: str | Path, folder: Path, **environment: str) -> str:
    """What a program prints, on both streams, run as on a machine that knows no source tree."""
    env = {**clean_environment(), **environment}
    done = subprocess.run(words, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_a_wheel_holds_the_package_whole_and_nothing_else(tmp_path):
    project = copy_project(tmp_path)
    code = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    run(sys.executable, "-c", code, folder=project)
    with zipfile.ZipFile(project / "dist" / WHEEL) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    source = ROOT / "src"
    files = {p.relative_to(source).as_posix() for p in (source / "clinkd").rglob("*") if p.is_file()}
    files = {name for name in files if "__pycache__" not in name}
    assert {"clinkd/py.typed", "clinkd/serving/page/index.html", "clinkd/reporting/viewer/page.css"} < files
    assert packed == files


@pytest.mark.slow
def test_a_wheel_is_the_same_twice_and_runs_elsewhere(tmp_path):
    """Dependencies are those of this Python, by a .pth file: to install them anew takes gigabytes."""
    project = copy_project(tmp_path / "project")
    sums = []
    for _ in range(2):
        run("make", "wheel", folder=project)
        sums.append(hashlib.sha256((project / "dist" / WHEEL).read_bytes()).hexdigest())
        for file in (project / "src").rglob("*.py"):
            os.utime(file)
    assert sums[0] == sums[1]
    assert (project / "dist" / "constraints.txt").read_text() == (ROOT / "constraints.txt").read_text()

    clean = tmp_path / "clean"
    run(sys.executable, "-m", "venv", "--without-pip", clean, folder=tmp_path)
    packages = clean / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    wheel = project / "dist" / WHEEL
    pip = (sys.executable, "-m", "pip", "--python", clean / "bin" / "python")
    run(*pip, "install", "--no-deps", "--no-index", wheel, folder=tmp_path)
    shutil.rmtree(project)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = "import clinkd; print(clinkd.__file__)"
    assert run(clean / "bin" / "python", "-c", code, folder=elsewhere).startswith(str(packages))
    clinkd = clean / "bin" / "clinkd"
    assert "usage: clinkd" in run(clinkd, "--help", folder=elsewhere)
    assert re.search(rf"^clinkd +{re.escape(__version__)}$", run(clinkd, "doctor", folder=elsewhere), flags=re.M)
    run(clinkd, "run", "demo", *(w for knob in SMALL_RUN for w in ("--set", knob)), folder=elsewhere)
    assert "<html" in (elsewhere / "runs" / "demo" / "report.html").read_text()[:200]
    assert "score" in run(clinkd, "table", "demo", folder=elsewhere)


# ---- make -----------------------------------------------------------------------------------------------------------


def write_wheel(folder: Path, name: str, version: str, *wishes: str) -> None:
    """A wheel that pip takes, with a module of its name and nothing in it."""
    folder.mkdir(exist_ok=True)
    about = f"{name}-{version}.dist-info"
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", *(f"Requires-Dist: {w}\n" for w in wishes)]
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", "")
        wheel.writestr(f"{about}/METADATA", "".join(lines))
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")


BACKEND = """import shutil
def build_editable(folder, *_):
    shutil.copy("clinkd-1.0-py3-none-any.whl", folder)
    return "clinkd-1.0-py3-none-any.whl"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the Makefile and a small project that wants torch. Below it two folders of wheels: `wheels` with
    all that is wanted, torch with a GPU library, and `torch` with another build of torch."""
    folder = tmp_path / "project"
    write_wheel(folder, "clinkd", "1.0", "torch>=2.13")
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "constraints.txt").write_text("setuptools==84.0\ntorch==2.13.0\n")
    (folder / "backend.py").write_text(BACKEND)
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    write_wheel(folder / "wheels", "setuptools", "84.0")
    write_wheel(folder / "wheels", "torch", "2.13.0", "nvidia_library", "sympy")
    for name in ("nvidia_library", "sympy"):
        write_wheel(folder / "wheels", name, "1.0")
    write_wheel(folder / "torch", "torch", "2.13.0+cpu", "sympy")
    write_wheel(folder / "torch", "torch", "2.14.0+cpu", "sympy")  # not the pinned one
    write_wheel(folder / "torch", "sympy", "2.0")  # torch alone is taken from there
    return folder


def installed(project: Path) -> dict[str, str]:
    """Name and version of what pip put into the project's .venv."""
    return dict(re.findall(r"^(\w+)==(\S+)$", run(".venv/bin/pip", "freeze", "--all", folder=project), flags=re.M))


@pytest.mark.slow
def test_torch_alone_comes_from_torch_index_and_stays(project):
    here = {"WHEELHOUSE": "wheels", "PIP_NO_INDEX": "1"}
    words = ("make", ".venv/.run", "WHEELHOUSE=wheels")
    run(*words, "TORCH_INDEX=torch", folder=project, **here)
    wanted = {"torch": "2.13.0+cpu", "sympy": "1.0", "setuptools": "84.0"}
    assert wanted.items() <= (there := installed(project)).items() and "nvidia_library" not in there
    os.utime(project / "pyproject.toml")  # as a newer version of the project would be
    assert "install -c" in run(*words, folder=project).replace('--no-index --find-links "wheels" ', "")
    assert installed(project) == there
    run(*words[:2], "TORCH_INDEX=torch", folder=project)
    assert installed(project) == there

    run("make", "clean", folder=project)
    run(*words, folder=project)
    assert {"torch": "2.13.0", "nvidia_library": "1.0"}.items() <= installed(project).items()
    run(*words, "TORCH_INDEX=torch", folder=project)  # another build, put in the place of the first
    assert installed(project)["torch"] == "2.13.0+cpu"


def plan_make(project: Path, *words: str) -> list[str]:
    """The pip commands that make would run."""
    return [line for line in run("make", "-n", *words, folder=project).splitlines() if " -m pip " in line]


def test_only_the_first_install_is_told_of_torch_index(project):
    first, *others = plan_make(project, "venv", "TORCH_INDEX=some folder")
    assert first.endswith('--no-deps --upgrade -c constraints.txt --no-index --find-links "some folder" torch')
    assert len(others) == 3 and all("some folder" not in line for line in others)
    assert others == plan_make(project, "venv")
    address = plan_make(project, "venv", "TORCH_INDEX=https://index/cpu", "WHEELHOUSE=wheels")
    assert address[0].endswith('--index-url "https://index/cpu" torch')
    assert all("--no-index" in line and "index/cpu" not in line for line in address[1:])
    torch, rest, newer = plan_make(project, "wheelhouse", "TORCH_INDEX=torch")
    assert " download --no-deps " in torch and torch.endswith('--no-index --find-links "torch" torch')
    assert '--find-links "wheelhouse"' in rest and " transformers==" in newer


def test_the_newer_transformers_comes_from_the_wheelhouse_too(project):
    *_, newer = plan_make(project, "test-all", "WHEELHOUSE=wheels")
    assert '--no-index --find-links "wheels"' in newer and "--target" in newer
    *_, newer = plan_make(project, "test-all")
    assert "--no-index" not in newer and "-c constraints.txt" not in newer, "it is not the pinned one"


def refuse(project: Path, *words: str) -> tuple[str, list[str]]:
    """What make prints, and its one line of refusal."""
    folder = project / ".venv"
    folder.mkdir(exist_ok=True)
    (folder / ".made").touch()
    command = ["make", "-s", ".venv/.run", *words]
    done = subprocess.run(command, cwd=project, env=clean_environment(), capture_output=True, text=True)
    refusal, *rest = done.stderr.splitlines()
    assert done.returncode == 2 and all(line.startswith("make: ***") for line in rest)
    return done.stdout, refusal


def test_make_real_installs_the_eyes_and_asks_for_a_folder_first(project):
    made = run("make", "-n", "real", "DATA=my data", folder=project).splitlines()
    assert any("'.[eyes]'" in line for line in made) and made[-1].endswith('run real --set data.path="my data"')
    done = subprocess.run(["make", "-s", "real"], cwd=project, env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 2 and "make real DATA=FOLDER: give the folder of your data" in done.stderr


def test_a_folder_without_torch_is_named(project):
    for place in ("none", "wheels/none"):
        out, refusal = refuse(project, f"TORCH_INDEX={place}")
        assert refusal.startswith(f"TORCH_INDEX={place}: no wheel of torch there; ") and not out


@pytest.mark.parametrize(
    ("words", "sizes"),
    [
        ((), ["5.5 GB into .venv, 3.4 GB of it GPU libraries", "2.8 GB to fetch: 5 min at 10 MB/s", "TORCH_INDEX"]),
        (("WHEELHOUSE=wheels",), ["5.5 GB into .venv", "TORCH_INDEX"]),
        (("TORCH_INDEX=torch",), ["1 GB into .venv, and the torch of TORCH_INDEX", "0.3 GB to fetch"]),
    ],
)
def test_sizes_are_told_before_and_too_small_a_disk_is_refused(project, monkeypatch, words, sizes):
    program = project / "bin" / "df"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho Filesystem MB Used Available\necho disk 9999 1 2345 1%\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    out, refusal = refuse(project, *words)
    assert all(size in out for size in sizes) and all(len(line) <= 80 for line in out.splitlines())
    assert ("to fetch" in out) == ("WHEELHOUSE=wheels" not in words)
    assert re.fullmatch(r".*: 2345 MB of disk are free, and .venv wants \d{4} while .*; make room", refusal)
    (project / ".venv" / "lib" / "python3.11" / "site-packages" / "torch").mkdir(parents=True)
    (project / ".venv" / ".torch").touch()
    out, refusal = refuse(project, *words)  # the .venv of this test has no Python
    assert not out and "MB of disk" not in refusal


# ---- the container --------------------------------------------------------------------------------------------------


def test_the_container_runs_without_root_on_one_volume_and_keeps_nothing_else():
    text = (ROOT / "Containerfile").read_text()
    lines = [line for line in re.sub(r"\\\n", " ", text).splitlines() if line and not line.startswith("#")]
    asked = [line.split(maxsplit=1) for line in lines]
    of = {word: [rest for name, rest in asked if name == word] for word, _ in asked}
    assert len(of["FROM"]) == 1 and re.fullmatch(r"python:3\.11\.\d+-slim-\w+", of["FROM"][0])
    assert of["USER"] == ["1000:1000"] and max(lines.index(f"RUN {r}") for r in of["RUN"]) < lines.index(
        "USER 1000:1000"
    )
    assert of["VOLUME"] == ['["/work"]'] and of["WORKDIR"] == ["/work"] and of["ENTRYPOINT"] == ['["clinkd"]']
    assert of["ARG"] == ['TORCH_INDEX=""'] and not {"ADD", "COPY"} & of.keys()
    assert (ROOT / ".containerignore").read_text().split() == ["*", "!dist"]
    assert (ROOT / ".dockerignore").resolve() == ROOT / ".containerignore"
