"""Credentials and profile are private, whole and bound to their mesh."""

import json
import stat
from pathlib import Path

import pytest

from inferplane.client import Endpoints, FileStore, ReadyFile, Tokens
from inferplane.client.endpoints import load_profile, save_profile
from inferplane.client.errors import ConfigurationError

_HERE = Endpoints("localhost:1", "localhost:2", "localhost:3", "localhost:4")
_THERE = Endpoints("elsewhere:1", "localhost:2", "localhost:3", "localhost:4")


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_credentials_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    await FileStore(_HERE, folder).save(Tokens("secret"))
    assert (_mode(folder), _mode(folder / "credentials.json")) == (0o700, 0o600)


async def test_credentials_that_others_can_read_are_refused(tmp_path: Path) -> None:
    store = FileStore(_HERE, tmp_path)
    await store.save(Tokens("secret"))
    (tmp_path / "credentials.json").chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600") as caught:
        await store.load()
    assert caught.value.reason == "CREDENTIALS_EXPOSED"


async def test_credentials_of_one_mesh_are_never_given_for_another(tmp_path: Path) -> None:
    await FileStore(_HERE, tmp_path).save(Tokens("secret"))
    assert await FileStore(_THERE, tmp_path).load() is None


async def test_logging_out_of_one_mesh_leaves_the_others(tmp_path: Path) -> None:
    here, there = FileStore(_HERE, tmp_path), FileStore(_THERE, tmp_path)
    await here.save(Tokens("one"))
    await there.save(Tokens("two"))
    await here.save(None)
    remaining = await there.load()
    assert (await here.load(), remaining and remaining.access_token) == (None, "two")


@pytest.mark.parametrize("content", ["{", "[]", '{"meshes": 3}'])
async def test_malformed_credentials_say_what_to_do(tmp_path: Path, content: str) -> None:
    path = tmp_path / "credentials.json"
    path.touch(0o600)
    path.write_text(content)
    with pytest.raises(ConfigurationError, match="inferplane login"):
        await FileStore(_HERE, tmp_path).load()


async def test_nothing_but_the_files_is_left_behind(tmp_path: Path) -> None:
    await FileStore(_HERE, tmp_path).save(Tokens("secret"))
    save_profile(_HERE, tmp_path)
    assert _names(tmp_path) == ["credentials.json", "profile.json"]


def test_tokens_do_not_show_in_a_repr() -> None:
    assert "secret" not in repr(Tokens("secret", refresh_token="secret"))


def test_a_profile_is_read_as_it_was_saved(tmp_path: Path) -> None:
    save_profile(_HERE, tmp_path)
    assert load_profile(tmp_path) == _HERE


def test_a_missing_profile_says_to_log_in(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="inferplane login"):
        load_profile(tmp_path)


def test_a_ready_file_names_mesh_and_administrator(tmp_path: Path) -> None:
    path = tmp_path / "ready.json"
    endpoints = {"auth": "localhost:1", "artifact": "localhost:2", "inference": "localhost:3"}
    content = {
        "endpoints": {**endpoints, "reporting": "localhost:4", "triton": "localhost:5", "metrics": {"auth": "x"}},
        "admin": {"username": "admin", "password_file": "/somewhere"},
        "pids": {"auth": 1},
    }
    path.write_text(json.dumps(content))
    assert ReadyFile.read(path) == ReadyFile(_HERE, "admin", Path("/somewhere"))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"endpoints": {"auth": "no port"}}'])
def test_a_malformed_ready_file_is_a_configuration_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "ready.json"
    path.write_text(content)
    with pytest.raises(ConfigurationError):
        ReadyFile.read(path)
