"""Find the images that show the same among hundreds of thousands, without comparing all with all.

Similar hashes are found as in Manku, Jain and Das Sarma, "Detecting near-duplicates for web crawling" (WWW 2007): of
six bands of the bits, two hashes that differ in four bits agree in two at least, so that sorting by each two bands
brings them together. Images are compared in blocks, and a block is passed over where all its images are joined already.

Legend: N images sorted by hash, R runs of images with one hash and split, H hashes, P pairs, T pixels of a thumbnail.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clinkd.data.checks.near import Look
from clinkd.storage import progress

BITS = 4  # perceptual hashes that differ in at most so many of 64 bits may be of one picture
MIN_CORRELATION = 0.99  # of the thumbnails of such pictures
_RUN = 256  # images, at most
_BATCH = 1 << 18  # pairs that are looked at together
_BLOCK = 1 << 12  # with more pairs, two runs are compared by a product of matrices
_GATHERED = 1 << 14  # thumbnails that are gathered together
_edges = np.linspace(0, 64, 7).astype(int).tolist()
_BANDS = [np.uint64((1 << high) - (1 << low)) for low, high in itertools.pairwise(_edges)]

Numbers = NDArray[np.int64]


class Pair(NamedTuple):
    """The numbers of two images that look the same; the earlier one is first."""

    first: int
    second: int


def find_similar_pairs(
    looks: Iterable[Look], groups: Sequence[int], splits: Sequence[str] | Sequence[int]
) -> list[Pair]:
    """Pairs of images of different groups that show the same.

    Their hashes differ in at most 4 of 64 bits, and their thumbnails correlate to 0.99. So size, compression and
    brightness may differ, but mirrored and cropped copies are not found. Images of one colour are in no pair. The pairs
    are enough to join all groups of a split that show the same, and every image that shows the same as an earlier one
    of another split is in one: a thousand copies make a thousand pairs, not half a million.
    """
    usable, hashes, pixels = array("q"), array("Q"), bytearray()
    for number, look in enumerate(looks):
        if look.why is None and not look.flat:
            usable.append(number)
            hashes.append(look.hash)
            pixels += look.thumbnail
    if len(usable) < 2:
        return []
    number_N, hash_N = np.frombuffer(usable, np.int64), np.frombuffer(hashes, np.uint64)
    split_N = np.unique(splits, return_inverse=True)[1][number_N]  # numbers are compared faster than names
    order = np.lexsort((split_N, hash_N))
    pixel_NT = np.frombuffer(pixels, np.uint8).reshape(len(order), -1)[order]
    number_N = number_N[order]
    links = _Links(number_N, np.asarray(groups, np.int64)[number_N], split_N[order])
    _HashComparison(hash_N[order], pixel_NT, links).compare_all()
    return sorted(Pair(int(number_N[a]), int(number_N[b])) for a, b in links.pairs)


class _Links:
    """The pairs that are kept, and what they join."""

    def __init__(self, number_N: Numbers, group_N: Numbers, split_N: Numbers) -> None:
        self.number_N, self.group_N, self.split_N = number_N, group_N, split_N
        part_N = group_N * (split_N.max() + 1) + split_N
        _, first, same_N = np.unique(part_N, return_index=True, return_inverse=True)
        self.joined_N = first[same_N]  # one image of those joined; those of a group are from the beginning
        self.later_N = np.zeros(len(number_N), bool)  # an earlier image of another split shows the same
        self.pairs: list[tuple[int, int]] = []
        self._first_N = np.empty(len(number_N), np.int64)

    def select_open(self, one_P: Numbers, other_P: Numbers) -> tuple[Numbers, Numbers]:
        """The pairs that would join something new, or be the first across splits for their later image; it is last."""
        swapped = self.number_N[one_P] > self.number_N[other_P]
        one_P, other_P = np.where(swapped, other_P, one_P), np.where(swapped, one_P, other_P)
        within = self.split_N[one_P] == self.split_N[other_P]
        new = np.where(within, self.joined_N[one_P] != self.joined_N[other_P], ~self.later_N[other_P])
        new &= self.group_N[one_P] != self.group_N[other_P]
        return one_P[new], other_P[new]

    def keep(self, one_P: Numbers, other_P: Numbers) -> bool:
        """Keep of these pairs, which show the same, as many as are needed. Returns whether any was."""
        size = len(self.pairs)
        while (pairs := self.select_open(one_P, other_P))[0].size:
            one_P, other_P = pairs
            chosen = self._is_first(one_P) | self._is_first(other_P)
            for one, other in zip(one_P[chosen].tolist(), other_P[chosen].tolist(), strict=True):
                self._keep_pair(one, other)
            while (above := self.joined_N[self.joined_N]).tobytes() != self.joined_N.tobytes():
                self.joined_N = above
        return len(self.pairs) > size

    def _is_first(self, image_P: Numbers) -> NDArray[np.bool_]:
        """Whether each is the first of its number."""
        places = np.arange(len(image_P))
        self._first_N[image_P[::-1]] = places[::-1]
        return np.asarray(self._first_N[image_P] == places)

    def _keep_pair(self, one: int, other: int) -> None:
        if self.split_N[one] != self.split_N[other]:
            if not self.later_N[other]:
                self.later_N[other] = True
                self.pairs.append((one, other))
            return
        low, high = sorted((self._find_joined(one), self._find_joined(other)))
        if low != high:
            self.joined_N[high] = low
            self.pairs.append((one, other))

    def _find_joined(self, image: int) -> int:
        while (above := int(self.joined_N[image])) != image:
            image = above
        return image


class _HashComparison:
    """Compares all images with similar hashes."""

    def __init__(self, hash_N: NDArray[np.uint64], pixel_NT: NDArray[np.uint8], links: _Links) -> None:
        self.pixel_NT, self.links = pixel_NT, links
        self.sum_N, self.norm_N = np.empty(len(hash_N)), np.empty(len(hash_N))
        for start in range(0, len(hash_N), _GATHERED):  # in float32 these are whole numbers without an error
            pixel_PT = pixel_NT[start : start + _GATHERED].astype(np.float32)
            part = slice(start, start + len(pixel_PT))
            self.sum_N[part] = pixel_PT.sum(1)
            self.norm_N[part] = np.einsum("pt,pt->p", pixel_PT, pixel_PT)
        self.norm_N = np.sqrt(pixel_NT.shape[1] * self.norm_N - self.sum_N**2)
        change_N = np.diff(hash_N, prepend=~hash_N[:1]) != 0
        parted_N = change_N | (np.diff(links.split_N, prepend=0) != 0)
        index_N = np.arange(len(hash_N))
        self.start_R = np.flatnonzero((index_N - np.maximum.accumulate(np.where(parted_N, index_N, 0))) % _RUN == 0)
        self.size_R, self.split_R = np.diff(self.start_R, append=len(hash_N)), links.split_N[self.start_R]
        self.first_run_H = np.flatnonzero(change_N[self.start_R])
        self.runs_H = np.diff(self.first_run_H, append=len(self.start_R))
        self.hash_H = hash_N[change_N]
        self._update_runs()

    def _update_runs(self) -> None:
        """What is known of all images of each run: with which one they are joined (-1: not all with one), and whether
        all are later ones."""
        joined_N, later_N = self.links.joined_N, self.links.later_N
        low_R = np.minimum.reduceat(joined_N, self.start_R)
        self.joined_R = np.where(low_R == np.maximum.reduceat(joined_N, self.start_R), low_R, -1)
        self.later_R = np.logical_and.reduceat(later_N, self.start_R)

    def compare_all(self) -> None:
        """Compare the images of each hash, and then those of similar ones."""
        run_P, other_P = self._list_runs_of_one_hash()
        total = int((self.size_R[run_P] * self.size_R[other_P]).sum())
        for _, _, bands in _list_tables():
            size_B = np.unique(self.hash_H & bands, return_counts=True)[1]
            total += int((size_B * (size_B - 1) // 2).sum())
        with progress(total, "compare images", "pairs") as advance:
            for compared in self._compare_runs(run_P, other_P):
                advance(compared)
            for first, second, bands in _list_tables():
                for compared in self._compare_hashes(first, second, bands):
                    advance(compared)

    def _list_runs_of_one_hash(self) -> tuple[Numbers, Numbers]:
        """Each two runs of a hash, and each run of several images with itself."""
        run_P, other_P = _pair_ranges(self.first_run_H, self.runs_H, self.first_run_H, self.runs_H)
        once = (run_P < other_P) | ((run_P == other_P) & (self.size_R[run_P] > 1))
        return run_P[once], other_P[once]

    def _compare_hashes(self, first: int, second: int, bands: np.uint64) -> Iterator[int]:
        """Compare the images of different hashes that are similar and agree in two bands, and in no earlier two. Yields
        the number of pairs of hashes each time that some are done."""
        key_H = self.hash_H & bands
        order = np.argsort(key_H, kind="stable")
        key_H = key_H[order]
        place = np.arange(len(order))
        near: list[tuple[Numbers, Numbers]] = []
        for distance in itertools.count(1):
            place = place[: np.searchsorted(place, len(order) - distance)]
            place = place[key_H[place] == key_H[place + distance]]
            one_P, other_P = order[place], order[place + distance]
            bits_P = self.hash_H[one_P] ^ self.hash_H[other_P]
            is_near = np.bitwise_count(bits_P) <= BITS
            for earlier in {*range(second)} - {first}:
                is_near &= bits_P & _BANDS[earlier] != 0
            near.append((one_P[is_near], other_P[is_near]))
            if not place.size or sum(len(one_P) for one_P, _ in near) > _BATCH or len(near) > _GATHERED:
                one_P, other_P = (np.concatenate(part) for part in zip(*near, strict=True))
                self._compare_near(one_P, other_P)
                near.clear()
            yield place.size
            if not place.size:
                return

    def _compare_near(self, one_P: Numbers, other_P: Numbers) -> None:
        while len(one_P):  # several runs may have one hash
            count_P = self.runs_H[one_P[:_BATCH]] * self.runs_H[other_P[:_BATCH]]
            end = int(np.searchsorted(np.cumsum(count_P), _BATCH)) + 1
            one, other, one_P, other_P = one_P[:end], other_P[:end], one_P[end:], other_P[end:]
            ranges = self.first_run_H[one], self.runs_H[one], self.first_run_H[other], self.runs_H[other]
            for _ in self._compare_runs(*_pair_ranges(*ranges)):
                pass

    def _compare_runs(self, run_P: Numbers, other_P: Numbers) -> Iterator[int]:
        """Compare each image of a run with each of the other. Yields the number of pairs each time that some are
        done."""
        size_P, changed = self.size_R[run_P] * self.size_R[other_P], True
        while len(run_P):
            if changed:
                open_P = self._select_open_runs(run_P, other_P)
                yield int(size_P.sum() - size_P[open_P].sum())
                run_P, other_P, size_P = run_P[open_P], other_P[open_P], size_P[open_P]
            end = int(np.searchsorted(np.cumsum(size_P[:_BATCH]), _BATCH)) + 1
            run, other, size = run_P[:end], other_P[:end], size_P[:end]
            small, large = size <= _BLOCK, size > _BLOCK
            one, two = run[small], other[small]
            pairs = _pair_ranges(self.start_R[one], self.size_R[one], self.start_R[two], self.size_R[two])
            changed = self._compare_pairs(*pairs)
            for one, two in zip(run[large], other[large], strict=True):
                changed |= self._compare_block(one, two)
            if changed:
                self._update_runs()
            yield int(size.sum())
            run_P, other_P, size_P = run_P[end:], other_P[end:], size_P[end:]

    def _select_open_runs(self, run_P: Numbers, other_P: Numbers) -> NDArray[np.bool_]:
        joined_P = (self.joined_R[run_P] == self.joined_R[other_P]) & (self.joined_R[run_P] >= 0)
        within_P = self.split_R[run_P] == self.split_R[other_P]
        return ~np.where(within_P, joined_P, self.later_R[run_P] & self.later_R[other_P])

    def _compare_pairs(self, one_P: Numbers, other_P: Numbers) -> bool:
        changed = False
        one_P, other_P = self.links.select_open(one_P, other_P)
        for start in range(0, len(one_P), _GATHERED):
            one, other = one_P[start : start + _GATHERED], other_P[start : start + _GATHERED]
            pixels = (self.pixel_NT[k].astype(np.float32) for k in (one, other))
            hits = self._correlate(np.einsum("pt,pt->p", *pixels), one, other)
            changed |= self.links.keep(one[hits], other[hits])
        return changed

    def _compare_block(self, run: int, other: int) -> bool:
        one, two = (np.arange(self.start_R[r], self.start_R[r] + self.size_R[r]) for r in (run, other))
        products = self.pixel_NT[one].astype(np.float32) @ self.pixel_NT[two].astype(np.float32).T
        one_P, other_P = np.nonzero(self._correlate(products, one[:, None], two))
        return self.links.keep(one[one_P], two[other_P])

    def _correlate(self, product: NDArray[np.float32], one: Numbers, other: Numbers) -> NDArray[np.bool_]:
        """Whether thumbnails correlate, from their products, whole numbers below 2 ** 24 and so without an error."""
        covariance = self.pixel_NT.shape[1] * product.astype(np.float64) - self.sum_N[one] * self.sum_N[other]
        return np.asarray(covariance >= MIN_CORRELATION * self.norm_N[one] * self.norm_N[other])


def _list_tables() -> Iterator[tuple[int, int, np.uint64]]:
    """Each two bands, and the bits of both."""
    return ((i, j, _BANDS[i] | _BANDS[j]) for i, j in itertools.combinations(range(len(_BANDS)), 2))


def _pair_ranges(start_P: Numbers, size_P: Numbers, to_P: Numbers, length_P: Numbers) -> tuple[Numbers, Numbers]:
    """Each number of a range with each of another, for P pairs of ranges."""
    count_P = size_P * length_P
    pair = np.repeat(np.arange(len(count_P)), count_P)
    place = np.arange(len(pair)) - np.repeat(np.cumsum(count_P) - count_P, count_P)
    row, column = np.divmod(place, length_P[pair])
    return start_P[pair] + row, to_P[pair] + column
