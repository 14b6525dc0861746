"""Where the other processes are, as it is given on the command line, and what all must agree on."""

import socket

import pytest

from gct_jax.errors import ConfigError
from gct_jax.runtime import cluster
from gct_jax.runtime.cluster import Place, require_same


def test_a_place():
    assert Place.parsed("10.0.0.1:8476,4,3") == Place("10.0.0.1", 8476, 4, 3)
    assert Place.parsed("[::1]:8476,1,0").host == "[::1]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("foo", "--multi-host foo is not of the form HOST:PORT,COUNT,INDEX"),
        ("localhost:99,2", "is not of the form"),
        ("localhost:9911,2.5,0", "is not of the form"),
        (":9911,2,0", "is not of the form"),
        ("localhost:99x,2,0", "is not of the form"),
        ("localhost:999999,2,0", "from 1 to 65535, not 999999"),
        ("localhost:9911,2,2", "process 2 of 2; from 0 to 1"),
        ("localhost:9911,0,0", "process 0 of 0"),
    ],
)
def test_a_place_that_is_none(text, message):
    with pytest.raises(ConfigError, match=message):
        Place.parsed(text)


def test_a_host_that_is_not_known_and_a_port_that_is_taken():
    with pytest.raises(ConfigError, match=r"a\.b\.invalid is not known"):
        Place("a.b.invalid", 9911, 2, 1).require_reachable()
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on port {port}"):
            Place("localhost", port, 2, 0).require_reachable()
        Place("localhost", port, 2, 1).require_reachable()  # it is process 0 that listens


def test_a_difference_is_named(monkeypatch):
    def gathered(other):
        return lambda text: [text, text.replace('"0.003"', other)]

    monkeypatch.setattr(cluster, "_gathered", gathered('"0.1"'))
    with pytest.raises(ConfigError, match=r"process 1 .* rate = 0\.1, process 0 with 0\.003"):
        require_same({"seed": 0, "rate": 0.003})
    monkeypatch.setattr(cluster, "_gathered", gathered('"0.003"'))
    require_same({"seed": 0, "rate": 0.003})
