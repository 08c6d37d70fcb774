"""Tokens that are not what they claim to be."""

import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey
from joserfc.jws import JWSRegistry

from inferplane.auth.v1 import auth_service_pb2 as pb
from inferplane.server.identity.workloads import WorkloadSigner
from inferplane.server.keys import MasterKey
from inferplane.server.settings import ServiceName, Settings
from tests.support.mesh import ADMIN, PASSWORD, Mesh, bearer, error_info, failure, reason, running_mesh

INVALID = (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID")
ES256: Any = JWSRegistry.algorithms["ES256"]
MISSING = (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_MISSING")


@pytest.fixture
async def mesh(settings: Settings) -> AsyncIterator[Mesh]:
    async with running_mesh(settings, ServiceName.AUTH) as mesh:
        yield mesh


class Forger:
    """Knows everything but the private key; with `sign`, that too, to make tokens wrong in one way only."""

    def __init__(self, token: str, signing_key: ECKey, public_jwk: dict[str, Any]) -> None:
        head, body, self.signature = token.split(".")
        self.header: dict[str, Any] = json.loads(decoded(head))
        self.claims: dict[str, Any] = json.loads(decoded(body))
        self.token = token
        self.signing_key = signing_key
        self.public_jwk = public_jwk

    def sign(self, claims: dict[str, Any] | None = None, **header: Any) -> str:
        return jwt.encode({**self.header, **header}, {**self.claims, **(claims or {})}, self.signing_key)

    def unsigned(self) -> str:
        return f"{encoded({**self.header, 'alg': 'none'})}.{encoded(self.claims)}."

    def hs256_with_public_key(self) -> str:
        key = OctKey.import_key(json.dumps(self.public_jwk).encode())
        return jwt.encode({**self.header, "alg": "HS256"}, self.claims, key, algorithms=["HS256"])

    def with_own_key(self) -> str:
        return jwt.encode({**self.header, "jwk": self.public_jwk}, self.claims, ECKey.generate_key("P-256"))

    def with_payload(self, claims: dict[str, Any], twice: str = "", padding: str = "") -> str:
        """Signed well, with a payload that an encoder of tokens may refuse to write."""
        payload = json.dumps({**self.claims, **claims})
        if twice:
            payload = f"{payload[:-1]}, {twice}}}"
        return self.sign_text(json.dumps(self.header), payload, padding)

    def with_header_text(self, twice: str) -> str:
        return self.sign_text(f"{{{twice}, {json.dumps(self.header)[1:]}", json.dumps(self.claims))

    def sign_text(self, header: str, payload: str, padding: str = "") -> str:
        signed = f"{text_encoded(header)}.{text_encoded(payload)}{padding}".encode()
        signature = ES256.sign(signed, self.signing_key)
        return f"{signed.decode()}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"

    def altered(self) -> str:
        return f"{encoded(self.header)}.{encoded({**self.claims, 'sub': 'users/somebody-else'})}.{self.signature}"


def decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def text_encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def encoded(value: Any) -> str:
    return text_encoded(json.dumps(value))


@pytest.fixture
async def forger(mesh: Mesh, settings: Settings) -> Forger:
    from inferplane.server.auth.repository import AuthReader
    from inferplane.server.auth.tokens import SigningKeys
    from inferplane.server.storage.database import Database

    tokens = (await mesh.auth.Login(pb.LoginRequest(username=ADMIN, password=PASSWORD))).tokens
    database = Database(settings, ServiceName.AUTH)
    async with database.transaction() as connection:
        (sealed,) = await AuthReader(connection).signing_keys()
    await database.close()
    keys = SigningKeys(MasterKey.load(settings.master_key_path).derive("signing-keys"))
    return Forger(tokens.access_token, keys.open(sealed), sealed.public_jwk)


FORGERIES: dict[str, Callable[[Forger], str]] = {
    "alg none": Forger.unsigned,
    "HS256 with the public key": Forger.hs256_with_public_key,
    "own key in the header": Forger.with_own_key,
    "altered claims": Forger.altered,
    "signature cut off": lambda forger: forger.token.rpartition(".")[0] + ".",
    "wrong aud": lambda forger: forger.sign({"aud": "somebody-else"}),
    "no aud": lambda forger: forger.sign({"aud": None}),
    "wrong iss": lambda forger: forger.sign({"iss": "somebody-else"}),
    "wrong typ": lambda forger: forger.sign(typ="JWT"),
    "workload typ": lambda forger: forger.sign(typ="workload+jwt"),
    "unknown kid": lambda forger: forger.sign(kid="unheard-of"),
    "subject a workload": lambda forger: forger.sign({"sub": "workloads/inference"}),
    "issued in the future": lambda forger: forger.sign({"iat": int(time.time()) + 3600}),
    "no exp": lambda forger: forger.sign({"exp": None}),
    "exp not a number": lambda forger: forger.sign({"exp": "tomorrow"}),
    "exp NaN": lambda forger: forger.with_payload({"exp": float("nan")}),
    "exp infinite": lambda forger: forger.with_payload({"exp": float("inf")}),
    "exp beyond all time": lambda forger: forger.with_payload({"exp": 1e308}),
    "exp an integer beyond all floats": lambda forger: forger.with_payload({"exp": 10**400}),
    "exp true": lambda forger: forger.with_payload({"exp": True}),
    "exp a fraction": lambda forger: forger.with_payload({"exp": time.time() + 60.5}),
    "iat true": lambda forger: forger.with_payload({"iat": True}),
    "nbf in the future": lambda forger: forger.with_payload({"nbf": int(time.time()) + 3600}),
    "nbf not a number": lambda forger: forger.with_payload({"nbf": "yesterday"}),
    "a claim twice": lambda forger: forger.with_payload({}, '"sub": "users/somebody-else"'),
    "a header parameter twice": lambda forger: forger.with_header_text('"typ": "JWT"'),
    "padding in the payload": lambda forger: forger.with_payload({}, padding="=="),
    "garbage": lambda forger: "garbage",
    "three empty parts": lambda forger: "..",
    "header not an object": lambda forger: f"{encoded([1])}.e30.x",
    "over-long": lambda forger: "a" * 9000,
}


async def who(mesh: Mesh, metadata: Any) -> Any:
    return await mesh.auth.WhoAmI(pb.WhoAmIRequest(), metadata=metadata)


async def test_the_forger_can_make_a_good_token(mesh: Mesh, forger: Forger) -> None:
    """Otherwise the tests below would pass for the wrong reason."""
    for token in (forger.sign(), forger.with_payload({}), forger.with_payload({"nbf": int(time.time())})):
        assert (await who(mesh, bearer(token))).identity.subject == f"users/{ADMIN}"


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_a_forged_token_is_refused(mesh: Mesh, forger: Forger, forgery: str) -> None:
    assert await reason(who(mesh, bearer(FORGERIES[forgery](forger)))) == INVALID


async def test_an_expired_token_says_so(mesh: Mesh, forger: Forger) -> None:
    now = int(time.time())
    token = forger.sign({"iat": now - 700, "exp": now - 1})
    assert await reason(who(mesh, bearer(token))) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED")


async def test_a_call_without_a_token_is_refused(mesh: Mesh) -> None:
    assert await reason(who(mesh, [])) == MISSING


async def test_two_tokens_are_refused_even_if_both_are_good(mesh: Mesh, forger: Forger) -> None:
    assert await reason(who(mesh, bearer(forger.token) * 2)) == INVALID


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Basic cm9vdDpyb290", "Bearer a b"])
async def test_another_scheme_is_refused(mesh: Mesh, value: str) -> None:
    assert await reason(who(mesh, [("authorization", value)])) == INVALID


async def test_a_workload_token_for_another_service_is_refused(mesh: Mesh, settings: Settings) -> None:
    signer = WorkloadSigner(settings.keys_dir, ServiceName.INFERENCE)
    assert await reason(who(mesh, signer.metadata(ServiceName.ARTIFACT))) == INVALID


async def test_a_workload_token_proves_the_service_and_carries_the_caller(mesh: Mesh, settings: Settings) -> None:
    signer = WorkloadSigner(settings.keys_dir, ServiceName.INFERENCE)
    answer = await who(mesh, signer.metadata(ServiceName.AUTH, "users/alice"))
    assert answer.identity.subject == "workloads/inference"


async def test_no_error_says_more_than_it_must(mesh: Mesh, forger: Forger) -> None:
    error = await failure(who(mesh, bearer(forger.altered())))
    assert error.details() == "the credentials are not valid: the signature does not verify"
    assert set(error_info(error).metadata) == {"detail", "request_id"}


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=200), parts=st.integers(0, 4))
async def test_whatever_is_sent_as_a_token_is_refused_as_one(mesh: Mesh, header: str, parts: int) -> None:
    token = ".".join([header, *(encoded({"alg": "ES256"}) for _ in range(parts))])
    assert (await failure(who(mesh, bearer(token)))).code() == grpc.StatusCode.UNAUTHENTICATED
