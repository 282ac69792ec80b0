"""How many processes read pictures."""

import os

import pytest

from gr_jax.data import workers
from gr_jax.devices import container


@pytest.mark.parametrize("limit, count", [(None, 3), (64.0, 3), (3.0, 3), (2.0, 2), (1.5, 2), (0.25, 1)])
def test_no_more_than_the_container_has_cores(monkeypatch, limit, count):
  monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 5}, raising=False)
  monkeypatch.setattr(container, "cores", lambda: limit)
  assert workers.count() == count
