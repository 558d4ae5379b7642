"""Stand-ins that need no data and train in a fraction of a second, for what small recipes name."""

from typing import Any

# Some labels are wrong, some samples have none: hidden labels exist in both parts and differ from the labels.
DIGITS = {"name": "digits", "labels_per_class": 20, "label_noise": 0.1}

DIGIT_BOXES = {
    "name": "digit_boxes",
    "size": 40,
    "labeled": 0.5,
    "most": 2,
    "train": 32,
    "validation": 16,
    "test": 8,
}

DIGIT_MASKS = {"name": "digit_masks", "labeled": 0.25, "train": 48, "validation": 8, "test": 8}

DESCRIPTION_PAIRS = {"name": "description_pairs", "pairs": 200, "vocabulary": 500, "max_length": 12}

INSTANCE_BAGS = {
    "name": "instance_bags",
    "dataset": {"name": "digits", "validation": 0.3},
    "size": 6,
    "min_size": 4,
    "ratio": 0.4,
}

DATA: dict[str, dict[str, Any]] = {
    "bccd": DIGIT_BOXES,
    "digit_boxes": DIGIT_BOXES,
    "camvid": DIGIT_MASKS,
    "digit_masks": DIGIT_MASKS,
    "shakespeare": {"name": "descriptions", "length": 16},
    "gsm8k": {"name": "descriptions", "length": 16},
    "descriptions": {"name": "descriptions", "length": 16},
    "sick": DESCRIPTION_PAIRS,
    "stsb": DESCRIPTION_PAIRS,
    "description_pairs": DESCRIPTION_PAIRS,
    "points": {"name": "points", "train_size": 400, "validation": 200, "test_size": 200},
    "corruptions": {
        "name": "corruptions",
        "dataset": DIGITS,
        "order": ["gaussian_noise", "contrast"],
        "severity": 2,
        "rounds": 2,
        "batch_size": 45,
    },
    "meta_images": {"name": "meta_images", "dataset": "digits", "labels_per_class": 20, "label_noise": 0.1},
    "open_set": {"name": "open_set", "dataset": DIGITS, "pool": "digits", "size": 100},
    "adult": {"name": "breast_cancer", "bag_size": 8},
    "magic": {"name": "breast_cancer", "bag_size": 8},
    "class_mismatch": {"name": "class_mismatch", "dataset": DIGITS, "mismatch": 0.4},
    "instance_bags": INSTANCE_BAGS,
    "clients": {"name": "clients", "clients": 4, "alpha": 1.0, "dataset": {"name": "digits", "view": "none"}},
}
"""Source of a small recipe -> the block that stands in; any other source is one of labelled images: DIGITS."""

MODELS: dict[str, dict[str, Any]] = {
    "faster_rcnn": {
        "name": "faster_rcnn",
        "width": 8,
        "stride": 4,
        "anchors": [20],
        "pool": 3,
        "hidden": 32,
        "proposals": 20,
        "samples": 16,
        "rpn_samples": 32,
    },
    "metaformer": {
        "name": "metaformer",
        "widths": [4, 4, 8, 8, 8],
        "depths": [1, 1, 1, 1],
        "heads": 2,
        "drop_path": 0.0,
        "stem_stride": 1,
    },
    "expert_cnn": {"name": "expert_cnn", "width": 4, "hidden": 16},
    "vit": {
        "name": "vit",
        "patch": 4,
        "width": 16,
        "depth": 2,
        "heads": 2,
        "distillation_token": True,
    },
    "unet_segmenter": {"name": "unet_segmenter", "width": 4, "depth": 2},
    "gpt": {"name": "gpt", "layers": 1, "width": 16, "heads": 2},
    "bi_encoder": {"name": "bi_encoder", "pooling": "mean", "width": 16, "layers": 1, "heads": 2, "feedforward": 16},
    "cross_encoder": {"name": "cross_encoder", "width": 16, "layers": 1, "heads": 2, "feedforward": 16},
    "mlp_denoiser": {"name": "mlp_denoiser", "hidden": 32, "layers": 2, "steps": 3},
    "table_mlp": {"name": "table_mlp", "hidden": [16, 8]},
}
"""Builder of a small recipe -> the block that stands in; any other builder is one of classifiers: CLASSIFIER."""

CLASSIFIER = {"name": "cnn", "width": 4}

FEDERATION = {
    "rounds": 40,
    "clients_per_round": 2,
    "tau": 2,
    "batch_size": 8,
    "eta": 0.1,
    "engine": "local",
    "evaluations": 2,
}

DISTILLED = {"ipc": 3, "iterations": 20, "assess": "nothing"}

SOURCES = {
    "upside-down": {"name": "cnn", "width": 4, "data": {"name": "variant", "turns": 2, "view": "none"}},
    "few": {"name": "cnn", "width": 5, "data": {"name": "variant", "classes": ["0", "1", "8"], "view": "none"}},
}

ARGUMENTS: dict[str, dict[str, Any]] = {
    "sre2l": {**DISTILLED, "init": "patches", "labels": "batch"},
    "cv-dd": {**DISTILLED, "committee": [{"name": "cnn", "width": 4}, {"name": "cnn", "width": 5}], "priors": [60, 50]},
    "kd-data-pruning": {"fraction": 0.5, "pruning": "el2n", "compare": False},
    "robust-active-distillation": {"queries": 40, "rounds": 2},
    "trans-encoder": {"cycles": 1},
    "distill-weighted": {"sources": SOURCES, "dims": None, "p": 1},
    "fkd": {"regions": 4, "crops": 2},
    "ferkd": {"regions": 4, "crops": 2},
    "teacher-guidance": {"steps": 2},
    "ins-mil": {"prot_start": 1, "bag_start": 2, "queue": 64, "key_momentum": 0.9},
    "wad": {"rounds": 1},
    "sparse-gan": {"generator_width": 4, "critic_width": 4, "critic_depth": 2},
    "p2ot": {"bank": 4},
    "sp2ot": {"bank": 4, "lambda_0": 40.0},
    "random-teachers": {"hidden": 16, "bottleneck": 8, "outputs": 32},
    "fedavg": FEDERATION,
    "fedlabel": {**FEDERATION, "tau_unlabeled": 2},
    "fst": {"K": 1, "threshold": 0.5},
    "deit-lt": {"drw_epoch": 6},
    "mean-teacher": {"threshold": 0.5},
    "soft-teacher": {"burn_in_updates": 0, "alpha": 0.1, "rough_threshold": 0.1, "unlabeled_ratio": 1},
}
"""Slug -> hyperparameters that make the method short (rounds, cycles, recovery steps ...)."""

RECIPES = {"edm": "points", "dmd2": "points"}
"""Slug -> the recipe that is shrunk, where it is not the small one."""

FITS: dict[str, dict[str, Any]] = {
    "edm": {"optimizer": {"name": "adam", "lr": 1.0e-2}},
    "supervised-segmentation": {"batch_size": 4, "optimizer": {"name": "adam", "lr": 1.0e-2}},
    "mean-teacher": {"batch_size": 4, "optimizer": {"name": "adam", "lr": 1.0e-2}},
    "metaformer": {"optimizer": {"name": "adam", "lr": 1.0e-2}},
    "fst": {"batch_size": 4, "optimizer": {"name": "adam", "lr": 1.0e-2}},
    "max-mil": {"batch_size": 10},
    "abmil": {"batch_size": 10},
    "supervised-detection": {"batch_size": 4, "optimizer": {"name": "adam", "lr": 3.0e-3}},
    "soft-teacher": {"batch_size": 4, "optimizer": {"name": "adam", "lr": 3.0e-3}},
}
"""Slug -> what its fits need beside the tiny settings of every fit (a smaller batch, another learning rate ...)."""
