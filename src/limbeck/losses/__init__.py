"""What pulls the student: pure functions of tensors, student first."""

from limbeck.losses.adaptive_kl import adaptive_kl
from limbeck.losses.divergence import (
    cross_entropy,
    forward_kl,
    generalized_jsd,
    js,
    reverse_kl,
    skewed_forward_kl,
    skewed_reverse_kl,
    soft_cross_entropy,
    total_variation,
)
from limbeck.losses.dkd import dkd
from limbeck.losses.feature import (
    attention_transfer,
    cosine,
    mse,
    normalized_mse,
    probabilistic_knowledge_transfer,
    rkd_angle,
    rkd_distance,
    similarity_preserving,
)
from limbeck.losses.fused_linear import (
    Projection,
    fused_linear,
    fused_linear_cross_entropy,
    fused_linear_divergence,
)
from limbeck.losses.logit_adjustment import adjust_logits
from limbeck.losses.penalty import norm_penalty
from limbeck.losses.reduction import Mean, Reduction, reduce
from limbeck.losses.symmetric_kl import symmetric_kl

__all__ = [
    "Mean",
    "Projection",
    "Reduction",
    "adaptive_kl",
    "adjust_logits",
    "attention_transfer",
    "cosine",
    "cross_entropy",
    "dkd",
    "forward_kl",
    "fused_linear",
    "fused_linear_cross_entropy",
    "fused_linear_divergence",
    "generalized_jsd",
    "js",
    "mse",
    "norm_penalty",
    "normalized_mse",
    "probabilistic_knowledge_transfer",
    "reduce",
    "reverse_kl",
    "rkd_angle",
    "rkd_distance",
    "similarity_preserving",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "soft_cross_entropy",
    "symmetric_kl",
    "total_variation",
]
