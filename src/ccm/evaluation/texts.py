"""Generated replies, judged as texts: exact match, whether they hold the answer, F1 of words, and ROUGE. Where several
answers are accepted, the best figure counts.

A question says what its F1 counts; all but the first are LoCoMo's (arXiv 2402.17753):

words     lower case, without punctuation and articles (SQuAD, arXiv 1606.05250)
stems     the same without "and", cut to Porter's stems
parts     stems of lists: for each part of the answer between commas the best part of the reply, then the mean
phrase    1 where the reply holds a phrase, or is the letter of an option; all other figures are the same then
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from ccm.data.questions import Judged

_ROUGES = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL", "rouge_lsum": "rougeLsum"}
FIGURES = ("em", "holds", "answer_f1", *_ROUGES)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES, _ARTICLES_AND = re.compile(r"\b(a|an|the)\b"), re.compile(r"\b(a|an|the|and)\b")


@dataclass(frozen=True)
class JudgedReply:
    """A generated reply and its figures.

    Attributes:
        task: what it is counted under.
        question: the query, as the model read it.
        references: the accepted answers.
        reply: the generated text.
        figures: :data:`FIGURES`, as shares.
    """

    task: str
    question: str
    references: Sequence[str]
    reply: str
    figures: dict[str, float]


def judge(reply: str, references: Sequence[str], how: Judged = "words") -> dict[str, float]:
    """The :data:`FIGURES` of a reply."""
    if how == "phrase":
        return dict.fromkeys(FIGURES, float(any(_holds(reply, phrase) for phrase in references)))
    every = [
        {
            "em": exact_match(reply, reference),
            "holds": holds(reply, reference),
            "answer_f1": _F1[how](reply, reference),
            **rouge(reply, reference),
        }
        for reference in references
    ]
    return {name: max(figures[name] for figures in every) for name in FIGURES}


def means(replies: Sequence[JudgedReply]) -> dict[str, float]:
    """The plain mean of each figure; empty without replies."""
    return {name: sum(r.figures[name] for r in replies) / len(replies) for name in FIGURES} if replies else {}


def exact_match(reply: str, reference: str) -> float:
    """1 where both have the same words in the same order."""
    return float(words(reply) == words(reference))


def holds(reply: str, reference: str) -> float:
    """1 where all words of the reference stand in the reply, in one run."""
    said, sought = words(reply), words(reference)
    return float(bool(sought) and any(said[i : i + len(sought)] == sought for i in range(len(said))))


def rouge(reply: str, reference: str) -> dict[str, float]:
    """F-measures of stems: of those in common ("rouge_1"), of pairs of neighbours ("rouge_2"), of the longest common
    subsequence ("rouge_l"), and of such subsequences sentence by sentence ("rouge_lsum")."""
    scores = _rouge().score(*("\n".join(_SENTENCE_END.split(text.strip())) for text in (reference, reply)))
    return {name: scores[theirs].fmeasure for name, theirs in _ROUGES.items()}


def words(text: str) -> list[str]:
    """Words in lower case, without punctuation and articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def stems(text: str) -> list[str]:
    """Porter's stems of the words, without "and"."""
    stemmer = _stemmer()
    return [stemmer.stem(word) for word in _ARTICLES_AND.sub(" ", text.lower().translate(_PUNCTUATION)).split()]


def f1(reply: Sequence[str], reference: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the words that two texts share, counted as often as both have them."""
    common = sum((Counter(reply) & Counter(reference)).values())
    return 2 * common / (len(reply) + len(reference)) if common else 0.0


def _f1_of_parts(reply: str, reference: str) -> float:
    given, wanted = ([stems(part) for part in text.split(",")] for text in (reply, reference))
    return sum(max(f1(part, of) for part in given) for of in wanted) / len(wanted)


def _holds(reply: str, phrase: str) -> bool:
    said, sought = reply.lower().strip(), phrase.lower()
    return said.strip("()") == sought if len(sought) == 1 else sought in said


_F1: dict[Judged, Callable[[str, str], float]] = {
    "words": lambda reply, reference: f1(words(reply), words(reference)),
    "stems": lambda reply, reference: f1(stems(reply), stems(reference)),
    "parts": _f1_of_parts,
}


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # imported when used: adapters are listed without the extra eval
    from rouge_score.tokenizers import DefaultTokenizer

    return RougeScorer([*_ROUGES.values()], tokenizer=DefaultTokenizer(use_stemmer=True))  # else it sets up all logging


@cache
def _stemmer() -> Any:
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()
