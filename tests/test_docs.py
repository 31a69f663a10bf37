"""Every page: its links lead somewhere, its commands and knobs are the program's, the reference is its own words."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from docs.reference import FOLDER, PAGES, bring_in_groups, write_page

from clinkd.cli import _parser
from clinkd.config import NAMED_POSITIONS, RunConfig
from clinkd.experiments import EXPERIMENTS, demo
from clinkd.settings import override, panel

ROOT = Path(__file__).parents[1]
ALL = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
HISTORY = ("LOG.md", "CHANGELOG.md")  # what was said then stays
NOW = [page for page in ALL if page.name not in HISTORY and page.parent != FOLDER]  # and FOLDER is generated
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
PARSER = _parser()
VERBS = {verb.prog for verb in PARSER._list_verbs()} | {"clinkd data", "clinkd pacs", "clinkd spice"}
PROGRAMS = ("pip", "export", "Orthanc", "/usr/bin/storescu")  # of others, and of the shell
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """The text of a page without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


# ---- links ----------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as Markdown viewers make them."""
    heads = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", ALL, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^()\s]+)\)", prose(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file() and file.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(file), target


# ---- the log --------------------------------------------------------------------------------------------------------

COMMAND = re.compile(r"`(?:clinkd|make|pytest|(?:\S*/)?python) [^`]+`")


def find_untold_tables(text: str) -> list[str]:
    """The first line of each table that has neither a command nor a reason why it is not to be repeated: in itself, or
    in the text that stands between it and the next table or heading on either side."""
    blocks = re.split(r"^(#+ .*|(?:\|.*\n)+)", text, flags=re.M)  # text, heading or table, text, ...
    untold = []
    for place in range(1, len(blocks), 2):
        around = " ".join(" ".join(blocks[place - 1 : place + 2]).split())
        told = COMMAND.search(around) or "not to be repeated" in around.lower()
        untold += [blocks[place].splitlines()[0]] if blocks[place].startswith("|") and not told else []
    return untold


def test_each_table_of_the_log_can_be_made_again_or_says_why_not() -> None:
    assert find_untold_tables((ROOT / "LOG.md").read_text(encoding="utf-8")) == []
    table = "| a |\n|---|\n| 1 |\n"
    assert find_untold_tables(f"`clinkd run demo`\n\n## Later\n\n{table}\nIt is so.\n") == ["| a |"]
    assert find_untold_tables(f"By `make demo`:\n\n{table}\n{table}\n(Not to be\nrepeated: lost.)\n") == []


# ---- commands -------------------------------------------------------------------------------------------------------


def commands(page: Path) -> list[str]:
    """The lines of shell blocks, and the commands that the prose names."""
    text = page.read_text(encoding="utf-8")
    blocks = [block.replace("\\\n", " ") for kind, block in FENCE.findall(text) if kind == "sh"]
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    shown = [line[2:] for kind, block in FENCE.findall(text) if kind == "" for line in block.splitlines()
             if line.startswith("$ ")]  # fmt: skip
    named = re.findall(r"`((?:clinkd|torchrun|make) [^`]+)`", prose(page))
    shown += re.findall(r"^    (clinkd .+)$", text, re.M)
    every = [*lines, *shown, *(" ".join(command.split()) for command in named)]
    return [line for line in every if "..." not in line]


def check_command(line: str) -> None:
    """Fail unless the command is one that the real parsers take."""
    words = shlex.split(line, comments=True)
    words = words[: next((i for i, word in enumerate(words) if word in (">", "|")), None)]
    program, *words = words
    if program == "make":
        assert {word for word in words if "=" not in word} <= TARGETS, line
    elif program.removeprefix(".venv/bin/") == "clinkd":
        check_verb(words)
    elif program == "torchrun":
        check_verb(words[words.index("clinkd") + 1 :])
    elif program == "python":
        assert words[0] == "-m" or (ROOT / words[0]).is_file(), line
    else:
        assert line in ("source .venv/bin/activate",) or program in PROGRAMS, line


def check_verb(words: list[str]) -> None:
    if "|" in " ".join(words) or words[0].isupper():  # a choice of verbs, not a command
        return
    if " ".join(["clinkd", *words]) in VERBS:  # its name alone
        return
    args = PARSER.parse_args(words)
    settings = getattr(args, "settings", [])
    experiment = EXPERIMENTS.get(getattr(args, "what", ""), demo)
    override(experiment(), settings)


@pytest.mark.parametrize("page", [*NOW, FOLDER / "verbs.md"], ids=name)
def test_commands_are_the_programs(page: Path) -> None:
    for line in commands(page):
        try:
            check_command(line)
        except (SystemExit, ValueError) as error:
            pytest.fail(f"{line}: {error}")


def test_a_wrong_command_is_found() -> None:
    for line in ("clinkd rum demo", "clinkd run demo --sett a=1", "clinkd run demo --set reflect.round=1"):
        with pytest.raises((SystemExit, ValueError)):
            check_command(line)
    with pytest.raises(AssertionError):
        check_command("make dmo")


# ---- knobs ----------------------------------------------------------------------------------------------------------


@cache
def knob_names() -> set[str]:
    names = {knob.name for knob in panel(bring_in_groups(RunConfig()))}
    return names | {f"model.positions.{k.name}" for setting in NAMED_POSITIONS.values() for k in panel(setting)}


@pytest.mark.parametrize("page", NOW, ids=name)
def test_knobs_that_are_named_exist(page: Path) -> None:
    groups = "|".join(RunConfig.model_fields)
    named = re.findall(rf"`(?:--set )?((?:{groups})(?:\.[a-z_0-9]+)+)(?:=[^`]*)?`", prose(page))
    files = {word for word in named if word.endswith((".png", ".csv", ".jsonl"))}
    assert {*named} - files <= knob_names()


# ---- the reference --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_the_reference_is_what_the_program_says(page: str) -> None:
    assert (FOLDER / page).read_text(encoding="utf-8") == write_page(page), "give: python -m docs.reference"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 150
