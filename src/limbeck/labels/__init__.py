"""The label types, and how labels are cleaned: select, shrink, refine, mix."""

from limbeck.labels.class_weights import effective_number_weights
from limbeck.labels.duplicates import near_duplicates
from limbeck.labels.interpolate import interpolate
from limbeck.labels.mix import classmix, cutmix, cutmix_pixels, mixup, mixup_or_cutmix, paste
from limbeck.labels.refine import align_distribution, mix_with_past, optimal_mix_weight, sharpen, smooth
from limbeck.labels.select import (
    agreement,
    confidence,
    confidence_share,
    confident,
    entropy,
    entropy_below,
    entropy_percentile,
    most_confident,
    most_confident_per_class,
)
from limbeck.labels.shrink import shrink_classes
from limbeck.labels.types import Labels, TopK, one_hot, to_dense, top_k

__all__ = [
    "Labels",
    "TopK",
    "agreement",
    "align_distribution",
    "classmix",
    "confidence",
    "confidence_share",
    "confident",
    "cutmix",
    "cutmix_pixels",
    "effective_number_weights",
    "entropy",
    "entropy_below",
    "entropy_percentile",
    "interpolate",
    "mix_with_past",
    "mixup",
    "mixup_or_cutmix",
    "most_confident",
    "most_confident_per_class",
    "near_duplicates",
    "one_hot",
    "optimal_mix_weight",
    "paste",
    "sharpen",
    "shrink_classes",
    "smooth",
    "to_dense",
    "top_k",
]
