"""An S3 server process that real clients speak to, moto's, as a child of the tests."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

BUCKET = "models"
_SETTING_UP = "3"
"""Calls that need no credentials: those that make the one user."""


@dataclass(frozen=True)
class S3:
    """A running server, and the keys of its one user."""

    process: subprocess.Popen[str]
    endpoint: str
    key: str
    secret: str

    @property
    def environment(self) -> dict[str, str]:
        """What leads obstore there."""
        return {
            "AWS_ENDPOINT": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": "us-east-1",
        }

    @property
    def client(self) -> Any:
        """boto3's own client, as the user."""
        return _client("s3", self.endpoint, self.key, self.secret)

    def put(self, key: str, data: bytes) -> None:
        """Put an object past the store under test."""
        self.client.put_object(Bucket=BUCKET, Key=key, Body=data)

    def away(self) -> None:
        """Let the server answer nobody."""
        self.process.send_signal(signal.SIGSTOP)

    def back(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def s3_server(folder: Path) -> Iterator[S3]:
    """moto's server on a free port, which asks for credentials, with an empty bucket."""
    with (folder / "s3.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": _SETTING_UP},
        )
    try:
        endpoint = _endpoint(process, folder / "s3.log")
        server = S3(process, endpoint, *_user(endpoint))
        server.client.create_bucket(Bucket=BUCKET)
        yield server
    finally:
        process.kill()
        process.wait()


def _endpoint(process: subprocess.Popen[str], log: Path) -> str:
    while True:
        found = re.search(r"Running on (http://\S+)", log.read_text())
        if found:
            return found[1]
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
        raise RuntimeError(log.read_text())


def _user(endpoint: str) -> tuple[str, str]:
    iam = _client("iam", endpoint, "setup", "setup")
    iam.create_user(UserName="inferplane")
    key = iam.create_access_key(UserName="inferplane")["AccessKey"]
    everything = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}'
    iam.put_user_policy(UserName="inferplane", PolicyName="everything", PolicyDocument=everything)
    return key["AccessKeyId"], key["SecretAccessKey"]


def _client(service: str, endpoint: str, key: str, secret: str) -> Any:
    return boto3.client(
        service,
        endpoint_url=endpoint,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        region_name="us-east-1",
    )
