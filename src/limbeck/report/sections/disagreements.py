"""The test samples on which teacher, student and truth disagree most, to be looked at."""

import base64
import io

import torch
from PIL import Image
from torch import Tensor

from limbeck.data import Data, ImageData
from limbeck.errors import LimbeckError
from limbeck.report.blocks import Gallery, Opinion, Picture, Section, Text
from limbeck.report.folder import Loaded, Predictions

_COUNT = 12
_SIZE = 160  # pixels of an enlarged picture; larger ones are made smaller, to keep the page light


def disagreements(loaded: Loaded, data: Data | None) -> Section | None:
    """Pictures of the first seed of the featured arm."""
    arm = loaded.featured
    seed = next((seed for seed in arm.seeds if seed.final.predictions is not None), None)
    if seed is None or (said := seed.final.predictions) is None:
        return None
    data = seed.data if data is None else data
    if not isinstance(data, ImageData):  # rows of a table are no pictures
        return None
    positions = _most(said)
    images = _images(said, positions, data)
    pictures = tuple(_picture(said, int(p), image) for p, image in zip(positions, images, strict=True))
    who = "teacher, student and truth" if said.teacher_logits is not None else "student and truth"
    note = f"Of {len(said.label)} test samples the {len(pictures)} on which {who} differ most: {arm.name}, seed "
    note += f"{seed.seed}. Per cent: how sure each is of its answer. They are picked for being hard, not typical."
    return Section("disagreements", "Where they disagree most", (Gallery(pictures), Text(note, "note")))


def _most(said: Predictions) -> Tensor:
    """Positions by the sum of total variation distances between truth, student and teacher, largest first.

    It is largest (3) where all three are sure of different classes.
    """
    student = said.logits.softmax(-1)
    truth = torch.nn.functional.one_hot(said.label, student.shape[-1]).to(student)
    opinions = [truth, student]
    if said.teacher_logits is not None:
        opinions.append(said.teacher_logits.softmax(-1))
    score = torch.zeros(len(truth))
    for i, one in enumerate(opinions):
        for other in opinions[:i]:
            score += (one - other).abs().sum(-1) / 2
    score = score.nan_to_num(-1.0)
    return score.argsort(descending=True, stable=True)[:_COUNT]


def _images(said: Predictions, positions: Tensor, data: ImageData) -> Tensor:
    """Images [P, C, H, W] in [0, 1], proven to be those that the predictions are about."""
    if len(data.test) != len(said.label):
        raise LimbeckError(f"the test data has {len(data.test)} samples, the predictions {len(said.label)}")
    batch = data.test.fetch(positions)
    if not torch.equal(batch["index"].long(), said.index[positions]):
        raise LimbeckError("the test data is not the one the predictions were made on (its indices differ)")
    return batch["image"]


def _picture(said: Predictions, position: int, image: Tensor) -> Picture:
    truth = int(said.label[position])
    opinions = [Opinion("truth", said.classes[truth])]
    for who, logits in (("teacher", said.teacher_logits), ("student", said.logits)):
        if logits is not None:
            confidence, answer = logits[position].softmax(-1).max(-1)
            opinions.append(
                Opinion(who, said.classes[int(answer)], f"{100 * float(confidence):.0f} %", int(answer) == truth)
            )
    spoken = ", ".join(f"{o.who} {o.says}{f' ({o.confidence})' if o.confidence else ''}" for o in opinions)
    name = f"Test sample {int(said.index[position])}"
    return Picture(_png(image), f"{name}: {spoken}", name, tuple(opinions), min(image.shape[-2:]) < _SIZE // 2)


def _png(image: Tensor) -> str:
    """A data URI of an image [1|3, H, W]; small ones grow by a whole factor, so that pixels stay square."""
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    pixels = pixels[0] if pixels.shape[0] == 1 else pixels.permute(1, 2, 0)
    picture = Image.fromarray(pixels.numpy())
    side = max(picture.size)
    if side <= _SIZE:
        factor = _SIZE // side
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    else:
        picture.thumbnail((2 * _SIZE, 2 * _SIZE))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
