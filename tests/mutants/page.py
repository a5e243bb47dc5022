"""Faults in the page: what it says, what it draws, what can be read and reached."""

from __future__ import annotations

from tests.mutants.job import Fault

SAYS, READABLE = ("demo/test_desk_says.py",), ("demo/test_readable.py",)
FAULTS = (
    Fault(
        "a message stays when what was wrong is mended",
        "demo/desk.py",
        '_MENDED: Changes = {"problem": ""}',
        "_MENDED: Changes = {}",
        SAYS,
    ),
    Fault(
        "a field that is left draws what was cancelled or only opened",
        "demo/desk.py",
        "not (pressed and visit.rests)",
        "not visit.rests",
        SAYS,
    ),
    Fault(
        "what the model refuses is forgotten when a field is left",
        "demo/desk.py",
        "visit.refused = problem",
        'visit.said = "Not drawn."',
        SAYS,
    ),
    Fault(
        "a picture of another version is drawn by itself",
        "demo/desk.py",
        "settings, draw=changed is None, said=said)",
        "settings, draw=True, said=said)",
        SAYS,
    ),
    Fault(
        "a message about an opened picture names its folder",
        "demo/desk.py",
        '.replace(f"{file.parent}{os.sep}", "")',
        "",
        SAYS,
    ),
    Fault(
        "kept pictures wait for their turn",
        "demo/desk.py",
        "if len(found) == len(wanted):",
        "if len(found) > len(wanted):",
        SAYS,
    ),
    Fault(
        "drawing at every change never turns itself off",
        "demo/desk.py",
        "if not visit.live or seconds <= self.slow or name in visit.slow:",
        "if True:",
        SAYS,
    ),
    Fault(
        "drawing at every change turns itself off for ever",
        "demo/desk.py",
        "if not visit.live or seconds <= self.slow or name in visit.slow:",
        "if not visit.live or seconds <= self.slow:",
        SAYS,
    ),
    Fault(
        "the strip takes strengths per step for one",
        "demo/strip.py",
        "scaled = _times(ssg, share) if several else (share,)",
        "scaled = (share,)",
        ("demo/test_desk.py",),
    ),
    Fault(
        "spaces between seeds are dropped",
        "demo/settings.py",
        'parts = re.split(r"\\s*,\\s*|\\s+", value.strip())',
        'parts = "".join(value.split()).split(",")',
        ("demo/test_settings.py",),
    ),
    Fault(
        "the strength of a link cannot be off",
        "demo/settings.py",
        "    if value in OFF:\n        return (0.0,)\n",
        "",
        ("demo/test_settings.py",),
    ),
    Fault(
        "the path of a proxy is not passed on",
        "demo/serve.py",
        "            root_path=root_path,\n",
        "",
        ("demo/test_proxy.py",),
    ),
    Fault(
        "models go by their whole paths",
        "cli/demo.py",
        "next(short, len(mine))",
        "len(mine)",
        ("demo/test_proxy.py",),
    ),
    Fault(
        "classes that are removed are no change",
        "demo/events.py",
        'parts["beta"].input, parts["classes"].change]',
        'parts["beta"].input, parts["classes"].input]',
        ("demo/test_page.py",),
    ),
    Fault(
        "a swipe over the curve moves its points",
        "demo/assets/page.css",
        "touch-action: pan-y pinch-zoom; user-select: none;",
        "touch-action: none; user-select: none;",
        READABLE,
    ),
    Fault(
        "code stands side by side on a phone",
        "demo/assets/page.css",
        "  #ns-code { flex-direction: column; }\n  #ns-code > * { min-width: 100% !important; }\n",
        "  #ns-code > * { min-width: 0 !important; }\n",
        READABLE,
    ),
    Fault(
        "names of schedules do not fit a small phone",
        "demo/assets/page.css",
        ".ns-segments { display: flex; flex-wrap: wrap;",
        ".ns-segments { display: flex;",
        READABLE,
    ),
    Fault(
        "small texts are pale",
        "demo/assets/page.css",
        "--ns-faint: #556376;",
        "--ns-faint: #8391a5;",
        READABLE,
    ),
    Fault(
        "question marks explain nothing",
        "demo/assets/page.js",
        'closest?.("[data-help]")',
        'closest?.("[data-helps]")',
        READABLE,
    ),
)
