from __future__ import annotations

from nextscale.generation.version import VERSION, version_note


def test_pictures_of_another_sampler_say_so():
    now = {"sampler": "paired", "sampler_version": VERSION}
    assert version_note(now) is None
    assert version_note({"sampler": "greedy"}) is None
    assert version_note({"sampler": "multinomial", "more_smooth": True, "residual": None}) is None
    for old in (
        {"sampler": "paired"},
        {"sampler": "paired", "sampler_version": VERSION + 1},
        {"sampler": "greedy", "residual": True},
        {"sampler": "multinomial", "mask_iterations": 4},
        {"sampler": "greedy", "more_smooth": True},
    ):
        note = version_note(old)
        assert note is not None and "cannot be made again to the bit" in note
