import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.data.pairs import PairSamples
from limbeck.errors import LimbeckError
from limbeck.models import build
from limbeck.models.folder import load, save
from limbeck.models.text_encoder import BiEncoder, CrossEncoder, TextEncoder
from limbeck.models.text_task import TextTask, words

pytest.importorskip("transformers")

FIRST = ["a cat sits", "two dogs run in the park", "nobody sings"]
SECOND = ["the cat sits down", "a dog runs", "a cat sits"]
TASK = TextTask(words([*FIRST, *SECOND], 100), 8)
SMALL = {"width": 16, "heads": 2, "feedforward": 32}


def batch(task: TextTask = TASK) -> dict[str, torch.Tensor]:
    return PairSamples(FIRST, SECOND, task).fetch(torch.arange(3))


def made(name: str, seed: int = 0, **arguments: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(name, TASK, **{**SMALL, **arguments}).eval()


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_score_is_the_cosine_of_pooled_states_one_sentence_at_a_time(pooling: str) -> None:
    model: BiEncoder = made("bi_encoder", pooling=pooling)
    found = model(batch())
    for row, pair in enumerate(zip(FIRST, SECOND, strict=True)):
        vectors = []
        for text in pair:
            ids = torch.tensor([[TASK.cls_id, *TASK.encode([text])[0], TASK.sep_id]])
            states = model.backbone(input_ids=ids).last_hidden_state[0].detach().double().numpy()
            vectors.append(states[0] if pooling == "cls" else states.mean(0))
        cosine = vectors[0] @ vectors[1] / np.linalg.norm(vectors[0]) / np.linalg.norm(vectors[1])
        # float32 states, alone and padded in a batch.
        assert found.score[row].item() == pytest.approx(cosine, abs=1e-5)
        np.testing.assert_allclose(found.first[row].detach().numpy(), vectors[0], atol=1e-5)


def test_padding_changes_nothing() -> None:
    for name in ("bi_encoder", "cross_encoder"):
        model = made(name)
        longer = {
            key: torch.nn.functional.pad(value, (0, 3), value=0) if key.endswith(("ids", "mask")) else value
            for key, value in batch().items()
        }
        torch.testing.assert_close(model(longer).score, model(batch()).score, atol=1e-6, rtol=0)


@pytest.mark.parametrize("double", [False, True])
def test_a_joint_input_is_both_sentences_in_one_row(double: bool) -> None:
    model: CrossEncoder = made("cross_encoder")
    model.double_separator = double
    ids, mask, types = model.join(batch())
    for row, (a, b) in enumerate(zip(FIRST, SECOND, strict=True)):
        one, other = TASK.encode([a, b])
        left = [TASK.cls_id, *one, TASK.sep_id]
        right = [*([TASK.sep_id] if double else []), *other, TASK.sep_id]
        rest = ids.shape[1] - len(left) - len(right)
        assert ids[row].tolist() == left + right + [TASK.pad_id] * rest
        assert mask[row].tolist() == [True] * len(left + right) + [False] * rest
        assert types[row].tolist() == [0] * len(left) + [1] * len(right) + [0] * rest


def test_a_cross_encoder_reads_both_sides_and_their_order() -> None:
    model: CrossEncoder = made("cross_encoder", initializer_range=0.3)
    some = batch()
    plain = model(some)
    torch.testing.assert_close(plain.score, plain.logits.sigmoid())
    turned = {"a_ids": some["b_ids"], "a_mask": some["b_mask"], "b_ids": some["a_ids"], "b_mask": some["a_mask"]}
    other = {**some, "b_ids": some["b_ids"].roll(1, 0), "b_mask": some["b_mask"].roll(1, 0)}
    for changed in (turned, other):
        assert bool(((model(changed).logits - plain.logits).abs() > 1e-4).all())


def test_dropout_gives_a_sentence_two_readings_while_training_only() -> None:
    model: BiEncoder = made("bi_encoder")
    same = PairSamples(FIRST, FIRST, TASK).fetch(torch.arange(3))
    assert torch.equal(model(same).first, model(same).second)
    found = model.train()(same)
    assert bool(((found.first - found.second).abs().max(-1).values > 1e-3).all())


def test_weights_are_carried_over_and_heads_left_alone() -> None:
    bi, cross = made("bi_encoder", seed=1), made("cross_encoder", seed=2)
    head = {name: value.clone() for name, value in cross.head.state_dict().items()}
    cross.carry_over(bi)
    assert all(torch.equal(cross.backbone.state_dict()[k], v) for k, v in bi.backbone.state_dict().items())
    assert all(torch.equal(cross.head.state_dict()[k], v) for k, v in head.items())
    with pytest.raises(LimbeckError, match="a BiEncoder cannot be carried over to a CrossEncoder: the transformers"):
        cross.carry_over(made("bi_encoder", width=32))
    other = build("bi_encoder", TextTask(TASK.tokenizer.replace('"cat"', '"cow"'), 8), **SMALL)
    assert isinstance(other, TextEncoder)
    with pytest.raises(LimbeckError, match="tokenizers differ"):
        cross.carry_over(other)


@pytest.mark.parametrize("name", ["bi_encoder", "cross_encoder"])
def test_saved_and_loaded_it_scores_the_same(name: str, tmp_path: Path) -> None:
    model = made(name)
    loaded = load(save(model, tmp_path))
    assert loaded.spec == TASK
    assert torch.equal(loaded(batch()).score, model(batch()).score)
    assert json.loads((tmp_path / "config.json").read_text())["task"] == "similarity"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with a pooler, as transformers writes it: the word pieces are the words of this file."""
    import tokenizers
    import transformers

    folder = tmp_path_factory.mktemp("bert")
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({w for t in (*FIRST, *SECOND) for w in t.split()})]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({n: i for i, n in enumerate(names)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    roles = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(names),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
    )
    torch.manual_seed(3)
    transformers.BertModel(config).save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.mark.parametrize("name", ["bi_encoder", "cross_encoder"])
def test_a_pretrained_model_brings_its_weights_and_its_tokenizer(name: str, pretrained: Path, tmp_path: Path) -> None:
    import transformers

    model = build(name, TASK, pretrained=str(pretrained)).eval()
    assert isinstance(model, TextEncoder)
    own = transformers.AutoModel.from_pretrained(pretrained)
    assert model.spec.max_length == TASK.max_length
    assert model.spec.tokenizer != TASK.tokenizer
    assert model.spec.encode(["a cat sits"]) == [_ids(pretrained, "a cat sits")]
    state = own.state_dict()
    assert all(torch.equal(state[key], value) for key, value in model.backbone.state_dict().items())
    if isinstance(model, CrossEncoder):
        assert torch.equal(model.head[0].weight, own.pooler.dense.weight)
    # Saved, it is built again with nothing of the original folder.
    loaded = load(save(model, tmp_path))
    assert loaded.arguments["config"]["model_type"] == "bert"
    assert "pretrained" not in loaded.arguments
    some = batch(model.spec)
    assert torch.equal(loaded(some).score, model(some).score)


def _ids(folder: Path, text: str) -> list[int]:
    import transformers

    ids: list[int] = transformers.AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]
    return ids


def test_the_joint_input_of_a_pretrained_model_is_its_own(pretrained: Path) -> None:
    import transformers

    model = build("cross_encoder", TASK, pretrained=str(pretrained))
    assert isinstance(model, CrossEncoder)
    assert not model.double_separator
    ids, mask, types = model.join(batch(model.spec))
    tokenizer = transformers.AutoTokenizer.from_pretrained(pretrained)
    for row, (a, b) in enumerate(zip(FIRST, SECOND, strict=True)):
        expected = tokenizer(a, b, return_token_type_ids=True)
        assert ids[row][mask[row]].tolist() == expected["input_ids"]
        assert types[row][mask[row]].tolist() == expected["token_type_ids"]


def test_wrong_input(pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match="heads must divide the width"):
        build("bi_encoder", TASK, width=10, heads=4)
    with pytest.raises(LimbeckError, match=r"dropout must be in \[0, 1\), got 1"):
        build("cross_encoder", TASK, dropout=1.0)
    with pytest.raises(LimbeckError, match="initializer_range must be above 0"):
        build("bi_encoder", TASK, initializer_range=0.0)
    with pytest.raises(LimbeckError, match="pooling must be 'cls' or 'mean', got 'max'"):
        build("bi_encoder", TASK, pooling="max")
    with pytest.raises(LimbeckError, match="transformers cannot load the encoder"):
        build("bi_encoder", TASK, pretrained=str(tmp_path))
    with pytest.raises(LimbeckError, match="takes 40 tokens, two sentences of the data have 60"):
        build("bi_encoder", TextTask(TASK.tokenizer, 30), pretrained=str(pretrained))
