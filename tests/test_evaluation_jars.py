"""What SPICE runs on: fetched or taken from a folder, whole and the pinned ones, or not installed at all."""

from __future__ import annotations

import hashlib
import os
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from clinkd.cli import main
from clinkd.pipeline import plan
from clinkd.records import BadInput
from clinkd.scoring import jars
from clinkd.scoring.captions import NotComputed, find_pycocoevalcap

NAMES = ("a.jar", "b.jar")
MAVEN = """#!/bin/sh
test -n "$SAYS" && { echo "[INFO] busy"; echo "[ERROR] $SAYS"; echo "[ERROR] help"; exit 1; }
for word in "$@"; do case "$word" in
  -DoutputDirectory=*) cp "$JARS"/*.jar "${word#-DoutputDirectory=}";;
  -Dmaven.repo.local=*) mkdir -p "${word#-Dmaven.repo.local=}/edu/stanford"; touch "${word#*=}/edu/stanford/part";;
esac; done
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with small files for the four jars, pinned as if they were these; nothing is installed."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_text(name)
    pins = tmp_path / "pins"
    pins.write_text("".join(f"{hashlib.sha256(n.encode()).hexdigest()}  fetched/{n}\n" for n in NAMES))
    monkeypatch.setattr(jars, "PINS", pins)
    monkeypatch.setenv("CLINKD_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def maven(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in the place of Maven, which copies what is in `source`, or says what is in SAYS and fails."""
    program = tmp_path / "bin" / "mvn"
    program.parent.mkdir()
    program.write_text(MAVEN)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("JARS", str(source))
    monkeypatch.setattr(jars, "_LOOK_SECONDS", 0.01)
    return program


def parts() -> list[str]:
    """What a broken installation would leave in the cache."""
    place = jars.folder().parent
    return sorted(p.name for p in place.iterdir()) if place.is_dir() else []


def test_from_a_folder_and_again(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert jars.jars_identity() is None and jars.find_problem() == "not installed"
    assert main(["spice", "install", "--from", str(source)]) == 0
    assert f"{jars.folder()}: installed" in capsys.readouterr().out
    assert jars.jars_identity() == jars.version() and parts() == [jars.folder().name]
    before = {p: p.stat().st_mtime_ns for p in jars.folder().iterdir()}
    assert main(["spice", "install"]) == 0  # needs no Maven, since all is there
    assert "was installed before" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in jars.folder().iterdir()} == before


def test_a_file_that_is_missing_or_another_one_is_named_and_nothing_is_installed(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "b.jar").write_text("another")
    assert main(["spice", "install", "--from", str(source)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{source / 'b.jar'}: its SHA-256 is" in said
    (source / "b.jar").unlink()
    assert main(["spice", "install", "--from", str(source)]) == 2
    assert f"{source}: no b.jar; a folder with a.jar, b.jar is wanted" in capsys.readouterr().err
    assert jars.jars_identity() is None and parts() == []


def test_without_maven_the_way_out_is_a_folder(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert main(["spice", "install"]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in ("no mvn on PATH", "apt install maven", "--from DIR", *NAMES))


@pytest.mark.usefixtures("maven")
def test_maven_fetches_and_its_repository_goes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spice", "install"]) == 0
    assert jars.find_problem() is None and parts() == [jars.folder().name]
    assert "jars of SPICE" in capsys.readouterr().err


@pytest.mark.usefixtures("maven")
def test_what_maven_says_is_told_and_what_it_has_fetched_stays_for_the_next_time(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAYS", "Could not transfer artifact")
    with pytest.raises(BadInput, match=r"Could not transfer artifact; the same command goes on, or give --from DIR"):
        jars.install()
    assert parts() == ["maven"]
    monkeypatch.delenv("SAYS")
    (source / "a.jar").write_text("another")
    with pytest.raises(BadInput, match=r"a\.jar: its SHA-256"):
        jars.install()
    assert parts() == []  # a wrong file must not be taken from Maven's repository again


def test_a_damaged_jar_is_found_by_its_time_and_made_anew(source: Path) -> None:
    jars.install(source)
    jar = jars.folder() / "a.jar"
    jar.write_text("A.jar")
    os.utime(jar, ns=(1, 1))
    assert jars.find_problem() == "a.jar is damaged (its SHA-256 is not the pinned one)"
    with pytest.raises(NotComputed, match=r"a\.jar is damaged.*clinkd spice install"):
        jars.class_path()
    assert jars.install(source) and jars.find_problem() is None
    jar.unlink()
    assert jars.find_problem() == "a.jar is missing"


def test_a_full_check_is_done_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jars.install(source)
    for name in NAMES:
        os.utime(jars.folder() / name, ns=(1, 1))  # as after a copy of the cache
    assert jars.find_problem() is None

    def hashed(path: Path) -> str:
        raise AssertionError(f"{path} is hashed again")

    monkeypatch.setattr(jars, "sha256_file", hashed)
    assert jars.find_problem() is None


def test_pins_and_pom_name_the_same_files_and_the_wheel_holds_its_own() -> None:
    wanted = []
    for one in ET.parse(jars.POM).getroot().iterfind("dependencies/dependency"):
        told = [one.findtext(tag) for tag in ("artifactId", "version", "classifier")]
        wanted.append("-".join(t for t in told if t) + ".jar")
    assert sorted(wanted) == sorted(jars._pins("fetched")) and len(wanted) == 4
    wheel = find_pycocoevalcap() / "spice"
    assert set(jars._pins("wheel")) == {p.relative_to(wheel).as_posix() for p in wheel.rglob("*.jar")}
    assert {n: jars.sha256_file(wheel / n) for n in jars._pins("wheel")} == jars._pins("wheel")


def test_another_wheel_is_refused(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = jars.PINS.read_text()
    jars.PINS.write_text(f"{pins}{'0' * 64}  wheel/spice-1.0.jar\n")
    jars.install(source)
    with pytest.raises(NotComputed, match=r"spice-1\.0\.jar is not that of pycocoevalcap 1\.2"):
        jars.class_path()
    jars.PINS.write_text(pins)
    jars.install(source)
    assert jars.class_path() == os.pathsep.join(str(jars.folder() / n) for n in NAMES)


def test_a_run_is_scored_anew_once_spice_is_installed(source: Path) -> None:
    from clinkd.experiments import demo

    before, without = plan(demo()), jars.jars_identity()
    jars.install(source)
    after = plan(demo())
    assert without is None and {s.name for s in before if s not in after} == {"score"}
    assert after[-1].config["SPICE jars"] == jars.version()
