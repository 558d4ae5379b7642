"""CLIP with a tiny random network and tokenizer: nothing is downloaded."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from limbeck.errors import LimbeckError
from limbeck.methods.semi_supervised.dho import DHO
from limbeck.models import Classifier, ImageTask, build, load, save
from limbeck.models.cached import with_cache
from limbeck.models.clip import _prompts
from limbeck.models.dual_head import DualHead
from limbeck.teachers.frozen import Frozen
from tests.methods.tables import value

transformers = pytest.importorskip("transformers")

TASK = ImageTask(("tabby_cat", "dog", "owl"), channels=1, size=(8, 8), mean=(0.3,), std=(0.4,))
IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
TEMPLATES = ["a photo of a {}.", "art of the {}!"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model with random weights, a tokenizer of single letters and preprocessing, as the library saves them."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    letters = [chr(code) for code in range(33, 127)]
    vocab = {token: number for number, token in enumerate([*letters, *(f"{c}</w>" for c in letters)])}
    vocab |= {"<|startoftext|>": len(vocab), "<|endoftext|>": len(vocab) + 1}
    ends = {"bos_token_id": len(vocab) - 2, "eos_token_id": len(vocab) - 1, "pad_token_id": len(vocab) - 1}
    config = transformers.CLIPConfig(
        text_config={**sizes, **ends, "vocab_size": len(vocab), "max_position_embeddings": 24, "projection_dim": 8},
        vision_config={**sizes, "image_size": 16, "patch_size": 8, "projection_dim": 8},
        projection_dim=8,
    )
    path = tmp_path_factory.mktemp("clip")
    transformers.CLIPModel(config).save_pretrained(path)
    transformers.CLIPTokenizer(vocab=vocab, merges=[]).save_pretrained(path)
    size = {"height": 16, "width": 16}
    transformers.CLIPImageProcessor(size=size, crop_size=size, image_mean=[0.5, 0.4, 0.3]).save_pretrained(path)
    return path


def make(folder: Path, **options: object) -> Classifier:
    found = build("clip", TASK, pretrained=str(folder), templates=TEMPLATES, **options)
    assert isinstance(found, Classifier)
    return found.eval()


def reference(folder: Path, normalised: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Image embeddings [B, D] and class vectors [C, D], one prompt after the other by the library's own functions."""
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = []
    with torch.no_grad():
        for name in ("tabby cat", "dog", "owl"):
            own = []
            for template in TEMPLATES:
                states = model.text_model(**tokenizer([template.format(name)], return_tensors="pt"))
                embedding = model.text_projection(states.pooler_output)[0]
                own.append(embedding / embedding.norm() if normalised else embedding)
            mean = torch.stack(own).mean(0)
            rows.append(mean / mean.norm() if normalised else mean)
        images = torch.nn.functional.interpolate(
            IMAGES.expand(-1, 3, -1, -1), (16, 16), mode="bilinear", antialias=True, align_corners=False
        )
        mean, std = (
            torch.tensor(v).view(1, 3, 1, 1) for v in ([0.5, 0.4, 0.3], transformers.image_utils.OPENAI_CLIP_STD)
        )
        pooled = model.vision_model(pixel_values=(images - mean) / std).pooler_output
        return model.visual_projection(pooled), torch.stack(rows)


def test_zero_shot_logits(folder: Path) -> None:
    embeddings, weight = reference(folder, normalised=True)
    with torch.no_grad():
        found = make(folder)({"image": IMAGES})
    torch.testing.assert_close(found.features, embeddings)
    # Prompts are read together there: padding changes the last digits, and cosines are multiplied by 100.
    torch.testing.assert_close(found.logits, 100 * normalize(embeddings, dim=-1) @ weight.T, rtol=1e-4, atol=1e-3)


def test_plain_means_start_a_student(folder: Path) -> None:
    _, weight = reference(folder, normalised=False)
    head = make(folder, normalise=False).body.get_submodule("head.linear")
    assert isinstance(head, torch.nn.Linear)
    torch.testing.assert_close(head.weight.detach(), weight, rtol=1e-4, atol=1e-5)
    assert not head.bias.any()


def test_student_equal_to_the_teacher_has_nothing_to_learn(folder: Path) -> None:
    """L_KD is 0 at step 0 where text embeddings are normalised the same way."""
    labels = torch.tensor([0, 1, 2, 0])
    part = {"image": IMAGES, "label": labels, "index": torch.arange(4), "epoch": torch.zeros(4, dtype=torch.int64)}
    objective = DHO(make(folder), Frozen(make(folder), TASK.classes), lambda_ce=1.0, lambda_kd=1.0).eval()
    terms = objective.terms({"labeled": part, "unlabeled": {**part, "label": torch.full((4,), -1)}})
    for name in ("kd/labeled", "kd/unlabeled"):
        assert value(terms[name]).item() == pytest.approx(0, abs=1e-6)  # logits of 100 in float32
    assert value(terms["ce"]).item() > 0.1
    other = DHO(make(folder, normalise=False), Frozen(make(folder), TASK.classes)).eval()
    assert value(other.terms({"labeled": part, "unlabeled": part})["kd/labeled"]).item() > 1e-3


def test_cache_beside_zero_shot_logits(folder: Path, tmp_path: Path) -> None:
    """Tip-Adapter: 100 cos(E(x), W) + alpha exp(-(beta - beta affinity)) @ values."""
    images, weight = reference(folder, True)
    directions, labels = normalize(images[:3], dim=-1), torch.tensor([2, 0, 0])
    made = with_cache(make(folder), images[:3], labels, alpha=1.2, beta=5.0).eval()
    affinity = normalize(images, dim=-1) @ directions.T
    values = torch.tensor([[0.0, 0, 1], [1, 0, 0], [1, 0, 0]])
    expected = 100 * normalize(images, dim=-1) @ weight.T + 1.2 * torch.exp(-(5 - 5 * affinity)) @ values
    torch.testing.assert_close(made(IMAGES).logits, expected, rtol=1e-4, atol=1e-3)  # 100 times float32's rounding
    loaded = load(save(made, tmp_path / "cached"))
    assert torch.equal(loaded(IMAGES).logits, made(IMAGES).logits)


def test_saved_student_needs_no_text_encoder(folder: Path, tmp_path: Path) -> None:
    student = DHO(make(folder), Frozen(make(folder))).student.eval()
    path = save(student, tmp_path / "model")
    arguments = json.loads((path / "config.json").read_text())["arguments"]["model"]
    assert "pretrained" not in arguments
    loaded = load(path)
    assert isinstance(loaded.get_submodule("body.head"), DualHead)
    assert not [name for name in loaded.state_dict() if "text" in name]
    assert torch.equal(loaded(IMAGES).logits, student(IMAGES).logits)


def test_names_of_classes(tmp_path: Path) -> None:
    file = tmp_path / "names.json"
    file.write_text(json.dumps({"tabby_cat": "tabby", "dog": "hound", "owl": "owl"}))
    assert _prompts(TASK, ["a {}."], str(file)) == [["a tabby."], ["a hound."], ["a owl."]]
    file.write_text(json.dumps({"dog": "hound"}))
    with pytest.raises(LimbeckError, match="does not say what 2 classes are called"):
        _prompts(TASK, ["a {}."], str(file))
    file.write_text("{")
    with pytest.raises(LimbeckError, match="is not JSON"):
        _prompts(TASK, ["a {}."], str(file))


def test_wrong_options(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match="either pretrained"):
        build("clip", TASK)
    with pytest.raises(LimbeckError, match="either pretrained"):
        build("clip", TASK, pretrained=str(folder), config={"hidden_size": 8})
    with pytest.raises(LimbeckError, match=r"need \{\}"):
        build("clip", TASK, pretrained=str(folder), templates=["a photo"])
    with pytest.raises(LimbeckError, match="cannot load CLIP from"):
        build("clip", TASK, pretrained=str(tmp_path))
    with pytest.raises(LimbeckError, match="cannot make CLIP"):
        build("clip", TASK, config={"hidden_size": 10, "num_attention_heads": 3})
