"""Every method of limbeck as plain data: importable without torch.

``path`` is ``module:Class``; ``kind`` is ``paper`` or, for what papers are compared with, ``baseline``.
"""

from typing import Literal, NamedTuple


class Method(NamedTuple):
    """One row of the index."""

    slug: str
    task: str
    paper: str
    arxiv: str
    year: int
    kind: Literal["paper", "baseline"]
    path: str


METHODS: dict[str, Method] = {
    row.slug: row
    for row in (
        Method(
            "supervised",
            "classification",
            "Cross-entropy on true labels, with label smoothing (Rethinking the Inception Architecture)",
            "1512.00567",
            2015,
            "baseline",
            "limbeck.methods.classification.supervised:Supervised",
        ),
        Method(
            "kd",
            "classification",
            "Distilling the Knowledge in a Neural Network",
            "1503.02531",
            2015,
            "baseline",
            "limbeck.methods.classification.kd:KD",
        ),
        Method(
            "ps-kd",
            "classification",
            "Self-Knowledge Distillation with Progressive Refinement of Targets",
            "2006.12000",
            2021,
            "paper",
            "limbeck.methods.classification.ps_kd:PSKD",
        ),
        Method(
            "fixmatch",
            "semi_supervised",
            "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence",
            "2001.07685",
            2020,
            "baseline",
            "limbeck.methods.semi_supervised.fixmatch:FixMatch",
        ),
        Method(
            "shrinkmatch",
            "semi_supervised",
            "Shrinking Class Space for Enhanced Certainty in Semi-Supervised Learning",
            "2308.06777",
            2023,
            "paper",
            "limbeck.methods.semi_supervised.shrinkmatch:ShrinkMatch",
        ),
        Method(
            "supervised-detection",
            "detection",
            "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks",
            "1506.01497",
            2015,
            "baseline",
            "limbeck.methods.detection.supervised_detection:SupervisedDetection",
        ),
        Method(
            "soft-teacher",
            "detection",
            "End-to-End Semi-Supervised Object Detection with Soft Teacher",
            "2106.09018",
            2021,
            "paper",
            "limbeck.methods.detection.soft_teacher:SoftTeacher",
        ),
        Method(
            "supervised-segmentation",
            "segmentation",
            "Fully Convolutional Networks for Semantic Segmentation",
            "1411.4038",
            2015,
            "baseline",
            "limbeck.methods.segmentation.supervised_segmentation:SupervisedSegmentation",
        ),
        Method(
            "mean-teacher",
            "segmentation",
            "Mean teachers are better role models: Weight-averaged consistency targets improve semi-supervised deep "
            "learning results",
            "1703.01780",
            2017,
            "baseline",
            "limbeck.methods.segmentation.mean_teacher:MeanTeacher",
        ),
        Method(
            "fst",
            "segmentation",
            "Learning from Future: A Novel Self-Training Framework for Semantic Segmentation",
            "2209.06993",
            2022,
            "paper",
            "limbeck.methods.segmentation.fst:FST",
        ),
        Method(
            "sft",
            "language",
            "Next-token cross-entropy (Training language models to follow instructions with human feedback)",
            "2203.02155",
            2022,
            "baseline",
            "limbeck.methods.language.sft:SFT",
        ),
        Method(
            "lm-kd",
            "language",
            "Word-level distillation (Sequence-Level Knowledge Distillation)",
            "1606.07947",
            2016,
            "baseline",
            "limbeck.methods.language.lm_kd:LMKD",
        ),
        Method(
            "taid",
            "language",
            "TAID: Temporally Adaptive Interpolated Distillation for Efficient Knowledge Transfer in Language Models",
            "2501.16937",
            2025,
            "paper",
            "limbeck.methods.language.taid:TAID",
        ),
        Method(
            "simcse",
            "language",
            "SimCSE: Simple Contrastive Learning of Sentence Embeddings",
            "2104.08821",
            2021,
            "baseline",
            "limbeck.methods.language.simcse:SimCSE",
        ),
        Method(
            "trans-encoder",
            "language",
            "Trans-Encoder: Unsupervised sentence-pair modelling through self- and mutual-distillations",
            "2109.13059",
            2022,
            "paper",
            "limbeck.methods.language.trans_encoder:TransEncoder",
        ),
        Method(
            "edm",
            "diffusion",
            "Elucidating the Design Space of Diffusion-Based Generative Models",
            "2206.00364",
            2022,
            "baseline",
            "limbeck.methods.diffusion.edm:EDM",
        ),
        Method(
            "dmd2",
            "diffusion",
            "Improved Distribution Matching Distillation for Fast Image Synthesis",
            "2405.14867",
            2024,
            "paper",
            "limbeck.methods.diffusion.dmd2:DMD2",
        ),
        Method(
            "sre2l",
            "dataset",
            "Squeeze, Recover and Relabel: Dataset Condensation at ImageNet Scale From A New Perspective",
            "2306.13092",
            2023,
            "baseline",
            "limbeck.methods.dataset.sre2l:SRe2L",
        ),
        Method(
            "cv-dd",
            "dataset",
            "Dataset Distillation via Committee Voting",
            "2501.07575",
            2025,
            "paper",
            "limbeck.methods.dataset.cv_dd:CVDD",
        ),
        Method(
            "source",
            "adaptation",
            "No adaptation (Benchmarking Neural Network Robustness to Common Corruptions and Perturbations)",
            "1903.12261",
            2019,
            "baseline",
            "limbeck.methods.adaptation.source:Source",
        ),
        Method(
            "bn-adapt",
            "adaptation",
            "Improving robustness against common corruptions by covariate shift adaptation",
            "2006.16971",
            2020,
            "baseline",
            "limbeck.methods.adaptation.bn_adapt:BNAdapt",
        ),
        Method(
            "tent",
            "adaptation",
            "Tent: Fully Test-Time Adaptation by Entropy Minimization",
            "2006.10726",
            2021,
            "baseline",
            "limbeck.methods.adaptation.tent:Tent",
        ),
        Method(
            "cotta",
            "adaptation",
            "Continual Test-Time Domain Adaptation",
            "2203.13591",
            2022,
            "paper",
            "limbeck.methods.adaptation.cotta:CoTTA",
        ),
        Method(
            "fedavg",
            "federated",
            "Communication-Efficient Learning of Deep Networks from Decentralized Data",
            "1602.05629",
            2017,
            "baseline",
            "limbeck.methods.federated.fedavg:FedAvg",
        ),
        Method(
            "fedlabel",
            "federated",
            "Local or Global: Selective Knowledge Assimilation for Federated Learning with Limited Labels",
            "2307.08809",
            2023,
            "paper",
            "limbeck.methods.federated.fedlabel:FedLabel",
        ),
    )
}
