"""The set-up: what README, Makefile, CI and the pins promise is there, and trouble is said in one line."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from clinkd import __version__
from clinkd.data.readers.forms import FORMS

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
WISHES = [*PROJECT["dependencies"], *(w for extra in PROJECT["optional-dependencies"].values() for w in extra)]


def pins():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    return dict(line.split("==") for line in lines)


def targets():
    return dict(re.findall(r"^([a-z-]+):.*?##\s*(.+)$", (ROOT / "Makefile").read_text(), flags=re.M))


def test_the_data_page_lists_every_form():
    text = (ROOT / "docs" / "DATA.md").read_text()
    forms = set(re.findall(r"^\| `([a-z0-9-]+)` \|", text.split("## Forms")[1].split("###")[0], flags=re.M))
    assert forms == set(FORMS)


def test_make_help_lists_every_target():
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY:(.*)$", (ROOT / "Makefile").read_text(), flags=re.M).group(1).split()
    assert set(phony) == targets().keys()
    assert all(f"make {name} " in said for name in phony)


def test_ci_calls_the_readmes_test_command():
    assert "make extras test" in (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("wish", WISHES)
def test_every_dependency_is_pinned_within_its_bounds(wish):
    wanted = Requirement(wish)
    pinned = {name.lower(): version for name, version in pins().items()}
    assert pinned[wanted.name.lower()] in wanted.specifier


def test_pins_are_whole_sorted_and_name_no_host():
    names = list(pins())
    assert names == sorted(names, key=str.lower) and pins()["torch"] == "2.13.0"
    assert {"pip", "setuptools"} <= pins().keys()
    for file in ("constraints.txt", "Makefile", "pyproject.toml", ".ci/run"):
        assert "://" not in (ROOT / file).read_text(), file


def test_installed_packages_bring_nothing_that_is_not_pinned():
    """All that the project needs, followed through what is installed here, has a pin. An extra may be absent."""
    from importlib import metadata

    here = {d.name.lower().replace("_", "-") for d in metadata.distributions()}
    may_be_absent = [
        w
        for extra in ("audit", "bitsandbytes", "docs", "notebook", "open-clip")
        for w in PROJECT["optional-dependencies"][extra]
    ]
    absent = [wish for wish in may_be_absent if Requirement(wish).name.replace("_", "-") not in here]
    todo = [(Requirement(wish), ()) for wish in WISHES if wish not in absent]
    seen = set()
    while todo:
        wanted, extras = todo.pop()
        if wanted.marker and not any(wanted.marker.evaluate({"extra": e}) for e in ("", *extras)):
            continue
        name = wanted.name.lower().replace("_", "-")
        if (name, frozenset(wanted.extras)) in seen:
            continue
        seen.add((name, frozenset(wanted.extras)))
        todo += [(Requirement(line), tuple(wanted.extras)) for line in metadata.requires(wanted.name) or ()]
    pinned = {name.lower().replace("_", "-") for name in pins()}
    assert {name for name, _ in seen} <= pinned


def test_the_package_says_who_it_is():
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    assert PROJECT["license"] == "Apache-2.0" and "Version 2.0" in (ROOT / "LICENSE").read_text()


# ---- trouble on a fresh machine -------------------------------------------------------------------------------------


def make(folder, *words):
    """Make in a folder that holds the Makefile only."""
    shutil.copy(ROOT / "Makefile", folder)
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    done = subprocess.run(["make", "-s", *words], cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stderr.splitlines()


def fake_python(folder, says):
    program = folder / "python"
    program.write_text(f"#!/bin/sh\n{says}\n")
    program.chmod(0o755)
    return f"PYTHON={program}"


@pytest.mark.parametrize(
    ("says", "words"),
    [
        (
            'case "$*" in *version_info*) exit 1;; -V) echo Python 3.9.2;; esac',
            "is Python 3.9.2: 3.11 or newer is wanted",
        ),
        ('case "$*" in *ensurepip*) exit 1;; esac', "apt install python3-venv"),
        (None, "not found; install Python 3.11 or newer"),
    ],
)
def test_a_python_that_will_not_do_is_named_with_the_way_out(tmp_path, says, words):
    python = fake_python(tmp_path, says) if says else "PYTHON=no-such-python"
    status, lines = make(tmp_path, "venv", python)
    assert status != 0 and words in lines[0] and not (tmp_path / ".venv").exists()


def test_a_wheelhouse_without_wheels_is_named(tmp_path):
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".made").touch()
    status, lines = make(tmp_path, ".venv/.run", "WHEELHOUSE=empty")
    assert status != 0 and "WHEELHOUSE=empty: no wheels there; collect them with make wheelhouse" in lines[0]


def give_pacs(folder, path, policy):
    words = ["make", "-s", "pacs", f"POLICY={policy}"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, env={"PATH": path})
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("before", [None, "#!/bin/sh\nexit 104\n"])
def test_a_real_archive_is_installed_without_its_service_being_started(tmp_path, before, fails):
    shutil.copy(ROOT / "Makefile", tmp_path)
    policy, log = tmp_path / "policy-rc.d", tmp_path / "log"
    if before:
        policy.write_text(before)
    programs = {
        "apt-get": f'echo "$@" >> {log}; sh {policy}; echo "policy $?" >> {log}; exit {int(fails)}',
        "id": "echo 0", "dpkg": "exit 1", "systemctl": f'echo "systemctl $@" >> {log}',
    }  # fmt: skip
    (tmp_path / "bin").mkdir()
    for name, says in programs.items():
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/sh\n{says}\n")
        program.chmod(0o755)
    status, out, _ = give_pacs(tmp_path, f"{tmp_path / 'bin'}:{os.environ['PATH']}", policy)
    told = log.read_text()
    assert "orthanc orthanc-dicomweb dcmtk dicom3tools pixelmed-apps" in out and "policy 101" in told
    assert (status == 0) == (not fails) and ("update" in told) == fails
    assert ("systemctl disable orthanc" in told) == (not fails)
    assert (policy.read_text() if policy.exists() else None) == before
    assert not Path(f"{policy}.clinkd").exists()


def test_where_there_is_no_apt_get_the_way_is_told(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "bin").mkdir()
    for name in ("make", "id", "bash", "ls", "wildcard", "git"):
        if program := shutil.which(name):
            (tmp_path / "bin" / name).symlink_to(program)
    status, _, err = give_pacs(tmp_path, str(tmp_path / "bin"), tmp_path / "policy-rc.d")
    assert status != 0 and "wants Debian or Ubuntu, as root" in err and "tests that need them are skipped" in err


def test_rooms_that_must_start_without_torch_do():
    contracts = PYPROJECT["tool"]["importlinter"]["contracts"]
    rooms = next(c["source_modules"] for c in contracts if c["type"] == "forbidden")
    assert len(rooms) > 10
    code = f"""
import importlib, pkgutil, sys
for room in {rooms}:
    module = importlib.import_module(room)
    for file in pkgutil.walk_packages(getattr(module, "__path__", []), f"{{room}}."):
        importlib.import_module(file.name)
importlib.import_module("clinkd.pipeline"), importlib.import_module("clinkd.cli")
heavy = {{"torch", "transformers", "accelerate"}} & sys.modules.keys()
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


PAGES = [ROOT / "PAPER.md", ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_piece_of_code_that_a_page_names_is_there(page):
    """`room/file.py` and `room/file.py:Name`, below src/clinkd or the root."""
    for path, name in re.findall(r"`(?:src/clinkd/)?([a-z_0-9/]+\.py)(?::(\w+))?", page.read_text()):
        file = next((base / path for base in (ROOT / "src" / "clinkd", ROOT) if (base / path).is_file()), None)
        assert file, path
        if file and name:
            assert re.search(rf"^\s*(class|def) {name}\b|^{name}\b", file.read_text(), re.M), f"{path}:{name}"
