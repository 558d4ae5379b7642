import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from limbeck.metrics.calibration import reliability
from limbeck.report import write
from limbeck.report.folder import load
from limbeck.report.sections.disagreements import _most

from .folders import Digits, comparison_folder, run_folder


class Page(HTMLParser):
    """The text a reader sees, the tags, and the charts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.charts, self._in = "", [], ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        kind = dict(attrs).get("type") or tag
        self._in = kind if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "application/json":
            self.charts.append(json.loads(data))
        elif not self._in:
            self.text += data

    def having(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag and all(a.get(k) == v for k, v in attributes.items())]

    @property
    def sections(self) -> list[str | None]:
        return [attributes["id"] for attributes in self.having("section")]


def test_a_run_shows_everything_its_files_hold(run: Path, digits: Digits) -> None:
    path = write(run, digits.data)
    page = Page(path)
    assert path == run / "report.html"
    assert page.sections == [
        "scores", "calibration", "disagreements", "classes", "confusion", "curves", "provenance",
    ]  # fmt: skip
    assert "test accuracy over 3 seeds." in page.text
    for title in ("Validation accuracy (%)", "Loss term ce", "Loss term kl", "After temperature scaling"):
        assert title in page.text
    assert "train_size: 200" in page.text
    assert "14.8 k" in page.text  # the teacher's parameters
    assert len(page.having("h1")) == 1


def test_a_comparison_shows_all_arms_and_their_differences(comparison: Path, digits: Digits) -> None:
    page = Page(write(comparison, digits.data))
    assert page.sections[:2] == ["scores", "differences"]
    assert "Digits from 200 labels" in page.text
    for row in json.loads((comparison / "comparison.json").read_text())["differences"]:
        if row["metric"] == "accuracy":
            low, high = (f"{100 * row[end]:+.2f}".replace("-", "\u2212") for end in ("low", "high"))
            assert f"95% interval {low} to {high}, 5 seeds" in page.text
    rows = re.findall(r'<span class="key (\S+)">([^<]+)', page.source)
    assert rows[:4] == [("arm-1", "ce"), ("arm-2", "label-smoothing"), ("arm-3", "kd"), ("teacher", "teacher")]


def test_the_finding_is_shown_where_there_is_one(comparison: Path, digits: Digits) -> None:
    assert "Finding." not in Page(write(comparison, digits.data)).text
    path = comparison / "comparison.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "finding": "It <i>helps</i> little."}))
    assert "Finding. It <i>helps</i> little." in Page(write(comparison, digits.data)).text


def test_the_page_needs_no_network_and_is_written_in_one_step(run: Path, digits: Digits) -> None:
    page = Page(write(run, digits.data))
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "poster"):
            assert (attributes.get(name) or "#").startswith(("data:", "#")), (tag, attributes)
    (policy,) = page.having("meta", **{"http-equiv": "Content-Security-Policy"})
    assert (policy["content"] or "").startswith("default-src 'none'")
    assert "url(" not in (Path(__file__).parents[2] / "src/limbeck/report/page.css").read_text()
    assert list(run.glob("*.part")) == []
    assert page.source.count("plotly.js v") == 1
    assert len(page.source) < 6_000_000  # plotly.js alone is 4.8 MB


def _painted(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _painted(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_painted(value) for value in node]
    return re.sub(r"^var\(--[\w-]+\)$", "#123456", node) if isinstance(node, str) else node


def test_every_chart_is_valid_and_has_a_text_alternative(comparison: Path, digits: Digits) -> None:
    page = Page(write(comparison, digits.data))
    places = page.having("div", role="img")
    assert len(places) == len(page.charts) == 4 + 4 + 2 + 1 + 3 + 5
    assert all(len(place["aria-label"] or "") > 30 for place in places)
    for chart in page.charts:
        go.Figure(_painted(chart))  # plotly refuses an unknown attribute or value


def test_reliability_is_drawn_from_the_pooled_predictions(run: Path, digits: Digits) -> None:
    page = Page(write(run, digits.data))
    said = [seed.final.predictions for seed in load(run).arms[0].seeds]
    bins = reliability(torch.cat([p.logits for p in said if p]), torch.cat([p.label for p in said if p]))
    filled = bins.count > 0
    chart = next(c for c in page.charts if c["layout"]["xaxis"]["title"]["text"] == "confidence")
    # figures carry five significant digits
    assert chart["data"][1]["x"] == pytest.approx(bins.confidence[filled].tolist(), rel=1e-4)
    assert chart["data"][1]["y"] == pytest.approx(bins.accuracy[filled].tolist(), rel=1e-4)


def test_pictures_are_those_of_the_greatest_disagreement(run: Path, digits: Digits) -> None:
    page = Page(write(run, digits.data))
    said = load(run).arms[0].seeds[0].final.predictions
    assert said is not None
    assert said.teacher_logits is not None
    pictures = page.having("img")
    assert [p["alt"].split(":")[0] for p in pictures if p["alt"]] == [
        f"Test sample {int(said.index[i])}" for i in _most(said)
    ]
    assert all((p["src"] or "").startswith("data:image/png;base64,") for p in pictures)
    distributions = [torch.eye(10)[said.label], said.logits.softmax(-1), said.teacher_logits.softmax(-1)]
    pairs = [(0, 1), (0, 2), (1, 2)]
    score = [
        sum(float((distributions[a][i] - distributions[b][i]).abs().sum()) / 2 for a, b in pairs) for i in range(450)
    ]
    assert sorted(_most(said).tolist()) == sorted(sorted(range(450), key=lambda i: -score[i])[:12])


def test_without_a_teacher_the_student_is_set_against_the_truth(digits: Digits, tmp_path: Path) -> None:
    run_folder(tmp_path, digits, "ce", 1, teacher=False)
    page = Page(write(tmp_path, digits.data))
    assert "student and truth differ most" in page.text
    assert all("teacher" not in (p["alt"] or "") for p in page.having("img"))
    assert "its spread is not known" in page.text


def test_pictures_of_other_data_are_refused_with_the_reason(run: Path, digits: Digits) -> None:
    data = digits.data
    data = dataclasses.replace(data, test=data.test.subset(torch.arange(449, -1, -1)))
    page = Page(write(run, data))
    assert "the test data is not the one the predictions were made on" in page.text
    assert page.having("img") == []


def test_data_that_cannot_be_read_again_leave_a_reason(run: Path) -> None:
    (run / "seed-0" / "recipe.yaml").unlink()
    page = Page(write(run))
    assert re.search(r"This part cannot be shown: .*seed-0", page.text)
    assert "confusion" in page.sections


def test_sections_follow_the_files(comparison: Path, digits: Digits) -> None:
    for arm in ("ce", "label-smoothing", "kd"):
        shutil.rmtree(comparison / arm)
    assert Page(write(comparison, digits.data)).sections == ["scores", "differences", "provenance"]


def test_a_run_that_diverged_is_still_reported(run: Path, digits: Digits) -> None:
    path = run / "seed-1" / "fit" / "predictions.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in ("logits", "label", "index")}
    tensors["logits"][3] = float("nan")
    save_file(tensors, path, metadata)
    result = run / "seed-1" / "fit" / "result.json"
    content = json.loads(result.read_text())
    content["metrics"]["nll"] = float("nan")
    result.write_text(json.dumps(content))
    page = Page(write(run, digits.data))
    assert "not finite" in page.text
    assert "This part cannot be shown" in page.text
    assert "NaN" not in "".join(map(json.dumps, page.charts))


def test_names_that_are_markup_stay_names(tmp_path: Path) -> None:
    names = ("<b>", "</script><script>alert(1)</script>", '"quoted"', "&amp;", *"456789")
    digits = Digits(names)
    comparison_folder(tmp_path, digits, 2)
    page = Page(write(tmp_path, digits.data))
    assert "<script>alert(1)" not in page.source
    assert sum(t == "script" and a.get("type") is None for t, a in page.tags) == 2  # plotly.js and the page's own
    assert "</script><script>alert(1)</script>" in page.text
    ticks = next(c["layout"]["yaxis"]["ticktext"] for c in page.charts if "hovertemplate" in c["data"][0] and
                 len(c["layout"]["yaxis"].get("ticktext", ())) == 10)  # fmt: skip
    assert any(tick.strip() == "&lt;b&gt;" for tick in ticks)  # plotly turns entities into text, tags into markup
