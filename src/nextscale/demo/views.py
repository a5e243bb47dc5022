"""The pieces of the page that are not controls, as HTML. Every text in it is escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL.Image import Image

from nextscale.demo import pictures
from nextscale.demo.charts import Line, line_chart
from nextscale.demo.drawing import Arm
from nextscale.demo.settings import Settings, as_text
from nextscale.scales import Grid

PIXELS = 256  # pictures smaller than this are enlarged pixel by pixel
THUMB = 96
SPINNER = '<span class="ns-spinner" aria-hidden="true"></span>'


@dataclass(frozen=True)
class Shown:
    """What the page shows: complete settings, and their pictures drawn both ways."""

    settings: Settings
    plain: Arm
    guided: Arm
    grids: tuple[Grid, ...]

    @property
    def has_frames(self) -> bool:
        """Whether every step was kept of both."""
        return all(arm.frames and bool(arm.frames[0]) for arm in (self.plain, self.guided))

    def caption(self, index: int) -> str:
        """``"horse · seed 3"``."""
        return f"{self.settings.wanted[index]} · seed {self.settings.seeds[index]}"


def strength(settings: Settings) -> str:
    """``"β 0.6"``, ``"β 0.6, linear"`` or ``"β up to 0.6"``."""
    ssg = settings.ssg or (0.0,)
    if len(ssg) > 1:
        return f"β up to {as_text(max(ssg))}"
    shape = "" if settings.ssg_schedule == "constant" else f", {settings.ssg_schedule}"
    return f"β {as_text(ssg[0])}{shape}"


def grid_names(grids: Sequence[Grid]) -> list[str]:
    """``"4×4"`` and so on."""
    return [f"{h}×{w}" for h, w in grids]


# ------------------------------------------------------------------ the large pictures


def slider(plain: str, guided: str, size: tuple[int, int], with_: str, caption: str, note: str = "") -> str:
    """Two pictures on top of each other, and a divider between them that mouse, finger and keyboard move.

    plain, guided: data URIs; an empty one is a place still to be filled. size: (width, height) in pixels.
    """
    return (
        f'<figure class="ns-stage">'
        f'<div class="ns-compare{_sharp(size)}" style="{_aspect(size)}">'
        f"{_image(plain, 'Without SSG: ' + caption, 'ns-a')}{_image(guided, 'With SSG: ' + caption, 'ns-b')}"
        f'<span class="ns-tag ns-tag-a">without SSG</span>'
        f'<span class="ns-tag ns-tag-b">{escape(with_)}</span>'
        f'<span class="ns-handle" aria-hidden="true"></span>'
        f'<input class="ns-divider" type="range" min="0" max="100" step="1" value="50" '
        f'aria-label="Divider: without SSG to its left, with SSG to its right"></div>'
        f"<figcaption>{escape(caption)}{escape(note)}</figcaption></figure>"
    )


def waiting_slider(size: tuple[int, int]) -> str:
    """The same before there is any picture."""
    return slider("", "", size, "with SSG", "nothing drawn yet")


def finished_slider(shown: Shown, index: int) -> str:
    plain, guided = shown.plain.images[index], shown.guided.images[index]
    uris = pictures.data_uri(plain), pictures.data_uri(guided)
    return slider(*uris, plain.size, strength(shown.settings), shown.caption(index))


def pair(shown: Shown, index: int) -> str:
    """The two pictures beside each other."""
    images = (shown.plain.images[index], shown.guided.images[index])
    names = ("without SSG", strength(shown.settings))
    figures = "".join(
        f'<figure class="ns-half"><img class="{_sharp(image.size).strip()}" style="{_aspect(image.size)}" '
        f'src="{pictures.data_uri(image)}" alt="{escape(shown.caption(index))}, {escape(name)}">'
        f'<figcaption class="ns-key {style}">{escape(name)}</figcaption></figure>'
        for image, name, style in zip(images, names, ("ns-a", "ns-b"), strict=True)
    )
    return f'<div class="ns-pair">{figures}</div><p class="ns-note">{escape(shown.caption(index))}</p>'


def change(shown: Shown, index: int, kind: pictures.Difference, gain: int) -> str:
    """What SSG changed, pixel by pixel."""
    plain, guided = shown.plain.images[index], shown.guided.images[index]
    image = pictures.difference(plain, guided, kind, gain)
    mean = pictures.mean_change(plain, guided)
    return (
        f'<figure class="ns-stage"><img class="ns-alone{_sharp(image.size)}" style="{_aspect(image.size)}" '
        f'src="{pictures.data_uri(image)}" alt="Difference of {escape(shown.caption(index))}">'
        f"<figcaption>{escape(shown.caption(index))} · {escape(pictures.scale_of(kind, gain))}. "
        f"On average the two differ by {mean:.1f} levels.</figcaption></figure>"
    )


# ------------------------------------------------------------------ rows of small pictures


def thumbs(shown: Shown, chosen: int) -> str:
    """All pictures of the page, to choose one from."""
    if len(shown.plain.images) < 2:
        return ""
    buttons = "".join(_thumb(shown, i, chosen) for i in range(len(shown.plain.images)))
    return f'<div class="ns-thumbs" role="group" aria-label="Pictures of this page">{buttons}</div>'


def _thumb(shown: Shown, index: int, chosen: int) -> str:
    images = (shown.plain.images[index], shown.guided.images[index])
    small = "".join(
        f'<img src="{pictures.data_uri(pictures.thumbnail(image, THUMB))}" alt="">' for image in images
    )
    state = f'aria-pressed="{str(index == chosen).lower()}"'
    return (
        f'<button type="button" class="ns-thumb" data-pick="{index}" {state}>'
        f"<span>{small}</span>{escape(shown.caption(index))}</button>"
    )


def film(shown: Shown, index: int) -> str:
    """Every scale of one picture, both ways."""
    if not shown.has_frames:
        return '<p class="ns-note">Turn on “Show every scale” to see the picture grow.</p>'
    rows = [("without SSG", "ns-a", shown.plain), (strength(shown.settings), "ns-b", shown.guided)]
    head = "".join(f"<th scope='col'>{name}</th>" for name in grid_names(shown.grids))
    body = "".join(
        f"<tr><th scope='row'><span class='ns-key {style}'>{escape(name)}</span></th>"
        + "".join(
            f'<td><img class="{_sharp(arm.images[index].size).strip()}" src="{frames[index]}" '
            f'alt="{escape(name)} after the step {grid}"></td>'
            for frames, grid in zip(arm.frames, grid_names(shown.grids), strict=True)
        )
        + "</tr>"
        for name, style, arm in rows
    )
    table = f'<table class="ns-film"><tr><td></td>{head}</tr>{body}</table>'
    return f'<div class="ns-scroll" tabindex="0" role="region" aria-label="Every scale">{table}</div>'


def strip(entries: Sequence[tuple[str, str, Image]], current: str, caption: str) -> str:
    """Show one picture at several strengths. entries: name, value as a URL has it, and picture of each."""
    if not entries:
        return ""
    figures = "".join(
        f'<button type="button" class="ns-beta-picture" data-beta="{escape(value)}" '
        f'title="β {escape(value.replace(",", ", "))}" aria-pressed="{str(value == current).lower()}">'
        f'<img class="{_sharp(image.size).strip()}" alt="" '
        f'src="{pictures.data_uri(pictures.thumbnail(image, PIXELS))}">{escape(name)}</button>'
        for name, value, image in entries
    )
    return f'<p class="ns-note">{escape(caption)}</p><div class="ns-strip">{figures}</div>'


def gallery(entries: Sequence[tuple[str, str, str]]) -> str:
    """What this visit has drawn, newest first. entries: two data URIs and a caption each."""
    if not entries:
        return '<p class="ns-note">What you draw is kept here until you close the page.</p>'
    figures = "".join(
        f'<button type="button" class="ns-thumb" data-entry="{i}"><span><img src="{plain}" alt="">'
        f'<img src="{guided}" alt=""></span>{escape(caption)}</button>'
        for i, (plain, guided, caption) in reversed(list(enumerate(entries)))
    )
    return f'<div class="ns-thumbs ns-gallery">{figures}</div>'


# ------------------------------------------------------------------ curves and words


def curves(shown: Shown, index: int) -> str:
    """Energy of the semantic residual and entropy, step by step, of one picture drawn both ways."""
    steps = grid_names(shown.grids)[1:]
    plain, guided = shown.plain.statistics[index], shown.guided.statistics[index]
    names = (("without SSG", "ns-a"), (strength(shown.settings), "ns-b"))

    def lines(first: str, second: str) -> list[Line]:
        values = (plain[first], guided[second])
        return [Line(name, style, v) for (name, style), v in zip(names, values, strict=True)]

    if not steps:
        return '<p class="ns-note">This model has one step, and a residual needs two.</p>'
    energy = line_chart("Residual energy", "mean square of l − prior", steps, lines("energy", "energy"))
    entropy = line_chart(
        "Entropy", "nats per decision, of what is drawn from", steps, lines("predicted", "guided")
    )
    return f'<div class="ns-charts">{energy}{entropy}</div>'


def working(text: str, done: int = 0, total: int = 0) -> str:
    """What is going on, with a bar where it is known how much there is."""
    bar = f'<progress max="{total}" value="{done}"></progress>' if total else ""
    return f'<div class="ns-status" role="status">{SPINNER}<span>{escape(text)}</span>{bar}</div>'


def ready(text: str) -> str:
    return f'<div class="ns-status" role="status"><span>{escape(text)}</span></div>'


def problem(text: str) -> str:
    """A message about something the visitor can change."""
    said = f"<strong>Not drawn.</strong> <span>{escape(text)}</span>"
    return f'<div class="ns-status ns-problem" role="alert">{said}</div>'


def _image(uri: str, alt: str, style: str) -> str:
    if not uri:
        return f'<span class="{style} ns-empty"></span>'
    return f'<img class="{style}" src="{uri}" alt="{escape(alt)}" draggable="false">'


def _sharp(size: tuple[int, int]) -> str:
    return " ns-sharp" if max(size) < PIXELS else ""


def _aspect(size: tuple[int, int]) -> str:
    return f"aspect-ratio:{size[0]}/{size[1]};--ns-ratio:{size[0] / size[1]:.4f}"
