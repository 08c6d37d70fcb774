"""The main job, end to end: train a digits classifier, serve it, call it, and measure how well it is served.

Usage: python examples/digits.py [--once] [--data-dir DIR] [--base-port PORT]

Trains scikit-learn's digits classifier, converts it to ONNX, starts the whole mesh, logs in, pushes and deploys the
model, sends the held-out images one by one through an unmodified `tritonclient`, submits their labels, and compares
the accuracy that was served with scikit-learn's own.
"""

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tritonclient.grpc as triton
from rich.console import Console
from rich.table import Table
from skl2onnx import to_onnx
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from inferplane.client import Inferplane

MODEL = "digits"
START_TIMEOUT = 60.0
console = Console(markup=False, emoji=False)


class Trained(NamedTuple):
    """A classifier as ONNX, the images that it has not seen ([N, 64] float32), and what they show."""

    onnx: bytes
    images: Any
    labels: Any
    predicted: Any


def train() -> Trained:
    """Train on three quarters of scikit-learn's digits and convert to ONNX."""
    images, labels = load_digits(return_X_y=True)
    images = images.astype(np.float32)
    seen, unseen, seen_labels, unseen_labels = train_test_split(images, labels, test_size=450, random_state=7)
    classifier = make_pipeline(StandardScaler(), MLPClassifier(64, random_state=7, max_iter=400))
    classifier.fit(seen, seen_labels)
    model = to_onnx(classifier, seen[:1], options={"zipmap": False})
    return Trained(model.SerializeToString(), unseen, unseen_labels, classifier.predict(unseen))


class Mesh:
    """`inferplane up` as a child of this script."""

    def __init__(self, data_dir: Path, base_port: int, ready_file: Path) -> None:
        self.ready_file = ready_file
        command = [str(Path(sys.executable).with_name("inferplane")), "up", "--data-dir", str(data_dir)]
        command += ["--base-port", str(base_port), "--ready-file", str(ready_file)]
        self.process = subprocess.Popen(command)

    def wait_ready(self) -> dict[str, Any]:
        """The ready file's content; exits if the mesh does not start."""
        deadline = time.monotonic() + START_TIMEOUT
        while not self.ready_file.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                sys.exit("the mesh did not start; its message above says why")
            # Nobody tells when a file appears.
            time.sleep(0.05)
        ready: dict[str, Any] = json.loads(self.ready_file.read_text())
        return ready

    def stop(self) -> None:
        """Stop it and wait for its end."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait()


async def publish(plane: Inferplane, onnx_file: Path) -> Any:
    """Push a new version and serve it in place of any other."""
    version = await plane.artifact.push(MODEL, onnx_file, description="Handwritten digits, 8x8 pixels")
    await plane.inference.deploy(f"{MODEL}:{version.name.rpartition('/')[2]}")
    return version


def predict_all(address: str, token: str, images: Any, run: str) -> list[int]:
    """One call per image through tritonclient; the labels that were served."""
    headers = {"authorization": f"Bearer {token}"}
    served = []
    with triton.InferenceServerClient(address) as client:
        (spec,) = client.get_model_metadata(MODEL, headers=headers).inputs
        for index, image in enumerate(images):
            tensor = triton.InferInput(spec.name, [1, images.shape[1]], spec.datatype)
            tensor.set_data_from_numpy(image[np.newaxis])
            result = client.infer(MODEL, [tensor], request_id=f"{run}-{index}", headers=headers)
            served.append(int(result.as_numpy("label").reshape(-1)[0]))
    return served


async def job(ready_file: Path, ready: dict[str, Any], trained: Trained) -> None:
    """Publish, predict, tell the labels, report."""
    began, run = datetime.now(UTC), uuid.uuid4().hex
    async with Inferplane.from_ready_file(ready_file, as_admin=True) as plane:
        with tempfile.TemporaryDirectory() as scratch:
            onnx_file = Path(scratch) / "digits.onnx"
            onnx_file.write_bytes(trained.onnx)
            version = await publish(plane, onnx_file)
        token = await plane.auth.access_token()
        served = await asyncio.to_thread(predict_all, ready["endpoints"]["inference"], token, trained.images, run)
        labels = {f"{run}-{index}": int(label) for index, label in enumerate(trained.labels)}
        await plane.reporting.submit_feedback(MODEL, labels, settle=30.0)
        (metrics,) = await plane.reporting.metrics(MODEL, since=began, quantiles=[0.5, 0.99])
        (quality,) = await plane.reporting.quality(MODEL, since=began)
    own = accuracy_score(trained.labels, trained.predicted)
    console.print(result_table(version, metrics, quality, own))
    same = int(np.sum(np.array(served) == trained.predicted))
    if same != len(served) or quality.accuracy != own or quality.labelled_count != len(served):
        sys.exit(f"served and trained model disagree: {same} of {len(served)} predictions are the same")


def result_table(version: Any, metrics: Any, quality: Any, own: float) -> Table:
    """The outcome in a few lines."""
    table = Table(title="The main job", title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    p50, p99 = (entry.latency.ToMicroseconds() / 1000 for entry in metrics.latency_quantiles)
    rows = {
        "model": version.name,
        "digest": version.digest,
        "calls": f"{metrics.call_count} ({metrics.error_count} failed)",
        "accuracy served": f"{quality.accuracy:.6f} ({quality.correct_count} of {quality.labelled_count})",
        "accuracy by scikit-learn": f"{own:.6f}",
        "latency p50 / p99": f"{p50:.2f} ms / {p99:.2f} ms",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def endpoint_table(ready: dict[str, Any]) -> Table:
    """Where to go from here."""
    table = Table(title="Endpoints", title_justify="left", show_header=False)
    for name in ("auth", "inference", "artifact", "reporting"):
        table.add_row(name, ready["endpoints"][name])
    table.add_row("administrator", f"{ready['admin']['username']}, password in {ready['admin']['password_file']}")
    return table


def main() -> None:
    """Run the job; without --once keep serving until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--once", action="store_true", help="stop when the job is done")
    parser.add_argument("--data-dir", type=Path, default=Path(".inferplane"), help="folder of all state")
    parser.add_argument("--base-port", type=int, help="port of auth; the others follow; 0: any free ones")
    arguments = parser.parse_args()
    base_port = arguments.base_port if arguments.base_port is not None else (0 if arguments.once else 50051)
    with tempfile.TemporaryDirectory() as scratch:
        ready_file = Path(scratch) / "ready.json"
        mesh = Mesh(arguments.data_dir, base_port, ready_file)
        try:
            with console.status("training a digits classifier"):
                trained = train()
            ready = mesh.wait_ready()
            with console.status("pushing, deploying, predicting"):
                asyncio.run(job(ready_file, ready, trained))
            if not arguments.once:
                console.print(endpoint_table(ready))
                console.print("Serving until Ctrl-C.")
                mesh.process.wait()
        except KeyboardInterrupt:
            pass
        finally:
            mesh.stop()


if __name__ == "__main__":
    main()
