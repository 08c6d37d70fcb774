"""Inference's domain objects as messages, and typed requests as the Open Inference Protocol's."""

import math

from tritonclient.grpc import service_pb2

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.inference.v1 import deployment_pb2, inference_service_pb2, tensor_pb2
from inferplane.server.errors import InferplaneError, invalid_field
from inferplane.server.inference.dataplane.answer import Answer, Output
from inferplane.server.inference.deployments import Deployment, State, VersionInfo
from inferplane.server.inference.typed_tensors import MAX_TYPED_ELEMENTS, raw_contents, typed_tensor
from inferplane.server.names import DEPLOYMENT, VERSION
from inferplane.server.tensors import signature_message
from inferplane.server.timestamps import timestamp

__all__ = ["deployment_message", "infer_request", "predict_response"]


def deployment_message(deployment: Deployment) -> deployment_pb2.Deployment:
    """A deployment."""
    primary = _target(deployment.version, "PRIMARY", deployment.state)
    if deployment.state == "FAILED":
        primary.state_message = deployment.state_message
    targets = [primary]
    if (incoming := deployment.incoming) is not None:
        targets.append(_target(incoming.version, "INCOMING", "FAILED" if incoming.problem else "LOADING"))
        targets[-1].state_message = incoming.problem
    return deployment_pb2.Deployment(
        name=DEPLOYMENT.format(deployment.name),
        model_version=primary.model_version,
        digest=primary.digest,
        signature=primary.signature,
        targets=targets,
        state=_state(deployment.state),
        state_message=deployment.state_message,
        create_time=timestamp(deployment.created_at),
        creator=deployment.creator,
    )


def _target(version: VersionInfo, role: str, state: State) -> deployment_pb2.Target:
    return deployment_pb2.Target(
        role=deployment_pb2.Target.Role.Value(f"ROLE_{role}"),
        model_version=VERSION.format(version.model, version.version),
        digest=version.digest,
        signature=signature_message(version.known_signature()),
        state=_state(state),
    )


def _state(state: State) -> deployment_pb2.Deployment.State.ValueType:
    return deployment_pb2.Deployment.State.Value(f"STATE_{state}")


def infer_request(name: str, request: inference_service_pb2.PredictRequest) -> service_pb2.ModelInferRequest:
    """A typed request as ModelInfer takes it; raises INVALID_FIELD."""
    message = service_pb2.ModelInferRequest(model_name=name, id=request.client_request_id)
    for index, tensor in enumerate(request.inputs):
        # Triton has no scalars: they travel as one element.
        message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape or [1])
        message.raw_input_contents.append(raw_contents(tensor, f"inputs[{index}]"))
    for output in request.output_names:
        message.outputs.add(name=output)
    return message


def predict_response(
    prediction_id: str, answer: Answer, encoding: inference_service_pb2.TensorEncoding.ValueType
) -> inference_service_pb2.PredictResponse:
    """Triton's answer as a typed one. Raises INVALID_FIELD for typed values of a large answer, INFERENCE_FAILED where
    they do not fit its shape."""
    typed = encoding == inference_service_pb2.TENSOR_ENCODING_TYPED
    if typed and (values := sum(math.prod(output.shape) for output in answer.outputs)) > MAX_TYPED_ELEMENTS:
        problem = f"must be raw for an answer of {values} values, which is more than {MAX_TYPED_ELEMENTS}"
        raise invalid_field("output_encoding", problem)
    target = answer.target
    return inference_service_pb2.PredictResponse(
        prediction_id=prediction_id,
        model_version=VERSION.format(target.model, target.version),
        digest=target.digest,
        outputs=[_tensor(output, bytes(answer.content(output)), typed=typed) for output in answer.outputs],
    )


def _tensor(output: Output, raw: bytes, *, typed: bool) -> tensor_pb2.Tensor:
    if not typed:
        return tensor_pb2.Tensor(name=output.name, datatype=output.datatype, shape=output.shape, raw=raw)
    try:
        return typed_tensor(output.name, output.datatype, output.shape, raw)
    except ValueError as error:
        detail = f"its answer's output '{output.name[:64]}' does not hold what its shape says: {error}"
        raise InferplaneError(ErrorReason.ERROR_REASON_INFERENCE_FAILED, detail=detail) from error
