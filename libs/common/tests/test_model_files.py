"""A model by path, or by hub id out of the hub's cache (there is no network in a test)."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest

from hyperflexis_common.model_files import ModelNotFound, model_directory


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, offline, with one repository in it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--maker--small-1.0"
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return snapshot


def test_a_directory_is_itself(tmp_path: Path) -> None:
    assert model_directory(tmp_path) == tmp_path


def test_an_id_is_looked_up_in_the_hubs_cache(cache: Path) -> None:
    assert model_directory(Path("maker/small-1.0")) == cache


def test_what_is_neither_is_said_so(cache: Path) -> None:
    for path in ("/nowhere/at/all", "nowhere", "../maker/small", "a/b/c"):
        with pytest.raises(ModelNotFound, match="is not a model directory, and no id of the hub"):
            model_directory(Path(path))
    with pytest.raises(ModelNotFound, match="maker/other is no directory, and the hub does not give it"):
        model_directory(Path("maker/other"))
