import torch
from torch import nn

from limbeck.models import ImageTask, build
from limbeck.models.projector import project
from limbeck.teachers.random import RandomTeacher

TASK = ImageTask(("ant", "bee", "cat"), channels=1, size=(8, 8), mean=(0.3,), std=(0.2,))
IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def architecture() -> nn.Module:
    return project(build("vgg", TASK, blocks=[[4], [8]], norm="batch"), TASK, hidden=8, bottleneck=4, outputs=16)


def test_same_seed_same_teacher_whatever_the_model() -> None:
    one, two, other = (
        RandomTeacher(architecture(), 1),
        RandomTeacher(architecture(), 1),
        RandomTeacher(architecture(), 2),
    )
    assert torch.equal(one(IMAGES).logits, two(IMAGES).logits)
    assert not torch.allclose(one(IMAGES).logits, other(IMAGES).logits, atol=1e-3)


def test_frozen_and_apart_from_the_model() -> None:
    model = architecture()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    teacher = RandomTeacher(model, 1).train()
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(m.training for m in teacher.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert any(p.requires_grad for p in model.parameters())


def test_batch_normalisation_has_seen_nothing() -> None:
    """Mean 0 and variance 1: the identity, but for its epsilon."""
    model = architecture().train()
    model(IMAGES)  # moves the running statistics
    teacher = RandomTeacher(model, 1)
    body = teacher.model.encoder.body
    values = torch.randn(5, 4, 3, 3)
    torch.testing.assert_close(body[1](values), values / (1 + 1e-5) ** 0.5)
