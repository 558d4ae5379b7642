"""Pictures for the page as data URIs."""

import base64
import io

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


def strip(images: Tensor, height: int) -> str:
    """Images side by side with white between them, enlarged by a whole factor or made smaller to about ``height``.

    Args:
        images: [N, 1|3, H, W] in [0, 1], N > 0.
        height: of the strip, in pixels; smaller ones are kept at up to twice of it, for sharp screens.
    """
    row = torch.cat(list(F.pad(images, (1, 1), value=1.0)), dim=2)
    pixels = (row.clamp(0, 1) * 255).round().to(torch.uint8)
    picture = Image.fromarray((pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)).numpy())
    if picture.height < height:
        factor = max(1, round(height / picture.height))
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    else:
        picture.thumbnail((picture.width * 2 * height // picture.height, 2 * height))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
