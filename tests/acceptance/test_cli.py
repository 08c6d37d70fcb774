"""The `inferplane` command against a real mesh: a whole day of it, as scripts would drive it."""

import json
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from tests.support.onnx_models import identity, model, tensor
from tests.support.up import COMMAND, Up

Run = Callable[..., "subprocess.CompletedProcess[str]"]
PASSWORD = "correct horse battery"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def run(up: Up, home: Path) -> Run:
    """The command, logged in as the administrator."""

    def command(*arguments: object, **options: Any) -> "subprocess.CompletedProcess[str]":
        return up.run(*map(str, arguments), home=home, **options)

    admin = up.ready["admin"]
    assert command("login", "--username", admin["username"], "--password-file", admin["password_file"]).returncode == 0
    return command


def document(done: "subprocess.CompletedProcess[str]") -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def classifier(path: Path) -> Path:
    """Scores in, the index of the largest out."""
    node = helper.make_node("ArgMax", ["x"], ["label"], axis=1, keepdims=0)
    path.write_bytes(
        model([node], [tensor("x", "FP32", ["n", 3])], [tensor("label", "INT64", ["n"])]).SerializeToString()
    )
    return path


def test_from_push_to_report(run: Run, tmp_path: Path) -> None:
    pushed = document(run("model", "push", "day", classifier(tmp_path / "day.onnx"), "--alias", "live", "--json"))
    assert pushed["label_output"] == "label"
    assert document(run("model", "show", "day", "--json"))
    assert run("model", "download", "day@live", tmp_path / "back.onnx").returncode == 0
    assert (tmp_path / "back.onnx").read_bytes() == (tmp_path / "day.onnx").read_bytes()
    assert run("deploy", "day@live").returncode == 0
    scores = np.array([[0, 1, 0], [5, 1, 2]], dtype=np.float32)
    np.save(tmp_path / "x.npy", scores)
    answer = document(run("predict", "day", "--input", f"x={tmp_path / 'x.npy'}", "--json"))
    assert answer["outputs"]["label"] == [1, 0]
    table = run("predict", "day", "--input", "-", input=json.dumps(scores.tolist()))
    assert table.returncode == 0, table.stderr
    assert [line.strip() for line in table.stdout.splitlines() if line.strip()][-2:] == ["1", "0"]
    assert run("feedback", "day", answer["prediction_id"], "1", "2").returncode == 0
    (report,) = document(run("report", "create", "day", "--json"))["versions"]
    assert (report["calls"], report["labelled"], report["accuracy"]) == (2, 2, 0.5)
    assert run("undeploy", "day").returncode == 0
    assert run("predict", "day", "--input", "-", input="[[1, 2, 3]]").returncode == 6


def test_a_second_person_may_do_what_was_granted(run: Run, up: Up, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(PASSWORD + "\n")
    path = tmp_path / "m.onnx"
    path.write_bytes(identity("FP32", ["n"]).SerializeToString())
    assert run("user", "create", "carol", "--password-file", tmp_path / "password").returncode == 0
    for name in ("team-a-m", "team-b-m"):
        assert run("model", "push", name, path).returncode == 0
        assert run("deploy", name).returncode == 0
    assert run("grant", "add", "caller", "--to", "carol", "--on", "team-a-*").returncode == 0

    def carol(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        return up.run(*arguments, home=tmp_path / "carol", **options)

    assert carol("login", "--username", "carol", "--password-file", str(tmp_path / "password")).returncode == 0
    listed = document(carol("deployments", "--json"))
    assert [entry["name"] for entry in listed] == ["team-a-m"]
    assert carol("predict", "team-a-m", "--input", "-", input="[1, 2]").returncode == 0
    refused = carol("predict", "team-b-m", "--input", "-", "--json", input="[1, 2]")
    assert refused.returncode == 5
    assert json.loads(refused.stderr)["error"]["reason"] == "PERMISSION_DENIED"
    assert run("grant", "remove", "caller", "--to", "carol", "--on", "team-a-*").returncode == 0


def test_a_file_that_is_no_model_is_refused_and_becomes_no_version(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"this is no model" * 100)
    refused = run("model", "push", "bad", tmp_path / "bad.onnx", "--json")
    assert refused.returncode == 3
    assert json.loads(refused.stderr)["error"]["reason"] == "MODEL_FORMAT_INVALID"
    assert run("model", "download", "bad:1", tmp_path / "back.onnx").returncode == 6


def test_the_token_is_good_for_other_clients_and_kept_private(run: Run, home: Path) -> None:
    token = run("token").stdout.strip()
    assert token.count(".") == 2
    (credentials,) = home.glob("credentials*.json")
    assert stat.S_IMODE(credentials.stat().st_mode) == 0o600


def test_after_logout_nobody_is_logged_in(run: Run) -> None:
    assert run("whoami").returncode == 0
    assert run("logout").returncode == 0
    refused = run("whoami")
    assert refused.returncode == 4
    assert "inferplane login" in refused.stderr


def test_without_a_mesh_the_error_says_what_to_do(home: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "INFERPLANE_READY_FILE"}
    environment["INFERPLANE_HOME"] = str(home)
    done = subprocess.run([COMMAND, "whoami"], env=environment, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 4
    assert "inferplane" in done.stderr
    assert "Traceback" not in done.stderr
