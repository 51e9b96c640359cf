"""Fixtures that every test may use. The fitted ones live for the whole session: read them, never change them."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from captum.testing.helpers.basic_models import BasicModel_ConvNet
from torch import Tensor, nn

from captum_attnkd import AttentiveKDAttribution

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores: more threads than cores are slower than one each
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
    torch.set_num_threads(1)

pytest.register_assert_rewrite("toy_task")

from toy_task import TinyNet, loader_of, nothing_changes, random_net, single_squares, trained_net  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--counts",
        choices=("small", "full"),
        default="small",
        help="how often the tests of robustness repeat themselves",
    )


@pytest.fixture(scope="session")
def counted(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """How often to repeat: seldom, or as often as `make test-robust` does."""
    full = request.config.getoption("--counts") == "full"
    return lambda small, many: many if full else small


def _is_loopback(family: int, address: Any) -> bool:
    if family not in (socket.AF_INET, socket.AF_INET6):
        return True  # a socket of this machine alone
    host = str(address[0])
    try:
        return host in ("", "localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing may be sent anywhere but to this machine: not even an attempt whose failure is swallowed."""
    attempts: list[str] = []

    def watched(name: str) -> Any:
        original = getattr(socket.socket, name)

        def call(self: socket.socket, *args: Any) -> Any:
            if not _is_loopback(self.family, args[-1]):
                attempts.append(f"{name} {args[-1]}")
                raise PermissionError(f"a test tried to reach {args[-1]}")
            return original(self, *args)

        return call

    def look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_loopback(socket.AF_INET, (host or "localhost",)):
            attempts.append(f"look up {host}")
            raise PermissionError(f"a test tried to look up {host}")
        return resolve(host, *args, **kwargs)

    resolve = socket.getaddrinfo
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, watched(name))
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    yield
    assert not attempts, f"network used: {attempts}"


@pytest.fixture(scope="session")
def session_model() -> TinyNet:
    return trained_net()


@pytest.fixture
def model(session_model: TinyNet) -> Iterator[TinyNet]:
    """The trained target; a test that leaves it changed fails."""
    with nothing_changes(session_model):
        yield session_model
        session_model.fail_at = -1


@pytest.fixture(scope="session")
def loader() -> list[tuple[Tensor, Tensor]]:
    return loader_of(160, seed=1)


@pytest.fixture(scope="session")
def held_out() -> tuple[Tensor, Tensor, Tensor]:
    """Images that no fit has seen, their classes, and where the object is."""
    return single_squares(24, seed=7)


@pytest.fixture(scope="session")
def images(held_out: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return held_out[0][:6]


@pytest.fixture(scope="session")
def labels(held_out: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return held_out[1][:6]


@pytest.fixture(scope="session")
def fitted(session_model: TinyNet, loader: list[tuple[Tensor, Tensor]]) -> AttentiveKDAttribution:
    """Grafted on the model, and fitted well enough for its maps to be judged."""
    return AttentiveKDAttribution(session_model).fit(loader, distil_steps=60, explain_steps=100, progress=False)


@pytest.fixture(scope="session")
def by_gradients(session_model: TinyNet, loader: list[tuple[Tensor, Tensor]]) -> AttentiveKDAttribution:
    """As `fitted`, with maps that are made of gradients as well."""
    return AttentiveKDAttribution(session_model, gradients=True).fit(
        loader, distil_steps=60, explain_steps=100, progress=False
    )


@pytest.fixture(scope="session")
def compact(session_model: TinyNet, loader: list[tuple[Tensor, Tensor]]) -> AttentiveKDAttribution:
    """A student of a plain function that gives outputs and nothing else."""

    def outputs_only(images: Tensor) -> Tensor:
        with torch.no_grad():
            return session_model(images)

    return AttentiveKDAttribution(outputs_only).fit(loader, distil_steps=60, explain_steps=10, progress=False)


@pytest.fixture(scope="session")
def captum_model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return BasicModel_ConvNet().eval()


@pytest.fixture(scope="session")
def captum_images() -> Tensor:
    return torch.randn(24, 1, 10, 10, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="session")
def captum_fitted(captum_model: nn.Module, captum_images: Tensor) -> AttentiveKDAttribution:
    return AttentiveKDAttribution(captum_model).fit(
        [captum_images], distil_steps=3, explain_steps=3, batch_size=8, progress=False
    )


@pytest.fixture
def untrained() -> TinyNet:
    """A fresh model of the test's own, to do with as it likes."""
    return random_net(11)
