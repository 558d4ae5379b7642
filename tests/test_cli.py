"""The command line: what it prints, what it refuses, and how light it is."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from limbeck.catalogue import list_methods, sources
from limbeck.cli import main
from limbeck.errors import LimbeckError
from limbeck.methods.index import METHODS
from limbeck.options import make_parser, split_keys

QUICK = [
    "--data",
    "digits",
    "--student",
    "mlp",
    "--student.hidden",
    "8",
    "--fit.updates",
    "6",
    "--fit.batch_size",
    "32",
]
VERBS = ("list", "show", "run", "compare", "demo", "tune", "verify", "evaluate", "predict", "export", "report")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "80")


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command prints; it must succeed."""
    status = main(words)
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command says when it refuses: one line, and status 2."""
    status = main(words)
    captured = capsys.readouterr()
    assert status == 2, captured.out
    assert captured.err.startswith("limbeck: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "list")
    for row in list_methods():
        state = row["evidence"] if "claim" in sources(row["slug"]) else "-"
        assert re.search(rf"^  {row['slug']} +{state} .* {row['arxiv']} ", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 80
    assert json.loads(said(capsys, "list", "--json")) == list_methods()


@pytest.mark.parametrize("slug", METHODS)
def test_show(slug: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "show", slug)
    assert METHODS[slug].arxiv in text
    assert f"method: {slug}" in text
    assert "--- evidence: " in text
    assert "``" not in text


@pytest.mark.parametrize("words", [[], ["--help"], *([verb, "--help"] for verb in VERBS)])
def test_help_fits_the_screen(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, *words)
    assert "usage: limbeck" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys)
    assert [verb for verb in VERBS if not re.search(rf"^    {verb} ", text, re.MULTILINE)] == []


@pytest.mark.parametrize("slug", METHODS)
def test_every_key_of_a_recipe_is_documented(slug: str, capsys: pytest.CaptureFixture[str]) -> None:
    from limbeck.recipe import block_kinds, method_class, read, resolve

    text = said(capsys, "run", slug, "--help")
    assert max(map(len, text.splitlines())) <= 80
    blocks = block_kinds(method_class(slug))
    for name, value in resolve(read(slug)).items():
        block = name in blocks and isinstance(value, dict)
        for key in [f"{name}.{part}" for part in value if part != "name"] if block else [name]:
            if name != "method" and not (block and "method" in value):
                assert f"--{key} " in text, key
    assert "foreach" not in text


def test_help_follows_the_words_of_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "run", "supervised", "--student", "mlp", "--student.layers", "5", "--help")
    assert re.search(r"--student\.layers int +now 5\n +Hidden layers", text)
    assert "--student.width" not in text
    assert re.search(
        r"--fit\.optimizer\.betas list of float, float +now \[0\.9, 0\.999\]",
        said(capsys, "run", "supervised", "--fit.optimizer", "adam", "-h"),
    )


def test_run_evaluate_predict_export_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "run", "supervised", *QUICK, "--name", "first", "--quiet")
    model = tmp_path / "runs/first/seed-0/fit/model"
    assert "model: runs/first/seed-0/fit/model" in text
    assert (tmp_path / "runs/first/report.html").exists()
    accuracy = json.loads((model.parent / "result.json").read_text())["metrics"]["accuracy"]
    assert f"{accuracy:.1%}" in text

    # A run is measured on its own data; a model on those that are named.
    assert f"{accuracy:.1%}" in said(capsys, "evaluate", "runs/first")
    assert f"{accuracy:.1%}" in said(capsys, "evaluate", str(model), "--data", "digits")
    assert "scaled NLL" not in said(capsys, "evaluate", "runs/first/seed-0", "--split", "train")

    Image.fromarray((torch.rand(8, 8) * 255).byte().numpy()).save("one.png")
    assert said(capsys, "predict", "runs/first", "one.png", "--to", "a.csv") == "1 image labelled: a.csv\n"
    said(capsys, "predict", "runs/first", "one.png", "--to", "b.csv", "--temperature", "100")
    cold, hot = (float(Path(name).read_text().splitlines()[1].split(",")[2]) for name in ("a.csv", "b.csv"))
    assert 0.1 <= hot < cold

    text = said(capsys, "export", "runs/first")
    assert re.fullmatch(
        r"exported: runs/first/seed-0/fit/model\.onnx \(largest difference to PyTorch's logits: [\d.e+-]+\)\n", text
    )
    (tmp_path / "runs/first/report.html").unlink()
    assert said(capsys, "report", "runs/first") == f"report: {tmp_path}/runs/first/report.html\n"

    assert "supervised-" not in said(capsys, "run", "runs/first", "--name", "again", "--quiet", "--no-report")
    assert not (tmp_path / "runs/again/report.html").exists()
    again = tmp_path / "runs/again/seed-0/fit/model/model.safetensors"
    assert again.read_bytes() == (model / "model.safetensors").read_bytes()

    said(capsys, "run", "supervised", *QUICK, "--name", "first", "--seed", "1", "--quiet", "--no-report")
    text = refused(capsys, "export", "runs/first")
    assert "holds 2 models; name one of them: runs/first/seed-0/fit/model, runs/first/seed-1/fit/model" in text


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = ["--teacher", "supervised", "--teacher.student", "mlp"]
    text = said(capsys, "run", "kd", *QUICK, *teacher, "--dry-run")
    assert re.search(r"teacher-fit +1,200 +32", text)
    assert "nothing was written" in text
    assert not list(tmp_path.iterdir())


def test_compare_with_named_arms_and_with_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arms = ["supervised", "[b]=supervised --label_smoothing 0.3"]
    text = said(capsys, "compare", *arms, *QUICK, "--seeds", "2", "--name", "c", "--title", "T", "--quiet")
    assert re.search(r"^\[b\] +\d", text, re.MULTILINE), "a name was taken for markup"
    assert "[b]: " in text
    found = json.loads((tmp_path / "runs/c/comparison.json").read_text())
    assert (found["title"], found["seeds"], found["reference"]) == ("T", [0, 1], "supervised")
    assert found["arms"][1]["recipe"]["label_smoothing"] == 0.3
    assert found["arms"][0]["recipe"]["student"]["hidden"] == 8

    Path("mine.yaml").write_text(
        "seeds: 1\nreference: b\nshared: {data: digits, student: {name: mlp, hidden: 8}, fit: {updates: 3}}\n"
        "arms: {a: supervised, b: {method: ps-kd, alpha_T: 0.5}}\n"
    )
    said(capsys, "compare", "mine.yaml", "--fit.updates", "4", "--name", "d", "--quiet", "--no-report")
    found = json.loads((tmp_path / "runs/d/comparison.json").read_text())
    assert [(arm["name"], arm["method"]) for arm in found["arms"]] == [("a", "supervised"), ("b", "ps-kd")]
    assert {arm["recipe"]["fit"]["updates"] for arm in found["arms"]} == {4}
    assert (found["seeds"], found["reference"]) == ([0], "b")


def test_tune(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = ["--space", "fit.optimizer.lr=[0.001, 1e-1]", "--seeds", "1", "--metric", "nll", "--better", "lower"]
    text = said(capsys, "tune", "supervised", *QUICK, *space, "--quiet")
    best = json.loads((tmp_path / "runs/tune-supervised/tuning.json").read_text())["best"]["fit.optimizer.lr"]
    assert f"best: --fit.optimizer.lr {best} (nll " in text


def test_a_class_of_the_current_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("limbeck_test_net.py").write_text(
        "from torch import nn\n\n\nclass MyNet(nn.Sequential):\n"
        "    def __init__(self, num_classes: int, hidden: int = 4):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, hidden), nn.Linear(hidden, num_classes))\n"
    )
    words = ["run", "supervised", "--data", "digits", "--fit.updates", "2", "--student", "limbeck_test_net.MyNet"]
    text = said(capsys, *words, "--student.hidden", "3", "--quiet", "--no-report")
    assert "model: " in text
    assert "hiden" in refused(capsys, *words, "--student.hiden", "3")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["runn"], r"unknown verb 'runn'\. Did you mean 'run'\? There are: list, show"),
        (["--verison"], r"has no option --verison\. Did you mean '--version'\?"),
        (["list", "--jsn"], r"limbeck list has no option --jsn\. Did you mean '--json'\?"),
        (["export", "x", "--too", "y"], r"limbeck export has no option --too\. Did you mean '--to'\?"),
        (["show"], r"the following arguments are required: method; see 'limbeck show --help'"),
        (["show", "kdd"], r"unknown method 'kdd'\. Did you mean 'kd'\?"),
        (["run", "kdd"], r"unknown method 'kdd'\. Did you mean 'kd'\?"),
        (["run", "mine.yml"], r"there is no file mine\.yml\."),
        (["run", "."], r"holds no recipe\.yaml"),
        (["run", "kd", "--alpha"], r"--alpha needs a value, as in --alpha VALUE$"),
        (["run", "kd", "--quite"], r"--quite needs a value, as in --quite VALUE\. Did you mean '--quiet'\?"),
        (["run", "kd", "--alpha", "--seed", "1"], r"--alpha needs a value"),
        (["run", "kd", "--seed"], r"argument --seed: expected one argument"),
        (["run", "kd", "--seed", "x"], r"argument --seed: invalid int value: 'x'"),
        (["run", "kd", "--sedd", "1"], r"unknown key 'sedd'\..*Did you mean '--seed'\?"),
        (["run", "kd", "--alhpa", "1"], r"unknown key 'alhpa'\. Did you mean 'alpha'\?"),
        (["run", "kd", "--alpha", "x"], r"alpha is 'x'; it must be float"),
        (["run", "kd", "--student.width", "x", "--help"], r"student\.width is 'x'; it must be int"),
        (["run", "kd", "surplus"], r"unrecognized arguments: surplus"),
        (["run", "kd", "--method", "ps-kd"], r"--method is neither an option nor a key"),
        (["run", "kd", "--recipe", "smal"], r"kd has no recipe 'smal'\. Did you mean 'small'\?"),
        (["compare", "supervised"], r"at least two different arms"),
        (["compare", "supervised", "supervised"], r"two arms are called 'supervised'; give them names"),
        (["compare", "supervised", "x=supervised extra"], r"'extra' is not a key; write --KEY VALUE"),
        (["compare", "supervised", 'x="supervised'], r"No closing quotation"),
        (["compare", "none.yaml"], r"there is no file none\.yaml"),
        (["compare", "supervised", "kd", "--arms", "x"], r"--arms is neither an option nor a key"),
        (["tune", "kd"], r"tune needs a space"),
        (["tune", "kd", "--space", "alpha"], r"--space 'alpha': write KEY=VALUES"),
        (["verify", "supervised"], r"supervised claims nothing"),
        (["evaluate", "none", "--data", "digits"], r"none is not a folder"),
        (["evaluate", "none"], r"which data\?"),
        (["evaluate", "none", "--alpha", "1"], r"evaluate has no option --alpha"),
        (["evaluate", "none", "--data.root", "x"], r"which data\? Name them"),
        (["predict", "none", "x.png"], r"none is not a folder"),
        (["predict", ".", "x.png"], r"holds no saved model"),
        (["report", "none"], r"there is no folder none"),
        (["report", "."], r"holds neither comparison\.json nor"),
    ],
)
def test_mistakes(words: list[str], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert re.search(expected, refused(capsys, *words).strip())
    assert not list(tmp_path.iterdir()), "something was written all the same"


def test_a_file_that_cannot_be_written_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    assert "file" in refused(capsys, "run", "supervised", *QUICK, "--out", "file/runs")


def test_own_options_and_keys_are_separated() -> None:
    own = {"--seed": True, "--quiet": False}
    words = ["kd", "--seed", "3", "--alpha=0.5", "--quiet", "--fit.optimizer.lr", "1e-3", "--seed=4", "--x", "-1"]
    kept, overrides = split_keys(words, own)
    assert kept == ["kd", "--seed", "3", "--quiet", "--seed=4"]
    assert overrides == {"alpha": 0.5, "fit.optimizer.lr": 1e-3, "x": -1}
    with pytest.raises(LimbeckError, match="--alpha needs a value"):
        split_keys(["--alpha"], own)
    assert make_parser().parse_args(["list"]).verb == "list"


def test_ctrl_c_is_status_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(main.__globals__["COMMANDS"], "list", stop)
    assert main(["list"]) == 130
    assert capsys.readouterr().err == "\nlimbeck: stopped; the same command goes on from there\n"


def started(*words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "80"}
    command = [sys.executable, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("words", [["list"], ["--help"], ["run", "--help"], ["show", "kd"]])
def test_looking_around_is_quick_and_loads_no_torch(words: list[str]) -> None:
    code = f"import sys; from limbeck.cli import main; main({words!r}); sys.exit('torch' in sys.modules)"
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        done = started("-c", code)
        seconds.append(time.perf_counter() - begin)
        assert done.returncode == 0, done.stderr
    # It takes 0.1 to 0.2 s; a machine that does other things at the same time is given more.
    assert min(seconds) < 2


def test_checking_a_recipe_does_not_load_the_compiler() -> None:
    """Torch imports it, a second's work, where an optimiser is given its first parameters."""
    code = "import sys; from limbeck.cli import main; main(['run', 'kd', '-h']); print('torch._dynamo' in sys.modules)"
    done = started("-c", code)
    assert done.stdout.endswith("False\n"), done.stdout + done.stderr


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m limbeck show kd; echo status $?"
    piped = f"set -o pipefail; {sys.executable} -m limbeck show kd | head -c 10 >/dev/null"
    assert "status 0" in subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout
    done = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_the_exit_status_reaches_the_shell() -> None:
    assert started("-m", "limbeck", "--version").returncode == 0
    done = started("-m", "limbeck", "runn")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
