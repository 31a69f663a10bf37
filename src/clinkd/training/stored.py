"""A stored teacher: its targets at every answer token, written once and read by memory map, so that no teacher runs.

`states` are its exact last hidden states, from which the objective computes the whole distribution again. `draws` are a
few random entries of softmax(logits / T), with shares that estimate the distribution without bias, and its exact
entropy (random-sampling distillation, ACL 2025 long 885): some ten bytes an entry instead of two a vocabulary entry.

It is a tensor store (`tensor_store.py`) with these files; an item of the index is a sample's id, tokens and entries:

    head.safetensors         weight_VG; states only
    shard-00000.safetensors  hidden_NG, or entries_M, counts_M, kept_N, entropy_N

Shapes: N answer tokens, C of them at a time, G hidden width of the teacher, V vocabulary, K draws a token; M entries of
all tokens, one token after the other; an entry that was drawn several times stands once: token n has kept_N[n] entries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from clinkd.model.encode import Batch, group_by_images, template_identity
from clinkd.model.vlm import VisionLanguageModel
from clinkd.objectives import HiddenStateTargets, SampledTargets
from clinkd.records import BadInput, Sample
from clinkd.storage import Advance, sha256_file
from clinkd.training.teachers import Learner, LiveTeacher
from clinkd.training.tensor_store import Filled, TensorStore, digest

HEAD = "head.safetensors"
SHARD_SAMPLES = 256  # the most that a kill can lose: a few thousand tokens, tens of megabytes
CUMULATIVE_BYTES = 1 << 26  # size of one [C, V] matrix of float64
BLOCK = 1 << 14  # vocabulary rows that are turned to float32 at once
Kind = Literal["states", "draws"]
Shard = list[list[Sample]]  # whole rows: samples that share their images


@dataclass(frozen=True)
class Identity:
    """All that a store depends on; it can be used only for the same.

    `samples` (ids, images by name, questions, answers), `teacher` (weights, configuration, positions, tokenizer) and
    `template` (chat template, spelling of boxes, vocabulary) are digests. The contents of image files are not part of
    it: the pipeline ties a store to its data by the stage. States fit any temperature.
    """

    kind: Kind
    samples: str
    teacher: str
    template: str
    temperature: float | None = None
    draws: int | None = None
    seed: int | None = None


def identify_store(  # noqa: PLR0913
    kind: Kind,
    samples: Sequence[Sample],
    teacher: Path,
    student: VisionLanguageModel,
    *,
    temperature: float,
    draws: int,
    seed: int,
) -> Identity:
    """The identity of a store of the teacher in the folder `teacher` (written by `save`), for this student.

    Raises BadInput if that folder holds no weights, or two samples of one id differ.
    """
    texts = [[s.id, [i.to_json() for i in s.images], [t.to_json() for t in s.turns]] for s in _sort_samples(samples)]
    files = sorted(p for kind_ in ("*.safetensors", "*.json") for p in Path(teacher).glob(kind_))
    if not any(p.suffix == ".safetensors" for p in files):
        raise BadInput(f"{teacher}: no *.safetensors there; the folder of a saved model is wanted")
    weights = digest({p.name: sha256_file(p) for p in files})
    common = (digest(texts), weights, digest(template_identity(student.text)))
    return Identity(kind, *common) if kind == "states" else Identity(kind, *common, temperature, draws, seed)


def _sort_samples(samples: Sequence[Sample]) -> list[Sample]:
    """Each sample once, by id: so a store has the same bytes whatever the order of the samples."""
    by_id: dict[str, Sample] = {}
    for sample in samples:
        if by_id.setdefault(sample.id, sample) != sample:
            raise BadInput(f"sample {sample.id}: two samples have this id; a stored teacher finds its tokens by id")
    return [by_id[name] for name in sorted(by_id)]


# ---- writing --------------------------------------------------------------------------------------------------------


def tensor_store(folder: Path, identity: Identity) -> TensorStore:
    """The tensor store of this identity."""
    return TensorStore(folder, "the stored teacher", asdict(identity))


def store_teacher(
    folder: Path,
    teacher: VisionLanguageModel,
    samples: Sequence[Sample],
    identity: Identity,
    *,
    title: str,
    rows_a_pass: int,
) -> None:
    """Write the targets of `teacher` for `samples` into `folder`, from where an earlier attempt was stopped.

    Whole files are not made again, and the full store has the same bytes. `rows_a_pass`: images, with all their
    questions, that the teacher processes at once (limited by memory). For one process only.

    Raises BadInput if the folder holds a store of something else, and on a full disk.
    """
    files = _plan_files(samples, identity.kind)
    live_teacher = LiveTeacher(teacher)

    def make(name: str, advance: Advance) -> Filled:
        if files[name]:
            return _compute_shard(live_teacher, files[name], identity, rows_a_pass, advance)
        return {"weight_VG": teacher.head.weight_VH.detach().cpu().contiguous()}, []

    ids = {name: [s.id for row in shard for s in row] for name, shard in files.items()}
    tensor_store(folder, identity).fill(ids, make, title, "samples")


def _plan_files(samples: Sequence[Sample], kind: Kind) -> dict[str, Shard]:
    """The files of a store and the samples of each; the head has none."""
    shards: list[Shard] = [[]]
    for row in group_by_images(_sort_samples(samples)):
        if sum(map(len, shards[-1])) >= SHARD_SAMPLES:
            shards.append([])
        shards[-1].append(row)
    head: dict[str, Shard] = {HEAD: []} if kind == "states" else {}
    return head | {f"shard-{number:05d}.safetensors": shard for number, shard in enumerate(shards)}


def _compute_shard(
    teacher: LiveTeacher, shard: Shard, identity: Identity, rows_a_pass: int, advance: Advance
) -> Filled:
    """A shard's tensors, and id, tokens and entries of its samples."""
    parts: list[dict[str, Tensor]] = []
    spans: list[list[Any]] = []
    for start in range(0, len(shard), rows_a_pass):
        batch = teacher.model.encode(shard[start : start + rows_a_pass]).to(teacher.model.device)
        targets = teacher.targets(batch, teacher.model.vision_features(batch))
        states = identity.kind == "states"
        part = {"hidden_NG": targets.hidden_NG} if states else sample_entries(targets, batch.spans, identity)
        parts.append({name: tensor.cpu() for name, tensor in part.items()})
        tokens = [number for _, number in batch.spans]
        kept_N = parts[-1].get("kept_N", torch.zeros(sum(tokens), dtype=torch.long))
        entries = [int(kept.sum()) for kept in torch.split(kept_N, tokens)]
        spans += [[name, number, many] for (name, number), many in zip(batch.spans, entries, strict=True)]
        advance(len(batch.spans))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, spans


# ---- draws ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def sample_entries(
    targets: HiddenStateTargets, spans: Sequence[tuple[str, int]], identity: Identity
) -> dict[str, Tensor]:
    """entries_M, counts_M, kept_N and entropy_N of draws from softmax(logits / T).

    Each of the K draws comes from its own K-th of the distribution (stratified, by the inverse of the cumulative sum):
    the shares are as free of bias as those of independent draws, and their variance is never larger. The random numbers
    depend only on the seed and the sample's id.
    """
    assert identity.temperature and identity.draws and identity.seed is not None
    size, device = len(targets.weight_VG), targets.hidden_NG.device
    strata = [_sample_strata(name, number, identity.draws, identity.seed) for name, number in spans]
    uniform_NK = torch.from_numpy(np.concatenate(strata)).to(device)
    chunk = max(1, CUMULATIVE_BYTES // (8 * size))
    entries, entropies = [], []
    for start in range(0, len(uniform_NK), chunk):
        rows = slice(start, start + chunk)
        p_CV = (_compute_logits(targets.hidden_NG[rows], targets.weight_VG).double() / identity.temperature).softmax(1)
        entropies.append(torch.special.entr(p_CV).sum(1))
        sum_CV = p_CV.cumsum(1)
        entries.append(torch.searchsorted(sum_CV, uniform_NK[rows] * sum_CV[:, -1:], right=True).clamp_(max=size - 1))
    return _merge_entries(torch.cat(entries), size) | {"entropy_N": torch.cat(entropies).float()}


def _sample_strata(sample: str, tokens: int, draws: int, seed: int) -> NDArray[np.float64]:
    """For each token, one random number in each K-th of [0, 1), rising."""
    sample_seed = int.from_bytes(hashlib.sha256(f"{seed} {sample}".encode()).digest()[:16])
    return (np.arange(draws) + np.random.default_rng(sample_seed).random((tokens, draws))) / draws


def _compute_logits(hidden_CG: Tensor, weight_VG: Tensor) -> Tensor:
    """Logits in float32, as in the objective (float64 stays)."""
    exact = torch.promote_types(hidden_CG.dtype, torch.float32)
    return torch.cat([hidden_CG.to(exact) @ block.to(exact).T for block in torch.split(weight_VG, BLOCK)], 1)


def _merge_entries(entries_NK: Tensor, size: int) -> dict[str, Tensor]:
    """Each entry of rising draws once, with the number of its draws."""
    new_NK = torch.ones_like(entries_NK, dtype=torch.bool)
    new_NK[:, 1:] = entries_NK[:, 1:] != entries_NK[:, :-1]
    starts_M = new_NK.flatten().nonzero().flatten()
    counts_M = torch.diff(starts_M, append=starts_M.new_tensor([entries_NK.numel()]))
    count_type = _narrow_type(entries_NK.shape[1])
    return {
        "entries_M": entries_NK[new_NK].to(_narrow_type(size)),
        "counts_M": counts_M.to(count_type),
        "kept_N": new_NK.sum(1).to(count_type),
    }


def _narrow_type(most: int) -> torch.dtype:
    """The narrowest integer type that holds 0 to `most`."""
    return next(t for t in (torch.uint8, torch.int16, torch.int32) if most <= torch.iinfo(t).max)


# ---- reading --------------------------------------------------------------------------------------------------------


class _StoredSlice(NamedTuple):
    """The place of a sample's tokens and entries; `column`: the first of its teacher's in the head of all."""

    store: TensorStore
    file: str
    tokens: slice
    entries: slice
    column: int = 0


class StoredTeacher:
    """The teacher of a full store. Only the rows of a batch are read, by memory map.

    All bytes are checked once, here. Raises BadInput if the store is not full, was made from something else than
    `identity` says (which it names), or is damaged.
    """

    def __init__(self, folder: Path, identity: Identity) -> None:
        self.store = tensor_store(folder, identity)
        self.folder, self.identity = folder, identity
        self.places: dict[str, _StoredSlice] = {}
        for file, items in self.store.opened().items():
            token = entry = 0
            for name, tokens, entries in items:
                self.places[name] = _StoredSlice(
                    self.store, file, slice(token, token + tokens), slice(entry, entry + entries)
                )
                token, entry = token + tokens, entry + entries
        self.head_VG = self.store.file(HEAD).get_tensor("weight_VG") if identity.kind == "states" else None

    @classmethod
    def join(cls, teachers: Sequence[StoredTeacher]) -> StoredTeacher:
        """One teacher that has for each sample the targets of the one that was stored for it; all are of one kind.

        Heads that differ stand beside each other in one, and stored states have zeros in the columns of the others: the
        logits stay. Raises BadInput for heads with different numbers of rows.
        """
        joined, *others = teachers
        columns = {0: joined.head_VG}
        for other in others:
            assert joined.places.keys().isdisjoint(other.places), "a sample has one teacher"
            column = joined._add_head(other, columns)
            joined.places |= {name: place._replace(column=column) for name, place in other.places.items()}
        return joined

    def _add_head(self, other: StoredTeacher, columns: dict[int, Tensor | None]) -> int:
        """The first column of the other's head in this one; `columns`: the heads in it, by their first."""
        if self.head_VG is None or other.head_VG is None:
            return 0
        if len(other.head_VG) != len(self.head_VG):
            raise BadInput(
                f"{other.folder}: this teacher has {len(other.head_VG)} vocabulary entries, and {self.folder.name} has "
                f"{len(self.head_VG)}; take teachers whose heads have at least the student's rows"
            )
        for column, head_VG in columns.items():
            if head_VG is not None and head_VG.shape == other.head_VG.shape and torch.equal(head_VG, other.head_VG):
                return column
        column = self.head_VG.shape[1]
        columns[column] = other.head_VG
        self.head_VG = torch.cat([self.head_VG, other.head_VG], 1)
        return column

    def operations(self, batch: Batch, vision: bool) -> int:
        """Operations of the logits of stored states; draws take none."""
        return 2 * len(batch.labels_N) * self.head_VG.numel() if self.head_VG is not None else 0

    def shares_vision_with(self, model: Learner) -> bool:
        """No: it processes no images."""
        return False

    def targets(self, batch: Batch, features: Any = None) -> HiddenStateTargets | SampledTargets:
        """The teacher's targets at the batch's answer tokens, on the batch's device.

        Raises BadInput naming a sample that is not in the store, or that has another number of answer tokens there.
        """
        places = [self._find_slice(name, tokens) for name, tokens in batch.spans]
        device = batch.labels_N.device
        if self.head_VG is not None:
            self.head_VG = self.head_VG.to(device)
            return HiddenStateTargets(self._read("hidden_NG", places).to(device), self.head_VG)
        assert self.identity.draws
        kept_N, entropy_N = self._read("kept_N", places), self._read("entropy_N", places)
        held_NK = torch.arange(int(kept_N.max())) < kept_N[:, None]
        entries_NK = torch.zeros_like(held_NK, dtype=torch.long)
        shares_NK = torch.zeros_like(held_NK, dtype=torch.float32)  # 0 if a token has fewer entries than others
        entries_NK[held_NK] = self._read("entries_M", places).long()
        shares_NK[held_NK] = self._read("counts_M", places).float() / self.identity.draws
        return SampledTargets(entries_NK.to(device), shares_NK.to(device), entropy_N.to(device))

    def _find_slice(self, sample: str, tokens: int) -> _StoredSlice:
        place = self.places.get(sample)
        if place is None:
            raise BadInput(f"{self.folder}: sample {sample} is not in the stored teacher; store it for these samples")
        stored_tokens = place.tokens.stop - place.tokens.start
        if stored_tokens != tokens:
            raise BadInput(
                f"{self.folder}: sample {sample} has {tokens} answer tokens, {stored_tokens} in the stored teacher; "
                "remove the folder to make it anew"
            )
        return place

    def _read(self, name: str, places: Sequence[_StoredSlice]) -> Tensor:
        by_entry = name.endswith("_M")
        rows = [p.store.file(p.file).get_slice(name)[p.entries if by_entry else p.tokens] for p in places]
        if name == "hidden_NG" and self.head_VG is not None:
            width = self.head_VG.shape[1]
            rows = [F.pad(r, (p.column, width - p.column - r.shape[1])) for r, p in zip(rows, places, strict=True)]
        return torch.cat(rows)
