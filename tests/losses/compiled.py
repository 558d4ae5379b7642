"""Run by test_compile in a process of its own, where no import hook checks shapes: dynamo cannot trace those."""

import torch

from limbeck import losses
from limbeck.labels import Labels, shrink_classes, top_k
from limbeck.losses.adversarial import reverse_gradient
from limbeck.losses.consistency import consistency_cross_entropy
from limbeck.losses.contrastive import info_nce, nt_xent
from limbeck.losses.entropy import entropy
from limbeck.losses.one_versus_rest import one_versus_rest
from limbeck.losses.proportion import proportion_cross_entropy

torch.manual_seed(0)
student, teacher = torch.randn(4, 6, requires_grad=True), torch.randn(4, 6)
weight = torch.tensor([1.0, 0.0, 2.0, 1.0])
labels = torch.tensor([1, -1, 3, 0])
maps = torch.randn(4, 2, 4, 4)
layer, bias = torch.randn(6, 6, requires_grad=True), torch.randn(6)


def everything(student, teacher, weight, labels, maps):
    few = top_k(teacher.softmax(-1), 2)
    shrunk = shrink_classes(Labels(teacher.softmax(-1)), 0.7)
    values = [
        losses.cross_entropy(student, labels, label_smoothing=0.1, weight=weight),
        losses.soft_cross_entropy(student, teacher.softmax(-1), weight=weight > 0),
        losses.cross_entropy(student, shrunk.target, classes=shrunk.classes, weight=shrunk.weights),
        losses.forward_kl(student, teacher, temperature=4.0),
        losses.forward_kl(student, few),
        losses.forward_kl(student, few, tail="zero", reduction="sum"),
        losses.reverse_kl(student, few, tail="renormalize"),
        losses.generalized_jsd(student, teacher, beta=0.01, weight=weight),
        losses.skewed_forward_kl(student, few, weight=weight),
        losses.skewed_reverse_kl(student, teacher),
        losses.total_variation(student, teacher, reduction="none").sum(),
        losses.adaptive_kl(student, teacher, weight=weight),
        losses.symmetric_kl(reverse_gradient(student), few, weight=weight),
        losses.dkd(student, teacher, labels, weight=weight),
        losses.mse(student, teacher),
        losses.cosine(student, teacher, weight=weight),
        losses.attention_transfer(student.reshape(4, 1, 2, 3), maps),
        losses.similarity_preserving(student, maps),
        losses.probabilistic_knowledge_transfer(student, teacher),
        losses.rkd_distance(student, teacher),
        losses.rkd_angle(student, teacher),
        losses.fused_linear_divergence(losses.Projection(student, layer, None), few, chunk=3).value,
        losses.fused_linear_divergence(
            losses.Projection(student, layer, bias),
            losses.Projection(teacher, layer),
            losses.reverse_kl,
            labels=labels.abs(),
            hard=0.5,
            chunk=3,
        ).value,
        losses.fused_linear_cross_entropy(losses.Projection(student, layer), labels, weight=weight).value,
        entropy(student, weight=weight),
        nt_xent(student, teacher, temperature=0.5),
        info_nce(student, teacher),
        one_versus_rest(student, labels.abs(), weight=weight),
        proportion_cross_entropy(student.reshape(2, 2, 6), teacher[:2].softmax(-1)),
        consistency_cross_entropy(student, teacher, weight=weight),
    ]
    return torch.stack(values)


expected = everything(student, teacher, weight, labels, maps)
(gradient,) = torch.autograd.grad(expected.sum(), student)
values = torch.compile(everything, fullgraph=True, backend="aot_eager")(student, teacher, weight, labels, maps)
torch.testing.assert_close(values, expected)
torch.testing.assert_close(torch.autograd.grad(values.sum(), student)[0], gradient)
print("equal")
