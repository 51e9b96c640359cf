"""Targets of many kinds for test_any_target: tiny networks, random weights that answer in a lively way, a web service."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captum_attnkd import AttentiveKDAttribution


class TinyCNN(nn.Module):
    """Two convolutions, average pooling and a linear layer."""

    def __init__(self, channels: int = 3, classes: int = 5, width: int = 8, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first = nn.Conv2d(channels, width, 3, stride=2, padding=1)
            self.second = nn.Conv2d(width, 2 * width, 3, padding=1)
            self.head = nn.Linear(2 * width, classes)
        with torch.no_grad():
            self.head.weight.mul_(8)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.first(images))
        hidden = torch.relu(self.second(hidden))
        return self.head(hidden.mean(dim=(2, 3)))


def blobs(count: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Images (count, C, H, W), about unit deviation: noise with one bright, coloured block each."""
    drawn = torch.Generator().manual_seed(seed)
    images = 0.5 * torch.randn(count, channels, height, width, generator=drawn)
    for image in images:
        top = int(torch.randint(height // 2 + 1, (), generator=drawn))
        left = int(torch.randint(width // 2 + 1, (), generator=drawn))
        colour = 2 * torch.randn(channels, 1, 1, generator=drawn)
        image[:, top : top + height // 2, left : left + width // 2] += colour
    return images


def batches(images: Tensor, size: int = 4) -> list[Tensor]:
    """A loader: a list of batches."""
    return list(images.split(size))


def quick_fit(target: Any, images: Tensor, **settings: Any) -> AttentiveKDAttribution:
    """Fit for a few steps, in single precision."""
    known = ("student", "levels", "backbone", "output", "max_images_per_second")
    made = AttentiveKDAttribution(target, **{key: settings.pop(key) for key in known if key in settings})
    steps = {"distil_steps": 2, "explain_steps": 2, "batch_size": 4, "precision": "fp32", "progress": False}
    return made.fit(batches(images), **{**steps, **settings})


@torch.no_grad()
def awaken(network: nn.Module, images: Tensor) -> nn.Module:
    """Make random weights answer differently to different images.

    Normalisation statistics are taken from `images`; the last linear layer is drawn anew and then scaled and shifted so
    that scores have no offset and a deviation of two. Otherwise many untrained networks answer (nearly) a constant.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    if norms:
        for module in norms:
            module.momentum = None  # a plain average
            module.train()
        network(images)
        for module in norms:
            module.momentum = 0.1
    network.eval()
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.normal_(last.weight, std=last.in_features**-0.5)
    nn.init.zeros_(last.bias)
    scores = network(images)
    factor = 2 / (scores - scores.mean(dim=0)).std()
    last.weight.mul_(factor)
    last.bias.copy_(-factor * scores.mean(dim=0))
    return network


def fingerprint(network: nn.Module) -> tuple[Any, ...]:
    """All of a module that must be left as it was: weights byte by byte, flags, gradients, hooks."""
    digest = hashlib.blake2b()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return (
        digest.hexdigest(),
        [(name, module.training) for name, module in network.named_modules()],
        [(name, p.requires_grad, p.grad is None) for name, p in network.named_parameters()],
        sum(len(getattr(module, kind)) for module in network.modules() for kind in hooks),
    )


class ScoreService:
    """A metered web service on this machine that answers class scores for posted images, and keeps its own books.

    Attributes:
        arrivals: of each request, when it came by the service's clock, and how many images it held.
    """

    def __init__(self, network: nn.Module, shape: tuple[int, int, int]) -> None:
        self.arrivals: list[tuple[float, int]] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                now = time.monotonic()
                body = self.rfile.read(int(self.headers["Content-Length"]))
                images = torch.from_numpy(np.frombuffer(body, np.float32).copy().reshape(-1, *shape))
                service.arrivals.append((now, len(images)))
                with torch.no_grad():
                    answer = network(images).numpy().tobytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}/"

    @property
    def images(self) -> int:
        """How many images came in all."""
        return sum(count for _, count in self.arrivals)

    def busiest(self, least_seconds: float) -> float:
        """Images a second over the busiest stretch of at least `least_seconds`, from one request up to another."""
        rates = []
        for start, (begun, _) in enumerate(self.arrivals):
            sent = 0
            for (_, count), (moment, _) in pairwise(self.arrivals[start:]):
                sent += count
                if moment - begun >= least_seconds:
                    rates.append(sent / (moment - begun))
        return max(rates)

    @contextmanager
    def running(self) -> Iterator[ScoreService]:
        """Serve in a thread."""
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join(timeout=10)
