"""The embedded default, a tiny model with random weights: its byte-level BPE and the codes of its location tokens."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from clinkd.model.families import TINY


def shared_words(texts: Sequence[tuple[str, str]], min_groups: int) -> list[str]:
    """The words of texts, in order, without those that fewer than `min_groups` groups have; `texts` are (group, text).

    A word is what the BPE merges letters in, with the blank before it: no entry learned from the rest spells a word
    left out, which may be a patient's name, unless a word that is kept holds it.
    """
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    split = cache(lambda text: [text[start:end] for _, (start, end) in splitter.pre_tokenize_str(text)])
    groups: dict[str, set[str]] = defaultdict(set)
    for group, text in texts:
        for word in split(text):
            groups[word.strip()].add(group)
    return [word for _, text in texts for word in split(text) if len(groups[word.strip()]) >= min_groups]


def train_tokenizer(texts: Iterable[str], vocabulary: int, codec_tokens: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Byte-level BPE over `texts`, at most `vocabulary` entries, plus the special tokens of TINY and the codec's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [*TINY.special_tokens, *(t for t in codec_tokens if t not in TINY.special_tokens)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary + len(special),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=TINY.chat.pad,
        eos_token=TINY.chat.end,
        clean_up_tokenization_spaces=False,
    )


def smooth_location_codes(
    table_VH: torch.Tensor, tokenizer: PreTrainedTokenizerFast, tokens: tuple[str, ...], std: float
) -> None:
    """Put location tokens on a smooth curve, one for each axis, in the embedding table: neighbours start as neighbours.

    From independent random codes a tiny model must first learn the order of its coordinates: on phantoms it then needs
    about twice the steps to find its first boxes (LOG.md).
    """
    axes: dict[str, list[tuple[int, int]]] = {}
    for token in tokens:
        if match := re.fullmatch(r"<([xy])_(\d+)>", token):
            axes.setdefault(match[1], []).append((int(match[2]), int(tokenizer.convert_tokens_to_ids(token))))
    angles_F = math.pi * torch.tensor([0.5, 1, 2, 3, 4, 6])
    for axis in sorted(axes):
        waves = torch.randn(2 * len(angles_F), table_VH.shape[1])
        for number, token_id in axes[axis]:
            turn_F = angles_F * (number + 0.5) / len(axes[axis])
            code_H = torch.cat([turn_F.cos(), turn_F.sin()]) @ waves
            table_VH[token_id] = code_H / code_H.norm() * std * table_VH.shape[1] ** 0.5
