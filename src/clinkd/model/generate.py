"""Answers to a batch of questions: beams, diverse groups, samples.

Images, and all that stands before a question, are computed once for all questions about them, and each question once.
Then the rows are repeated, a row for each beam, group or sample, and grow by one token a step. Rows that have ended are
removed: short answers do not wait for long ones. transformers' own `generate` repeats the rows first, so it computes
every prompt once for each beam, and lets all rows grow until the last has ended. It also obeys the folder's
generation_config.json, which has no effect here.

Shapes: B questions, K beams or groups or samples of a question, R rows that grow, S tokens of a row so far, L tokens of
an answer, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache

from clinkd.model.encode import Prompts
from clinkd.model.families import family_of

NEVER = float("-inf")
NONE = -1  # stands in the place of a token
T = TypeVar("T")

# Gives token_R from logits_RV, which are NEVER at suppressed tokens, row_R (question * K + k) and the step, from 0.
Choose = Callable[[Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class Hypothesis:
    """The tokens of one answer, with its end mark unless it was cut; mean log-probability a token under the model."""

    ids: list[int]
    logprob: float


class PartialHypotheses(NamedTuple):
    """The answers so far: the number of each question that goes on, and the tokens of its first row or beam."""

    question_B: Tensor
    tokens_BL: Tensor


Writing = Generator[PartialHypotheses, None, list[list[Hypothesis]]]  # a step at a time; closing it ends the work


def run_to_end(writing: Generator[Any, None, T]) -> T:
    """The value that a generator returns at its end."""
    while True:
        try:
            next(writing)
        except StopIteration as stopped:
            result: T = stopped.value
            return result


@dataclass(frozen=True)
class DecodeLimits:
    """An answer ends at the token `end`, or after `most` tokens. It holds none of the tokens `suppressed`."""

    end: int
    most: int
    suppressed: list[int]


class Rows:
    """Rows that grow: their keys and values, the mask of their tokens, and the logits_RV (float32) of the next token.

    `network` is one of ours. positions_3US: of the prompts' fronts. `features`: merged features, one entry an image, in
    the order of their places.
    """

    def __init__(
        self, network: Any, prompts: Prompts, positions_3US: Tensor, features: tuple[Tensor, ...] | None
    ) -> None:
        self.network = network
        self.inputs = partial(family_of(network.config).inputs, network.config)
        self.cache = DynamicCache()  # of all columns: a window of tokens is none of columns where rows have padding
        self.mask_RS = prompts.front_mask_US
        self.logits_RV, self.position_3R1 = self._run_network(prompts.front_US, positions_3US, features)
        self.keep(prompts.front_B)
        self.grow(prompts.question_BS, prompts.question_mask_BS)

    def keep(self, rows_N: Tensor) -> None:
        """Keep only these rows, in this order; a row may be named several times."""
        self.cache.reorder_cache(rows_N)
        self.mask_RS, self.position_3R1 = self.mask_RS[rows_N], self.position_3R1[:, rows_N]
        self.logits_RV = self.logits_RV[rows_N]

    def grow(self, token_RN: Tensor, mask_RN: Tensor) -> None:
        """Add text tokens at the positions after the newest token, which is text as well."""
        self.mask_RS = torch.cat([self.mask_RS, mask_RN], dim=1)
        self.logits_RV, self.position_3R1 = self._run_network(token_RN, self.position_3R1 + mask_RN.cumsum(1), None)

    def _run_network(
        self, token_RN: Tensor, positions_3RN: Tensor, features: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, Tensor]:
        """The logits of the next token, and the position of the newest one."""
        output = self.network(
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **self.inputs(token_RN, self.mask_RS, positions_3RN, features),
        )
        return output.logits[:, -1].float(), positions_3RN[..., -1:]


def beams(rows: Rows, width: int, limits: DecodeLimits) -> Writing:
    """For each question the `width` best answers of beam search, the best first.

    Sequences, scores and the stopping rule are those of transformers' `generate` with num_beams=width, length_penalty=1
    and early_stopping=False: an answer's score is its mean log-probability, end mark included; a question is done when
    it has `width` answers and its best beam's mean so far is not above the worst of them.
    """
    answers: list[list[Hypothesis]] = [[] for _ in rows.logits_RV]
    device = rows.logits_RV.device
    question_B = torch.arange(len(answers))
    score_BK = torch.zeros(len(answers), 1, device=device)  # of the open beams; at first there is one
    token_BKL = torch.zeros(len(answers), 1, 0, dtype=torch.long, device=device)
    done_BK = torch.full((len(answers), width), NEVER, device=device)
    done_BKL = torch.full((len(answers), width, 0), NONE, device=device)
    for length in range(1, limits.most + 1):
        # twice `width`: all of the better half may end here
        logp_RV = rows.logits_RV.log_softmax(-1)
        logp_RV[:, limits.suppressed] = NEVER
        vocabulary = logp_RV.shape[1]
        total_BKV = logp_RV.view(*score_BK.shape, vocabulary) + score_BK[..., None]
        best_BK, place_BK = total_BKV.flatten(1).topk(2 * width)
        beam_BK, token_BK = place_BK // vocabulary, place_BK % vocabulary
        grown_BKL = torch.cat([_select_beams(token_BKL, beam_BK), token_BK[..., None]], dim=2)
        ended_BK = (token_BK == limits.end) | (length == limits.most)

        ended_score_BK = (best_BK / length).masked_fill(~ended_BK, NEVER)
        ended_score_BK[:, width:] = NEVER  # of beams that end, only those among the `width` best count
        done_BK, order_BK = torch.cat([done_BK, ended_score_BK], dim=1).topk(width)
        done_BKL = torch.nn.functional.pad(done_BKL, (0, 1), value=NONE)
        done_BKL = _select_beams(torch.cat([done_BKL, grown_BKL], dim=1), order_BK)

        score_BK, order_BK = best_BK.masked_fill(ended_BK, NEVER).topk(width)
        open_B = (score_BK[:, 0] / length > done_BK[:, -1]) & (length < limits.most)
        for b in (~open_B).nonzero()[:, 0].tolist():
            finished_beams = zip(done_BKL[b].tolist(), done_BK[b].tolist(), strict=True)
            answers[question_B[b]] = [Hypothesis([t for t in ids if t != NONE], score) for ids, score in finished_beams]
        if not open_B.any():
            return answers
        row_BK = score_BK.new_tensor(range(len(open_B)), dtype=torch.long)[:, None] * token_BKL.shape[1]
        row_BK = row_BK + beam_BK.gather(1, order_BK)
        token_BKL = _select_beams(grown_BKL, order_BK)[open_B]
        question_B, score_BK, done_BK, done_BKL = (
            question_B[open_B.cpu()],
            *(t[open_B] for t in (score_BK, done_BK, done_BKL)),
        )
        yield PartialHypotheses(question_B, token_BKL[:, 0])
        rows.keep(row_BK[open_B].flatten())
        _grow_rows(rows, token_BKL[..., -1].flatten())
    raise AssertionError("the last step ends every answer")


def _grow_rows(rows: Rows, token_R: Tensor) -> None:
    rows.grow(token_R[:, None], torch.ones_like(token_R[:, None]))


def _select_beams(values_BKL: Tensor, of_BK: Tensor) -> Tensor:
    return values_BKL.take_along_dim(of_BK[..., None], dim=1)


def decode_rows(rows: Rows, number: int, choose: Choose, limits: DecodeLimits) -> Writing:
    """For each question `number` answers, in the order of their rows; `choose` names each next token.

    An answer's log-probability is the model's own, whatever `choose` does to the logits.
    """
    device = rows.logits_RV.device
    row_R = torch.arange(len(rows.logits_RV) * number, device=device)
    token_RL = torch.full((len(row_R), limits.most), NONE, device=device)
    sum_R = torch.zeros(len(row_R), device=device)
    rows.keep(row_R // number)
    for step in range(limits.most):
        allowed_RV = rows.logits_RV.clone()
        allowed_RV[:, limits.suppressed] = NEVER
        token_R = choose(allowed_RV, row_R, step)
        logit_R = rows.logits_RV.gather(1, token_R[:, None])[:, 0]
        sum_R[row_R] += logit_R - rows.logits_RV.logsumexp(-1)
        token_RL[row_R, step] = token_R
        going_R = token_R != limits.end
        if step + 1 == limits.most or not going_R.any():
            break
        if not going_R.all():
            rows.keep(going_R.nonzero()[:, 0])
            row_R, token_R = row_R[going_R], token_R[going_R]
        first_R = row_R % number == 0
        yield PartialHypotheses(row_R[first_R] // number, token_RL[row_R[first_R], : step + 1])
        _grow_rows(rows, token_R)
    ids = [[t for t in row_ids if t != NONE] for row_ids in token_RL.tolist()]
    hypotheses = [
        Hypothesis(answer_ids, total / len(answer_ids)) for answer_ids, total in zip(ids, sum_R.tolist(), strict=True)
    ]
    return [hypotheses[k : k + number] for k in range(0, len(hypotheses), number)]


def greedy(logits_RV: Tensor, row_R: Tensor, step: int) -> Tensor:
    """The most probable token of each row."""
    return logits_RV.argmax(-1)


def diverse(groups: int, strength: float) -> Choose:
    """Diverse beam search (Vijayakumar et al. 2018, arXiv:1610.02424) with groups of one beam and Hamming diversity.

    The groups of a question choose one after another. For every earlier group that chose a token in the same step, the
    token's log-probability is lowered by `strength`. A group that has ended chooses nothing more.
    """

    def choose(logits_RV: Tensor, row_R: Tensor, step: int) -> Tensor:
        question_R, group_R = row_R // groups, row_R % groups
        chosen_BK = torch.full((int(question_R.max()) + 1, groups), NONE, device=row_R.device)
        for group in range(groups):
            in_group_R = group_R == group
            before_RK = chosen_BK[question_R[in_group_R], :group]
            penalty_RK = -strength * (before_RK != NONE).to(logits_RV.dtype)
            lowered_RV = logits_RV[in_group_R].scatter_add(1, before_RK.clamp(min=0), penalty_RK)
            chosen_BK[question_R[in_group_R], group] = lowered_RV.argmax(-1)
        return chosen_BK[question_R, group_R]

    return choose


def top_p_sampling(uniform_RL: Tensor, temperature: float, top_p: float) -> Choose:
    """Samples from softmax(logits / temperature), among the most probable tokens that together reach `top_p`.

    uniform_RL: numbers in [0, 1), float64, one for each row and step; they alone decide, whatever the other rows are.
    """

    def choose(logits_RV: Tensor, row_R: Tensor, step: int) -> Tensor:
        share_RV = (logits_RV.double() / temperature).softmax(-1)
        uniform_R1 = uniform_RL[row_R, step, None]
        if top_p == 1:
            sum_RV = share_RV.cumsum(-1)
            return torch.searchsorted(sum_RV, uniform_R1 * sum_RV[:, -1:], right=True)[:, 0]
        share_RV, token_RV = share_RV.sort(-1, descending=True)
        sum_RV = share_RV.cumsum(-1)
        last_R1 = torch.searchsorted(sum_RV, sum_RV.new_full(uniform_R1.shape, top_p)).clamp(max=sum_RV.shape[1] - 1)
        place_R1 = torch.searchsorted(sum_RV, uniform_R1 * sum_RV.gather(1, last_R1), right=True)
        return token_RV.gather(1, place_R1)[:, 0]

    return choose
