"""Words of the page that are not plain, in plain ones: what the buttons with a question mark show."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

HELP: Mapping[str, Mapping[str, str]] = {
    "beta": {
        "β": "how strongly SSG pushes each step away from what the step before would predict; 0 is no SSG",
        "constant": "the same β at every step",
        "linear": "rises evenly, from 0 at the first step to β at the last",
        "cosine": "rises from 0 to β too, slowly at both ends",
        "bandwidth": "β times the share of detail that is new at a step: 1 − cells of the last grid ÷ cells "
        "of this one. The more a grid grows, the stronger",
        "per step": "every step has a β of its own: move the points of the curve",
        "the pale first point": "the first step has no step before it to compare with, so it is never guided "
        "and cannot be moved",
        "1×1, 2×2, …": "the token grids, coarse to fine; each is drawn in one step",
    },
    "prior": {
        "prior": "what the step before predicts for this finer grid; SSG stresses what differs from it",
        "dse": "smooth enlargement whose coarse frequencies are exactly the step before’s (the paper’s)",
        "dct": "the coarse frequencies alone, and nothing between them",
        "bilinear": "smooth enlargement, and no more",
        "nearest": "every cell repeated",
        "ortho": "keeps the energy of the coarse logits: they become smaller on a larger grid (the paper’s)",
        "forward": "keeps their size instead: an even area stays as it is",
        "backward": "makes them smaller still; for comparison",
        "unguided": "the next step is compared with this step’s logits before SSG",
        "guided": "it is compared with them after SSG, so that pushes add up",
    },
    "sampling": {
        "CFG scale": "classifier-free guidance: how closely pictures follow class or prompt, at the cost of "
        "variety. Empty: the model’s own values, step by step",
        "temperature": "below 1 likelier tokens become likelier still; above 1 chances become more even",
        "top-k": "draw from the k likeliest tokens only; 0 is all",
        "top-p": "draw from the likeliest tokens that together reach this probability",
        "min-p": "leave out tokens less likely than this share of the likeliest one",
        "paired": "random draws that change as little as possible when the settings change",
        "greedy": "always the likeliest token, without chance",
        "mix codes": "averages likely tokens instead of choosing one: smoother pictures, for looks",
        "continuous residual": "the fine rest that tokens cannot say, drawn by a small diffusion model",
    },
    "scales": {
        "without SSG, with SSG": "the same picture after each step: what the tokens so far add up to",
        "Play": "shows these once more in the large picture",
    },
    "curves": {
        "residual energy": "how much a step says beyond the one before: the mean square of logits − prior",
        "entropy": "how undecided the model is, in nats: 0 is certain, 0.69 an even choice of two",
        "prior, logits": "logits are the model’s scores of all tokens; the prior is what the step before "
        "makes one expect of them",
    },
    "strip": {
        "β 0, β 0.2, …": "this picture, from the same random numbers, at each strength",
        "× 0.2, × 0.4, …": "where every step has a β of its own: all of them times that number",
    },
}


def help_button(name: str) -> str:
    """A question mark that opens and closes the words of a part of the page. name: a key of :data:`HELP`."""
    return (
        f'<button type="button" class="ns-help" data-help="{name}" aria-expanded="false" '
        f'aria-controls="ns-words-{name}" aria-label="What do these words mean? {escape(_listed(name))}">?'
        f"</button>"
    )


def help_text(name: str) -> str:
    """Make what :func:`help_button` opens."""
    words = "".join(
        f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in HELP[name].items()
    )
    return f'<dl class="ns-words" id="ns-words-{name}" hidden>{words}</dl>'


def _listed(name: str) -> str:
    return ", ".join(HELP[name])
