"""The service of `serve_onnx.py`, by itself: Starlette and ONNX Runtime, no torch.

GRAPHS=out uvicorn --factory --app-dir examples onnx_service:service        where model.onnx and explainer.onnx are in out
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import onnxruntime
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

MOST = 64  # images a request


def service() -> Starlette:
    """POST /model and /explainer: float32 images (B, C, H, W), written by `numpy.save`, for arrays written by `numpy.savez`."""
    threads = onnxruntime.SessionOptions()
    threads.intra_op_num_threads = 1  # requests share the cores, not the operators of one
    graphs = {
        f"/{name}": onnxruntime.InferenceSession(Path(os.environ["GRAPHS"]) / f"{name}.onnx", threads)
        for name in ("model", "explainer")
    }

    async def answer(request: Request) -> Response:
        graph = graphs[request.url.path]
        names = [output.name for output in graph.get_outputs()]
        try:
            images = np.load(io.BytesIO(await request.body()), allow_pickle=False)
            if images.dtype != np.float32 or images.ndim != 4 or not 1 <= len(images) <= MOST:
                raise ValueError(f"1 to {MOST} images, float32 (B, C, H, W), got {images.dtype} {images.shape}")
            given = {"images": images}
            if "saliency" in names:  # of the class asked about, else of the one predicted
                given["target"] = np.full(len(images), int(request.query_params.get("target", -1)))
            found = await run_in_threadpool(graph.run, names, given)
        except Exception as error:  # what came over the wire was wrong: the service goes on
            return Response(f"{type(error).__name__}: {error}", 400)
        body = io.BytesIO()
        np.savez(body, **dict(zip(names, found, strict=True)))
        return Response(body.getvalue(), media_type="application/octet-stream")

    return Starlette(routes=[Route(path, answer, methods=["POST"]) for path in graphs])
