import json
from pathlib import Path

import pytest
import torch

from limbeck.data.text import TextData, TokenSamples, by_character
from limbeck.errors import LimbeckError
from limbeck.metrics.language import distinct_n
from limbeck.models.build import build
from limbeck.models.causal_lm import CausalLM
from limbeck.stages.evaluation import evaluation, language
from limbeck.teachers.frozen import Frozen

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> TextData:
    return by_character("".join(f"the {number} cats sat on {number + 7} mats.\n" for number in range(300)), 30, 0.1)


def model(data: TextData, seed: int) -> CausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = build("gpt", data.task, layers=1, width=16, heads=2, dropout=0.3)
    assert isinstance(made, CausalLM)
    return made


def by_hand(lm: CausalLM, samples: TokenSamples) -> float:
    """Row by row, without padding."""
    total = count = 0
    with torch.no_grad():
        for row in range(len(samples)):
            batch = samples.fetch(torch.tensor([row]))
            log_q = lm.eval()(batch).logits.log_softmax(-1)[0]
            for at, label in enumerate(batch["labels"][0, 1:].tolist()):
                if label >= 0:
                    total, count = total - log_q[at, label].item(), count + 1
    return total / count


def test_numbers_are_means_over_the_tokens_that_count(data: TextData, tmp_path: Path) -> None:
    ragged = TokenSamples(
        data.test.tokens,
        data.test.starts,
        2 + data.test.starts % 28,
        given=torch.arange(len(data.test)) % 2,
        pad_id=0,
    )
    odd = TextData(data.train, data.validation, ragged, None, (), data.task)
    lm, teacher = model(data, 0).train(), Frozen(model(data, 1))
    metrics = language.report(lm, {"teacher": teacher}, odd, tmp_path, CPU)
    assert lm.training
    # float32 logits.
    assert metrics["token_nll"] == pytest.approx(by_hand(lm, ragged), rel=1e-5)
    assert metrics["teacher/token_nll"] == pytest.approx(by_hand(teacher.model, ragged), rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(torch.tensor(metrics["token_nll"]).exp().item(), rel=1e-5)
    validated = evaluation("language").validate(lm, odd, CPU)
    assert validated == {name: metrics[f"validation/{name}"] for name in ("token_nll", "perplexity")}
    assert metrics["parameters"] == sum(p.numel() for p in lm.parameters())


def test_samples_are_the_same_for_the_same_model_and_judged_by_the_teacher(data: TextData, tmp_path: Path) -> None:
    lm, teacher = model(data, 0).eval(), Frozen(model(data, 1))
    metrics = language.report(lm, {"teacher": teacher}, data, tmp_path, CPU)
    assert metrics == language.report(lm, {"teacher": teacher}, data, tmp_path, CPU)
    # 10 tokens of prompt and 20 new ones fill rows of 30; there are fewer than 128 rows.
    prompts = data.test.fetch(torch.arange(len(data.test)))["input_ids"][:, :10]
    rows = lm.generate(prompts, 20, torch.Generator().manual_seed(0))
    assert metrics["distinct_5"] == distinct_n(rows[:, 10:].tolist(), 5)
    log_p = teacher.model({"input_ids": rows}).logits.log_softmax(-1)[:, 9:-1]
    expected = -log_p.gather(-1, rows[:, 10:, None]).mean().item()
    assert metrics["teacher_nll"] == pytest.approx(expected, rel=1e-5)
    shown = json.loads((tmp_path / "samples.json").read_text())["samples"]
    assert len(shown) == 8
    assert shown[3]["student"] == data.task.decode(rows[3, 10:])
    assert shown[3]["prompt"] == data.task.decode(prompts[3])
    assert shown[3]["teacher"] != shown[3]["student"]


def test_without_a_teacher_nothing_judges(data: TextData, tmp_path: Path) -> None:
    metrics = language.report(model(data, 0), {}, data, tmp_path, CPU)
    assert "teacher_nll" not in metrics
    assert {"token_nll", "perplexity", "distinct_5", "validation/token_nll"} <= metrics.keys()


def test_a_broken_model_is_told(data: TextData) -> None:
    lm = model(data, 0)
    with torch.no_grad():
        next(lm.parameters()).fill_(torch.nan)
    with pytest.raises(LimbeckError, match="not numbers"):
        language.validate(lm, data, CPU)
