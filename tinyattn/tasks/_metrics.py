"""What a task is judged by: the fields' own numbers, from what was predicted."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Metric(NamedTuple):
    """A number of the record, and how it is read.

    Attributes:
      name: As in the record's metrics, after the split: `test_accuracy` is of "accuracy".
      higher: Whether more is better.
      percent: Whether it is a share, which tables show in percent.
    """

    name: str
    higher: bool = True
    percent: bool = True


ACCURACY = Metric("accuracy")
LOSS = Metric("loss", higher=False, percent=False)
PERPLEXITY = Metric("perplexity", higher=False, percent=False)
ROUGE = ("rouge1", "rouge2", "rougeL")
PEARSON = Metric("pearson", percent=False)


class Predicted(NamedTuple):
    """What a model says of a split.

    Attributes:
      labels: int32, in the shape of the split's own labels; of a regression float32, in that of its
        targets. Of no meaning where the split's labels are negative.
      losses: float32, in nats or squared errors, of all labels that are there, by example, then by token.
    """

    labels: np.ndarray
    losses: np.ndarray


def accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    """The share of labels that are predicted, of those that are there."""
    return float((labels == predicted)[labels >= 0].mean())


def f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """F1 of class 1, of two classes."""
    from sklearn.metrics import f1_score

    labels, predicted = labels[labels >= 0], predicted[labels >= 0]
    return float(f1_score(labels, predicted, zero_division=0.0))


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """The mean over classes of F1, of all classes that are a label or predicted."""
    from sklearn.metrics import f1_score

    labels, predicted = labels[labels >= 0], predicted[labels >= 0]
    return float(f1_score(labels, predicted, average="macro", zero_division=0.0))


def recall(labels: np.ndarray, predicted: np.ndarray, label: int) -> float:
    """Of the examples with this label, the share that is predicted; NaN where there are none."""
    there = labels == label
    return float((predicted[there] == label).mean()) if there.any() else float("nan")


def spans(names: Sequence[str], labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Precision, recall and F1 of whole spans, by seqeval as CoNLL-2000's script counts them.

    Args:
      names: The BIO tag of each class.
      labels: int [n, T], negative where a token has no tag.
      predicted: int [n, T].
    """
    from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

    tags = [
        [[names[i] for i in row[kept]] for row, kept in zip(x, labels >= 0, strict=True)]
        for x in (labels, predicted)
    ]
    found = precision_recall_fscore_support(*tags, average="micro", zero_division=0)
    keys = ("span_precision", "span_recall", "span_f1")
    return {key: float(x) for key, x in zip(keys, found, strict=False)}


def correlations(targets: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Pearson's and Spearman's correlation of scores [n]; 0 where one of them does not vary."""
    from scipy.stats import pearsonr, spearmanr

    both = [np.asarray(x, np.float64) for x in (targets, predicted)]
    # Nor is there any to a model that has diverged.
    varies = all(0 < np.ptp(x) < np.inf for x in both)
    kinds = {"pearson": pearsonr, "spearman": spearmanr}
    return {name: float(kind(*both).statistic) if varies else 0.0 for name, kind in kinds.items()}


def perplexity(losses: np.ndarray) -> dict[str, float]:
    """The exponential of the mean loss, and that loss in bits."""
    mean = float(np.mean(losses, dtype=np.float64))
    # A model that has diverged has no perplexity worth a warning.
    return {"perplexity": float(np.exp(min(mean, 700.0))), "bits": mean / float(np.log(2))}


def bleu(written: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Corpus BLEU and chrF of sacreBLEU's defaults, 0 to 100.

    Args:
      written: A text for each example.
      references: One or more for each; every example must have as many.
    """
    from sacrebleu.metrics import BLEU, CHRF

    sets = [list(texts) for texts in zip(*references, strict=True)]
    made = {"bleu": BLEU(), "chrf": CHRF()}
    return {name: float(x.corpus_score(list(written), sets).score) for name, x in made.items()}


def rouge(written: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean F of ROUGE-1, 2 and L with stemming, shares; of several references the best for each.

    Args:
      written: A text for each example.
      references: One or more for each.
    """
    return dict(zip(ROUGE, rouge_of_each(written, references).mean(0).tolist(), strict=True))


def rouge_of_each(written: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """The same of every text, float64 [n, 3]."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    pairs = zip(written, references, strict=True)
    found = [scorer.score_multi(list(texts), text) for text, texts in pairs]
    return np.array([[one[kind].fmeasure for kind in ROUGE] for one in found])
