"""How fast an endpoint may be asked: requests and tokens a minute, over all threads, and how long to wait after faults.

A token bucket fills evenly and holds a second's worth, so in no minute more than the limit (and that second) goes out.
Who takes from it is told how long to wait, and what was taken is gone for the next one: first come, first served. A
request larger than the bucket waits until it is full and leaves a debt.
"""

import hashlib
import threading
import time
from email.utils import parsedate_to_datetime

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0


class TokenBucket:
    """One limit.

    Args:
        per_minute: what may be taken in a minute; None for no limit.
    """

    def __init__(self, per_minute: int | None) -> None:
        self.rate = None if per_minute is None else per_minute / 60
        self._held = max(1.0, self.rate or 0.0)
        self._level, self._when = self._held, time.monotonic()
        self._lock = threading.Lock()

    def take(self, amount: float) -> float:
        """Take so much, and return the seconds to wait before using it; a negative amount gives back."""
        if self.rate is None:
            return 0.0
        with self._lock:
            now = time.monotonic()
            self._level = min(self._held, self._level + (now - self._when) * self.rate)
            self._when = now
            wait = max(0.0, (min(amount, self._held) - self._level) / self.rate)
            self._level -= amount
            return wait


class RateLimits:
    """Both limits and the pauses that the server asks for; every wait ends at once when `leaving` is set."""

    def __init__(self, requests_per_minute: int | None, tokens_per_minute: int | None) -> None:
        self.leaving = threading.Event()
        self._requests, self._tokens = TokenBucket(requests_per_minute), TokenBucket(tokens_per_minute)
        self._paused_until = 0.0
        self._lock = threading.Lock()

    def wait_for_turn(self, tokens: int) -> None:
        """Wait until a request with so many tokens, prompt and answer, may go out."""
        self.wait(max(self._requests.take(1), self._tokens.take(tokens)))
        while (pause := self._paused_until - time.monotonic()) > 0 and not self.leaving.is_set():
            self.wait(pause)

    def correct(self, estimated: int, counted: int) -> None:
        """Put right what a request was thought to take."""
        self._tokens.take(counted - estimated)

    def pause(self, seconds: float) -> None:
        """Let no thread ask for so long: the server said so to one of them."""
        with self._lock:
            self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    def wait(self, seconds: float) -> None:
        """Sleep, unless somebody is leaving."""
        if seconds > 0:
            self.leaving.wait(seconds)


def back_off(request: bytes, tries: int) -> float:
    """Seconds to wait after so many tries: doubled each time, and spread by the request's own hash.

    Many threads that fail together do not come back together, and a run that is repeated waits the same.
    """
    draw = int.from_bytes(hashlib.sha256(request + tries.to_bytes(4, "big")).digest()[:8], "big") / 2**64
    return min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (tries - 1)) * (0.5 + draw / 2)


def seconds_to_wait(headers: dict[str, str]) -> float | None:
    """What `Retry-After` says, in seconds or as a date; None where it says nothing that can be read."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) / unit
        except ValueError:
            try:
                seconds = parsedate_to_datetime(value).timestamp() - time.time()
            except (ValueError, TypeError, OverflowError):
                continue
        if seconds == seconds:  # "nan" is a number, too
            return max(0.0, seconds)
    return None


__all__ = ["RateLimits", "TokenBucket", "back_off", "seconds_to_wait"]
