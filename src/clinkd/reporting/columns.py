"""What the columns of a report's tables say, in words a reader needs no other page for."""

from __future__ import annotations

import re
from collections.abc import Sequence

from clinkd.records import SPELLED_OUT, Task
from clinkd.reporting.tables import TITLES

_METRICS = {
    "F1": "boxes matched one to one where they overlap enough; boxes missed and boxes too many both count against it",
    "Recall": "the share of the truth that was answered",
    "Recall@0.5": "the share of true boxes that an answered box overlaps by half or more (IoU 0.5)",
    "SPICE": "F1 of the things, properties and relations that sentence and truth state",
    "mBMR": "mean of three measures of the words that answer and truth share: BLEU, METEOR and ROUGE",
    "Facts F1": "F1 of the facts that answer and truth state, in the words of the data set",
    "Accuracy": "the share of right answers",
}
_MEANINGS = {
    "": "what the row is about; a row set further in belongs to the row above it",
    # scores
    "Task": "the kind of question; the legend of the headline table spells it out",
    "Score": "of the model's answers, 100 is best; the mean over the kinds of images that have questions",
    "Metric": "how answers were scored",
    "Source": "the data set an image came from",
    "Questions": "how many the figures rest on",
    "Model": "the score of the model's answers",
    "95 %": "the 95 % interval of the figure to its left: of intervals made so, 95 in 100 hold the true figure",
    "95 % interval": "of intervals made so from other patients or images, 95 in 100 hold the true score",
    "95 % of that": "the 95 % interval of the difference; where it spans 0, nothing is known to be seen in the images",
    "Blind": "the best baseline that answers without seeing the image, by its mean over the kinds of images; what does "
    "not stand above it may have been guessed",
    "Best blind baseline": "the score of the best baseline that answers without seeing the image",
    "Which": "the name of that baseline",
    "Above it": "the model's score less that of the best blind baseline",
    "Mean": "the mean over all kinds of images that have questions",
    "Average of four": "the mean over the four tasks of the paper: VG, ROC, RC and MIA",
    "Average": "the mean over the four tasks",
    "Printed mean": "the mean as the paper printed it",
    # choices among candidates
    "First beam": "the candidate that the model finds likeliest, without selection",
    "Random": "one candidate drawn at random for each question",
    "Agreement": "the candidate most like the others",
    "Chosen": "what was answered",
    "Oracle": "the candidates that are best by this score, picked by the truth: no selection can do better",
    # confidences and token probabilities
    "Kind of question": "what is known of the task of a free question: by boxes in it, or else in its answer",
    "Answers": "how many the figures rest on",
    "% right": "the share of right answers; the notes have the rule",
    "Mean, %": "the mean probability that was said of an answer",
    "Skill, %": "how much smaller the Brier score is than that of the best constant; 0 is worth no more",
    "ECE, %": "expected calibration error: how far probability and the share of right answers lie apart in a bin",
    "by chance": "the ECE that as many answers would show by chance if every probability were true",
    "Brier": "the mean squared distance of probability and rightness, 0 is best",
    "AURC": "the mean share of wrong answers among the surest ones, over all shares that could be answered; 0 is best",
    "Excess AURC": "AURC less that of a model which is surest exactly where it is right",
    # flaws
    "Truncated, %": "answers cut at their greatest length",
    "Unread boxes, %": "answers with something that was meant as a box and could not be read",
    "Empty, %": "answers without a word",
    "No box where one was asked for, %": "answers without a box to questions whose truth has one",
    # corrections
    "found": "wrong answers that the test found",
    "% of wrong": "these, of all wrong answers of the round",
    "Alone": "wrong answers that no other test found",
    "Reviewed": "training questions that the model answered again",
    "Wrong": "answers that at least one test found wrong",
    "% wrong": "these, of those reviewed",
    "Similarity": "answers whose words are too far from those of the truth; in brackets: found by this test alone",
    "Box": "answers whose boxes are too far from the true ones; in brackets: found by this test alone",
    "Laterality": "answers that name the other side; in brackets: found by this test alone",
    "Negation": "answers that deny what is there, or the reverse; in brackets: found by this test alone",
    "Count": "answers that state another number; in brackets: found by this test alone",
    "Rewritten": "wrong answers that were corrected, and learned from",
    "Refused": "rewritings that did not keep the truth, so that the truth itself was learned",
    "Were wrong": "answers found wrong before the round's training",
    "Now right": "of these, those found right after it",
    "% now right": "the same as a share",
    "Were right": "answers found right before the round's training",
    "Now wrong": "of these, those found wrong after it",
    "% now wrong": "the same as a share",
    # likelihood of the truth
    "Tokens of the truth": "coordinates of boxes, names of structures, or the rest of the true answer",
    "Log-likelihood a token": "the mean natural logarithm of the probability that the model gives them; 0 is best",
    "Tokens": "how many the figure rests on",
    # set-up and time
    "Knob": "the setting, by the name that --set and a recipe know",
    "This run": "its value in this run",
    "Paper": "its value in the paper, where the paper states one",
    "Stage": "a step of the method",
    "Seconds": "how long it took",
    "% of all": "the same as a share of the whole time",
}


def explain_columns(columns: Sequence[str]) -> dict[str, str]:
    """What each head of a table's columns means; a head that no table of this version has is left out."""
    return {head: meaning for head in columns if (meaning := _explain_head(head))}


def _explain_head(head: str) -> str:
    task, _, metric = head.partition(" ")
    if head in _MEANINGS:
        return _MEANINGS[head]
    if head in TITLES.values():
        return "the questions about images of this kind alone"
    if task in set(Task) and metric in _METRICS:
        return f"{SPELLED_OUT[Task(task)]}. {metric}: {_METRICS[metric]}"
    if head.startswith("Blind: "):
        return "the score of this one baseline, which answers without seeing the image"
    if head.startswith("By "):
        return "the candidate that this scorer prefers, in every task"
    if match := re.fullmatch(r"Round \d+(?:: (.*))?", head):
        return _MEANINGS.get(match[1], "") if match[1] else "the number of answers in this round of reflection"
    return ""
