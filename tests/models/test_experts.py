import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.models import ImageTask, build, load, save
from limbeck.models.experts import ExpertClassifier, ExpertOutput, check_experts
from limbeck.models.heads import CosineHead, num_features

TASK = ImageTask(("ant", "bee", "cat"), channels=1, size=(8, 8), mean=(0.3,), std=(0.2,))
BLOCKS = [
    {"name": "expert_cnn", "width": 4, "experts": 3, "hidden": 5},
    {"name": "expert_resnet", "depth": 8, "width": 4, "experts": 2},
    {"name": "vit", "patch": 4, "width": 8, "depth": 2, "heads": 2, "distillation_token": True},
]
IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def made(block: dict[str, object]) -> ExpertClassifier:
    torch.manual_seed(0)
    model = build(str(block["name"]), TASK, **{k: v for k, v in block.items() if k != "name"})
    assert isinstance(model, ExpertClassifier)
    return model


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block["name"])
def test_the_answer_is_the_mean_of_the_experts(block: dict[str, object]) -> None:
    model = made(block).eval()
    each, output = model.each(IMAGES), model(IMAGES)
    assert each.logits.shape == (6, len(model.experts), 3)
    assert torch.equal(output.logits, each.logits.mean(1))
    assert torch.equal(output.features, each.features.flatten(1))
    # Experts of their own, and linear in what they say: where all say the same the mean says it too.
    assert not torch.allclose(each.logits[:, 0], each.logits[:, 1])
    torch.testing.assert_close(each.logits[:, :1].expand(-1, 4, -1).mean(1), each.logits[:, 0])


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block["name"])
def test_saved_and_copied_it_says_the_same(block: dict[str, object], tmp_path: Path) -> None:
    model = made(block)
    model(IMAGES).logits.sum().backward()
    model.eval()
    loaded = load(save(model, tmp_path / "model"))
    assert isinstance(loaded, ExpertClassifier)
    assert loaded.experts == model.experts
    for other in (loaded, copy.deepcopy(model)):
        assert torch.equal(other(IMAGES).logits, model(IMAGES).logits)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block["name"])
def test_every_weight_learns(block: dict[str, object]) -> None:
    model = made(block)
    model({"image": IMAGES}).logits.square().sum().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []


def test_experts_share_the_first_block_only() -> None:
    model = made(BLOCKS[0]).eval()
    before = model.each(IMAGES).logits.detach()
    with torch.no_grad():
        next(model.body.branches[1].parameters()).add_(1)
    after = model.each(IMAGES).logits.detach()
    assert [bool((before[:, e] != after[:, e]).any()) for e in range(3)] == [False, True, False]
    with torch.no_grad():
        next(model.body.trunk.parameters()).add_(1)
    assert all(bool((model.each(IMAGES).logits[:, e] != after[:, e]).any()) for e in range(3))


def test_widths_of_the_resnet_of_the_paper() -> None:
    """Stages of 24 and 48 channels where a single network has 32 and 64."""
    model = build("expert_resnet", TASK)
    convolutions = [m.out_channels for m in model.body.branches[0].modules() if isinstance(m, nn.Conv2d)]
    assert convolutions == [24] * 10 + [48] * 10
    assert len([m for m in model.body.trunk.modules() if isinstance(m, nn.Conv2d)]) == 11


def test_cosine_head() -> None:
    torch.manual_seed(0)
    head = CosineHead(4, 3, scale=30.0)
    v = torch.randn(5, 4)
    expected = torch.stack([30 * F.cosine_similarity(v, w.expand(5, -1)) for w in head.weight], 1)
    torch.testing.assert_close(head(v), expected)
    # Lengths do not count.
    torch.testing.assert_close(head(7 * v), head(v))
    assert float(head(v).detach().abs().max()) <= 30
    with pytest.raises(LimbeckError, match="scale"):
        CosineHead(4, 3, scale=0)


def test_it_has_no_head_to_replace() -> None:
    with pytest.raises(LimbeckError, match="no classification head"):
        num_features(made(BLOCKS[2]), "this")


def test_wrong_input() -> None:
    with pytest.raises(LimbeckError, match="experts must be 1 or more"):
        build("expert_cnn", TASK, experts=0)
    with pytest.raises(LimbeckError, match=r"reduction 0\.2"):
        build("expert_resnet", TASK, reduction=0.2)
    with pytest.raises(LimbeckError, match="at least 4x4"):
        build("expert_cnn", ImageTask(("a", "b"), 1, (3, 3), (0.0,), (1.0,)))
    with pytest.raises(LimbeckError, match="all different"):
        ExpertClassifier(nn.Flatten(), ("a", "b"), ["one", "one"], channels=1)
    with pytest.raises(LimbeckError, match=r"mine trains 2 experts, and its student has 3; take that"):
        check_experts(made(BLOCKS[0]), [2], "mine", "that")
    with pytest.raises(LimbeckError, match=r"1 or 2 experts, and its student has none"):
        check_experts(build("cnn", TASK, width=4), [1, 2], "mine", "that")


def test_another_number_of_logits_is_refused() -> None:
    class Two(nn.Module):
        def forward(self, images: torch.Tensor) -> ExpertOutput:
            return ExpertOutput(torch.zeros(len(images), 2, 3), torch.zeros(len(images), 2, 1))

    with pytest.raises(LimbeckError, match=r"expected \[B, 3, 3\]: one row for each of the experts a, b, c"):
        ExpertClassifier(Two(), TASK.classes, ["a", "b", "c"], channels=1)(IMAGES)
