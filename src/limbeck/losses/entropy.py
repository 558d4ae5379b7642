"""How undecided a model is: the entropy of its own prediction, as a loss."""

from limbeck.losses.reduction import Loss, Reduction, Weight, in_full, reduce
from limbeck.losses.support import Logits


def entropy(logits: Logits, *, weight: Weight | None = None, reduction: Reduction = "mean") -> Loss:
    """``-sum_c q_c log q_c`` in nats, q = softmax(logits); unlike with a detached target, both q learn.

    Grandvalet and Bengio, "Semi-supervised Learning by Entropy Minimization" (NeurIPS 2004); the loss of Tent
    (arXiv 2006.10726, section 3.1).

    Args:
        logits: [*batch, C]; half precision is computed in float32.
        weight: [*batch] >= 0, 0 = not used.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
    """
    log_q = in_full(logits).log_softmax(-1)
    q = log_q.exp()
    # A class that is excluded (-inf) or underflows counts for 0, in the gradient too.
    return reduce(-(q * log_q.masked_fill(q.logical_not(), 0.0)).sum(-1), weight, reduction)
