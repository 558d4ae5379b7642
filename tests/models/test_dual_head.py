import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.models import Classifier, ImageTask, build, load, save
from limbeck.models.dual_head import DualHead, with_dual_head
from limbeck.models.zero_shot import ZeroShotHead, prompt_mean, with_zero_shot_head

TASK = ImageTask(("ant", "bee", "cat"), channels=1, size=(8, 8), mean=(0.3,), std=(0.4,))
IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def head_of(model: Classifier) -> DualHead:
    assert model.head is not None
    head = model.body.get_submodule(model.head)
    assert isinstance(head, DualHead)
    return head


def test_linear_head_becomes_the_first_one() -> None:
    torch.manual_seed(0)
    plain = build("cnn", TASK, width=2).eval()
    assert isinstance(plain, Classifier)
    before = plain(IMAGES)
    model = with_dual_head(copy.deepcopy(plain)).eval()
    head = head_of(model)
    head.set_interpolation(1.0, 0.5)
    after = model(IMAGES)
    assert torch.equal(after.features, before.features)
    torch.testing.assert_close(after.logits, before.logits.log_softmax(-1))
    head.set_interpolation(0.0, 1.0)
    torch.testing.assert_close(model(IMAGES).logits, head.kd(before.features).log_softmax(-1))
    assert not torch.equal(head.kd.weight, head.ce.weight)


def test_zero_shot_head_starts_both() -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 64)
    plain = with_zero_shot_head(build("cnn", TASK, width=2), weight, TASK.classes).eval()
    before = plain(IMAGES)
    head = head_of(with_dual_head(plain))
    ce, kd = head.heads(before.features)
    assert isinstance(head.kd, ZeroShotHead)
    # The distilled head is the zero-shot classifier, the other reads features as they are; both biases are 0.
    assert torch.equal(kd, before.logits)
    torch.testing.assert_close(ce, before.features @ weight.T)
    norms = before.features.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(kd, 100 * ce / norms, rtol=1e-5, atol=1e-4)  # 100 times float32's rounding
    assert head.ce.weight is not head.kd.linear.weight


@pytest.mark.parametrize("outer", ["dual_head", "zero_shot"])
def test_saved_and_loaded(outer: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(outer, TASK, model={"name": "cnn", "width": 2})
    assert isinstance(model, Classifier)
    if outer == "dual_head":
        head_of(model).set_interpolation(0.35, 1.5)
    loaded = load(save(model.eval(), tmp_path / "model"))
    assert torch.equal(loaded(IMAGES).logits, model(IMAGES).logits)
    if outer == "dual_head":
        assert (float(head_of(loaded).alpha), float(head_of(loaded).beta)) == (pytest.approx(0.35), 1.5)  # type: ignore[arg-type]


def test_dual_of_zero_shot_is_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = with_dual_head(with_zero_shot_head(build("cnn", TASK, width=2), torch.randn(3, 64), TASK.classes, 20.0))
    loaded = load(save(model.eval(), tmp_path / "model"))
    assert torch.equal(loaded(IMAGES).logits, model(IMAGES).logits)


def test_network_of_other_classes_is_loaded(tmp_path: Path) -> None:
    """Prototypes of three classes in the features of a network of two."""
    torch.manual_seed(0)
    other = build("cnn", ImageTask(("x", "y"), 1, (8, 8), (0.1,), (0.2,)), width=2)
    model = with_zero_shot_head(other, torch.randn(3, 64), TASK.classes)
    assert model.classes == TASK.classes
    loaded = load(save(model.eval(), tmp_path / "model"))
    assert loaded.classes == TASK.classes
    assert torch.equal(loaded(IMAGES).logits, model(IMAGES).logits)


def test_cosines() -> None:
    weight = nn.functional.normalize(torch.randn(3, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    head = ZeroShotHead(weight)
    features = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    expected = [[math.degrees(float(torch.dot(f / f.norm(), w).acos())) for w in weight] for f in features]
    found = (head(features) / 100).acos().rad2deg()
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-3)  # acos in float32
    torch.testing.assert_close(head(7 * features), head(features))


def test_prompts_are_averaged() -> None:
    embeddings = torch.tensor([[[3.0, 0.0], [0.0, 1.0]], [[0.0, 2.0], [0.0, 4.0]]])
    assert prompt_mean(embeddings, normalise=False).tolist() == [[1.5, 0.5], [0.0, 3.0]]
    torch.testing.assert_close(prompt_mean(embeddings), torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, 1.0]]))


def test_refuses_heads_of_another_kind() -> None:
    body = nn.Sequential(nn.Conv2d(1, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(LimbeckError, match="two heads need a linear classification head"):
        with_dual_head(Classifier(body, TASK.classes, channels=1))
    with pytest.raises(LimbeckError, match="two heads need a linear"):
        with_dual_head(Classifier(nn.Sequential(nn.Flatten()), TASK.classes, channels=1))


def test_refuses_vectors_of_another_size() -> None:
    with pytest.raises(LimbeckError, match=r"have shape \[2, 64\], expected \[3, 64\]"):
        with_zero_shot_head(build("cnn", TASK, width=2), torch.zeros(2, 64), TASK.classes)
