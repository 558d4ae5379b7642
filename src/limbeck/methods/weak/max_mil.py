"""Max pooling: a bag is as positive as its most positive instance."""

from limbeck.methods.weak.bag_supervised import BagSupervised
from limbeck.models.bag_classifier import classify_bags
from limbeck.models.classifier import Classifier


class MaxMIL(BagSupervised):
    """An instance classifier that is taught through the most positive instance of each bag.

    Source: Wang, Yan, Tang, Bai, Liu, "Revisiting Multiple Instance Neural Networks", arXiv 1610.02501 (Pattern
    Recognition, 2018), section 3.1, mi-Net with max pooling. With p_i the probability of instance i to be positive and
    Y the label of the bag,

        P = max_i p_i,   L = -Y log P - (1 - Y) log(1 - P).

    A bag's probability is P and an instance's score p_i, in training and after.

    Args:
        student: the classifier of single instances.
    """

    def __init__(self, student: Classifier) -> None:
        super().__init__()
        self.student = classify_bags(student, "max")
