"""Answers of a batch: against transformers' own generate, an uncached reference, exact probabilities, one by one."""

from __future__ import annotations

import ast
import copy
import math
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from tests.stock_generate import end_here_and_there, generate_stock, list_hypotheses
from torch import Tensor

from clinkd.config import AnswerConfig, ModelConfig, PhantomConfig, TinyConfig
from clinkd.data import phantoms
from clinkd.inference import answer
from clinkd.model import generate as generation
from clinkd.model import vlm
from clinkd.model.encode import encode_prompts
from clinkd.model.vlm import VisionLanguageModel, new_tiny, spell_samples
from clinkd.records import BoxedText, Candidate, ImageRef, Prediction, Sample, Task, Turn
from clinkd.storage import JsonLines

TINY = TinyConfig(
    hidden=48, layers=2, heads=2, mlp=64, vision_hidden=32, vision_layers=1, vision_heads=2, vocabulary=400,
    init_std=0.3, min_patients=1,  # the few samples here share no words
)  # fmt: skip
SIZES = ((64, 64), (96, 48), (48, 64), (64, 32))
REFS = [ImageRef(f"{k}.png", *size) for k, size in enumerate(SIZES)]
SHOWN = [(REFS[0],), (REFS[1], REFS[2]), (), (REFS[0],), (REFS[3],), (REFS[2], REFS[0], REFS[2]), (), (REFS[0],)]
MOST = 10
BEAMS = AnswerConfig(beams=3, candidates=3, max_new_tokens=MOST)
GREEDY = AnswerConfig(beams=1, candidates=1, max_new_tokens=MOST)
DIVERSE = AnswerConfig(method="diverse", diversity=1.0, candidates=3, max_new_tokens=MOST)
SAMPLING = AnswerConfig(method="sampling", temperature=0.8, top_p=0.9, candidates=3, max_new_tokens=MOST)
METHODS = pytest.mark.parametrize(
    "how", [BEAMS, GREEDY, DIVERSE, SAMPLING], ids=["beams", "greedy", "diverse", "sampling"]
)
SCHEMES = [
    {"positions": "mrope", "layout": "sections"}, {"positions": "tied"}, {"positions": "gap"},
    {"positions": "sequential"},
]  # fmt: skip


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Questions of several lengths about no image, one, two or three; two of them have an earlier turn."""
    folder = tmp_path_factory.mktemp("phantoms")
    drawn = phantoms.write_phantoms(folder, PhantomConfig(train_images=8, validation_images=1, test_images=1), 0)
    samples = [replace(s, id=f"{k}", images=look) for k, (s, look) in enumerate(zip(drawn[::3], SHOWN, strict=False))]
    turn = Turn(Task.QA, BoxedText("What is seen?"), BoxedText("An organ."))
    return [replace(s, turns=(turn, *s.turns)) if k in (3, 6) else s for k, s in enumerate(samples)]


def fresh(asked: list[Sample], **knobs: object) -> VisionLanguageModel:
    """A model of random weights; the end mark is a token that it says often, so that answers end here and there."""
    return copy.deepcopy(_fresh(tuple(asked), tuple(knobs.items())))


@cache
def _fresh(asked: tuple[Sample, ...], knobs: tuple[tuple[str, object], ...]) -> VisionLanguageModel:
    shown = {
        ref: Image.fromarray(np.random.default_rng(k).integers(0, 255, (*size[::-1], 3), dtype=np.uint8))
        for k, (ref, size) in enumerate(zip(REFS, SIZES, strict=True))
    }
    config = ModelConfig(tiny=TINY, square=False, **dict(knobs))
    model = new_tiny(config, spell_samples(asked, config), 0, shown.__getitem__).eval()
    model.images.processor.size = {"shortest_edge": 16**2, "longest_edge": 96**2}
    end_here_and_there(model, asked)
    return model


def replace_config(config: AnswerConfig, **changes: object) -> AnswerConfig:
    return config.model_copy(update=changes)


def exact(model: VisionLanguageModel, sample: Sample, ids: list[int]) -> Tensor:
    """Log-probabilities [tokens + 1, V] after the prompt and each further token, without a cache, from pixels."""
    prompt = encode_prompts([sample], model.text, model.images)
    ids_BS = torch.cat([prompt.whole()[0], torch.tensor([ids], dtype=torch.long)], dim=1)
    pixels_TD, grids_I3 = model.images.patches(sample.images)
    with torch.inference_mode():
        logits = model.network(
            input_ids=ids_BS, attention_mask=torch.ones_like(ids_BS),
            mm_token_type_ids=(ids_BS == model.text.image_token).int(),
            pixel_values=pixels_TD.to(model.dtype) if len(grids_I3) else None, image_grid_thw=grids_I3,
        ).logits[0, -len(ids) - 1 :]  # fmt: skip
    return logits.float().log_softmax(-1)


def told(candidates: list[list[Candidate]]) -> list[list[str]]:
    return [[c.raw for c in one] for one in candidates]


# ---- beams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("knobs", SCHEMES, ids=lambda k: k["positions"])
def test_beams_are_those_of_the_librarys_own_generate(asked, knobs):
    model = fresh(asked, **knobs)
    wanted = generate_stock(model, asked, BEAMS)
    found = model.generate(asked, BEAMS)
    for ours, theirs in zip(found, wanted, strict=True):
        best = {c.raw: c.logprob for c in reversed(theirs)}  # beams that say the same count once, by the best of them
        assert {c.raw: c.logprob for c in ours} == pytest.approx(best, abs=1e-5)
        assert [c.truncated for c in ours] == [next(t.truncated for t in theirs if t.raw == c.raw) for c in ours]
    cut = {c.truncated for one in found for c in one}
    assert cut == {True, False}  # the end mark is there in some and not in others, or this tests little
    with torch.inference_mode():
        known = {ref: model.tower(*model.images.patches([ref]))[0] for ref in REFS}
    model.images.feature_lookup = known.get
    model.images.open_image = None  # none is opened
    model.images.cache.clear()
    assert told(model.generate(asked, BEAMS)) == told(found)


@pytest.mark.parametrize("width", [2, 5])
def test_any_width_and_batches_without_an_image(asked, width):
    model, how = fresh(asked), AnswerConfig(beams=width, candidates=width, max_new_tokens=MOST)
    blind = [replace(s, images=()) for s in asked]
    for samples in (asked, blind):
        wanted, found = generate_stock(model, samples, how), model.generate(samples, how)
        for ours, theirs in zip(found, wanted, strict=True):
            assert {c.raw: c.logprob for c in ours} == pytest.approx(
                {c.raw: c.logprob for c in reversed(theirs)}, abs=1e-5
            )


def test_one_beam_is_the_librarys_greedy_answer(asked):
    model = fresh(asked)
    found = model.generate(asked, GREEDY)
    assert told(found) == told(generate_stock(model, asked, GREEDY))
    assert {c.truncated for [c] in found} == {True, False}


def test_what_a_folder_says_of_generation_has_no_say(asked):
    model = fresh(asked)
    wanted = told(model.generate(asked, BEAMS))
    model.network.generation_config.repetition_penalty = 5.0
    model.network.generation_config.length_penalty = -3.0
    assert told(generate_stock(model, asked, BEAMS)) != wanted == told(model.generate(asked, BEAMS))


def test_images_and_what_stands_before_a_question_are_computed_once(asked):
    model = fresh(asked)
    patches, tokens = [], []
    model.network.model.visual.register_forward_pre_hook(lambda _, given: patches.append(len(given[0])))
    model.network.model.language_model.register_forward_pre_hook(
        lambda _, __, given: tokens.append(tuple(given["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    model.generate(asked, GREEDY)
    assert patches == [sum(h * w for _, h, w in model.images.patches(REFS)[1].tolist())]
    fronts, questions, grown = tokens[0], tokens[1], tokens[2:]
    assert fronts[0] == len({s.images for s in asked}) < len(asked)
    assert questions[0] == len(asked) and questions[1] < fronts[1]
    rows = [r for r, columns in grown if columns == 1]
    assert len(rows) == len(grown) and rows == sorted(rows, reverse=True)
    assert len(asked) >= rows[0] > rows[-1]  # what has ended is out


# ---- every method ---------------------------------------------------------------------------------------------------


@METHODS
def test_an_answer_does_not_depend_on_its_batch(asked, how):
    model = fresh(asked).double()
    together = told(model.generate(asked, how, 7))
    assert together == [told(model.generate([s], how, 7))[0] for s in asked]
    assert together == told(model.generate(asked[::-1], how, 7))[::-1]
    assert len({tuple(one) for one in together}) > 3


def ids_of(model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> VisionLanguageModel:
    """The model, whose candidates say their tokens instead of their text."""
    monkeypatch.setattr(model, "_read", lambda ids, score, size=None: Candidate(repr(ids), BoxedText(""), score))
    return model


@METHODS
def test_candidates_stand_by_the_mean_log_probability_of_the_model_itself(asked, how, monkeypatch):
    model = ids_of(fresh(asked), monkeypatch)
    for sample, found in zip(asked, model.generate(asked, how), strict=True):
        assert [c.logprob for c in found] == sorted((c.logprob for c in found), reverse=True)
        assert 1 <= len(found) == len({c.raw for c in found}) <= how.candidates
        for c in found:
            ids = ast.literal_eval(c.raw)
            logp_LV = exact(model, sample, ids)
            assert c.logprob == pytest.approx(sum(logp_LV[k, t].item() for k, t in enumerate(ids)) / len(ids), abs=1e-4)
            assert ids.index(model.text.end) == len(ids) - 1 if model.text.end in ids else len(ids) == MOST


@METHODS
def test_no_answer_holds_a_token_that_none_may_hold(asked, how, monkeypatch):
    model = fresh(asked)
    assert {model.tokenizer.decode(t) for t in model.suppressed_tokens} >= {"<|image_pad|>", "<|video_pad|>"}
    common = Counter(t for one in list_hypotheses(model, asked, BEAMS) for w in one for t in w.ids)
    banned = [t for t, _ in common.most_common(4) if t != model.text.end]
    monkeypatch.setattr(VisionLanguageModel, "suppressed_tokens", banned)
    found = ids_of(model, monkeypatch).generate(asked, how)
    assert not {t for one in found for c in one for t in ast.literal_eval(c.raw)} & set(banned)


# ---- diverse --------------------------------------------------------------------------------------------------------


def test_without_diversity_every_group_is_greedy(asked):
    model = fresh(asked)
    found = model.generate(asked, replace_config(DIVERSE, diversity=0.0))
    assert told(found) == told(model.generate(asked, GREEDY))


@pytest.mark.parametrize("strength", [0.5, 50.0])
def test_diverse_groups_are_those_of_a_slow_reference(asked, strength, monkeypatch):
    """Vijayakumar et al. 2018, algorithm 1 with one beam a group, every token from a forward without a cache."""
    model, asked, groups = ids_of(fresh(asked), monkeypatch), asked[:4], 4
    found = model.generate(asked, replace_config(DIVERSE, diversity=strength, candidates=groups))
    kinds = set()
    for sample, candidates in zip(asked, found, strict=True):
        said: list[list[int]] = [[] for _ in range(groups)]
        for _ in range(MOST):
            before: Counter[int] = Counter()
            for own in said:
                if own and own[-1] == model.text.end:
                    continue
                score_V = exact(model, sample, own)[-1]
                score_V[model.suppressed_tokens] = -math.inf
                for token, times in before.items():
                    score_V[token] -= strength * times
                own.append(int(score_V.argmax()))
                before[own[-1]] += 1
        assert {c.raw for c in candidates} == {repr(own) for own in said}
        kinds.add(len(candidates))
    assert max(kinds) == groups if strength > 1 else max(kinds) > 1


# ---- sampling -------------------------------------------------------------------------------------------------------


def misfit(tokens: Tensor, share_V: Tensor) -> float:
    """Chi-square by its degrees of freedom: about 1 where the tokens were drawn by `share_V`."""
    assert share_V.sum() == pytest.approx(1, abs=1e-5)
    many_V = share_V * len(tokens) >= 5
    seen_V, wanted_V = torch.bincount(tokens, minlength=len(share_V)).double(), share_V * len(tokens)
    seen, wanted = (torch.cat([t[many_V], t[~many_V].sum()[None]]) for t in (seen_V, wanted_V))
    keep = wanted > 0
    assert seen[~keep].sum() == 0
    return float(((seen - wanted)[keep] ** 2 / wanted[keep]).sum() / (keep.sum() - 1))


def test_draws_follow_the_probabilities():
    number = 40_000
    logits_V = torch.tensor([1.0, -2.0, 0.3, 2.1, -0.7, 0.0, 1.9, -math.inf])
    dice_RL = torch.from_numpy(np.random.default_rng(0).random((number, 2)))

    def draw(temperature: float, top_p: float, step: int = 1) -> Tensor:
        choose = generation.top_p_sampling(dice_RL, temperature, top_p)
        return choose(logits_V.expand(number, -1), torch.arange(number), step)

    for temperature in (0.5, 1.0, 2.0):
        share_V = (logits_V.double() / temperature).softmax(-1)
        assert misfit(draw(temperature, 1.0), share_V) < 2.5  # of 6 degrees: p = 0.02
        assert misfit(draw(temperature, 1.0), (logits_V.double() / (temperature * 1.1)).softmax(-1)) > 5
    share_V = logits_V.double().softmax(-1)
    for top_p, kept in ((0.3, [3]), (0.5, [3, 6]), (0.8, [3, 6, 0]), (0.99, [3, 6, 0, 2, 5, 4])):
        assert share_V[kept].sum() >= top_p > share_V[kept[:-1]].sum()
        nucleus_V = torch.zeros(8, dtype=torch.double)
        nucleus_V[kept] = share_V[kept] / share_V[kept].sum()
        tokens = draw(1.0, top_p)
        assert set(tokens.tolist()) == set(kept)
        assert len(kept) == 1 or misfit(tokens, nucleus_V) < 4  # of 2 degrees: p = 0.02
    assert not draw(1.0, 1.0, 0).equal(draw(1.0, 1.0, 1))


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.0, 0.7)])
def test_first_tokens_of_a_model_are_drawn_by_its_probabilities(asked, temperature, top_p, monkeypatch):
    model, number = fresh(asked), 8000
    said = Candidate("", BoxedText(""))  # the tokens are looked at before: no thousands of answers are told apart
    monkeypatch.setattr(model, "_read", lambda ids, score, size=None: said)
    kept: list[list[generation.Hypothesis]] = []
    lines = generation.decode_rows

    def keeping(*given):
        made = yield from lines(*given)
        kept.extend(made)
        return made

    monkeypatch.setattr(vlm, "decode_rows", keeping)
    how = AnswerConfig(
        method="sampling", temperature=temperature, top_p=top_p, candidates=number, max_new_tokens=1, batch=1
    )
    model.generate(asked[1:2], how, 3)
    logp_V = exact(model, asked[1], [])[-1].double()
    logp_V[model.suppressed_tokens] = -math.inf
    share_V = (logp_V / temperature).softmax(-1)
    order_V = share_V.argsort(descending=True)
    share_V[order_V[share_V[order_V].cumsum(0) - share_V[order_V] >= top_p]] = 0
    share_V /= share_V.sum()
    assert (share_V > 0).sum() > 3
    assert misfit(torch.tensor([w.ids[0] for w in kept[0]]), share_V) < 1.6


def test_the_seed_and_the_sample_decide_what_is_drawn(asked):
    model = fresh(asked).double()
    how = replace_config(SAMPLING, temperature=2.0, top_p=1.0)
    first = told(model.generate(asked, how, 1))
    assert first == told(model.generate(asked, how, 1)) != told(model.generate(asked, how, 2))
    alike = [replace(asked[0], id=name) for name in ("a", "b")]  # one question, two ids
    one, other = told(model.generate(alike, how, 1))
    assert one != other and len(one) == 3


@METHODS
def test_drafts_grow_a_token_a_step_and_end_as_the_answers(asked, how):
    model = fresh(asked)
    told: dict[int, list[str]] = {n: [] for n in range(len(asked))}
    writing = model.decode_stream(asked, how, 5)
    while True:
        try:
            leading = next(writing)
        except StopIteration as done:
            answers = done.value
            break
        lengths = {len(ids) for ids in leading.tokens_BL.tolist()}
        assert lengths == {max(map(len, told.values())) + 1}
        for number, draft in model.read_partial_answers(leading, asked).items():
            told[number].append(draft.text)
    assert [[c.raw for c in one] for one in answers] == [[c.raw for c in one] for one in model.generate(asked, how, 5)]
    assert sum(len(steps) > 2 for steps in told.values()) > len(asked) / 2
    if how.candidates == 1:  # one line alone: each draft is a beginning of the answer
        for number, steps in told.items():
            assert all(answers[number][0].answer.text.startswith(draft.rstrip()) for draft in steps)


def test_an_answer_that_nobody_waits_for_is_not_computed_to_its_end(asked):
    model, calls = fresh(asked), []
    model.network.model.language_model.register_forward_pre_hook(lambda *_: calls.append(1))
    writing = model.decode_stream(asked, BEAMS)
    next(writing)
    before = len(calls)
    writing.close()
    assert len(calls) == before < MOST
    assert [c.raw for [c, *_] in model.generate(asked, BEAMS)]  # and the model is as it was


def test_what_was_seen_can_be_forgotten(asked):
    model = fresh(asked)
    model.images.forget()
    room = model.images.free_bytes
    model.generate(asked, GREEDY)
    assert model.images.cache and model.images.free_bytes < room
    model.images.forget()
    assert not model.images.cache and model.images.free_bytes == room


# ---- a file of answers ----------------------------------------------------------------------------------------------


@METHODS
def test_a_file_of_answers_goes_on_where_it_was_cut_and_says_the_same(asked, how, tmp_path):
    model = fresh(asked).double()
    how = replace_config(how, batch=3)

    def answered() -> list[Prediction]:
        return answer(model, asked, how, file=tmp_path / "a.jsonl", by="it", title="t", seed=5)

    whole = answered()
    assert [p.id for p in whole] == [s.id for s in asked]
    lines = (tmp_path / "a.jsonl").read_bytes().splitlines(keepends=True)
    for kept in (1, 4, 7):
        (tmp_path / "a.jsonl").write_bytes(b"".join(lines[:kept]) + lines[kept][:20])  # killed while it wrote
        again = answered()
        assert [[(c.raw, c.truncated) for c in p.candidates] for p in again] == [
            [(c.raw, c.truncated) for c in p.candidates] for p in whole
        ]
        assert len(list(JsonLines(tmp_path / "a.jsonl").read())) == len(asked)


def test_questions_about_an_image_are_answered_together_short_answers_first(asked, tmp_path, monkeypatch):
    model = fresh(asked)
    batches: list[list[Sample]] = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda given, *how: batches.append(list(given)) or generate(given, *how))
    answer(model, asked, replace_config(GREEDY, batch=3), file=tmp_path / "a.jsonl", by="it", title="t")
    order = [s for batch in batches for s in batch]
    assert sorted(s.id for s in order) == sorted(s.id for s in asked)
    places = [k for k, s in enumerate(order) if s.images == (REFS[0],)]
    assert len(places) == 3 and places[-1] - places[0] == 2
    longest = {s.images: max(len(t.answer.text) for t in order if t.images == s.images) for s in order if s.images}
    lengths = [longest.get(s.images, len(s.answer.text)) for s in order]
    assert lengths == sorted(lengths) and len(set(lengths)) > 2
