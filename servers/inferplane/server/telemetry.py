"""What is measured alike everywhere; and tracing by OpenTelemetry, exported where the standard
`OTEL_EXPORTER_OTLP_*` variables say so, else off."""

import os

__all__ = ["DURATION_BUCKETS", "configure_tracing"]

DURATION_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
"""Upper bounds, in seconds, of the bins of all durations of calls."""


def configure_tracing(service: str) -> None:
    """Export spans over OTLP/gRPC if an endpoint is configured; otherwise spans cost next to nothing."""
    if not any(os.environ.get(f"OTEL_EXPORTER_OTLP_{kind}ENDPOINT") for kind in ("", "TRACES_")):
        return
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": f"inferplane-{service}"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
