"""Codes of findings and their sites: SNOMED CT where a class map names them, otherwise our own, made from the name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import yaml
from pydicom.sr.coding import Code

from clinkd.data.dicom_objects.answer import SCHEME
from clinkd.records import BadInput

Group = Literal["structures", "findings"]
Side = Literal["left", "right"]

STARTER = Path(__file__).with_name("codes.yaml")
_SPELLED = re.compile(r"([!-\[\]-~]{1,16}) ([!-\[\]-~]{1,16}) ([^\\]{1,64})")
_NAMED_SIDE = re.compile(r"(left|right) (.+)")
_ENTRY = "SCHEME CODE MEANING, as liver: SCT 10200004 Liver, or {code: SCHEME CODE MEANING, site: SCHEME CODE MEANING}"


class CodedName(NamedTuple):
    """What a name is (None: neither a structure nor a finding that the map knows), its code, and where it lies."""

    group: Group | None
    code: Code
    site: Code | None = None
    side: Side | None = None


@dataclass(frozen=True)
class CodeMap:
    """Codes by name. A code says no less than the name: what has none gets a private code, which keeps the name."""

    entries: Mapping[str, CodedName] = field(default_factory=dict)

    def find(self, name: str) -> CodedName:
        """The codes of a name, without its article. A side of a known structure is a site, as the name has it."""
        name = _simplify(name)
        private = _make_private(name)
        if entry := self.entries.get(name):
            return entry
        if (sided := _NAMED_SIDE.fullmatch(name)) and (entry := self.entries.get(sided[2])):
            side: Side = "left" if sided[1] == "left" else "right"
            site = entry.code if entry.group == "structures" else entry.site
            return CodedName(entry.group, private, site, side if site else None)
        return CodedName(None, private)


@cache
def read_code_map(file: Path = STARTER) -> CodeMap:
    """A class map: YAML with the groups `structures` and `findings`, each of names with their codes.

    Names of a file are put over those of the starter map. Raises BadInput where it is none.
    """
    entries = dict(read_code_map().entries) if file != STARTER else {}
    try:
        groups = yaml.safe_load(file.read_text())
    except FileNotFoundError:
        raise BadInput(f"{file}: no such file; give the YAML with codes of names") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"{file}: not readable as YAML ({type(error).__name__}); see docs/PACS.md") from None
    if not isinstance(groups, dict) or not groups.keys() <= {*get_args(Group)}:
        raise BadInput(f"{file}: its groups are structures and findings, each with names and codes below it")
    for group, names in groups.items():
        if not isinstance(names, dict):
            raise BadInput(f"{file}: {group}: names are wanted below it, each with {_ENTRY}")
        for name, codes in names.items():
            name = _simplify(str(name))
            entries[name] = _read_entry(group, name, codes, f"{file}: {group}: {name}")
    return CodeMap(entries)


def _read_entry(group: Group, name: str, codes: Any, place: str) -> CodedName:
    codes = {"code": codes} if isinstance(codes, str) else codes
    if not isinstance(codes, dict) or not codes or not codes.keys() <= {"code", "site"}:
        raise BadInput(f"{place}: write {_ENTRY}")
    spelled = {key: _SPELLED.fullmatch(str(text)) for key, text in codes.items()}
    if wrong := next((key for key, match in spelled.items() if not match), None):
        raise BadInput(f"{place}: {wrong} = {codes[wrong]}: write {_ENTRY}; the meaning has at most 64 characters")
    read = {key: Code(match[2], match[1], match[3]) for key, match in spelled.items() if match}
    return CodedName(group, read.get("code") or _make_private(name), read.get("site"))


def _make_private(name: str) -> Code:
    return Code(hashlib.blake2b(name.encode(), digest_size=8).hexdigest(), SCHEME, clean_line(name))


def _simplify(name: str) -> str:
    return re.sub(r"^(the|an?) ", "", " ".join(name.lower().split()))


def clean_text(text: str) -> str:
    """Text that an element may hold: valid Unicode, no control characters except ends of lines."""
    whole = text.encode("utf-8", "replace").decode().replace("\r\n", "\n")
    return "".join(c if c.isprintable() or c == "\n" else " " for c in whole).strip()


def clean_line(text: str) -> str:
    """Text for the VR LO: one line of at most 64 characters."""
    return " ".join(clean_text(text).replace("\\", "/").split())[:64].strip()
