"""What the package offers, and what it does not."""

import pytest

import yolods
from yolods.api.names import PUBLIC, late


def test_every_name_is_there():
    assert all(getattr(yolods, name).__name__ == name for name in PUBLIC)


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'yolods' has no attribute 'trian'"):
        yolods.trian  # noqa: B018
    with pytest.raises(AttributeError):
        late("trian")
