"""Trans-Encoder: bi- and cross-encoder teach each other."""

import copy
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from limbeck.data.pairs import PairData, PairSamples
from limbeck.errors import LimbeckError
from limbeck.losses.similarity import cosine_mse, soft_bce_with_logits
from limbeck.methods.method import Method
from limbeck.models.text_encoder import BiEncoder, CrossEncoder, TextEncoder
from limbeck.stages.fit import Fit
from limbeck.stages.objective import Batch, Objective, Terms
from limbeck.stages.pair_stages import ChooseEncoder, LabelPairs
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Program

SUFFIXES = ("", "-peer")
"""Of the stages of the encoders side by side."""


class BiToCross(Objective):
    """A cross-encoder learns the bi-encoder's cosines: ``L = -mean(y log s(z) + (1 - y) log(1 - s(z)))``.

    Args:
        student: gives one logit z a pair.
    """

    progress: ClassVar[tuple[str, str]] = ("spearman", "higher")

    def __init__(self, student: CrossEncoder) -> None:
        super().__init__()
        self.student = student

    def terms(self, batch: Batch) -> Terms:
        """Binary cross-entropy with the labels as they are, negative cosines included."""
        return {"bce": soft_bce_with_logits(self.student(batch).logits, batch["score"])}


class CrossToBi(Objective):
    """A bi-encoder learns the cross-encoder's scores: ``L = mean (cos(u, v) - p)^2``.

    Args:
        student: gives two embeddings u and v a pair.
    """

    progress: ClassVar[tuple[str, str]] = ("spearman", "higher")

    def __init__(self, student: BiEncoder) -> None:
        super().__init__()
        self.student = student

    def terms(self, batch: Batch) -> Terms:
        """Squared error of the cosine."""
        output = self.student(batch)
        return {"mse": cosine_mse(output.first, output.second, batch["score"])}


class TransEncoder:
    """Unlabelled pairs, scored by a bi-encoder, train a cross-encoder; its scores train a bi-encoder; and again.

    Source: Liu, Jiao, Massiah, Yilmaz, Havrylov, "Trans-Encoder: Unsupervised sentence-pair modelling through self-
    and mutual-distillations", arXiv 2109.13059 (ICLR 2022). B_0 is an unsupervised bi-encoder (SimCSE). In cycle
    t = 1 ... T, for the pairs (a_i, b_i):

        y_i = cos(B_{t-1}(a_i), B_{t-1}(b_i))        raw cosine, in [-1, 1]
        C_t: binary cross-entropy with y_i, on (a_i, b_i) and on (b_i, a_i)
        p_i = sigmoid(C_t(a_i, b_i))                 one order only
        B_t: squared error of the cosine against p_i, on (a_i, b_i).

    Of each kind the model of the best cycle on the validation pairs is taken, and of these the better one is kept.
    With a peer, a second pair of models of another architecture or other first weights, all learn the mean score of
    both (mutual distillation). The validation pairs are the only ones whose scores are used.

    The losses and settings are those of the released code, read; why BCE one way and MSE the other is from memory of
    the paper. Differs from it: each sentence is cut by itself, so that a joint input has at most twice
    ``data.max_length`` tokens less one (there: the longer one first, to 64), in the test too; the head's first
    weights are the same in every cycle; the peer may start from carried weights too, and have another width.

    Args:
        start: B_0, a bi-encoder: a saved or pretrained one, or a method that trains one, such as simcse.
        cross: the cross-encoder before any training, from the plain pretrained model.
        data: the training pairs, without scores, and labelled ones for validation and test.
        fit_cross: how each cross-encoder is trained.
        fit_bi: how each bi-encoder is trained.
        cycles: T; with 0 B_0 is kept as it is.
        initialization: every student begins at ``cross`` or B_0 ("fresh", as in the released scripts), or takes the
            transformer of its teacher ("carried").
        swap: whether cross-encoders see both orders; not where the sides of a pair differ in kind (QNLI).
        clip: whether cosines are clipped to [0, 1] before they are labels; the released code does not.
        peer_start: the peer's B_0.
        peer_cross: the peer's cross-encoder before any training.

    Raises:
        LimbeckError: a negative number of cycles, half a peer, or a start that is no bi-encoder.
    """

    def __init__(
        self,
        start: Method,
        cross: CrossEncoder,
        data: PairData,
        fit_cross: FitSettings,
        fit_bi: FitSettings,
        cycles: int = 3,
        initialization: Literal["fresh", "carried"] = "fresh",
        swap: bool = True,
        clip: bool = False,
        peer_start: Method | None = None,
        peer_cross: CrossEncoder | None = None,
    ) -> None:
        if cycles < 0:
            raise LimbeckError(f"cycles is {cycles}; it must be at least 0")
        if (peer_start is None) != (peer_cross is None):
            raise LimbeckError("a peer has two models: give peer_start and peer_cross, or neither")
        self.starts = [start] if peer_start is None else [start, peer_start]
        self.crosses = [cross] if peer_cross is None else [cross, peer_cross]
        self.data = data
        self.fit_cross, self.fit_bi = fit_cross, fit_bi
        self.cycles = cycles
        self.initialization = initialization
        self.swap, self.clip = swap, clip

    def program(self) -> Program:
        """Label, fit, label, fit in every cycle; then the best of each kind."""
        first: list[TextEncoder] = []
        for start in self.starts:
            model = yield from start.program()
            if not isinstance(model, BiEncoder):
                raise LimbeckError(f"trans-encoder starts from a bi-encoder, and start is a {type(model).__name__}")
            first += [model]
        bis, pairs = first, self.data.train
        kinds: dict[str, list[TextEncoder]] = {}
        for cycle in range(1, self.cycles + 1):
            labels = yield LabelPairs(f"cycle-{cycle}-bi-labels", bis, pairs, self.fit_cross)
            labelled = pairs.relabel(labels.clamp(0, 1) if self.clip else labels)
            labelled = labelled.swapped() if self.swap else labelled
            name = f"cycle-{cycle}-cross"
            crosses = yield from self._fits(name, BiToCross, self.crosses, bis, labelled, self.fit_cross)

            labels = yield LabelPairs(f"cycle-{cycle}-cross-labels", crosses, pairs, self.fit_bi)
            name = f"cycle-{cycle}-bi"
            bis = yield from self._fits(name, CrossToBi, first, crosses, pairs.relabel(labels), self.fit_bi)

            for kind, models in (("bi", bis), ("cross", crosses)):
                for suffix, model in zip(SUFFIXES, models, strict=False):
                    kinds.setdefault(kind + suffix, []).append(model)
        kinds = kinds or {f"bi{suffix}": [model] for suffix, model in zip(SUFFIXES, first, strict=False)}
        means = {f"{kind}-mean": [kind, f"{kind}-peer"] for kind in ("bi", "cross") if f"{kind}-peer" in kinds}
        return (yield ChooseEncoder("best", kinds, means, self.data, self.fit_bi))

    def _fits(
        self,
        name: str,
        objective: type[BiToCross] | type[CrossToBi],
        plain: Sequence[TextEncoder],
        teachers: Sequence[TextEncoder],
        pairs: PairSamples,
        settings: FitSettings,
    ) -> Generator[Any, Any, list[TextEncoder]]:
        """One student for each of the encoders side by side, all from the same labels."""
        students: list[TextEncoder] = []
        for suffix, model, teacher in zip(SUFFIXES, plain, teachers, strict=False):
            student: Any = copy.deepcopy(model)
            if self.initialization == "carried":
                student.carry_over(teacher)
            data = replace(self.data, train=pairs).encoded(student.spec)
            students.append((yield Fit(name + suffix, objective(student), data, settings)))
        return students
