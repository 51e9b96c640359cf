"""Explain a model of which only the answers can be had: a service behind HTTP, asked at a bounded rate.

The service here is a thread of this script; put your own address in its place.

python examples/black_box_service.py            minutes on two cores
python examples/black_box_service.py --quick    seconds, with maps that mean nothing
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import torch
from captum_attnkd.evaluation.datasets.digits import SIZE, scattered_digits, train_digit_net
from captum_attnkd.evaluation.localisation import pointing_game
from pictures import draw, options_of
from torch import Tensor, nn

from captum_attnkd import AttentiveKDAttribution


def main() -> None:
    """Fit a compact student on the service's answers; explain, and say which maps are to be trusted."""
    parser = options_of(__doc__)
    parser.add_argument("--rate", type=float, default=200, help="images a second that the service's owner allows")
    options = parser.parse_args()
    quick = options.quick
    data = scattered_digits(300 if quick else 3000)
    server = serve(train_digit_net(data, epochs=1 if quick else 3))
    ask = client(*server.server_address[:2])

    steps = {"distil_steps": 3, "explain_steps": 3} if quick else {}
    started = time.monotonic()
    attribution = AttentiveKDAttribution(ask, max_images_per_second=options.rate).fit(data.images.split(64), **steps)
    report = attribution.report_
    rate = report.target_queries / (time.monotonic() - started)
    print(
        f"{report}\n\n{rate:.0f} images a second were sent to the service, on average; at most {options.rate:.0f} were allowed."
    )

    test = scattered_digits(12 if quick else 100, seed=1, split="test")
    masks = attribution.saliency(test.images, target=test.labels[:, 0])
    trust = attribution.agreement(test.images)
    server.shutdown()
    hits, agrees = pointing_game(masks, test.masks[:, 0]), trust.agrees
    print(f"On images no fit has seen, {trust}.")
    print(f"Of the {len(hits)} maps {hits.mean():.1%} have their maximum on the digit", end="")
    print("." if not agrees.any() else f", of those whose student agrees with the service {hits[agrees].mean():.1%}.")

    # Those that are not to be trusted first, two at most.
    shown = torch.cat([torch.nonzero(~agrees)[:2, 0], torch.nonzero(agrees)[:, 0]])[:8]
    says = [f"service: {named}" for named in trust.target_class[shown].tolist()]
    doubts = ["" if agreed else "do not trust" for agreed in agrees[shown].tolist()]
    path = draw(
        options.out / "black_box_service.png", test.images[shown], {"ours": masks[shown]}, says, notes={"ours": doubts}
    )
    print(f"\nPicture: {path}")


def serve(model: nn.Module) -> ThreadingHTTPServer:
    """Answer POST requests of float32 pixels with float32 probabilities: the other side of the wire."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            images = torch.from_numpy(np.frombuffer(raw, dtype=np.float32).copy()).reshape(-1, 1, SIZE, SIZE)
            with torch.no_grad():
                answer = model(images).softmax(dim=1).numpy().tobytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Nothing: a line a request would drown the rest."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def client(host: str, port: int) -> Callable[[Tensor], Tensor]:
    """A function from images to probabilities, as good as a model: no layers, no gradients."""

    def ask(images: Tensor) -> Tensor:
        wire = http.client.HTTPConnection(host, port, timeout=30)
        try:
            wire.request("POST", "/", images.float().numpy().tobytes())
            answer = wire.getresponse()
            if answer.status != 200:
                raise ConnectionError(f"the service answered {answer.status} {answer.reason}")
            scores = np.frombuffer(answer.read(), dtype=np.float32).copy()
        finally:
            wire.close()
        return torch.from_numpy(scores).reshape(len(images), -1)

    return ask


if __name__ == "__main__":
    main()
