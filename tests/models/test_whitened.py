"""Contrast normalisation and ZCA against NumPy on digits, and the classifier around them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.data.samples import ImageData
from limbeck.data.stream import eval_batches
from limbeck.errors import LimbeckError
from limbeck.models import Classifier, build, load, save
from limbeck.models.whitened import Whitening, with_whitening


def images(data: ImageData, batch_size: int = 100) -> Iterator[Tensor]:
    return (part["image"] for part in eval_batches(data.train, batch_size))


def fitted(data: ImageData) -> tuple[Whitening, Tensor]:
    every = torch.cat(list(images(data)))
    made = Whitening(every[0].numel())
    made.fit(images(data))
    return made, every


def contrast(x: np.ndarray) -> np.ndarray:
    """Image by image."""
    rows = []
    for row in x:
        centred = row - row.mean()
        rows.append(centred / np.sqrt((centred**2).sum()) * 55)
    return np.stack(rows)


def test_against_numpy(digits: ImageData) -> None:
    made, every = fitted(digits)
    g = contrast(every.flatten(1).double().numpy())
    left, values, _ = np.linalg.svd(np.cov(g, rowvar=False) + 0.1 * np.eye(64))
    expected = (g - g.mean(0)) @ left @ np.diag(values**-0.5) @ left.T
    # float32: contrasts of up to 30 through a matrix with entries of up to 3.
    np.testing.assert_allclose(made(every).flatten(1).numpy(), expected, atol=2e-4)


def test_what_is_white(digits: ImageData) -> None:
    """A covariance S becomes S / (S + r): 1 where images vary, 0 where they do not; nothing is turned."""
    made, every = fitted(digits)
    g, white = made.contrast(every.double()), made(every).flatten(1).double()
    assert white.mean(0).abs().max() < 1e-3
    before, after = (torch.linalg.eigvalsh(part.T.cov()) for part in (g, white))
    torch.testing.assert_close(after, before / (before + 0.1), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(made.matrix, made.matrix.T, rtol=0, atol=1e-6)


def test_contrast_and_brightness_mean_nothing(digits: ImageData) -> None:
    made, every = fitted(digits)
    torch.testing.assert_close(made(0.3 * every + 0.2), made(every), rtol=0, atol=2e-3)  # float32, as above
    flat = torch.full((1, 1, 8, 8), 0.4)
    torch.testing.assert_close(made(flat).flatten(1)[0], -made.mean @ made.matrix)
    assert made.contrast(every).norm(dim=1).allclose(torch.tensor(55.0))


def test_parts_and_precision_do_not_matter(digits: ImageData) -> None:
    made, every = fitted(digits)
    other = Whitening(64)
    other.fit([every])
    torch.testing.assert_close(other.matrix, made.matrix, rtol=0, atol=1e-6)
    half = Whitening(64).to(torch.bfloat16)
    half.fit([every])
    assert torch.equal(half.matrix, other.matrix)
    outside = made(every)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made(every), outside)
    assert made(every.bfloat16()).dtype == torch.bfloat16


def test_classifier(digits: ImageData, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = build("cnn", digits.task, width=2).eval()
    assert isinstance(plain, Classifier)
    body, every = plain.body, torch.cat(list(images(digits)))[:9]
    made = with_whitening(plain, images(digits)).eval()
    found = made(every)
    first = made.body.get_submodule("0")
    torch.testing.assert_close(found.logits, body(first(every)))
    assert found.features is not None
    head = body.get_submodule(made.head.removeprefix("1.body."))
    torch.testing.assert_close(head(found.features), found.logits)
    loaded = load(save(made, tmp_path / "model"))
    assert torch.equal(loaded(every).logits, found.logits)
    # Grey images of another size come to the network as those that it was whitened for.
    assert made(torch.rand(2, 3, 16, 16)).logits.shape == (2, 10)


def test_refuses(digits: ImageData) -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    with pytest.raises(LimbeckError, match="give the classifier a size"):
        with_whitening(Classifier(network, digits.classes, channels=1), images(digits))
    sized = Classifier(network, digits.classes, channels=1, size=8)
    with pytest.raises(LimbeckError, match="there are 1"):
        with_whitening(sized, (part[:1] for part in [next(images(digits))]))
    with pytest.raises(LimbeckError, match="ridge 0"):
        with_whitening(sized, images(digits), ridge=0.0)
