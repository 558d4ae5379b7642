"""CLIP of the transformers library as a classifier: images are compared with what their classes are called."""

import json
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError, require
from limbeck.models.classifier import Classifier, ImageTask
from limbeck.models.zero_shot import ZeroShotHead, prompt_mean

TEMPLATES = ["a photo of a {}."]
PROMPTS = 256
"""Prompts that the text encoder reads at once."""


class ClipImage(nn.Module):
    """CLIP's image encoder E with a classification head: images [B, 3, H, W] to logits [B, C].

    Args:
        encoder: ``CLIPVisionModelWithProjection``; the features are its projected embeddings, not normalised.
        head: from embeddings to logits.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch."""
        logits: Tensor = self.head(self.encoder(pixel_values=images).image_embeds)
        return logits


def clip(
    task: ImageTask,
    *,
    pretrained: str | None = None,
    templates: list[str] = TEMPLATES,
    names: str | None = None,
    normalise: bool = True,
    scale: float = 100.0,
    config: dict[str, Any] | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
) -> Classifier:
    """CLIP as a zero-shot classifier: logits are scale x cosine of image and text embeddings.

    The vector of a class is the mean of the text embeddings of its prompts. Images are resized to the encoder's size
    (bilinear, aspect ratio not kept, where CLIP takes the centre square).

    Args:
        task: Classes and images; underscores in the names of classes are read as spaces.
        pretrained: Name on the hub or folder of a CLIP model with its tokenizer: weights in safetensors only.
        templates: Prompts, with {} in the place of the class.
        names: JSON file {class: words} of what classes are called in prompts, where their names in the data are codes.
        normalise: Whether text embeddings and their mean are brought to length 1, as a zero-shot classifier needs; DHO
            starts students from the plain means.
        scale: Of the logits.
        config: The image encoder's configuration, in the place of a pretrained one: a network with random weights and
            classes, which is what a saved model is read into.
        mean: Of the preprocessing, with config; CLIP's own where not given.
        std: Of the preprocessing, with config; CLIP's own where not given.

    Raises:
        LimbeckError: transformers is not installed; not one of pretrained and config is given, or neither can be used;
            a template without {}; or a class without a name.
    """
    library = require("transformers", extra="text")
    if (pretrained is None) == (config is None):
        raise LimbeckError("clip: give either pretrained (a name on the hub, or a folder) or the config of its encoder")
    wrong = [template for template in templates if "{}" not in template]
    if wrong or not templates:
        raise LimbeckError(f"clip: templates {templates} need {{}} where the class stands")
    if pretrained is not None:
        encoder, weight, mean, std = _pretrained(library, pretrained, _prompts(task, templates, names), normalise)
    else:
        assert config is not None
        try:
            encoder = library.CLIPVisionModelWithProjection(library.CLIPVisionConfig(**config))
        except Exception as error:  # of any kind, as below
            raise LimbeckError(f"transformers cannot make CLIP's image encoder of this config: {error}") from error
        weight = prompt_mean(torch.randn(len(task.classes), 1, encoder.config.projection_dim))
    own = library.image_utils
    mean, std = mean or list(own.OPENAI_CLIP_MEAN), std or list(own.OPENAI_CLIP_STD)
    made = Classifier(
        ClipImage(encoder, ZeroShotHead(weight, scale)),
        task.classes,
        size=encoder.config.image_size,
        mean=mean,
        std=std,
        head="head",
    )
    # A saved model has its own weights: reading it downloads nothing and needs no text encoder.
    made.factory = "clip"
    plain = json.loads(json.dumps(encoder.config.to_diff_dict(), default=str))
    made.arguments = {"config": plain, "scale": scale, "mean": mean, "std": std}
    return made


def _prompts(task: ImageTask, templates: list[str], names: str | None) -> list[list[str]]:
    """The prompts of every class."""
    words = {name: name.replace("_", " ") for name in task.classes}
    if names is not None:
        from limbeck.data.places import existing

        try:
            found = json.loads(existing(names).read_text(encoding="utf-8"))
        except ValueError as error:
            raise LimbeckError(f"clip: {names} is not JSON: {error}") from None
        missing = [name for name in task.classes if not isinstance(found, dict) or name not in found]
        if missing:
            raise LimbeckError(f"clip: {names} does not say what {len(missing)} classes are called: {missing[:5]}")
        words = {name: str(found[name]) for name in task.classes}
    return [[template.replace("{}", words[name]) for template in templates] for name in task.classes]


def _pretrained(
    library: Any, name: str, prompts: list[list[str]], normalise: bool
) -> tuple[Any, Tensor, list[float], list[float]]:
    """Image encoder, vectors of the classes [C, D], and the mean and standard deviation of the preprocessing."""
    try:
        whole = library.CLIPModel.from_pretrained(name, use_safetensors=True, dtype=torch.float32).eval()
        tokenizer = library.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        images = library.AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    # transformers and the hub below it raise errors of any kind for a bad name or a failed download.
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise LimbeckError(f"transformers cannot load CLIP from {name!r}: {reason}") from error
    encoder = library.CLIPVisionModelWithProjection(whole.config.vision_config)
    parts = {"vision_model": whole.vision_model, "visual_projection": whole.visual_projection}
    encoder.load_state_dict({f"{part}.{key}": v for part, m in parts.items() for key, v in m.state_dict().items()})
    every = [prompt for of_class in prompts for prompt in of_class]
    embeddings = []
    with torch.no_grad():
        for first in range(0, len(every), PROMPTS):
            longest = whole.config.text_config.max_position_embeddings
            tokens = tokenizer(
                every[first : first + PROMPTS], padding=True, truncation=True, max_length=longest, return_tensors="pt"
            )
            states = whole.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
            embeddings.append(whole.text_projection(states.pooler_output))
    weight = prompt_mean(torch.cat(embeddings).unflatten(0, (len(prompts), -1)), normalise)
    return encoder, weight, [float(value) for value in images.image_mean], [float(value) for value in images.image_std]
