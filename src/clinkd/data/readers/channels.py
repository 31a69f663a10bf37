"""Several images of one case: the channels that nnU-Net and MSD number, and what their names say of the modality."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from clinkd.data.modality import read_modality
from clinkd.data.readers.rows import FieldError
from clinkd.data.readers.source import Source
from clinkd.records import BadInput, Modality

_MR = re.compile(r"(?:cine-?)?mri?|t[12].*|flair|adc|dwi|swi|pd.*", re.I)  # names of MR sequences


class Channels:
    """The channels of a dataset.json: `channel_names` (nnU-Net 2) or `modality` (nnU-Net 1, MSD), by number."""

    def __init__(self, source: Source, description: dict[str, Any]) -> None:
        names = description.get("channel_names", description.get("modality"))
        self.source = source
        self.names = {str(k): str(v) for k, v in names.items()} if isinstance(names, dict) else {}

    def choose(self, channels: Sequence[str | int]) -> str | int:
        """The channel that `Source.channel` names, by number or name; of one, that one. Raises FieldError otherwise."""
        wanted = (self.source.channel or "").casefold()
        spellings = {c: {str(c).casefold(), self._name(c).casefold(), _fold_number(c)} for c in channels}
        found = [c for c, names in spellings.items() if wanted in names]
        if len(found) == 1 or len(channels) == 1:
            return found[0] if found else channels[0]
        shown = ", ".join(f"{c} ({self._name(c)})" if self._name(c) != str(c) else str(c) for c in channels)
        raise FieldError("channel", self.source.channel or "", f"{shown}; choose one with --channel")

    def find_modality(self, channel: str) -> Modality:
        """The modality of all that the user states, else that of the channel's name. Raises FieldError without."""
        if self.source.modality is not None:
            return self.source.modality
        text = self._name(channel or 0)
        if (known := self.source.modalities.get(text.casefold())) is not None:
            return known
        if _MR.fullmatch(text):
            return Modality.MR
        try:
            return read_modality(text)
        except BadInput:
            shown = text if self.names or channel else ""
            raise FieldError("modality", shown, "no modality is named; give one for all with --modality") from None

    def _name(self, channel: str | int) -> str:
        return self.names.get(_fold_number(channel), str(channel))


def _fold_number(channel: str | int) -> str:
    """0000 -> 0; a name as it is."""
    return str(int(channel)) if str(channel).isdecimal() else str(channel).casefold()
