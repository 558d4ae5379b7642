from pathlib import Path

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.models import ImageTask, build, load, save

TASK = ImageTask(("ant", "bee", "cat"), channels=1, size=(32, 28), mean=(0.3,), std=(0.2,))
IMAGES = torch.rand(2, 1, 32, 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every download meets a closed port, and no earlier download is found."""
    import huggingface_hub.constants

    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_timm_takes_normalisation_from_its_data_config() -> None:
    import timm

    model = build("timm", TASK, model="resnet10t")
    data = timm.data.resolve_model_data_config(timm.create_model("resnet10t"))
    assert (model.mean, model.std) == (data["mean"], data["std"])
    assert model.mean != TASK.normalisation(3)[0]
    assert (model.channels, model.size) == (3, TASK.size)
    assert build("timm", TASK, model="mobilenetv3_small_050.lamb_in1k", size=40).size == (40, 40)


def test_timm_logits_and_features_of_grey_images() -> None:
    model = build("timm", TASK, model="resnet10t").eval()
    output = model({"image": IMAGES})
    assert output.features is not None
    assert torch.equal(model.body.get_submodule("fc")(output.features), output.logits)
    rgb = IMAGES.expand(-1, 3, -1, -1)
    assert torch.equal(model(rgb).logits, output.logits)


def test_timm_transformer_of_fixed_size() -> None:
    model = build("timm", TASK, model="vit_tiny_patch16_224", size=32, options={"depth": 1})
    assert (model.size, model.mean) == ((32, 32), (0.5, 0.5, 0.5))
    output = model(IMAGES)
    assert output.logits.shape == (2, 3)
    assert output.features is not None
    assert output.features.shape == (2, 192)
    assert build("timm", TASK, model="vit_tiny_patch16_224", options={"depth": 1}).size == (224, 224)


def test_timm_errors() -> None:
    with pytest.raises(LimbeckError, match=r"timm has no model 'resnet10s'. Did you mean 'resnet1"):
        build("timm", TASK, model="resnet10s")
    with pytest.raises(LimbeckError, match=r"timm cannot make 'resnet10t' with .*nonsense"):
        build("timm", TASK, model="resnet10t", options={"nonsense": 1})


@pytest.mark.usefixtures("no_network")
def test_timm_failed_download() -> None:
    with pytest.raises(LimbeckError, match="timm cannot load the pretrained weights of 'resnet10t'"):
        build("timm", TASK, model="resnet10t", pretrained=True)


def test_torchvision_logits_and_features_of_grey_images() -> None:
    model = build("torchvision", TASK, model="resnet18").eval()
    assert (model.channels, model.size, model.mean, model.std) == (3, TASK.size, (0.3,) * 3, (0.2,) * 3)
    output = model(IMAGES)
    assert output.features is not None
    assert output.features.shape == (2, 512)
    assert torch.equal(model.body.get_submodule("fc")(output.features), output.logits)


def test_torchvision_pointwise_head_and_transformer() -> None:
    squeeze = build("torchvision", TASK, model="squeezenet1_1")
    output = squeeze(IMAGES)
    assert squeeze.head == "classifier.1"
    assert output.logits.shape == (2, 3)
    assert output.features is not None
    assert output.features.shape[1] % 512 == 0
    with pytest.raises(LimbeckError, match="torchvision cannot make 'vit_b_16'"):
        build("torchvision", TASK, model="vit_b_16", size=20)


def test_torchvision_errors() -> None:
    with pytest.raises(LimbeckError, match=r"no classifier 'resnet81'. Did you mean 'resnet18'\?"):
        build("torchvision", TASK, model="resnet81")
    with pytest.raises(LimbeckError, match="no classifier 'fasterrcnn_resnet50_fpn'"):
        build("torchvision", TASK, model="fasterrcnn_resnet50_fpn")
    with pytest.raises(LimbeckError, match=r"no weights 'IMAGENET'.* Known: IMAGENET1K_V1"):
        build("torchvision", TASK, model="resnet18", weights="IMAGENET")


@pytest.mark.usefixtures("no_network")
def test_torchvision_failed_download() -> None:
    with pytest.raises(LimbeckError, match="torchvision cannot load the weights DEFAULT of 'resnet18'"):
        build("torchvision", TASK, model="resnet18", weights="DEFAULT")


def test_torchvision_pretrained_keeps_body_and_normalisation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The download is the only thing replaced: its file is made here and lies where torch.hub caches it."""
    import torchvision

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    weights = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    source = torchvision.models.squeezenet1_1()
    # The name ends in the digest of the real file; torch.hub checks it after a download only.
    cached = tmp_path / "checkpoints" / Path(weights.url).name
    cached.parent.mkdir()
    torch.save(source.state_dict(), cached)
    model = build("torchvision", TASK, model="squeezenet1_1", weights="DEFAULT")
    assert (model.mean, model.size) == ((0.485, 0.456, 0.406), (224, 224))
    assert torch.equal(model.body.get_parameter("features.0.weight"), source.features[0].weight)
    assert model.body.get_parameter("classifier.1.weight").shape[0] == 3
    saved = save(model.eval(), tmp_path / "saved")
    cached.unlink()
    loaded = load(saved)
    assert (loaded.mean, loaded.size) == (model.mean, model.size)
    assert torch.equal(loaded(IMAGES).logits, model(IMAGES).logits)


@pytest.mark.parametrize(("name", "model"), [("timm", "mobilenetv3_small_050"), ("torchvision", "shufflenet_v2_x0_5")])
def test_saved_and_loaded(name: str, model: str, tmp_path: Path) -> None:
    built = build(name, TASK, model=model)
    built(torch.rand(4, 3, 32, 28))
    built.eval()
    loaded = load(save(built, tmp_path))
    assert torch.equal(loaded(IMAGES).logits, built(IMAGES).logits)
    assert (loaded.factory, loaded.arguments) == (built.factory, built.arguments)
