"""Who draws: one after the other, in the order in which they came. Who needs no drawing needs no place."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from nextscale.demo import bounds
from nextscale.errors import InvalidArgumentError

_PATIENCE = 0.2  # seconds between two looks at whether who waits still wants to


class Line:
    """Places, of which the first draws."""

    def __init__(self) -> None:
        self._moved = threading.Condition()
        self._places: list[Place] = []

    @contextmanager
    def place(self) -> Iterator[Place]:
        """Take the last place, and leave it at the end, whatever happens.

        Raises InvalidArgumentError if too many wait already.
        """
        with self._moved:
            if len(self._places) >= bounds.QUEUE:
                raise InvalidArgumentError(
                    f"{len(self._places)} others wait for their pictures; try again in some minutes"
                )
            place = Place(self._moved, self._places)
            self._places.append(place)
        try:
            yield place
        finally:
            with self._moved:
                self._places.remove(place)
                self._moved.notify_all()


class Place:
    """One place of a line."""

    def __init__(self, moved: threading.Condition, places: list[Place]) -> None:
        self._moved, self._places = moved, places

    def wait(self, given_up: threading.Event) -> Iterator[int]:
        """Wait for one's turn, or until ``given_up`` is set; yields how many are before at every change."""
        before = 0
        while not given_up.is_set():
            with self._moved:
                ahead = self._places.index(self)
                if ahead and ahead == before:
                    self._moved.wait(_PATIENCE)
                    continue
            if not ahead:
                return
            before = ahead
            yield ahead
