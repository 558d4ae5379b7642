import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from limbeck.data.samples import ImageData
from limbeck.data.transformations import transform
from limbeck.errors import LimbeckError
from limbeck.models import Classifier, build, load, save
from limbeck.models.classifier import ImageTask
from limbeck.models.heads import num_features
from limbeck.models.joint_classifier import JointClassifier, joint_classes, with_joint_head
from limbeck.verbs.export import export

TASK = ImageTask(("cat", "dog", "cow"), 3, (8, 8), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
IMAGES = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def made(aggregate: bool = True, transformation: str = "rotation", **model: object) -> JointClassifier:
    torch.manual_seed(0)
    block = {"name": "cnn", "width": 4, **model}
    built = build("joint_classifier", TASK, model=block, transformation=transformation, aggregate=aggregate)
    assert isinstance(built, JointClassifier)
    return built.eval()


@pytest.mark.parametrize("transformation", ["rotation", "rot_color_perm6"])
def test_asks_each_view_for_its_own_labels(transformation: str) -> None:
    model = made(transformation=transformation)
    views = transform(IMAGES, transformation).unflatten(0, (5, -1))
    count = views.shape[1]
    wanted = torch.stack([model.joint(views[:, j]).logits[:, j::count] for j in range(count)]).mean(0)
    output = model({"image": IMAGES})
    # The same float32 numbers in batches of another size.
    torch.testing.assert_close(output.logits, wanted, rtol=1e-5, atol=1e-6)
    single = made(aggregate=False, transformation=transformation)(IMAGES)
    torch.testing.assert_close(single.logits, model.joint(IMAGES).logits[:, ::count], rtol=1e-5, atol=1e-6)
    for features in (output.features, single.features):
        torch.testing.assert_close(features, model.joint(IMAGES).features, rtol=1e-5, atol=1e-6)


def test_aggregated_answer_does_not_change_when_the_image_is_turned_but_the_head_is_turned_too() -> None:
    """Turning the image by 90 degrees moves view j to j + 1: with columns moved likewise the answer is the same."""
    model = made()
    turned = copy.deepcopy(model)
    head = turned.get_submodule("body.body.6")
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        for parameter in (head.weight, head.bias):
            parameter.copy_(parameter.unflatten(0, (3, 4)).roll(-1, 1).flatten(0, 1))
    found = turned(torch.rot90(IMAGES, 1, (2, 3))).logits
    torch.testing.assert_close(found, model(IMAGES).logits, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(model(torch.rot90(IMAGES, 1, (2, 3))).logits, model(IMAGES).logits, atol=1e-3)


def test_is_saved_loaded_copied_and_exported_like_any_classifier(tmp_path: Path) -> None:
    model = made(transformation="rot_color_perm6", name="resnet", depth=8, width=4)
    model(IMAGES.requires_grad_())  # leaves nothing behind that cannot be copied
    copy.deepcopy(model)
    assert torch.equal(load(save(model, tmp_path / "m"))(IMAGES).logits, model(IMAGES).logits)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["factory"] == "joint_classifier"
    assert config["arguments"]["model"] == {"name": "resnet", "depth": 8, "width": 4}
    assert config["classes"] == ["cat", "dog", "cow"]
    assert export(tmp_path / "m", tmp_path / "m.onnx").difference < 1e-5
    assert num_features(model, "this") == 16


def test_other_preprocessing_reaches_the_network() -> None:
    model, other = made(), made()
    other.set_preprocessing(channels=3, size=8, mean=[0.0] * 3, std=[1.0] * 3)
    normalised = (IMAGES - model.normalise.mean) / model.normalise.std
    torch.testing.assert_close(other(normalised).logits, model(IMAGES).logits)


def test_network_of_ones_own_takes_a_factory(digits: ImageData, tmp_path: Path) -> None:
    def factory(num_classes: int) -> JointClassifier:
        body = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
        return with_joint_head(Classifier(body, digits.classes, channels=1, size=8), "rotation")

    model = factory(10).eval()
    images = digits.test.fetch(torch.arange(3))["image"]
    save(model, tmp_path)
    with pytest.raises(LimbeckError, match="hand it over"):
        load(tmp_path)
    assert torch.equal(load(tmp_path, factory)(images).logits, model(images).logits)


def test_wrong_input() -> None:
    assert joint_classes(["a", "b"], "rotation2") == ("a/0", "a/1", "b/0", "b/1")
    with pytest.raises(LimbeckError, match=r"has the classes \['cat', 'dog', 'cow'\], expected \['cat/0'"):
        JointClassifier(build("cnn", TASK), TASK.classes, "rotation")
    for name in ("folder", "os.system", None):
        with pytest.raises(LimbeckError, match=f"from a builder of limbeck, not from {name!r}"):
            build("joint_classifier", TASK, model={"name": name})
    with pytest.raises(LimbeckError, match="no classification head was found"):
        with_joint_head(Classifier(nn.Flatten(), [str(n) for n in range(64)], channels=1), "rotation")
    with pytest.raises(LimbeckError, match="holds no 'image'"):
        made()({"label": torch.zeros(2)})
