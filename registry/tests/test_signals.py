"""signals: what Ctrl-C and SIGTERM become while a run trains, and before and after."""

import signal
import threading
from collections.abc import Iterator

import pytest

from flowplat import signals

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The handlers are afterwards as they were before."""
    before = {number: signal.getsignal(number) for number in signals.KINDS}
    yield
    assert {number: signal.getsignal(number) for number in signals.KINDS} == before


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands until it is set."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


@BOTH
def test_a_signal_is_raised_where_it_comes(number: int) -> None:
    with pytest.raises(signals.KINDS[number]) as raised, signals.raised():
        signal.raise_signal(number)
    assert getattr(raised.value, "exit_code", 130) == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert isinstance(raised.value, KeyboardInterrupt)  # so that nothing which catches Exception swallows it


@BOTH
def test_a_signal_is_noted(number: int) -> None:
    with signals.noted() as came:
        assert came == []
        signal.raise_signal(number)
        assert came == [number]


@BOTH
def test_a_second_signal_within_five_seconds_is_raised(number: int, clock: list[float]) -> None:
    with signals.noted() as came:
        signal.raise_signal(signal.SIGINT)
        clock[0] += 4.9
        with pytest.raises(signals.KINDS[number]):
            signal.raise_signal(number)
    assert came == [signal.SIGINT]


def test_signals_more_than_five_seconds_apart_are_all_noted(clock: list[float]) -> None:
    with signals.noted() as came:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
            clock[0] += 5.1
    assert came == [signal.SIGTERM, signal.SIGINT, signal.SIGTERM]


def test_noting_ends_where_it_began() -> None:
    with signals.raised():
        with signals.noted() as came:
            signal.raise_signal(signal.SIGTERM)
        assert came == [signal.SIGTERM]
        with pytest.raises(signals.Terminated):
            signal.raise_signal(signal.SIGTERM)


def test_another_thread_trains_without_handling_signals() -> None:
    found = []

    def work() -> None:
        with signals.raised(), signals.noted() as came:
            found.append(came)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [[]]
