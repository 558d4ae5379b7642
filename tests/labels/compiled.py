"""Run by test_compile in a process of its own, where no import hook checks shapes: dynamo cannot trace those."""

import sys

import torch

from limbeck import labels as L
from limbeck.labels.candidates import uniform_over
from limbeck.labels.certainty import certainty
from limbeck.labels.joint import joint_labels
from limbeck.labels.scores import el2n
from limbeck.labels.vote import confidence_vote

torch.manual_seed(0)
p, q, z = torch.randn(6, 5).softmax(-1), torch.randn(6, 5).softmax(-1), torch.randn(6, 5)
y = torch.tensor([0, 1, 2, 3, 4, 0])
given, others = L.Labels(p), L.Labels(q)
CALLS = {
    "agreement": lambda: L.agreement(given, others),
    "align_distribution": lambda: L.align_distribution(p, p.mean(0), q.mean(0)),
    "certainty": lambda: certainty(p),
    "confidence": lambda: L.confidence(given),
    "confidence_share": lambda: L.confidence_share(given, 0.3),
    "confidence_vote": lambda: confidence_vote(torch.stack([p, q])),
    "confident": lambda: L.confident(given, 0.3),
    "el2n": lambda: el2n(p, y),
    "entropy": lambda: L.entropy(given),
    "entropy_below": lambda: L.entropy_below(given, 1.2),
    "entropy_percentile": lambda: L.entropy_percentile(given, 50.0),
    "interpolate": lambda: L.interpolate(z, z.flip(0), 0.3),
    "joint_labels": lambda: joint_labels(y, 4),
    "mix_with_past": lambda: L.mix_with_past(p, q, 0.5),
    "most_confident": lambda: L.most_confident(given, 0.5),
    "most_confident_per_class": lambda: L.most_confident_per_class(given, 1),
    "one_hot": lambda: L.one_hot(y, 5),
    "sharpen": lambda: L.sharpen(p, 0.5),
    "shrink_classes": lambda: L.shrink_classes(given, 0.5),
    "smooth": lambda: L.smooth(p, 0.1),
    "to_dense": lambda: L.to_dense(L.top_k(p, 2), 5),
    "uniform_over": lambda: uniform_over(p > 0.1),
}
"""Label operations of a training step. Not those that mix images: their boxes and shares are drawn on the host."""

for name, call in CALLS.items():
    sys.stderr.write(f"{name}\n")
    torch.testing.assert_close(torch.compile(call, fullgraph=True, backend="aot_eager")(), call())
print("equal")
