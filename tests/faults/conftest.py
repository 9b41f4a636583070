"""What tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest

from tests import forks


@pytest.fixture(scope="module")
def forked_launches() -> Iterator[None]:
    """Within: what `launched` starts is forked, with all that it starts itself."""
    with mock.patch("tests.faults.launched.popen", forks.Popen):
        yield
