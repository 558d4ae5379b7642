"""P2OT: clustering by progressive partial optimal transport."""

import copy
from typing import Any, Literal

from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.methods.clustering.self_labelling import SelfLabelling
from limbeck.methods.semi_supervised.contrastive import Contrastive, check_contrastive
from limbeck.models.classifier import Classifier
from limbeck.models.clusterer import Clusterer, cluster
from limbeck.models.projector import project_contrastively
from limbeck.stages.fit import Fit
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Program

TEMPERATURE = 0.5
"""Of the contrastive pre-training: that of SimCLR on small images."""


class P2OT:
    """Pseudo labels of the surest share of all samples, from transport with soft cluster sizes; the share grows to 1.

    Source: Zhang, Ren, He, "P2OT: Progressive Partial Optimal Transport for Deep Imbalanced Clustering", arXiv
    2401.09266 (ICLR 2024), as released; the paper is known from memory and reviews. A pretrained encoder and a fresh
    cosine head give P = softmax(z) of N samples (a bank of the last logits, and the batch), and

        min_Q <Q, -log P> + gamma KL(Q^T 1 || rho / K) + epsilon entropy,  Q 1 <= 1 / N,  1^T Q 1 = rho

    (:func:`limbeck.labels.assign.transport.transport`), for each of two views on its own. Rows of N Q sum to at most 1:
    they are soft clusters and how far each sample is trusted. With q_A and q_B of one batch of B samples

        L = -1/B sum_i sum_k (q_B,ik log p_A,ik + q_A,ik log p_B,ik),   rho_t = rho_0 + (1 - rho_0) e^(-5 (1 - t/T)^2),

    summed over heads; the loss is not divided by rho. Kept are the head, and the epoch, with the lowest loss / rho.
    Balanced Sinkhorn self-labelling is ``gamma: .inf, rho_0: 1``, unbalanced transport ``rho_0: 1``.

    Choices: older entries of the batch's own samples in the bank count for nothing; a contrastive pre-training
    (:class:`~limbeck.methods.semi_supervised.contrastive.Contrastive`) where there is no pretrained encoder. The result
    has ``k_means/...`` (on the first features) and ``precision/MASS`` of pseudo labels at several masses.

    Differs from the released code: its ColorJitter() without arguments, which does nothing, and its prior option, which
    gives the largest prior to the least likely cluster, are left out.

    Args:
        data: its labels are used in metrics only, and name the number of clusters.
        student: the encoder, pretrained or not.
        fit: of the self-labelling (paper: Adam 5e-4, no weight decay, cosine, 50 epochs of batches of 512).
        pretraining: of a contrastive pre-training; null: there is none.
        clusters: K; null: as many as classes.
        epsilon: weight of the entropy.
        gamma: weight of the divergence of cluster sizes; infinite prescribes equal sizes.
        rho_0: share of the mass at the start; 1 transports all of it from the beginning.
        bank: batches over which the transport runs, the current one included; at most all data.
        heads: clusterings that are trained side by side.
        scale: of the cosine heads.
        trainable: beginnings of the names of the encoder's parameters that train; null: all do (paper: the last block).
        view: of both readings of an image.
        select: keep the epoch with the lowest loss / rho, or the last.
    """

    def __init__(
        self,
        data: ImageData,
        student: Classifier,
        fit: FitSettings,
        pretraining: FitSettings | None = None,
        clusters: int | None = None,
        epsilon: float = 0.1,
        gamma: float = 1.0,
        rho_0: float = 0.1,
        bank: int = 10,
        heads: int = 2,
        scale: float = 10.0,
        trainable: list[str] | None = None,
        view: str = "crop",
        select: Literal["loss", "last"] = "loss",
    ) -> None:
        if not epsilon > 0 or not gamma >= 0 or not 0 < rho_0 <= 1 or bank < 1:
            raise LimbeckError(
                f"epsilon is {epsilon}, gamma {gamma}, rho_0 {rho_0} and bank {bank}; expected epsilon > 0, "
                "gamma >= 0, rho_0 in (0, 1] and bank >= 1"
            )
        check_contrastive(fit if pretraining is None else pretraining, "pretraining", view, TEMPERATURE)
        names = [name for name, _ in student.body.named_parameters()]
        for start in trainable or []:
            if not any(name.startswith(start) for name in names):
                raise LimbeckError(f"trainable: no parameter of the student begins with {start!r}; it has {names[:20]}")
        number = len(data.classes) if clusters is None else clusters
        cluster(copy.deepcopy(student), data.task, clusters=number, heads=heads, scale=scale)  # whether it can be done
        self.data, self.student, self.fit, self.pretraining, self.trainable = data, student, fit, pretraining, trainable
        self.head: dict[str, Any] = {"clusters": number, "heads": heads, "scale": scale}
        self.options: dict[str, Any] = {"epsilon": epsilon, "gamma": gamma, "rho_0": rho_0, "bank": bank}
        self.options |= {"view": view, "select": select}

    def program(self) -> Program:
        """Pre-train where asked to, then label and learn."""
        encoder = self.student
        if self.pretraining is not None:
            contrast = Contrastive(project_contrastively(encoder, self.data.task), TEMPERATURE, self.options["view"])
            projector = yield Fit("pretrain", contrast, self.data, self.pretraining)
            encoder = projector.encoder
        if self.trainable is not None:
            for name, parameter in encoder.body.named_parameters():
                parameter.requires_grad_(name.startswith(tuple(self.trainable)))
        student = cluster(encoder, self.data.task, **self.head)
        return (yield Fit("cluster", self.objective(student), self.data, self.fit))

    def objective(self, student: Clusterer) -> SelfLabelling:
        """What the fit optimises."""
        return SelfLabelling(student, self.data, **self.options)
