"""Serve predictions and maps over HTTP, from ONNX graphs: Starlette, uvicorn, ONNX Runtime; no torch in the service.

python examples/serve_onnx.py            minutes on two cores: a digit CNN so small that our networks are large beside it
python examples/serve_onnx.py --quick    seconds, with maps that mean nothing
python examples/serve_onnx.py --model examples.photos:efficientnet_lite0 --images folder:PHOTOS --surrogate out/photos.safetensors

The service itself is `onnx_service.py`.
"""

from __future__ import annotations

import io
import os
import statistics
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import uvicorn
from captum_attnkd.evaluation.datasets.digits import scattered_digits, train_digit_net
from captum_attnkd.evaluation.preparing import prepare
from onnx_service import service
from pictures import options_of

from captum_attnkd import AttentiveKDAttribution

REQUESTS, BATCH, ROUNDS = 24, 8, 5  # what is timed


@contextmanager
def serving() -> Iterator[str]:
    """The service on a free port of this machine, in a thread; gives its address."""
    server = uvicorn.Server(uvicorn.Config(service, factory=True, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def post(address: str, images: np.ndarray) -> dict[str, np.ndarray]:
    """Ask the service."""
    body = io.BytesIO()
    np.save(body, images)
    with urllib.request.urlopen(urllib.request.Request(address, body.getvalue())) as reply:  # POST, for it has a body
        return dict(np.load(io.BytesIO(reply.read()), allow_pickle=False))


def rates(asks: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Images a second, the median of rounds in which all take turns; as many at once as there are cores."""
    seconds: dict[str, list[float]] = {name: [] for name in asks}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in range(ROUNDS):
            for name, ask in asks.items():
                started = time.perf_counter()
                list(pool.map(lambda _, ask=ask: ask(), range(REQUESTS)))
                seconds[name].append(time.perf_counter() - started)
    return {name: REQUESTS * BATCH / statistics.median(taken) for name, taken in seconds.items()}


def main() -> None:
    """Fit or load; write the graphs; serve; compare the maps with PyTorch's, and the rates with and without maps."""
    parser = options_of(__doc__)
    for name, about in (("model", "as in `attnkd study`"), ("images", "likewise"), ("surrogate", "fitted before")):
        parser.add_argument(f"--{name}", help=about)
    options = parser.parse_args()
    if options.surrogate:
        found = prepare(options.model, options.images, folder=options.out, surrogate=Path(options.surrogate), limit=16)
        attribution, images = found.subject.surrogate, found.data.images
    else:
        data = scattered_digits(300 if options.quick else 3000)
        net = train_digit_net(data, epochs=1 if options.quick else 3)
        steps = {"distil_steps": 3, "explain_steps": 3} if options.quick else {}
        attribution = AttentiveKDAttribution(net).fit(data.images.split(64), **steps)
        images = scattered_digits(16, seed=1, split="test").images
    batch = images[:BATCH]
    options.out.mkdir(parents=True, exist_ok=True)
    attribution.export(options.out / "explainer.onnx")
    torch.onnx.export(
        attribution.forward_func, (batch,), options.out / "model.onnx", input_names=["images"], output_names=["scores"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},), dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip
    os.environ["GRAPHS"] = str(options.out)

    with serving() as address:
        served = post(f"{address}/explainer", images.numpy())["saliency"]
        apart = np.abs(served - attribution.saliency(images).numpy()).max()
        print(f"maps over HTTP and from PyTorch differ by {apart:.1e} at most\n")
        found = rates(
            {
                "predictions alone": lambda: post(f"{address}/model", batch.numpy()),
                "predictions and maps": lambda: post(f"{address}/explainer", batch.numpy()),
            }
        )
    for name, rate in found.items():
        print(f"{name:<24}{rate:8.1f} images/s, {BATCH} a request, {os.cpu_count()} requests at once")
    alone, both = found.values()
    print(f"A prediction with its map takes {alone / both:.2f} times as long as a prediction.")


if __name__ == "__main__":
    main()
