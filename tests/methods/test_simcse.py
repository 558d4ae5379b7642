from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.data.load import load
from limbeck.data.pairs import PairData, PairSamples
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.methods.language.simcse import SimCSE
from limbeck.models import build
from limbeck.models.text_encoder import BiEncoder
from limbeck.stages.evaluation.similarity import validate
from limbeck.stages.fit import Fit
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context

from .tables import total

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def data() -> PairData:
    found = load("description_pairs", seed=0, pairs=300)
    assert isinstance(found, PairData)
    return found


def student(data: PairData, seed: int = 0, **arguments: Any) -> BiEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        small = {"pooling": "mean", "width": 32, "heads": 2, "feedforward": 64, "layers": 1}
        model = build("bi_encoder", data.task, **{**small, **arguments})
    assert isinstance(model, BiEncoder)
    return model


@pytest.mark.parametrize("mlp", [False, True])
def test_the_loss_is_the_equation(data: PairData, mlp: bool) -> None:
    objective = SimCSE(student(data), temperature=0.1, mlp=mlp).train()
    batch = objective.streams(data, 8, 0).batch(0)
    torch.manual_seed(5)
    loss = total(objective.terms(batch)).item()
    torch.manual_seed(5)
    output = objective.student(batch)
    h, k = (objective.mlp(part).detach().double().numpy() for part in (output.first, output.second))
    expected = 0.0
    for i in range(8):
        row = [h[i] @ k[j] / np.linalg.norm(h[i]) / np.linalg.norm(k[j]) / 0.1 for j in range(8)]
        expected += (np.log(np.exp(row).sum()) - row[i]) / 8
    # float32 cosines over 0.1.
    assert loss == pytest.approx(expected, abs=1e-5)


def test_without_dropout_a_sentence_is_its_own_double(data: PairData) -> None:
    """cos = 1 on the diagonal: the loss is that of the similarities among the sentences alone."""
    objective = SimCSE(student(data, dropout=0.0), mlp=False).train()
    batch = objective.streams(data, 6, 0).batch(0)
    output = objective.student(batch)
    assert torch.equal(output.first, output.second)


def test_it_reads_sentences_and_no_scores(data: PairData) -> None:
    stream = SimCSE(student(data)).streams(data, 16, 0)
    assert isinstance(stream, Stream)
    batch = stream.batch(0)
    assert torch.equal(batch["a_ids"], batch["b_ids"])
    assert not {"score", "hidden_score"} & set(batch)
    assert isinstance(stream.samples, PairSamples)
    assert len(stream.samples) == len({*data.train.first, *data.train.second})


def test_the_mlp_is_not_part_of_what_is_kept(data: PairData) -> None:
    objective = SimCSE(student(data))
    assert objective.trained() is objective.student
    assert len(list(objective.mlp.parameters())) == 2
    assert not any(name.startswith("mlp") for name, _ in objective.student.named_parameters())


def test_it_learns_to_rank_pairs(data: PairData, tmp_path: Path) -> None:
    model = student(data)
    device = torch.device("cpu")
    before = validate(model, data, device)["spearman"]
    how = FitSettings(updates=60, batch_size=32, accelerator="cpu", optimizer={"name": "adamw", "lr": 2e-3})
    Fit("fit", SimCSE(model), data, how).run(tmp_path / "fit", Context(tmp_path, "simcse", seed=0))
    assert validate(model, data, device)["spearman"] > before + 0.02


def test_wrong_input(data: PairData) -> None:
    with pytest.raises(LimbeckError, match="temperature is 0"):
        SimCSE(student(data), temperature=0)
