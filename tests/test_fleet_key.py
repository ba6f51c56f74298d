"""A fleet that wants API keys, and the operator's own tools."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.api.keys import hash_of, new_key
from app.settings import Settings
from fleet import key
from fleet.candles import Question, read
from fleet.errors import RequestFailed
from fleet.forecast import EXAMPLE, ask
from tests.fleet.live import ROOT
from tests.serving import server

KEY = new_key()
QUESTION = Question(horizon=4, samples=1, seed=1, series_id="example")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A worker that knows one key."""
    with server(Settings(prewarm=False, api_keys=hash_of(KEY))) as running:
        yield running.url


def test_the_key_of_the_environment_is_shown(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`fleet predict`, and the first forecast of `fleet up`, use FLEET_API_KEY."""
    monkeypatch.setenv(key.VARIABLE, KEY)
    assert ask(url, read(ROOT / EXAMPLE, 64), QUESTION, 10.0).status == 200


@pytest.mark.parametrize("wrong", [None, "", new_key()])
def test_without_it_the_error_says_what_to_do(url: str, monkeypatch: pytest.MonkeyPatch, wrong: str | None) -> None:
    """Names the variable, and repeats no key."""
    monkeypatch.delenv(key.VARIABLE, raising=False)
    if wrong is not None:
        monkeypatch.setenv(key.VARIABLE, wrong)
    with pytest.raises(RequestFailed) as caught:
        ask(url, read(ROOT / EXAMPLE, 64), QUESTION, 10.0)
    assert caught.value.what.startswith("401") and key.VARIABLE in caught.value.then
    assert not wrong or wrong not in caught.value.what + caught.value.then
