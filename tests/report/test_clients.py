"""The section of a federation: on tables whose numbers are known."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from limbeck.errors import LimbeckError
from limbeck.report.blocks import Charts, Table, Text
from limbeck.report.sections.clients import clients

HEADER = "client,labeled,unlabeled,rounds,failures,accuracy,error,classes\n"


def _loaded(folder: Path, **arms: str) -> Any:
    made = []
    for name, rows in arms.items():
        place = folder / name
        place.mkdir()
        (place / "clients.csv").write_text(HEADER + rows)
        seed = SimpleNamespace(seed=3, final=SimpleNamespace(folder=place))
        made.append(SimpleNamespace(name=name, seeds=(seed,)))
    return SimpleNamespace(arms=tuple(made))


def test_bars_and_what_each_client_holds(tmp_path: Path) -> None:
    loaded = _loaded(
        tmp_path,
        one='0,3,10,5,0,0.5,,"[1, 2]"\n1,4,0,5,0,,,"[4, 0]"\n',
        two='0,3,10,5,0,0.75,,"[1, 2]"\n1,4,0,5,0,,,"[4, 0]"\n',
    )
    section = clients(loaded, None)
    assert section is not None
    charts = section.blocks[0]
    assert isinstance(charts, Charts)
    bars, held = charts.charts
    assert [trace["y"] for trace in bars.figure["data"]] == [[50.0, None], [75.0, None]]
    assert [trace["y"] for trace in held.figure["data"]] == [[1, 4], [2, 0]]
    assert held.table is not None
    assert held.table.rows[1] == ("1", "4", "0", "5", "0", "\u2013")
    assert not [block for block in section.blocks if isinstance(block, Table)]


def test_failures_are_told(tmp_path: Path) -> None:
    section = clients(_loaded(tmp_path, one='0,3,1,5,2,0.5,RuntimeError: full,"[3]"\n'), None)
    assert section is not None
    (table,) = [block for block in section.blocks if isinstance(block, Table)]
    assert table.rows == (("0", "2", "5", "RuntimeError: full"),)
    assert any(isinstance(block, Text) and block.tone == "warning" for block in section.blocks)


def test_nothing_without_clients(tmp_path: Path) -> None:
    seed = SimpleNamespace(seed=0, final=SimpleNamespace(folder=tmp_path))
    assert clients(SimpleNamespace(arms=(SimpleNamespace(name="x", seeds=(seed,)),)), None) is None  # type: ignore[arg-type]


def test_a_broken_table_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match=r"one.clients\.csv is not a table of clients"):
        clients(_loaded(tmp_path, one="0,three,1,5,2,0.5,,[3]\n"), None)
