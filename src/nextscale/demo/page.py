"""The page itself: its parts, where they stand, and what each of them sets off."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import gradio as gr

from nextscale.demo import views
from nextscale.demo.controls import LIVE, PER_STEP, Update, controls_of
from nextscale.demo.desk import Desk
from nextscale.demo.events import connect
from nextscale.demo.pictures import DIFFERENCES, GAINS
from nextscale.demo.settings import BUDGETS, NORMS, PRIORS, RATIOS, SAMPLERS, Settings
from nextscale.demo.words import help_button, help_text
from nextscale.guidance.ssg import REMEMBER

TITLE = "nextscale: what Scaled Spatial Guidance does"
# Of the machine, so that the page asks nobody for a font.
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
_HIDDEN = {"visible": "hidden", "show_label": False, "container": False}


def asset(name: str) -> str:
    """A style sheet or script of this package."""
    return (files("nextscale.demo") / "assets" / name).read_text(encoding="utf-8")


def theme() -> Any:
    """Plain, with fonts that are there already."""
    fonts = [[gr.themes.Font(name) for name in names] for names in (FONT, MONO)]
    plain = gr.themes.Base(
        primary_hue="orange", neutral_hue="slate", radius_size="md", font=fonts[0], font_mono=fonts[1]
    )
    faint, dark = "var(--ns-faint)", "var(--ns-faint)"  # which the style sheet has for light and for dark
    return plain.set(
        body_text_color_subdued=faint,
        body_text_color_subdued_dark=dark,
        block_info_text_color=faint,
        block_info_text_color_dark=dark,
        input_placeholder_color=faint,
        input_placeholder_color_dark=dark,
    )


class Page:
    """Builds the page around a desk."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.parts: dict[str, Any] = {}
        model = desk.shelf.get(desk.shelf.names[0])
        settings = model.complete(Settings(model.offer.name))
        self.first = controls_of(model, settings, desk.shelf.names)
        self.first["live"] = Update(value=model.is_quick)

    def build(self) -> Any:
        """The page as gradio has it, not yet served."""
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
            gr.HTML(_HEADER, elem_id="ns-header")
            with gr.Row(elem_id="ns-main"):
                with gr.Column(scale=4, min_width=320, elem_id="ns-controls"):
                    self._controls()
                with gr.Column(scale=7, min_width=320, elem_id="ns-stage"):
                    self._stage()
            self._below()
            connect(blocks, self.parts, self.desk)
        return blocks

    # ------------------------------------------------------------------ parts

    def _add(self, name: str, part: Any) -> Any:
        self.parts[name] = part
        return part

    def _control(self, name: str, kind: Any, **options: Any) -> None:
        """A part whose value is a setting; it begins as the first model has it."""
        self._add(name, kind(**{**options, **self.first.get(name, {})}))

    def _controls(self) -> None:
        add, control = self._add, self._control
        control("model", gr.Dropdown, label="Model", filterable=False)
        control("classes", gr.Dropdown, label="Classes", multiselect=True, allow_custom_value=True)
        control("prompts", gr.Textbox, label="Prompts, one a line", lines=2, max_lines=8)
        control("negative_prompt", gr.Textbox, label="Keep away from")
        with gr.Row(elem_id="ns-sizes", elem_classes="ns-tight"):
            for name, known, label in (("aspect_ratio", RATIOS, "Shape"), ("pixels", BUDGETS, "Pixels")):
                control(name, gr.Dropdown, choices=list(known), label=label, min_width=120)
        with gr.Row(elem_id="ns-seeds", elem_classes="ns-tight"):
            control("seed", gr.Textbox, label="Seed", placeholder="7, or 7, 3, 12", max_lines=1, min_width=90)
            control("count", gr.Number, label="Pictures each", min_width=90)
            add("reseed", gr.Button("New seeds", size="sm", min_width=90, elem_id="ns-reseed"))
        script = asset("beta.js").replace("PER_STEP", repr(PER_STEP))
        frame = f'<div class="ns-beta">{help_button("beta")}{help_text("beta")}</div>'
        control("beta", gr.HTML, html_template=frame, js_on_load=script, elem_id="ns-beta")
        with gr.Row(elem_classes="ns-tight"):
            add("go", gr.Button("Draw", variant="primary", min_width=120, elem_id="ns-draw"))
            add("cancel", gr.Button("Cancel", min_width=90, elem_id="ns-cancel"))
        with gr.Row(elem_classes="ns-tight ns-switches"):
            control("live", gr.Checkbox, label=LIVE, container=False, min_width=150)
            add("frames", gr.Checkbox(True, label="Show every scale", container=False, min_width=150))
        self._folded()

    def _folded(self) -> None:
        with gr.Accordion("What the prior is made of", open=False):
            _explained("prior")
            self._choice("prior", PRIORS, "Prior", "How the step before is enlarged")
            self._choice("norm", NORMS, "Norm", "Normalisation of its cosine transform")
            self._choice("remember", REMEMBER, "Remembers", "The logits that the next prior is made from")
        with gr.Accordion("Sampling and classifier-free guidance", open=False):
            _explained("sampling")
            with gr.Row(elem_classes="ns-tight"):
                self._control("guidance_scale", gr.Number, label="CFG scale", min_width=110)
                self._control("temperature", gr.Number, label="Temperature", min_width=110)
            with gr.Row(elem_classes="ns-tight"):
                self._control("top_k", gr.Number, label="Top-k", min_width=80)
                self._control("top_p", gr.Number, label="Top-p", min_width=80)
                self._control("min_p", gr.Number, label="Min-p", min_width=80)
            self._choice("sampler", SAMPLERS, "Sampler")
            self._control("more_smooth", gr.Checkbox, label="Mix codes (more smooth)")
            self._control("residual", gr.Checkbox, label="Draw the continuous residual")
        with gr.Accordion("Open a picture", open=False):
            gr.HTML(
                '<p class="ns-note">A PNG from this page or from <code>nextscale generate</code>: it holds '
                "the settings it was made with.</p>"
            )
            self._add("picture", gr.File(label="PNG", file_types=[".png"], type="filepath", height=110))

    def _choice(self, name: str, known: tuple[str, ...], label: str, info: str | None = None) -> None:
        self._control(name, gr.Radio, choices=list(known), label=label, info=info)

    def _stage(self) -> None:
        add = self._add
        with gr.Column(elem_id="ns-status"):
            add("problem", gr.HTML())
            add("status", gr.HTML(views.working("Opening")))
        with gr.Tabs(elem_id="ns-tabs"):
            with gr.Tab("Slider"):
                add("slider", gr.HTML(views.waiting_slider((1, 1)), elem_id="ns-slider"))
            with gr.Tab("Side by side"):
                add("pair", gr.HTML(elem_id="ns-pair"))
            with gr.Tab("Difference"):
                add("change", gr.HTML(elem_id="ns-change"))
                with gr.Row(elem_classes="ns-tight"):
                    add(
                        "kind", gr.Radio(list(DIFFERENCES), value="signed", label="Difference", min_width=200)
                    )
                    gains = [(f"×{gain}", gain) for gain in GAINS]
                    add("gain", gr.Radio(gains, value=2, label="Amplified", min_width=200))
        add("thumbs", gr.HTML(js_on_load=_clicks("pick"), elem_id="ns-thumbs"))
        with gr.Row(elem_classes="ns-tight"):
            add("save_guided", _download("Save with SSG"))
            add("save_plain", _download("Save without SSG"))

    def _below(self) -> None:
        add = self._add
        with gr.Column(elem_classes="ns-section"):
            gr.HTML(
                '<div class="ns-heading"><h2>Every scale</h2>'
                '<button type="button" class="ns-play" data-play>Play</button>'
                f"{help_button('scales')}</div>{help_text('scales')}"
            )
            add("film", gr.HTML(elem_id="ns-film"))
        with gr.Column(elem_classes="ns-section"):
            _heading("What the steps say", "curves")
            add("curves", gr.HTML(elem_id="ns-curves"))
        with gr.Column(elem_classes="ns-section"):
            _heading("Over β", "strip")
            add("draw_strip", gr.Button("Draw this picture at several β", size="sm", elem_id="ns-draw-strip"))
            add("strip", gr.HTML(js_on_load=_clicks("beta"), elem_id="ns-strip"))
        with gr.Column(elem_classes="ns-section"):
            _heading("These pictures elsewhere")
            add("address", gr.Textbox(label="Link", interactive=False, buttons=["copy"], elem_id="ns-link"))
            with gr.Row(elem_id="ns-code"):
                code = {"interactive": False, "wrap_lines": True, "buttons": ["copy"]}
                code |= {"show_line_numbers": False, "lines": 8}
                add("python", gr.Code(language="python", label="As Python", elem_id="ns-python", **code))
                add("command", gr.Code(language="shell", label="As commands", elem_id="ns-command", **code))
        with gr.Column(elem_classes="ns-section"):
            _heading("This visit")
            add("gallery", gr.HTML(views.gallery([]), js_on_load=_clicks("entry"), elem_id="ns-gallery"))
        for name in ("job", "link", "arrival"):
            add(name, gr.Textbox(elem_id=f"ns-{name}", **_HIDDEN))


def _heading(text: str, help_: str = "") -> None:
    """A heading of a section, with a question mark where its words need one."""
    marks = (help_button(help_), help_text(help_)) if help_ else ("", "")
    gr.HTML(f'<div class="ns-heading"><h2>{text}</h2>{marks[0]}</div>{marks[1]}')


def _explained(name: str) -> None:
    """A question mark at the beginning of a group of controls."""
    about = '<span class="ns-note">What these words mean</span>'
    gr.HTML(f'<div class="ns-heading ns-about">{about}{help_button(name)}</div>{help_text(name)}')


def _clicks(name: str) -> str:
    """A script for a part with buttons: a click on one with ``data-NAME`` tells the server its value."""
    return (
        "element.addEventListener('click', (event) => {"
        f" const button = event.target.closest('[data-{name}]');"
        f" if (button && !button.disabled) trigger('click', {{value: button.dataset.{name}}}); }});"
    )


def _download(label: str) -> Any:
    return gr.DownloadButton(label, interactive=False, size="sm", min_width=150, elem_classes="ns-save")


_HEADER = """
<h1>What Scaled Spatial Guidance does</h1>
<p>A next-scale model draws a picture as token grids, coarse to fine, each grid at once. SSG strengthens, at
every step, what its logits say beyond the step before: <span class="ns-formula">l + β · (l − prior)</span>.
Both pictures below come from the same random numbers, so what differs between them is due to SSG.</p>
"""
