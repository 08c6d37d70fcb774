"""Models, deployments, predictions, feedback and reports on the command line."""

import json
from pathlib import Path

import numpy as np
import pytest

from inferplane.client.tensors import encode
from inferplane.inference.v1.deployment_pb2 import Deployment
from inferplane.reporting.v1.report_pb2 import VersionMetrics, VersionQuality
from tests.support.cli import Cli
from tests.support.fake_services import PREDICTION_ID
from tests.support.fake_serving import FakeMesh


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "digits.onnx"
    path.write_bytes(b"some model")
    return path


async def test_push_makes_a_version_and_moves_an_alias(mesh: FakeMesh, logged_in: Cli, model_file: Path) -> None:
    pushed = await logged_in("model", "push", "digits", model_file, "--alias", "production", "--json")
    assert (pushed.code, pushed.document["version"], pushed.err) == (0, 1, "")
    shown = (await logged_in("model", "show", "digits", "--json")).document
    assert [alias["alias"] for alias in shown["aliases"]] == ["production"]
    table = await logged_in("model", "show", "digits")
    assert "production" in table.out
    assert "x: FP32[?, 2]" in table.out


async def test_push_of_a_file_that_is_not_there_is_invalid_input(logged_in: Cli, tmp_path: Path) -> None:
    result = await logged_in("model", "push", "digits", tmp_path / "none")
    assert result.code == 3
    assert "No such file" in result.err


async def test_a_model_without_versions_is_deleted_and_one_with_versions_is_not(
    mesh: FakeMesh, logged_in: Cli, model_file: Path
) -> None:
    await logged_in("model", "push", "digits", model_file)
    assert (await logged_in("model", "delete", "digits")).code != 0
    mesh.artifact.versions.clear()
    deleted = await logged_in("model", "delete", "digits")
    assert (deleted.code, deleted.out) == (0, "Deleted digits.\n")


async def test_download_writes_the_file(mesh: FakeMesh, logged_in: Cli, tmp_path: Path) -> None:
    mesh.artifact.add_version("models/digits/versions/1", b"some model")
    result = await logged_in("model", "download", "digits:1", tmp_path / "copy", "--json")
    assert result.document["path"] == str(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"some model"


async def test_a_digest_mismatch_has_an_exit_code_of_its_own(mesh: FakeMesh, logged_in: Cli, model_file: Path) -> None:
    mesh.artifact.corrupt = True
    result = await logged_in("model", "push", "digits", model_file)
    assert result.code == 9


async def test_models_are_listed_and_aliases_moved(mesh: FakeMesh, logged_in: Cli, model_file: Path) -> None:
    await logged_in("model", "push", "digits", model_file, "--description", "evil \x1b[2J text")
    moved = await logged_in("model", "alias", "digits", "stable", "1")
    assert moved.out == "digits@stable points at digits:1.\n"
    listed = await logged_in("model", "list")
    assert "digits" in listed.out
    assert "\x1b" not in listed.out


async def test_deploy_waits_and_undeploy_ends_it(mesh: FakeMesh, logged_in: Cli) -> None:
    deployed = await logged_in("deploy", "digits:1", "--name", "canary", "--json")
    assert (deployed.document["name"], deployed.document["state"]) == ("canary", "READY")
    for command in (("deployments",), ("deployment", "list")):
        assert [found["name"] for found in (await logged_in(*command, "--json")).document] == ["canary"]
    assert "x: FP32[?, 2]" in (await logged_in("deployment", "show", "canary")).out
    assert (await logged_in("undeploy", "canary")).code == 0
    assert (await logged_in("undeploy", "canary")).code == 6


async def test_deploy_on_a_served_name_says_what_serves_until_the_new_version_is_loaded(
    mesh: FakeMesh, logged_in: Cli
) -> None:
    await logged_in("deploy", "digits:1")
    replaced = await logged_in("deploy", "digits:2", "--no-wait")
    assert "serves models/digits/versions/1 until models/digits/versions/2 is loaded" in replaced.out
    assert "digits serves models/digits/versions/2: READY." in (await logged_in("deploy", "digits:2")).out


async def test_a_deployment_that_still_loads_says_what_it_waits_for(mesh: FakeMesh, logged_in: Cli) -> None:
    mesh.inference.states = [Deployment.STATE_LOADING]
    result = await logged_in("deploy", "digits:1", "--timeout", "0")
    assert "waits for Triton" in result.err
    assert "busy" not in result.err


async def test_a_deployment_that_fails_is_a_failed_precondition(mesh: FakeMesh, logged_in: Cli) -> None:
    mesh.inference.states = [Deployment.STATE_FAILED]
    result = await logged_in("deploy", "digits:1")
    assert result.code == 7
    assert "no such operator" in result.err


@pytest.mark.parametrize("text", ['{"x": [[1, 2.5]]}', "[[1, 2.5]]"])
async def test_predict_types_json_by_the_signature(mesh: FakeMesh, logged_in: Cli, text: str) -> None:
    await logged_in("deploy", "digits:1")
    result = await logged_in("predict", "digits", "--input", "-", "--output", "json", stdin=text)
    assert mesh.inference.requests[0].inputs[0] == encode("x", np.array([[1, 2.5]], dtype=np.float32))
    assert result.document["outputs"] == {"x": [[1.0, 2.5]]}
    assert result.document["prediction_id"] == PREDICTION_ID


async def test_predict_says_how_an_npy_file_is_given(logged_in: Cli, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[1.0, 2.0]]))
    await logged_in("deploy", "digits:1")
    result = await logged_in("predict", "digits", "--input", tmp_path / "x.npy")
    assert result.code == 3
    assert "NAME=FILE.npy" in result.err


async def test_predict_takes_and_writes_npy_files(mesh: FakeMesh, logged_in: Cli, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[1.0, 2.0]]))
    mesh.inference.outputs = [encode("../label", np.array([7]))]
    out = tmp_path / "out"
    result = await logged_in("predict", "digits", "--input", f"x={tmp_path / 'x.npy'}", "--output", "npy", out)
    assert result.code == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["_label.npy"]
    assert np.load(out / "_label.npy").tolist() == [7]


async def test_predict_shows_a_row_for_each_prediction(mesh: FakeMesh, logged_in: Cli, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 2)))
    mesh.inference.outputs = [encode("label", np.array([7, 8])), encode("score", np.array([0.25, np.nan]))]
    result = await logged_in("predict", "digits", "-i", f"x={tmp_path / 'x.npy'}")
    assert [line.split() for line in result.out.splitlines() if line.strip()][-2:] == [["7", "0.25"], ["8", "NaN"]]


async def test_a_pickled_file_is_refused(logged_in: Cli, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{}]), allow_pickle=True)
    result = await logged_in("predict", "digits", "--input", f"x={tmp_path / 'x.npy'}")
    assert result.code == 3


async def test_the_json_flag_asks_predict_for_json(mesh: FakeMesh, logged_in: Cli, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[[1, 2]]")
    await logged_in("deploy", "digits:1")
    result = await logged_in("predict", "digits", "--input", tmp_path / "x.json", "--json")
    assert result.document["prediction_id"] == PREDICTION_ID


async def test_predict_takes_npy_files_or_one_json_file(logged_in: Cli) -> None:
    assert (await logged_in("predict", "digits", "--input", "x=x.npy", "--input", "-")).code == 2


async def test_feedback_is_given_by_arguments(mesh: FakeMesh, logged_in: Cli) -> None:
    result = await logged_in("feedback", "digits", PREDICTION_ID, "3", "5", "--json")
    assert result.document == {"given": 1, "stored": 1}
    assert list(mesh.reporting.feedback[0].feedback[0].labels) == ["3", "5"]


async def test_feedback_is_given_by_a_file(mesh: FakeMesh, logged_in: Cli, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(f"client_request_id,label\n{PREDICTION_ID},3\nmine,5,6\n")
    result = await logged_in("feedback", "digits", "--csv", tmp_path / "labels.csv")
    assert result.out == "2 given, 2 of them new.\n"
    assert [item.client_request_id for item in mesh.reporting.feedback[0].feedback] == [PREDICTION_ID, "mine"]


async def test_an_id_given_twice_in_a_file_is_invalid(logged_in: Cli) -> None:
    result = await logged_in("feedback", "digits", "--csv", "-", stdin="a,1\na,2\n")
    assert result.code == 3


async def test_a_report_joins_metrics_and_quality(mesh: FakeMesh, logged_in: Cli, tmp_path: Path) -> None:
    usage = VersionMetrics(model_version="models/digits/versions/1", digest="sha256:ab", call_count=9, error_count=1)
    quantile = usage.latency_quantiles.add(quantile=0.5)
    quantile.latency.FromMicroseconds(1500)
    mesh.reporting.metrics = [usage]
    mesh.reporting.quality = [
        VersionQuality(
            model_version="models/digits/versions/1",
            digest="sha256:ab",
            row_count=8,
            labelled_count=4,
            correct_count=3,
            accuracy=0.75,
        )
    ]
    path = tmp_path / "report.json"
    result = await logged_in("report", "create", "digits", "--since", "2026-01-31", "--output", path, "--json")
    [row] = result.document["versions"]
    assert (row["version"], row["calls"], row["errors"], row["p50_ms"], row["p99_ms"]) == (1, 9, 1, 1.5, None)
    assert (row["rows"], row["labelled"], row["accuracy"]) == (8, 4, 0.75)
    assert json.loads(path.read_text()) == result.document
    assert result.document["since"] == "2026-01-31T00:00:00+00:00"
    assert "0.75" in (await logged_in("report", "create", "digits")).out


async def test_a_time_that_is_none_is_invalid_input(logged_in: Cli) -> None:
    assert (await logged_in("report", "create", "digits", "--since", "yesterday")).code == 3
