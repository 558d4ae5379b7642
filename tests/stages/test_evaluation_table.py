from pathlib import Path

import torch
from safetensors.torch import load_file

from limbeck.data.bags import BagData
from limbeck.data.load import load
from limbeck.data.rows import TableData
from limbeck.models import build
from limbeck.stages.evaluation.table import report

CPU = torch.device("cpu")


def test_shares_of_the_training_bags_whether_they_are_opened_or_not(tmp_path: Path) -> None:
    data = load("breast_cancer", 0, bag_size=8)
    assert isinstance(data, BagData)
    torch.manual_seed(0)
    model = build("table_mlp", data.task, hidden=[4])
    opened = data.train.relabel(torch.zeros(data.train.rows.shape[:2].numel(), dtype=torch.int64)).instances()
    rows = TableData(opened, data.validation, data.test, None, data.classes)
    for name, given in {"bags": data, "rows": rows}.items():
        (tmp_path / name).mkdir()
        report(model, {}, given, tmp_path / name, CPU)
    found, same = (load_file(tmp_path / name / "bags.safetensors") for name in ("bags", "rows"))
    assert found.keys() == same.keys()
    assert all(torch.equal(found[name], same[name]) for name in found)
    assert data.train.hidden_labels is not None
    assert torch.equal(found["share"], data.train.hidden_labels.double().mean(1).float())
    assert int(found["size"]) == 8
    for at in (0, len(data.train) - 1):
        p = model({"row": data.train.rows[at]}).logits.softmax(-1)[:, 1]
        torch.testing.assert_close(found["probability"][at], p.mean())  # one bag at a time: the last digits differ
        assert float(found["counted"][at]) == float((p > 0.5).float().mean())


def test_rows_without_bags_have_no_shares(tmp_path: Path) -> None:
    data = load("breast_cancer", 0, bag_size=8)
    part = data.train.instances().subset(torch.arange(20))
    model = build("table_mlp", data.task, hidden=[4])
    report(model, {}, TableData(part, data.validation, data.test, None, data.classes), tmp_path, CPU)
    assert not (tmp_path / "bags.safetensors").exists()
    assert (tmp_path / "predictions.safetensors").is_file()
