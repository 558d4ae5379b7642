"""What a distilled data set is worth beside its soft labels and augmentation (DD-Ranking's scores).

Accuracies are fractions. The formulas are those that DD-Ranking computes (``NUS-HPC-AI-Lab/DD-Ranking``, v0.2).
"""

import math


def hard_label_recovery(real: float | int, synthetic: float | int) -> float:
    """HLR: what is lost by training with hard labels on the synthetic images instead of all real ones.

    Args:
        real: accuracy after training on the whole real data with hard labels.
        synthetic: the same on the synthetic images.
    """
    return real - synthetic


def improvement_over_random(synthetic: float | int, random: float | int) -> float:
    """IOR: what synthetic images gain over as many random real ones, labelled and trained on in the same way.

    Args:
        synthetic: accuracy after training on the synthetic images with whatever labels and augmentation.
        random: the same on the random images.
    """
    return synthetic - random


def label_robust_score(hlr: float | int, ior: float | int, weight: float | int = 0.5) -> float:
    """LRS: ``(exp(a) - exp(-1)) / (e - exp(-1))`` with ``a = w IOR - (1 - w) HLR``; 0 to 1, higher is better.

    Args:
        hlr: see :func:`hard_label_recovery`.
        ior: see :func:`improvement_over_random`.
        weight: w.
    """
    score = weight * ior - (1 - weight) * hlr
    return (math.exp(score) - math.exp(-1)) / (math.e - math.exp(-1))
