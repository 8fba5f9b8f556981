"""``/metrics``: for Prometheus, which sends an operator's key, or asks from this machine while there is no key."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from jobq.api.access import OperatorReader
from jobq.api.problems import documented
from jobq.exposition import Metrics

router = APIRouter(tags=["health"])


@router.get(
    "/metrics", response_class=Response,
    responses={200: {"content": {"text/plain": {}, "application/openmetrics-text": {}}}, **documented(401, 403, 503)},
)  # fmt: skip
def metrics(_: OperatorReader, request: Request) -> Response:
    """The installation's depths, ages and lags, and what this process counted, in Prometheus' text format."""
    shown: Metrics = request.app.state.metrics
    text, media_type = shown.shown(request.headers.get("Accept", ""))
    return Response(text, headers={"Content-Type": media_type, "Cache-Control": "no-store"})
