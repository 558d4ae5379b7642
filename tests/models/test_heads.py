import pytest
import torch
from torch import nn

from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.models import Classifier, build
from limbeck.models.heads import mlp_head, num_features, replace_head
from limbeck.models.joint import joint_forward


def test_head_of_the_released_code() -> None:
    head = mlp_head(64, 10, hidden=16, slope=0.1)
    assert [type(m) for m in head] == 2 * [nn.Linear, nn.BatchNorm1d, nn.LeakyReLU] + [nn.Linear]
    assert [(m.in_features, m.out_features) for m in head if isinstance(m, nn.Linear)] == [(64, 16), (16, 16), (16, 10)]
    assert head[2](torch.tensor([-1.0, 2.0])).tolist() == pytest.approx([-0.1, 2.0])
    assert len(mlp_head(4, 2, hidden=1, layers=0)) == 1
    with pytest.raises(LimbeckError, match="2 layers of 0"):
        mlp_head(4, 2, hidden=0)


@pytest.mark.parametrize("name", ["cnn", "mlp", "resnet"])
def test_number_of_features_is_what_the_model_gives(digits: ImageData, name: str) -> None:
    model = build(name, digits.task).eval()
    features = model(digits.test.fetch(torch.arange(2))).features
    assert features.shape == (2, num_features(model, "this"))


def test_a_model_without_a_known_head_is_refused() -> None:
    body = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 5), nn.Unflatten(1, (5, 1)), nn.Flatten())
    assert num_features(Classifier(body, [*"abcde"]), "this") == 3
    with pytest.raises(LimbeckError, match=r"ShrinkMatch needs the features .* head=NAME"):
        num_features(Classifier(nn.Flatten(), [*"abcd"]), "ShrinkMatch")


def test_joint_forward_shares_the_batch_statistics(digits: ImageData) -> None:
    model = build("cnn", digits.task, width=4).train()
    images = digits.train.fetch(torch.arange(9))["image"]
    parts = joint_forward(model, images[:2], images[2:5], images[5:])
    whole = model(images)
    assert [len(part.logits) for part in parts] == [2, 3, 4]
    assert torch.equal(torch.cat([part.logits for part in parts]), whole.logits)
    assert torch.equal(torch.cat([part.features for part in parts]), whole.features)
    plain = joint_forward(Classifier(nn.Flatten(), [str(k) for k in range(64)], channels=1), images[:2], images[2:])
    assert [part.features for part in plain] == [None, None]


@pytest.mark.parametrize("name", ["cnn", "mlp", "resnet"])
def test_new_head_on_the_same_body(digits: ImageData, name: str) -> None:
    images = digits.test.fetch(torch.arange(2))["image"]
    model = build(name, digits.task).eval()
    features, bias = model(images).features, model.body.get_submodule(model.head).bias is not None
    new = replace_head(model, ["a", "b", "c"]).eval()
    output = new(images)
    assert new.classes == ("a", "b", "c")
    assert torch.equal(output.features, features)
    head = new.body.get_submodule(new.head)
    assert torch.equal(output.logits, head(features))
    assert (head.bias is not None) == bias
    assert (new.channels, new.size, new.mean, new.std) == (model.channels, model.size, model.mean, model.std)


def test_new_head_keeps_kind_and_type_of_the_old() -> None:
    body = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 5, 1, bias=False), nn.Flatten()).double()
    new = replace_head(Classifier(body, [*"abcde"]), [*"xy"])
    head = new.body[1]
    assert isinstance(head, nn.Conv2d)
    assert head.bias is None
    assert new(torch.rand(4, 3, 6, 6)).logits.shape == (4, 2)
    assert new(torch.rand(4, 3, 6, 6)).logits.dtype == torch.float64
    alone = replace_head(Classifier(nn.Conv2d(3, 2, 1), [*"ab"]), [*"xyz"])
    assert isinstance(alone.body, nn.Conv2d)
    assert alone.body.out_channels == 3
    with pytest.raises(LimbeckError, match="a new head needs the features"):
        replace_head(Classifier(nn.Flatten(), [*"abcd"]), [*"xy"])
