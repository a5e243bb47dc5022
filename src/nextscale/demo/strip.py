"""The strip: one picture at several strengths."""

from __future__ import annotations

from dataclasses import replace

from nextscale.demo import bounds, views
from nextscale.demo.settings import Settings, as_text
from nextscale.demo.visits import Visit
from nextscale.guidance.ssg import ScaledSpatialGuidance

STRIP = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0)


def strengths(settings: Settings) -> list[tuple[str, str, ScaledSpatialGuidance | None]]:
    """Names, values and guidance of the strip. Where strengths are given per step, all are multiplied.

    A value is the strength, or the strengths, as a URL has them.
    """
    ssg = settings.ssg or (0.0,)
    several = len(ssg) > 1
    found: list[tuple[str, str, ScaledSpatialGuidance | None]] = []
    for share in STRIP if several else sorted({*STRIP, *ssg}):
        scaled = _times(ssg, share) if several else (share,)
        if max(scaled) > bounds.BETA:
            break
        name = f"× {as_text(share)}" if several else f"β {as_text(share)}"
        guided = replace(settings, ssg=scaled).guidance() if share else None
        found.append((name, as_text(scaled), guided))
    return found


def _times(ssg: tuple[float, ...], share: float) -> tuple[float, ...]:
    """Strengths as they are, or multiplied, without the digits that only rounding has made."""
    return ssg if share == 1 else tuple(round(beta * share, 6) for beta in ssg)


def strip_of(visit: Visit) -> str:
    """The strip of the picture that is shown large; empty where none was drawn."""
    if not visit.strip or visit.shown is None:
        return ""
    ssg = visit.shown.settings.ssg or (0.0,)
    entries = [(name, value, images[visit.chosen]) for name, value, images in visit.strip]
    several = "Every step’s β times a number. Choose one to take its curve."
    hint = several if len(ssg) > 1 else "Choose one to take its β."
    return views.strip(
        entries, as_text(ssg), f"{visit.shown.caption(visit.chosen)}, from the same noise. {hint}"
    )
