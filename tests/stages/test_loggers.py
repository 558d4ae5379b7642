"""Further logs beside metrics.csv."""

from pathlib import Path

from limbeck import run


def test_tensorboard_gets_what_the_csv_gets(tmp_path: Path) -> None:
    done = run(
        "supervised",
        data="digits",
        student={"name": "mlp", "hidden": 8},
        fit={"updates": 20, "log_every": 10, "evaluations": 1, "loggers": ["tensorboard"]},
        out=tmp_path,
        quiet=True,
    )
    # Not tensorboard's own reader: it drags in deprecated protobuf calls; the tags stand in the file as text.
    (events,) = (done.folder / "fit").glob("tensorboard/events*")
    content = events.read_bytes()
    for tag in (b"train/loss", b"train/lr", b"validation/accuracy"):
        assert tag in content
    assert "20," in (done.folder / "fit" / "metrics.csv").read_text(encoding="utf-8")
