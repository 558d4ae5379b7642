"""The handwritten digits that come with scikit-learn."""

import torch

from limbeck.data.samples import Samples, Source
from limbeck.data.splits import hold_out
from limbeck.errors import require


def digits() -> Source:
    """Handwritten digits, 1,797 grey images of 8 x 8 pixels in 10 classes, shipped with scikit-learn.

    The data set has no test split of its own: a fixed, stratified quarter (449 images) is held out, the same
    in every run. UCI machine learning repository, Optical Recognition of Handwritten Digits (Alpaydin and
    Kaynak 1998).
    """
    bunch = require("sklearn.datasets", extra="all").load_digits()
    images = torch.from_numpy(bunch.images).float()[:, None] / 16  # 4-bit counts of ink
    whole = Samples(images, torch.from_numpy(bunch.target), tuple(str(digit) for digit in range(10)))
    train, test = hold_out(whole, 0.25)
    return Source(train, test, flip=False)
