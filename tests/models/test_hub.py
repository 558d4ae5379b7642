import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.models import ImageTask, build, load, push_to_hub

TASK = ImageTask(("ant", "bee"), channels=1, size=(8, 8), mean=(0.3,), std=(0.2,))
IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The hub's web service, as a folder: ``user/repo/main`` holds the files, ``user/repo/REVISION`` others."""
    root = tmp_path / "hub"

    def create_repo(repo_id: str, *, private: bool, exist_ok: bool) -> None:
        (root / repo_id / "main").mkdir(parents=True, exist_ok=exist_ok)
        if private:
            (root / repo_id / "private").touch()

    def upload_folder(*, repo_id: str, folder_path: Path, commit_message: str) -> str:
        assert commit_message
        shutil.copytree(folder_path, root / repo_id / "main", dirs_exist_ok=True)
        return f"https://huggingface.co/{repo_id}"

    def snapshot_download(repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        source = root / repo_id / (revision or "main")
        if not source.is_dir():
            raise huggingface_hub.errors.LocalEntryNotFoundError(f"no {repo_id}\nmore lines")
        target = tmp_path / "cache" / repo_id / (revision or "main")
        target.mkdir(parents=True, exist_ok=True)
        for name in allow_patterns:
            if (source / name).exists():
                shutil.copy(source / name, target)
        return str(target)

    for function in (create_repo, upload_folder, snapshot_download):
        monkeypatch.setattr(huggingface_hub, function.__name__, function)
    return root


def test_round_trip(hub: Path) -> None:
    model = build("cnn", TASK, width=2).eval()
    assert push_to_hub(model, "user/repo") == "https://huggingface.co/user/repo"
    files = {path.name for path in (hub / "user/repo/main").iterdir()}
    assert files == {"config.json", "model.safetensors"}
    assert not (hub / "user/repo/private").exists()
    assert torch.equal(load("hf://user/repo")(IMAGES).logits, model(IMAGES).logits)
    built = build("hub", TASK, repo="user/repo")
    assert built.training
    assert built.factory == "cnn"
    assert torch.equal(built.eval()(IMAGES).logits, model(IMAGES).logits)


def test_revision_and_private(hub: Path) -> None:
    old, new = build("cnn", TASK, width=2).eval(), build("cnn", TASK, width=2).eval()
    push_to_hub(old, "user/repo", private=True)
    (hub / "user/repo/main").rename(hub / "user/repo/v1")
    push_to_hub(new, "user/repo", private=True)
    assert (hub / "user/repo/private").exists()
    assert torch.equal(load("hf://user/repo@v1")(IMAGES).logits, old(IMAGES).logits)
    assert torch.equal(load("hf://user/repo")(IMAGES).logits, new(IMAGES).logits)


def test_only_the_two_files_are_fetched(hub: Path, tmp_path: Path) -> None:
    push_to_hub(build("cnn", TASK, width=2), "user/repo")
    (hub / "user/repo/main/pytorch_model.bin").write_bytes(b"\x80")
    load("hf://user/repo")
    assert not (tmp_path / "cache/user/repo/main/pytorch_model.bin").exists()


@pytest.mark.usefixtures("hub")
def test_failures_are_one_line() -> None:
    with pytest.raises(LimbeckError) as caught:
        load("hf://user/nothing")
    assert str(caught.value) == "cannot fetch hf://user/nothing: LocalEntryNotFoundError: no user/nothing"


def test_refused_upload(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def upload_folder(**arguments: object) -> str:
        raise PermissionError("no right to write")

    monkeypatch.setattr(huggingface_hub, "upload_folder", upload_folder)
    with pytest.raises(LimbeckError, match="cannot push to hf://user/repo: PermissionError: no right to write"):
        push_to_hub(build("cnn", TASK, width=2), "user/repo")
