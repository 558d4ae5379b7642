"""Where data lies."""

import pytest

from limbeck.data.places import cache, existing, holder
from limbeck.errors import LimbeckError


def test_variables_are_filled_in(tmp_path, monkeypatch):
    (tmp_path / "cats").mkdir()
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    assert existing("$LIMBECK_DATA/cats") == tmp_path / "cats"


def test_missing_folders_name_the_place_and_the_nearest(tmp_path):
    (tmp_path / "trashnet").mkdir()
    with pytest.raises(LimbeckError, match=f"{tmp_path} holds no 'trashnte'. Did you mean 'trashnet'"):
        existing(tmp_path / "trashnte" / "train")


def test_unset_variables_are_named(monkeypatch):
    monkeypatch.delenv("LIMBECK_DATA", raising=False)
    with pytest.raises(LimbeckError, match=r"\$LIMBECK_DATA/cats: the environment variable"):
        existing("$LIMBECK_DATA/cats")


def test_holder_finds_the_folder_around(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    (tmp_path / "clothes" / "FashionMNIST").mkdir(parents=True)
    assert holder("FashionMNIST") == tmp_path / "clothes"
    assert holder("MNIST") is None
    monkeypatch.delenv("LIMBECK_DATA")
    assert holder("FashionMNIST") is None


def test_the_cache_folder_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "a" / "b"))
    assert cache() == tmp_path / "a" / "b"
    assert cache().is_dir()
