"""Models by name: a builder of this package, or a class of the user's own."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, get_type_hints

from limbeck.errors import LimbeckError, nearest
from limbeck.models.index import BUILDERS

if TYPE_CHECKING:
    from limbeck.models.classifier import Classifier, ImageTask
    from limbeck.models.model import Model


def build(name: str, task: Any, **arguments: Any) -> "Model":
    """Make a model for a task.

    Args:
        name: A short name of :data:`limbeck.models.index.BUILDERS`, or ``package.module.Class`` of an
            ``nn.Module`` of your own. Yours is called with its own arguments, plus ``num_classes`` where it
            takes it, and is wrapped in a :class:`~limbeck.models.classifier.Classifier` with the
            normalisation and the image size of the task; a ``Classifier`` that it returns is left as it is.
        task: What the model is for: an :class:`~limbeck.models.classifier.ImageTask` (classes and images), or what
            else the data's ``task`` says. A class of your own needs an ImageTask.
        **arguments: Options of the builder or of your class.

    Returns:
        The model, initialised from torch's global random state, in training mode. It remembers name and
        arguments, so that it can be saved and loaded.

    Raises:
        LimbeckError: unknown name or argument (with the nearest known one), a required argument is missing,
            or something else than a module came back.
    """
    factory = find(name)
    if name in BUILDERS:
        check_arguments(name, factory, arguments, given=("task",))
        wanted = get_type_hints(factory)["task"]
        if wanted is not Any and not isinstance(task, wanted):
            raise LimbeckError(
                f"model {name!r} is built for a {wanted.__name__}, and the data give a {type(task).__name__}"
            )
        # Written out: a saved model does not change when a default does.
        arguments = _defaults(factory) | arguments
        model: Model = factory(task, **arguments)
    else:
        check_arguments(name, factory, arguments, given=("num_classes",))
        model = wrap(name, factory, task, arguments)
    if model.factory is None:
        model.factory, model.arguments = name, arguments
    return model


def build_inner(block: Mapping[str, Any], task: "ImageTask", outer: str) -> "Classifier":
    """The network that the arguments of another builder name, as {name: cnn, width: 16}.

    Args:
        block: may come from a saved model's config.json: code that a file names is not run, nor another file read.
        task: what it is for.
        outer: the builder that it is for, for messages.

    Raises:
        LimbeckError: it is not one of limbeck's builders, or makes no classifier.
    """
    from limbeck.models.classifier import Classifier
    from limbeck.models.folder import READERS

    arguments = dict(block)
    name = arguments.pop("name", None)
    if name not in BUILDERS or name in READERS:
        raise LimbeckError(f"model {outer!r} is built from a builder of limbeck, not from {name!r}")
    network = build(name, task, **arguments)
    if not isinstance(network, Classifier):
        raise LimbeckError(f"model {outer!r} needs a classifier of images, and {name} is one for {network.task}")
    return network


def find(name: str) -> Callable[..., Any]:
    """Import the builder or class that ``name`` means, as of :func:`build`.

    Raises:
        LimbeckError: neither a known short name nor an importable ``package.module.Class``.
    """
    if name not in BUILDERS and "." not in name:
        raise LimbeckError(
            f"unknown model {name!r}.{nearest(name, BUILDERS)} Known: {', '.join(BUILDERS)}, "
            "or package.module.Class of your own"
        )
    module_name, _, attribute = BUILDERS[name].partition(":") if name in BUILDERS else name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module missing further down is another error than a wrong name: it keeps its own message.
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise
        raise LimbeckError(f"model {name!r}: no module named {error.name!r} can be imported") from None
    if not callable(getattr(module, attribute, None)):
        raise LimbeckError(
            f"model {name!r}: {module_name} has no class or function {attribute!r}.{nearest(attribute, vars(module))}"
        )
    found: Callable[..., Any] = getattr(module, attribute)
    return found


def check_arguments(
    name: str, factory: Callable[..., Any], arguments: Mapping[str, Any], *, given: tuple[str, ...]
) -> None:
    """Check arguments against the signature of a factory.

    Args:
        name: The factory's name, for messages.
        factory: The function or class to be called.
        arguments: What the user passes by name.
        given: Names that are passed by this package and not by the user.

    Raises:
        LimbeckError: an argument that the factory does not take, or one that it needs and does not get.
    """
    kinds = inspect.Parameter
    parameters = inspect.signature(factory).parameters
    options = {
        key: parameter
        for key, parameter in parameters.items()
        if key not in given and parameter.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    }
    takes_any = any(parameter.kind is kinds.VAR_KEYWORD for parameter in parameters.values())
    for key in arguments:
        if key in given or not (takes_any or key in options):
            takes = f"it takes {', '.join(options)}" if options else "it takes no arguments"
            raise LimbeckError(f"model {name!r} has no argument {key!r}.{nearest(key, options)} ({takes})")
    missing = [key for key, parameter in options.items() if parameter.default is kinds.empty and key not in arguments]
    if missing:
        raise LimbeckError(f"model {name!r} needs the argument {', '.join(missing)}")


def _defaults(factory: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(factory).parameters
    return {
        key: parameter.default
        for key, parameter in parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }


def wrap(name: str, factory: Callable[..., Any], task: "ImageTask", arguments: Mapping[str, Any]) -> "Classifier":
    """Call a factory of the user's own and wrap the module that it returns, as of :func:`build`.

    Raises:
        LimbeckError: it does not return an ``nn.Module``, or returns a ``Classifier`` for other classes.
    """
    from torch import nn

    from limbeck.models.classifier import Classifier, input_channels

    takes = inspect.signature(factory).parameters
    count = {"num_classes": len(task.classes)} if "num_classes" in takes else {}
    body = factory(**count, **arguments)
    if isinstance(body, Classifier):
        if body.classes != task.classes:
            raise LimbeckError(
                f"model {name!r} has the classes {list(body.classes)}, the task has {list(task.classes)}"
            )
        return body
    if not isinstance(body, nn.Module):
        raise LimbeckError(f"model {name!r} returned {type(body).__name__}, not a torch.nn.Module")
    channels = input_channels(body, task.channels)
    mean, std = task.normalisation(channels)
    return Classifier(body, task.classes, channels=channels, size=task.size, mean=mean, std=std)
