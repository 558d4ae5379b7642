"""SimCSE: unsupervised sentence embeddings."""

from typing import ClassVar

from torch import nn

from limbeck.data.pairs import PairData
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.losses.contrastive import info_nce
from limbeck.models.text_encoder import BiEncoder
from limbeck.stages.objective import Batch, Objective, Terms


class SimCSE(Objective):
    """A sentence finds itself, seen through other dropout, among the sentences of its batch.

    Source: Gao, Yao, Chen, "SimCSE: Simple Contrastive Learning of Sentence Embeddings", arXiv 2104.08821 (EMNLP
    2021), unsupervised, equation 4. With h_i and h'_i the embeddings of sentence i under two draws of dropout:

        L = -mean_i log( exp(cos(h_i, h'_i) / T) / sum_j exp(cos(h_i, h'_j) / T) ).

    The sentences are the different ones of the training pairs, from both sides; which of them make a pair, and its
    score, are not read. The negatives are those of one micro-batch of one process. While training an MLP (one layer
    and tanh) follows the pooled state and is thrown away afterwards, as in the paper (section 6.3, from memory).
    Dropout is that of the student, 0.1 in the paper.

    Args:
        student: the bi-encoder to train; the paper pools the first token ("cls").
        temperature: T > 0 (0.05 in the paper).
        mlp: whether the MLP stands between embedding and loss.
    """

    student: BiEncoder
    progress: ClassVar[tuple[str, str]] = ("spearman", "higher")

    def __init__(self, student: BiEncoder, temperature: float = 0.05, mlp: bool = True) -> None:
        super().__init__()
        if not temperature > 0:
            raise LimbeckError(f"temperature is {temperature}; it must be above 0")
        self.student = student
        self.temperature = temperature
        width = student.width
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.Tanh()) if mlp else nn.Identity()

    def streams(self, data: PairData, batch_size: int, seed: int) -> Stream:
        """Every sentence of the training pairs, paired with itself."""
        return Stream(data.train.encoded(self.student.spec).sentences(), batch_size, seed)

    def terms(self, batch: Batch) -> Terms:
        """InfoNCE between the two embeddings of each sentence."""
        output = self.student(batch)
        return {"nce": info_nce(self.mlp(output.first), self.mlp(output.second), temperature=self.temperature)}
