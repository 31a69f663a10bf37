"""What vLLM calls at the start of each of its processes: it gets names alone, and our code when it asks for a model."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SERVED = "ClinkdForConditionalGeneration"  # in `architectures` of the config.json of our checkpoints


def register() -> None:
    """Tell vLLM where our model is. One whose parts are named otherwise serves all its other models as before."""
    try:
        from vllm import ModelRegistry

        ModelRegistry.register_model(SERVED, f"{__name__}:{SERVED}")
    except (ImportError, AttributeError, TypeError) as error:
        print(f"clinkd: this vLLM cannot serve its models ({error})", file=sys.stderr)


def __getattr__(name: str) -> Any:
    """The class of our model, as vLLM looks it up. Raises ImportError if this vLLM lacks a part of it."""
    if name != SERVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _left_as_they_were():
        try:
            from clinkd.model.families.vllm_plugin import define_served_model

            return define_served_model()
        except (ImportError, AttributeError, TypeError) as error:
            raise ImportError(f"clinkd: this vLLM cannot serve its models ({error})") from error


@contextmanager
def _left_as_they_were() -> Iterator[None]:
    """Give vLLM back its environment and logging: our code puts a process offline and lets transformers be quiet."""
    from transformers.utils import logging

    environment, verbosity, bars = dict(os.environ), logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
