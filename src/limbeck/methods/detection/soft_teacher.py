"""Soft Teacher."""

import dataclasses
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from limbeck.data.box_views import move_boxes, transform_boxes
from limbeck.data.boxes import BoxData
from limbeck.data.semi_supervised import Batches
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.labels.boxes import Detections, box_jitter_uncertainty, confident_boxes, jitter_boxes
from limbeck.losses.reduction import Mean
from limbeck.methods.detection.supervised_detection import SupervisedDetection
from limbeck.metrics.detection import box_precision, iou_with_truth
from limbeck.models.detector import BACKGROUND, Detector, Features, Regions, unpad
from limbeck.stages.fit import Fit
from limbeck.stages.objective import Batch, Objective, Plan, Terms
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Program
from limbeck.teachers.ema import EMA


class PseudoBoxes(Objective):
    """The semi-supervised fit of :class:`SoftTeacher`; its hyperparameters are described there."""

    progress: ClassVar[tuple[str, str]] = ("map_50", "higher")
    alpha: float
    unlabeled_ratio: int
    score_threshold: float
    rough_threshold: float
    uncertainty_threshold: float
    jitter_times: int
    jitter_scale: float
    ema_decay: float
    background_weight: str
    box_selection: str

    def __init__(self, student: Detector, **hyperparameters: Any) -> None:
        super().__init__()
        self.student: Detector = student
        vars(self).update(hyperparameters)

    def streams(self, data: BoxData, batch_size: int, seed: int) -> dict[str, Stream]:
        """Labelled images, and ``unlabeled_ratio`` times as many unlabelled ones in two views."""
        assert data.unlabeled is not None
        views, count = {"weak": "weak", "strong": "strong"}, self.unlabeled_ratio * batch_size
        return {
            "labeled": Stream(data.train, batch_size, seed, views=data.training_views, flip=data.flip),
            "unlabeled": Stream(data.unlabeled, count, seed, views=views, name="unlabeled", flip=data.flip),
        }

    def begin(self, plan: Plan) -> None:
        """The teacher starts as a copy of the student, which counts as its first update."""
        self.teacher = EMA(self.student, self.ema_decay, warmup="mean")
        self.teacher.update(self.student)

    def terms(self, batch: Batches) -> Terms:
        """Supervised terms of the labelled images, and alpha times those of the pseudo boxes."""
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        supervised = self.student.losses(labeled["image"], *unpad(labeled["boxes"], labeled["box_label"]))

        candidates, uncertainty, teacher_features = self.pseudo_boxes(unlabeled["weak"])
        confident = confident_boxes(candidates, self.score_threshold)
        stable = candidates.keep(uncertainty < self.uncertainty_threshold)
        for_boxes = stable if self.box_selection == "uncertainty" else confident
        self.watch(unlabeled, teacher_features.size, classes=confident, offsets=for_boxes)

        features = self.student.features(unlabeled["strong"])
        to_student = unlabeled["strong_matrix"] @ torch.linalg.inv(unlabeled["weak_matrix"])
        boxes, labels = unpad(*move_boxes(to_student, confident.boxes, confident.labels, features.size, least=1.0))
        proposals = self.student.propose(features)
        regions = self.student.sample_regions(proposals.boxes, boxes, labels)
        output = self.student.roi_predict(features, regions.boxes)
        weight = self.reliability(regions, teacher_features, torch.linalg.inv(to_student))
        moved = unpad(*move_boxes(to_student, for_boxes.boxes, for_boxes.labels, features.size, least=1.0))
        box_regions = self.student.sample_regions(proposals.boxes, *moved)
        box_output = self.student.roi_predict(features, box_regions.boxes)
        unsupervised = {
            **self.student.rpn_losses(proposals, boxes),
            "cls": self.student.classification_loss(output, regions, weight),
            "box": self.student.box_loss(box_output, box_regions),
        }
        return {**supervised, **{f"unsup_{name}": term.times(self.alpha) for name, term in unsupervised.items()}}

    @torch.no_grad()
    def pseudo_boxes(self, images: Tensor) -> tuple[Detections, Tensor, Features]:
        """The teacher's boxes above the rough cut, how far their refined jittered copies lie apart, its features."""
        features = self.averaged.features(images)
        candidates = confident_boxes(self.averaged.detect(features), self.rough_threshold)
        jittered = jitter_boxes(candidates.boxes, self.jitter_times, self.jitter_scale)
        refined = self.averaged.refine(features, jittered, candidates.labels)
        return candidates, box_jitter_uncertainty(refined), features

    @torch.no_grad()
    def reliability(self, regions: Regions, features: Features, to_teacher: Tensor) -> Tensor:
        """The weight of each region: 1 for foreground, the teacher's background probability for background."""
        weight = torch.ones(len(regions.labels), device=regions.labels.device)
        if self.background_weight == "teacher":
            pairs = zip(to_teacher, regions.boxes, strict=True)
            boxes = [transform_boxes(matrix, part, features.size) for matrix, part in pairs]
            probabilities = self.averaged.roi_predict(features, boxes).logits.softmax(-1)
            weight = torch.where(regions.labels == BACKGROUND, probabilities[:, BACKGROUND], weight)
        self.observe(background_weight=Mean.of(weight, regions.labels == BACKGROUND))
        return weight

    def watch(self, batch: Batch, size: tuple[int, int], **chosen: Detections) -> None:
        """Log how many pseudo boxes an image has and, where the truth is known, how many of them are right."""
        for name, (boxes, labels, _) in chosen.items():
            self.observe(**{f"{name}/boxes": Mean.of((labels >= 0).sum(-1).float())})
            if "hidden_boxes" in batch:
                truth = transform_boxes(batch["weak_matrix"], batch["hidden_boxes"], size)
                iou = iou_with_truth(boxes, labels, truth, batch["hidden_box_label"])
                self.observe(**{f"{name}/precision": box_precision(iou, labels >= 0)})

    def after_update(self, batch: Batch) -> None:
        """The teacher follows; before update k (from 0) it keeps min(m, 1 - 1/(k + 1)) of itself."""
        self.teacher.update(self.student)

    @property
    def averaged(self) -> Detector:
        """The teacher's detector."""
        model = self.teacher.model
        assert isinstance(model, Detector)
        return model


class SoftTeacher:
    """A detector learns from boxes that its own average puts on unlabelled images, each set chosen for its purpose.

    Source: Xu, Zhang, Hu, Wang, Wang, Wei, Bai, Liu, "End-to-End Semi-Supervised Object Detection with Soft Teacher",
    arXiv 2106.09018 (ICCV 2021). The teacher, an average of the student, sees a weak view; its boxes are carried to
    the student's strong view. Those with score > 0.9 train proposals and classes, those of score > 0.5 whose jittered
    copies the teacher refines to nearly the same box (u < 0.02) train the box offsets:

        L = L_s + alpha (L_rpn + L_cls + L_reg),    L_cls = sum_j w_j CE(z_j, y_j) / max(sum_j w_j, 1),

    with w = 1 for foreground regions and the teacher's background probability for background ones.

    L_cls, the jitter (normal) and u (each side by itself) are those of the released code; the paper prints other forms
    (memory). The student is kept, as in the released test configuration. Choices: boxes narrower than a pixel after
    the move are dropped, the mixture of a batch is fixed, and a supervised fit may come first, which the paper lacks.
    ``background_weight="one"`` with ``box_selection="score"`` is the baseline of hard pseudo boxes.

    Args:
        student: the detector.
        data: labelled and unlabelled images.
        fit: of the semi-supervised fit; its batches count the labelled images.
        burn_in_updates: supervised updates that come first, with the settings of ``fit``.
        alpha: weight of the unsupervised terms; 4 with few labels, 2 with all of COCO labelled.
        unlabeled_ratio: unlabelled images for each labelled one; 4, or 1 with all of COCO labelled.
        score_threshold: of pseudo boxes for proposals and classes.
        rough_threshold: score below which boxes are not looked at.
        uncertainty_threshold: largest u of pseudo boxes for the offsets.
        jitter_times: copies of each box.
        jitter_scale: standard deviation of their noise, in parts of the box's sides.
        ema_decay: m of the teacher; the first updates keep less, 1 - 1/(k + 1).
        background_weight: w of background regions: the teacher's background probability, or one.
        box_selection: which boxes train the offsets: those of small uncertainty, or those of large score.
    """

    def __init__(
        self,
        student: Detector,
        data: BoxData,
        fit: FitSettings,
        burn_in_updates: int = 0,
        alpha: float = 4.0,
        unlabeled_ratio: int = 4,
        score_threshold: float = 0.9,
        rough_threshold: float = 0.5,
        uncertainty_threshold: float = 0.02,
        jitter_times: int = 10,
        jitter_scale: float = 0.06,
        ema_decay: float = 0.999,
        background_weight: Literal["teacher", "one"] = "teacher",
        box_selection: Literal["uncertainty", "score"] = "uncertainty",
    ) -> None:
        given = locals()
        hyperparameters = {name: given[name] for name in PseudoBoxes.__annotations__ if name in given}
        least = {"unlabeled_ratio": 1, "jitter_times": 2}
        for name, value in {**hyperparameters, "burn_in_updates": burn_in_updates}.items():
            if not isinstance(value, str) and value < least.get(name, 0):
                raise LimbeckError(f"{name} is {value}; it must be at least {least.get(name, 0)}")
        if ema_decay > 1:
            raise LimbeckError(f"ema_decay is {ema_decay}; it must be at most 1")
        if data.unlabeled is None:
            raise LimbeckError("soft-teacher needs unlabelled images, and there are none: set data.labeled below 1")
        self.data, self.fit, self.burn_in_updates = data, fit, burn_in_updates
        self.objective = PseudoBoxes(student, **hyperparameters)

    def program(self) -> Program:
        """The supervised fit, where there is one, then the semi-supervised fit of the same detector."""
        if self.burn_in_updates:
            settings = dataclasses.replace(self.fit, updates=self.burn_in_updates)
            yield Fit("burn-in", SupervisedDetection(self.objective.student), self.data, settings)
        return (yield Fit("fit", self.objective, self.data, self.fit))
