"""The one place for what a kind of method cannot promise."""

from limbeck.methods.index import Method

_NO_OBJECTIVE = "clients take plain steps of SGD: there is no objective, no frozen teacher and no precision to choose"

_STORED = "labels are stored before the student trains: no teacher is there in training"
_OWN_BODY = "the network is the student's own body, which the contract of the checkpoint holds for"
_STREAM = "a stream is answered, not fitted: tests/stages/test_stream.py and the tests of each adapter hold for it"

EXCEPTIONS: dict[str, dict[str, str]] = {
    "test_hidden_labels_are_not_read": {
        "dataset": "the student's images are synthetic; tests/methods/test_cv_dd.py hides labels of the real ones",
        **dict.fromkeys(("sft", "lm-kd", "taid"), "text carries no hidden labels"),
        "diffusion": "points carry no labels",
    },
    "test_learns": {
        "adaptation": _STREAM,
        "deit-lt": "a transformer learns nothing in 40 updates; tests/methods/test_deit_lt.py trains longer",
        "dmd2": "the critic starts as the teacher, 40 updates show nothing; tests/methods/test_dmd2.py trains longer",
    },
    "test_frozen_teachers_stay_outside": {
        "dataset": _STORED,
        "fkd": _STORED,
        "ferkd": _STORED,
        "adaptation": _STREAM,
        "robust-active-distillation": "the teacher answers between the fits: none is there in training",
        "prototypes": _OWN_BODY,
        "tip-adapter": _OWN_BODY,
        "trans-encoder": "teachers write their scores down in stages of their own: none is there in training",
    },
    "test_checkpoint_holds_what_trains": {"federated": _NO_OBJECTIVE, "adaptation": _STREAM},
    "test_bf16_stays_finite": {"federated": _NO_OBJECTIVE},
    "test_updates_run_on_another_device": {
        "federated": _NO_OBJECTIVE,
        "sp2ot": "its similarities are a sparse tensor, which the simulated device does not know",
    },
    "test_every_term_of_the_loss_is_logged": {
        "federated": _NO_OBJECTIVE,
        "dmd2": "it has the terms generator and guidance in place of one; tests/methods/test_dmd2.py holds for them",
        "sparse-gan": "its updates have terms of one phase or another; tests/methods/test_sparse_gan.py holds for them",
    },
}
"""Name of a contract test -> slug or task of the methods it cannot hold for -> the reason, which pytest shows."""


def needs_claim(method: Method) -> bool:
    """A paper must claim something; what papers are compared with may."""
    return method.kind == "paper"
