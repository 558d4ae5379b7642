from pathlib import Path

import pytest
import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.models.build import build
from limbeck.models.causal_lm import CausalLM, check_vocabularies
from limbeck.models.folder import load, save
from limbeck.models.text_task import TextTask, characters
from limbeck.teachers.frozen import Frozen

TASK = TextTask(characters(["abcdefghij \n"]), 12)
SMALL = {"layers": 1, "width": 16, "heads": 2}


def model(seed: int = 0, **arguments: object) -> CausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = build("gpt", TASK, **{**SMALL, **arguments})
    assert isinstance(built, CausalLM)
    return built


def tokens(rows: int = 3, length: int = 12, seed: int = 0) -> Tensor:
    return torch.randint(TASK.size, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_looks_at_nothing_that_comes_later(architecture: str, attention: str) -> None:
    lm = model(architecture=architecture, attention=attention).eval()
    one = tokens()
    other = one.clone()
    other[:, 7:] = TASK.pad_id
    a, b = lm({"input_ids": one}).logits, lm({"input_ids": other}).logits
    assert a.shape == (3, 12, TASK.size)
    # Equal prefixes give equal predictions, whatever follows: padding on the right needs no mask.
    torch.testing.assert_close(a[:, :7], b[:, :7])
    assert not torch.allclose(a[:, 7:], b[:, 7:])
    # A shorter row is the same row without its padding.
    torch.testing.assert_close(lm({"input_ids": one[:, :7]}).logits, b[:, :7])


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_logits_are_left_to_the_loss_where_an_output_layer_makes_them(architecture: str) -> None:
    lm = model(architecture=architecture, dropout=0.5)
    assert lm.body.training
    lm.eval()
    found = lm({"input_ids": tokens()}).projection
    assert found.hidden.shape == (3, 12, 16)
    assert found.weight is lm.body.get_output_embeddings().weight
    assert torch.equal(found.logits, lm.body(input_ids=tokens()).logits)


def test_a_model_that_bounds_its_logits_gives_them_whole() -> None:
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = transformers.Gemma2Config(vocab_size=TASK.size, **size, **heads, final_logit_softcapping=1.0)
    body = transformers.AutoModelForCausalLM.from_config(config)
    lm = CausalLM(body, TASK).eval()
    found = lm({"input_ids": tokens()}).projection
    assert found.weight is None
    assert torch.equal(found.logits, body(input_ids=tokens()).logits)
    assert found.logits.abs().max() <= 1


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_saved_and_loaded(architecture: str, tmp_path: Path) -> None:
    lm = model(architecture=architecture, dropout=0.1).eval()
    again = load(save(lm, tmp_path / "m"))
    assert again.spec == TASK
    assert torch.equal(again({"input_ids": tokens()}).logits, lm({"input_ids": tokens()}).logits)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_samples_come_from_its_own_distribution(architecture: str) -> None:
    lm = model(architecture=architecture).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(8)  # a sharper distribution than that of first weights
    prompts = tokens(1, 3).expand(4000, 3)
    before = torch.random.get_rng_state()
    rows = lm.generate(prompts, 2, torch.Generator().manual_seed(0))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(rows, lm.generate(prompts, 2, torch.Generator().manual_seed(0)))
    assert torch.equal(rows[:, :3], prompts)
    with torch.no_grad():
        first = lm({"input_ids": prompts[:1]}).logits[0, -1].softmax(-1)
        # Through the cache, the second token follows the distribution after the first.
        start = torch.cat([prompts[:1], rows[:1, 3:4]], dim=1)
        second = lm({"input_ids": start}).logits[0, -1].softmax(-1)
    found = torch.bincount(rows[:, 3], minlength=TASK.size) / 4000
    assert (found - first).abs().max() < 0.035  # 4 standard deviations of a share in 4,000 draws
    after = rows[rows[:, 3] == rows[0, 3]][:, 4]
    found = torch.bincount(after, minlength=TASK.size) / len(after)
    assert (found - second).abs().max() < 2.2 / len(after) ** 0.5


def test_refuses_what_it_cannot_read() -> None:
    lm = model()
    with pytest.raises(LimbeckError, match="no 'input_ids'"):
        lm({"image": torch.zeros(1)})
    with pytest.raises(LimbeckError, match="13 tokens are longer than the 12"):
        lm({"input_ids": torch.zeros(1, 13, dtype=torch.int64)})
    with pytest.raises(LimbeckError, match="do not fit into 12"):
        lm.generate(tokens(1, 8), 5, torch.Generator())
    with pytest.raises(LimbeckError, match="heads must divide"):
        build("gpt", TASK, width=10, heads=4)
    with pytest.raises(LimbeckError, match="even width"):
        build("gpt", TASK, width=9, heads=3, architecture="llama")
    with pytest.raises(LimbeckError, match="dropout"):
        build("gpt", TASK, dropout=1.0)
    other = build("gpt", TextTask(characters(["xyz"]), 12), **SMALL)
    with pytest.raises(LimbeckError, match=r"another tokenizer \(10 tokens\)"):
        check_vocabularies(lm, Frozen(other))
    check_vocabularies(lm, Frozen(model(seed=1)))


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """A folder as transformers writes it, whose vocabulary is padded to 32."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=2,
        eos_token_id=3,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "hub")
    return tmp_path / "hub"


def test_pretrained_weights_are_read_and_resized(pretrained: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    lm = build("transformers_lm", TASK, model=str(pretrained)).eval()
    reference = transformers.AutoModelForCausalLM.from_pretrained(pretrained).eval()
    with torch.no_grad():
        expected = reference(input_ids=tokens()).logits[..., : TASK.size]
        logits = lm({"input_ids": tokens()}).logits
    # The padded tokens are gone, nothing else has changed.
    torch.testing.assert_close(logits, expected)

    folder = save(lm, tmp_path / "m")
    for file in pretrained.iterdir():
        file.unlink()
    # Loading needs nothing of what it was made from.
    assert torch.equal(load(folder)({"input_ids": tokens()}).logits, logits)


def test_pretrained_models_that_cannot_be(pretrained: Path, tmp_path: Path) -> None:
    long = TextTask(TASK.tokenizer, 17)
    with pytest.raises(LimbeckError, match="takes 16 tokens, the data has rows of 17"):
        build("transformers_lm", long, model=str(pretrained))
    (pretrained / "model.safetensors").rename(pretrained / "pytorch_model.bin")
    with pytest.raises(LimbeckError, match="cannot load the causal language model"):
        build("transformers_lm", TASK, model=str(pretrained))
    with pytest.raises(LimbeckError, match="cannot load"):
        build("transformers_lm", TASK, model=str(tmp_path))
