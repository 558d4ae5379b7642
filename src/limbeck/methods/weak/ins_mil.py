"""INS: a good instance classifier is all you need."""

from typing import Any, Literal

from limbeck.data.instance_bags import InstanceBagData
from limbeck.errors import LimbeckError
from limbeck.methods.weak.instance_teaching import InstanceTeaching
from limbeck.methods.weak.sil import SIL
from limbeck.models.classifier import Classifier
from limbeck.models.heads import num_features
from limbeck.stages.fit import Fit
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Program


class INSMIL:
    """Prototypes in a contrastive embedding say which instances of positive bags are positive; a classifier learns it.

    Source: Qu, Ma, Luo, Guo, Wang, Song, "Rethinking Multiple Instance Learning for Whole Slide Image Classification: A
    Good Instance Classifier is All You Need", arXiv 2307.02249 (IEEE TCSVT 2024); equations from memory of the paper
    and read off the released code. First one pass with the label of the bag for every instance (:class:`SIL`). Then,
    with Y the classes that an instance may have (negative bag: negative; positive bag: both), logits o and unit vector
    q of the weak view, k that of the strong view by a network of averaged weights, and the last Q keys:

        l = argmax softmax(o) Y,    d = softmax(q mu^T)    z = onehot(argmax d Y),
        mu_l <- beta mu_l + (1 - beta) q, one instance after the other, then brought to length 1,
        s <- phi s + (1 - phi) z from epoch prot_start on; at first s is uniform over Y,
        L = CE(s, o) + contrast_weight L_con + bag_weight CE(label of the bag, pooled softmax(o) of its instances).

    L_con is InfoNCE of q and k among the queue before prot_start; from then on the positives of q are all of q, k and
    queue with the same l, told from all others (:func:`limbeck.losses.supervised_contrastive`). phi falls linearly.

    Differs from the released code. Its bag loss takes the softmax over 512 averaged features for class
    probabilities; here it is on pooled probabilities, as the paper means it (a reconstruction), with the bags read
    beside the instances in every update, not in a pass of their own. Max pooling is a choice: a mean would ask all
    instances of a positive bag to be positive. Its queue starts with noise and is normalised along the wrong axis;
    here it is empty. Its first epochs leave out negative bags, here none is left out. The key network is in eval
    mode with averaged statistics, where there batches are shuffled between devices.

    Args:
        data: bags of images.
        student: the classifier of single instances.
        fit: of the second stage; ``batch_size`` counts instances (CIFAR bags: 64, 80 epochs, SGD 0.01, momentum 0.9,
            weight decay 1e-3, a constant rate).
        pretraining: of the first stage, one epoch.
        pooling: from the instances' probabilities to that of a bag, in the bag loss and after training.
        prot_start: epoch from which prototypes make pseudo labels (CIFAR bags 15 of 80, CAMELYON16 1 of 40).
        bag_start: epoch from which bags count (CIFAR bags 30).
        contrast_weight: of L_con.
        bag_weight: of the bags; 0 for none (CIFAR bags 1, CAMELYON16 0 to 1).
        phi_start: phi in the first epoch.
        phi_end: phi at the end.
        beta: share of a prototype that an instance leaves.
        tau: temperature of L_con.
        queue: Q.
        dim: size of the embedding, after a hidden layer as wide as the features.
        key_momentum: share of the average of the weights that an update leaves.
        reset_negatives: whether instances of negative bags are known to be negative; false is an ablation, in which
            they are treated as those of positive ones.
    """

    def __init__(
        self,
        data: InstanceBagData,
        student: Classifier,
        fit: FitSettings,
        pretraining: FitSettings,
        pooling: Literal["mean", "max"] = "max",
        prot_start: int = 15,
        bag_start: int = 30,
        contrast_weight: float = 0.5,
        bag_weight: float = 1.0,
        phi_start: float = 0.95,
        phi_end: float = 0.8,
        beta: float = 0.9,
        tau: float = 0.07,
        queue: int = 8192,
        dim: int = 128,
        key_momentum: float = 0.999,
        reset_negatives: bool = True,
    ) -> None:
        shares = {"phi_start": phi_start, "phi_end": phi_end, "beta": beta, "key_momentum": key_momentum}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise LimbeckError(f"{name} is {share}; it must lie between 0 and 1")
        weights = {"contrast_weight": contrast_weight, "bag_weight": bag_weight}
        for name, weight in {**weights, "prot_start": prot_start, "bag_start": bag_start}.items():
            if not weight >= 0:
                raise LimbeckError(f"{name} is {weight}; it must be at least 0")
        for name, count in {"queue": queue, "dim": dim}.items():
            if count < 1:
                raise LimbeckError(f"{name} is {count}; it must be at least 1")
        if not tau > 0:
            raise LimbeckError(f"tau is {tau}; it must be above 0")
        num_features(student, "INS")
        self.data, self.student, self.pooling = data, student, pooling
        self.fit, self.pretraining = fit, pretraining
        self.teaching: dict[str, Any] = {
            "prot_start": prot_start,
            "bag_start": bag_start,
            "contrast_weight": contrast_weight,
            "bag_weight": bag_weight,
            "phi_start": phi_start,
            "phi_end": phi_end,
            "beta": beta,
            "tau": tau,
            "queue": queue,
            "dim": dim,
            "key_momentum": key_momentum,
            "reset_negatives": reset_negatives,
        }

    def program(self) -> Program:
        """Learn from the labels of the bags, then from pseudo labels."""
        first = yield Fit("bag-labels", SIL(self.student, self.pooling), self.data, self.pretraining)
        return (yield Fit("fit", InstanceTeaching(first, **self.teaching), self.data, self.fit))
