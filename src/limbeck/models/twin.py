"""Another network of the same kind."""

from limbeck.errors import LimbeckError
from limbeck.models.build import build
from limbeck.models.classifier import Classifier, ImageTask


def twin(model: Classifier) -> Classifier:
    """The same network with first weights of its own, drawn from torch's global generator.

    Args:
        model: a classifier that :func:`limbeck.models.build` made; it is not changed.

    Raises:
        LimbeckError: a module of your own: how it is made is not known.
    """
    if model.factory is None or model.size is None:
        raise LimbeckError(
            f"a twin of {type(model.body).__name__} cannot be made: only limbeck.models.build knows how a model was "
            "made; name it by a builder or by package.module.Class"
        )
    task = ImageTask(model.classes, model.channels, model.size, model.mean, model.std)
    made = build(model.factory, task, **model.arguments)
    assert isinstance(made, Classifier)
    return made
