"""A linear probe: how well a linear layer on a network's features, which stay as they are, tells the classes apart."""

import torch
from torch import Tensor, nn

from limbeck.data.samples import ImageData, Samples
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.losses.divergence import cross_entropy
from limbeck.losses.reduction import Mean
from limbeck.metrics.probes import standardisation
from limbeck.models.classifier import Classifier
from limbeck.models.heads import num_features
from limbeck.stages.evaluation import predict_logits, quality
from limbeck.stages.evaluation.representation import embed, nearest_neighbours
from limbeck.stages.objective import Batch, Objective, Terms
from limbeck.teachers.frozen import Frozen


class LinearProbe(Objective):
    """Cross-entropy of a linear layer on standardised features; it becomes the classification head of ``student``.

    Features are those of the eval mode, without augmentation, so that each is computed once. Standardisation (by mean
    and standard deviation of the training features) is made part of the head's weights. The result has
    ``knn_accuracy`` too, and with ``start`` the ``gain`` in accuracy over it.

    Args:
        student: a classifier; all of it but the classification head stays as it is.
        samples: training samples.
        teacher: another probed network, measured beside the student.
        start: the student before its training, probed.

    Raises:
        LimbeckError: the classification head is no linear layer with bias.
    """

    student: Classifier
    table: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self, student: Classifier, samples: Samples, teacher: Frozen | None = None, start: Frozen | None = None
    ) -> None:
        super().__init__()
        inputs = num_features(student, "a linear probe")
        assert student.head is not None
        head = student.body.get_submodule(student.head)
        if not isinstance(head, nn.Linear) or head.bias is None:
            raise LimbeckError(f"a linear probe needs a linear classification head with bias; {student.head} is {head}")
        self.student = student.requires_grad_(False)
        self.teacher, self.start = teacher, start
        features = embed(student, samples)
        mean, std = standardisation(features)
        table = torch.zeros(samples.num_samples, inputs)
        table[samples.indices] = (features - mean) / std
        for name, value in (("table", table), ("mean", mean), ("std", std)):
            self.register_buffer(name, value, persistent=False)
        self.probe = nn.Linear(inputs, len(student.classes))

    def streams(self, data: ImageData, batch_size: int, seed: int) -> Stream:
        """The training samples as they are."""
        self._data = data
        return Stream(data.train, batch_size, seed)

    def terms(self, batch: Batch) -> Terms:
        """Mean cross-entropy over the samples that have a label."""
        logits = self.probe(self.table.index_select(0, batch["index"]))
        labelled = batch["label"] >= 0
        return {"ce": Mean.of(cross_entropy(logits, batch["label"], weight=labelled, reduction="none"), labelled)}

    def after_update(self, batch: Batch) -> None:
        """Write the probe into the student's head: ``W (f - mean) / std + b`` as a linear function of f."""
        assert self.student.head is not None
        head = self.student.body.get_submodule(self.student.head)
        assert isinstance(head, nn.Linear)
        head.weight.copy_(self.probe.weight / self.std)
        head.bias.copy_(self.probe.bias - head.weight @ self.mean)

    def summary(self) -> dict[str, float]:
        """The k nearest neighbours of all networks, and what training has gained."""
        networks = {"": self.student, "teacher/": self.teacher, "start/": self.start}
        test = self._data.test
        found = {
            f"{prefix}knn_accuracy": nearest_neighbours(network, self._data, test)
            for prefix, network in networks.items()
            if network is not None
        }
        if self.start is not None:
            after, before = (quality(predict_logits(model, test))["accuracy"] for model in (self.student, self.start))
            found["gain"] = after - before
        return found
