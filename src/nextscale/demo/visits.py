"""What the server keeps of each visit while it lasts: what is shown, what is being drawn, the gallery."""

from __future__ import annotations

import secrets
import shutil
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nextscale.demo import bounds
from nextscale.demo.views import Shown


@dataclass
class Entry:
    """One picture of the gallery: its settings as a URL has them, two data URIs and a caption."""

    query: str
    plain: str
    guided: str
    caption: str


@dataclass
class Visit:
    """One open page.

    folder: for the files to download. job: the newest thing it asked for. done: whether that is drawn. said:
    what there is to say of it; empty while it is drawn or waits to be. refused: why it could not be drawn.
    shown, chosen: what the page shows, and which picture of it large. strip: name, value and pictures of
    several strengths. model: the one it uses. live: whether every change is drawn. slow: models for which
    that was turned off, once; who turns it on again means it.
    """

    folder: Path
    job: str = ""
    jobs: int = 0
    done: bool = False
    said: str = ""
    refused: Exception | None = None
    ticket: threading.Event = field(default_factory=threading.Event)
    shown: Shown | None = None
    chosen: int = 0
    strip: list[tuple[str, str, list[Any]]] = field(default_factory=list)
    gallery: list[Entry] = field(default_factory=list)
    model: str = ""
    live: bool = True
    slow: set[str] = field(default_factory=set)

    @property
    def query(self) -> str:
        """The settings of the newest thing it asked for, as a URL has them."""
        return self.job.partition("#")[0]

    def want(self, query: str) -> str:
        """Ask for something new: what is being drawn stops. Returns its name, unlike all before it."""
        self.stop()
        self.jobs += 1
        self.done, self.said, self.refused = False, "", None
        self.job, self.ticket = f"{query}#{self.jobs}", threading.Event()
        return self.job

    def rest(self, query: str, said: str) -> None:
        """Have settings that nobody asked to draw yet. said: what the visitor reads then."""
        self.stop()
        self.job, self.done, self.said, self.refused = query, False, said, None

    @property
    def rests(self) -> bool:
        """Whether the newest thing it asked for is neither drawn, nor being drawn, nor waits to be."""
        return not self.done and bool(self.said or self.refused)

    def begin(self) -> threading.Event:
        """A ticket for work that is not named by a job; set once it is to stop."""
        self.stop()
        self.ticket = threading.Event()
        return self.ticket

    def stop(self) -> None:
        """Let go of whatever is being drawn or waits to be."""
        self.ticket.set()

    def remember(self, entry: Entry) -> None:
        """Into the gallery, once; the oldest entries fall out."""
        self.gallery = [known for known in self.gallery if known.query != entry.query][-bounds.GALLERY + 1 :]
        self.gallery.append(entry)


class Visits:
    """All visits, by the name that gradio gives each. folder: where their files go."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._visits: OrderedDict[str, Visit] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, name: str | None) -> Visit:
        """A visit; a new one for a new name."""
        name = name or ""
        with self._lock:
            if name not in self._visits:
                while len(self._visits) >= bounds.VISITS:
                    self._end(next(iter(self._visits)))
                # A name that no other visitor could guess, since files are fetched by their names.
                self._visits[name] = Visit(self._folder / secrets.token_hex(16))
            self._visits.move_to_end(name)
            return self._visits[name]

    def leave(self, name: str | None) -> None:
        """The page was closed."""
        with self._lock:
            if (name or "") in self._visits:
                self._end(name or "")

    def _end(self, name: str) -> None:
        visit = self._visits.pop(name)
        visit.stop()
        shutil.rmtree(visit.folder, ignore_errors=True)
