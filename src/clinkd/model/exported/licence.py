"""The licence of a base, as its folder tells it: never guessed. Starts without torch."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from clinkd.model.folders import demand_inside

FIELDS = ("license", "license_name", "license_link")  # in the head of a README.md, as Hugging Face lays it out
FILES = re.compile(r"(licen[cs]e|notice|copying|use[ _-]policy|terms)([ ._-][\w .-]*)?", re.IGNORECASE)
LONGEST = 300  # characters of a field
LARGEST = 1 << 20  # bytes of a file
PASSED_ON = (
    "whoever passes this model on is to give a copy of these terms with it, to bind the receiver to their use "
    "restrictions, to say in the changed files that they were changed, and to add a file NOTICE with the sentence"
)
# What terms ask of whoever passes a tuned model on, by the name that a base gives them: section 3.1 of Google's two,
# sections 2, 3 and 4 of Qwen's.
RESTRICTED = {
    "gemma": f'By the Gemma terms, {PASSED_ON} "Gemma is provided under and subject to the Gemma Terms of Use found at '
    'ai.google.dev/gemma/terms".',
    "health-ai-developer-foundations": f"By the terms of Health AI Developer Foundations, {PASSED_ON} "
    '"HAI-DEF is provided under and subject to the Health AI Developer Foundations Terms of Use found at '
    'https://developers.google.com/health-ai-developer-foundations/terms". They restrict clinical use, too.',
    "qwen-research": "By the Qwen research licence, this model is for research and evaluation that is not commercial; "
    "whoever passes it on is to give a copy of the licence with it, to say in the changed files that they were "
    'changed, and to show "Built with Qwen" or "Improved using Qwen".',
}


@dataclass(frozen=True)
class Licence:
    """What the folder of a model says of its licence. `fields`: those of FIELDS that it has; `files`: the texts."""

    folder: Path
    fields: Mapping[str, str]
    files: tuple[Path, ...]

    @property
    def name(self) -> str:
        """The name of the licence; "" where the folder names none ("other" is no name)."""
        known = self.fields.get("license", "other")
        return self.fields.get("license_name", "") if known == "other" else known

    @property
    def restriction(self) -> str:
        """What the licence asks of whoever passes the model on, where that is known; "" elsewhere."""
        return RESTRICTED.get(self.name.casefold(), "")

    def copy_files(self, folder: Path, prefix: str = "") -> None:
        """Copy the texts of the licence into a folder, under names that begin with `prefix`."""
        for path in self.files:
            shutil.copyfile(path, folder / (prefix + path.name))


def read_licence(folder: Path) -> Licence:
    """The licence that a folder names in its README.md, and its texts. Raises BadInput for a link to outside."""
    files = tuple(p for p in sorted(folder.glob("*")) if FILES.fullmatch(p.name) and p.is_file())
    for path in files:
        demand_inside(folder, path)
    readme = folder / "README.md"
    fields: dict[str, str] = {}
    if readme.is_file():
        demand_inside(folder, readme)
        fields = _read_fields(readme)
    return Licence(folder, fields, tuple(p for p in files if p.stat().st_size <= LARGEST))


def _read_fields(readme: Path) -> dict[str, str]:
    """The fields in the head of a README.md. A field that is no short line of text is taken as not there."""
    with readme.open(encoding="utf-8", errors="replace") as file:
        head = re.match(r"\ufeff?---\s*\n(.*?\n)---\s*(\n|$)", file.read(LARGEST), re.DOTALL)
    try:
        values = yaml.safe_load(head[1]) if head else None
    except (yaml.YAMLError, RecursionError, ValueError):
        values = None
    if not isinstance(values, dict):
        return {}
    lines = {name: value for name in FIELDS if isinstance(value := values.get(name), str)}
    return {name: v for name, v in lines.items() if v and v.isprintable() and len(v) <= LONGEST and "`" not in v}
