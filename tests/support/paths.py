"""Methods by their paths, as they are called with bytes."""

__all__ = ["HEALTH", "INFER", "PREDICT", "REFLECTION", "STREAM", "WHO"]

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
PREDICT = "/inferplane.inference.v1.InferenceService/Predict"
WHO = "/inferplane.auth.v1.AuthService/WhoAmI"
HEALTH = "/grpc.health.v1.Health/Check"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
