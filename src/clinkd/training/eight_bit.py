"""AdamW with states of eight bits, by bitsandbytes (Dettmers et al. 2022, arXiv 2110.02861), for our checkpoints.

A block of 256 numbers shares a scale; a parameter of fewer than 4,096 numbers keeps float32 states.
"""

from __future__ import annotations

from typing import Any

from bitsandbytes.optim import AdamW8bit

STEP, NESTED = "step", "__bnb_optimizer_quant_state__"  # how bitsandbytes keeps torch from changing the states' types


class EightBitAdamW(AdamW8bit):
    """Its states are flat, a tensor a key, as those of other optimizers are."""

    def state_dict(self) -> dict[str, Any]:
        nested = super().state_dict()
        state = {index: {STEP: entry[STEP], **entry[NESTED]} for index, entry in nested["state"].items()}
        return {**nested, "state": state}

    def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
        state = {
            index: {STEP: int(entry[STEP]), NESTED: {k: t for k, t in entry.items() if k != STEP}}
            for index, entry in state_dict["state"].items()
        }
        super().load_state_dict({**state_dict, "state": state}, move_to_device)
