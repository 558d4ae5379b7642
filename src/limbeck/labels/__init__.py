"""The label types, and how labels are cleaned: select, refine, mix."""

from limbeck.labels.mix import cutmix, mixup
from limbeck.labels.refine import align_distribution, mix_with_past, sharpen, smooth
from limbeck.labels.select import agreement, confidence, confident, entropy, entropy_below, most_confident
from limbeck.labels.types import Labels, TopK, one_hot, to_dense, top_k

__all__ = [
    "Labels",
    "TopK",
    "agreement",
    "align_distribution",
    "confidence",
    "confident",
    "cutmix",
    "entropy",
    "entropy_below",
    "mix_with_past",
    "mixup",
    "most_confident",
    "one_hot",
    "sharpen",
    "smooth",
    "to_dense",
    "top_k",
]
