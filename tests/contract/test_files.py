"""What every method promises on paper: its docstring, its file, its keys and its recipes."""

import inspect
import re
from importlib import resources
from pathlib import Path

import pytest

from limbeck.catalogue import docstring
from limbeck.errors import LimbeckError
from limbeck.methods.index import METHODS, Method
from limbeck.recipe import method_class, read, resolve
from limbeck.verbs.run import prepare
from limbeck.verbs.verify import read_claim
from tests.contract.exceptions import needs_claim
from tests.contract.training import small_claim_arms, small_recipe

RECIPES = resources.files("limbeck") / "recipes"


@pytest.fixture(params=METHODS)
def slug(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def _title(method: Method) -> str:
    """The paper's title; a baseline that is no paper's idea has its source in brackets."""
    described = re.fullmatch(r".*\((.*)\)", method.paper)
    return described[1] if described and method.kind == "baseline" else method.paper


def test_docstring_names_the_paper(slug: str) -> None:
    method = METHODS[slug]
    text = " ".join(docstring(slug).split())
    assert _title(method) in text
    assert re.search(rf"\barXiv[ :]{re.escape(method.arxiv)}\b", text)
    assert re.search(rf"\b{method.year}\b", text)


def test_docstring_names_every_argument(slug: str) -> None:
    arguments = docstring(slug).partition("Args:")[2]
    for name in list(inspect.signature(method_class(slug)).parameters):
        assert re.search(rf"^    {name}: \w", arguments, flags=re.MULTILINE), name


def test_method_is_short(slug: str) -> None:
    assert len(Path(inspect.getfile(method_class(slug))).read_text(encoding="utf-8").splitlines()) <= 200


def test_index_entry(slug: str) -> None:
    method = METHODS[slug]
    module = method.path.partition(":")[0]
    assert method.slug == slug
    assert module == f"limbeck.methods.{method.task}.{slug.replace('-', '_')}"
    assert re.fullmatch(r"\d{4}\.\d{4,5}", method.arxiv)
    # The first two digits of the id are the year in which the paper was put there.
    assert 2000 + int(method.arxiv[:2]) <= method.year


def test_unknown_key_is_refused_with_the_nearest(slug: str) -> None:
    for name in inspect.signature(method_class(slug)).parameters:
        with pytest.raises(LimbeckError, match=rf"unknown key '{name}z'\. Did you mean '{name}'\?"):
            resolve({**small_recipe(slug), f"{name}z": 1})


@pytest.mark.parametrize("which", ["small", "paper"])
def test_recipe_resolves(slug: str, which: str) -> None:
    recipe = read(slug, which)
    assert recipe["method"] == slug
    resolved = resolve(recipe)
    assert resolve(resolved) == resolved


def test_claim_resolves(slug: str) -> None:
    if not needs_claim(METHODS[slug]) and not (RECIPES / slug / "claim.yaml").is_file():
        with pytest.raises(LimbeckError, match=f"{slug} claims nothing"):
            read_claim(slug)
        return
    claim = read_claim(slug)
    assert claim["claims"]
    methods = set()
    for name, arm in small_claim_arms(claim).items():
        resolved = prepare(arm)
        assert resolve(resolved) == resolved, name
        methods.add(resolved["method"])
    assert slug in methods


def test_recipe_folders_are_those_of_methods() -> None:
    assert {entry.name for entry in RECIPES.iterdir() if entry.is_dir()} == set(METHODS)
