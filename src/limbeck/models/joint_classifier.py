"""A classifier of (class, transformation) pairs that is asked for the class only."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from limbeck.data.transformations import transform, transformations
from limbeck.errors import LimbeckError
from limbeck.labels.joint import aggregate as aggregated
from limbeck.models.build import build_inner
from limbeck.models.classifier import Classifier, ClassifierOutput, ImageTask, images_of
from limbeck.models.heads import replace_head


class JointClassifier(Classifier):
    """Answers for the classes from joint logits (SLA, arXiv 1910.05872, section 2.2).

    Aggregated: it makes all M views of an image itself, and its logits are the means over the views j of what each
    says about (class, j); a forward pass costs M of the body. Single: only the image as it is, and (class, 0).
    The features are those of the image as it is.

    Args:
        joint: a classifier of all pairs, see :func:`joint_classes`; not copied.
        classes: names of the classes, N.
        transformation: name in :data:`limbeck.data.transformations.TRANSFORMATIONS`, M of them.
        aggregate: whether all views are asked.

    Raises:
        LimbeckError: ``joint`` does not have these pairs as its classes.
    """

    def __init__(self, joint: Classifier, classes: Sequence[str], transformation: str, aggregate: bool = True) -> None:
        wanted = joint_classes(classes, transformation)
        if joint.classes != wanted:
            raise LimbeckError(f"the joint classifier has the classes {list(joint.classes)}, expected {list(wanted)}")
        if joint.head is None:
            raise LimbeckError("the joint classifier has no known head; name it: Classifier(..., head=NAME)")
        super().__init__(
            joint,
            classes,
            channels=joint.channels,
            size=joint.size,
            mean=joint.mean,
            std=joint.std,
            head=f"body.{joint.head}".removesuffix("."),
        )
        self.transformation = transformation
        self.aggregate = aggregate

    @property
    def joint(self) -> Classifier:
        """The classifier of the pairs."""
        assert isinstance(self.body, Classifier)
        return self.body

    def set_preprocessing(
        self,
        *,
        channels: int,
        size: int | Sequence[int] | None,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        """Replace what happens to images, in the joint classifier, which does it."""
        super().set_preprocessing(channels=channels, size=size, mean=mean, std=std)
        self.joint.set_preprocessing(channels=channels, size=size, mean=mean, std=std)

    def forward(self, batch: Mapping[str, Tensor] | Tensor) -> ClassifierOutput:
        """Class logits [B, N] and features; arguments and errors as of the base class."""
        images = images_of(batch)
        views = len(transformations(self.transformation))
        output = self.joint(transform(images, self.transformation) if self.aggregate else images)
        self._tap.value = None  # the joint classifier hands its features over itself
        if not self.aggregate:
            return ClassifierOutput(output.logits[:, ::views], output.features)
        features = None if output.features is None else output.features[::views]
        return ClassifierOutput(aggregated(output.logits.unflatten(0, (-1, views))), features)


def joint_classes(classes: Sequence[str], transformation: str) -> tuple[str, ...]:
    """Names of all (class, transformation) pairs, in the order of their labels ``y M + j``."""
    return tuple(f"{name}/{view}" for name in classes for view in range(len(transformations(transformation))))


def with_joint_head(model: Classifier, transformation: str, aggregate: bool = True) -> JointClassifier:
    """A classifier with a fresh head for all pairs in the place of its own; its body is not copied.

    It is saved by the model's builder and arguments; one that :func:`limbeck.models.build` did not make is saved too,
    and loading it takes a factory that returns a :class:`JointClassifier`.

    Raises:
        LimbeckError: no head was found, or there are no such transformations.
    """
    made = JointClassifier(
        replace_head(model, joint_classes(model.classes, transformation)), model.classes, transformation, aggregate
    )
    if model.factory is not None:
        block = {"name": model.factory, **model.arguments}
        made.factory = "joint_classifier"
        made.arguments = {"model": block, "transformation": transformation, "aggregate": aggregate}
    return made


def joint_classifier(
    task: ImageTask, *, model: dict[str, Any], transformation: str = "rotation", aggregate: bool = True
) -> Classifier:
    """A network with one logit a (class, transformation) pair that answers for the classes.

    Args:
        task: Classes and images.
        model: The network, a model block such as {name: cnn, width: 16}.
        transformation: none, rotation, rotation2, color_perm, color_perm3, rot_color_perm6, rot_color_perm12 or
            rot_color_perm24.
        aggregate: Whether all transformed views of an image are asked, or only the image itself.

    Raises:
        LimbeckError: the model is not one of limbeck's builders, or is not a classifier with a known head.
    """
    return with_joint_head(build_inner(model, task, "joint_classifier"), transformation, aggregate)
