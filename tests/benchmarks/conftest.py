"""The smallest model stands in for ``tiny`` where a test is about the way a measurement takes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lpkernels.models.config import LivePortraitConfig
from tests.benchmarks.fakes import micro_config


@pytest.fixture(scope="package", autouse=True)
def _micro() -> Iterator[None]:
    original = LivePortraitConfig.__dict__["named"]
    micro = micro_config()

    def named(cls: type[LivePortraitConfig], name: str) -> LivePortraitConfig:
        return micro if name == "tiny" else original.__func__(cls, name)

    LivePortraitConfig.named = classmethod(named)  # type: ignore[assignment]
    yield
    LivePortraitConfig.named = original  # type: ignore[method-assign]
