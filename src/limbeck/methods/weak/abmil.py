"""Attention-based multiple-instance learning."""

from limbeck.methods.weak.bag_supervised import BagSupervised
from limbeck.models.bag_classifier import classify_bags
from limbeck.models.classifier import Classifier


class ABMIL(BagSupervised):
    """Learnt attention says which instances of a bag count, and a linear classifier judges their weighted mean.

    Source: Ilse, Tomczak, Welling, "Attention-based Deep Multiple Instance Learning", arXiv 1802.04712 (ICML 2018),
    equations 7 to 9. With h_i the features of instance i,

        a_i = softmax_i(w^T (tanh(V h_i) * sigmoid(U h_i))),   z = sum_i a_i h_i,
        L = CE(Y, softmax(C z)).

    An instance's score is its attention relative to the largest of its bag, times the bag's probability to be positive
    (see :class:`~limbeck.models.pooling.AttentionPooling`); in the paper attention is compared within bags only.

    Args:
        student: its features are pooled; its classification head is not used.
        hidden: rows of V and U.
        gated: whether there is the factor with U (equation 9), or tanh alone (equation 8).
    """

    def __init__(self, student: Classifier, hidden: int = 128, gated: bool = True) -> None:
        super().__init__()
        self.student = classify_bags(student, "attention", hidden=hidden, gated=gated)
