"""`guide()` on models that have the call structure of the official ones."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import subprocess
import sys
import threading
import types
import weakref

import pytest
import torch

from nextscale import ScaledSpatialGuidance
from nextscale.errors import GridError, InvalidArgumentError
from nextscale.integrations import guide
from nextscale.integrations.context import _ACTIVE, _Generation

SSG = ScaledSpatialGuidance(0.6)


def assert_definition(official, run, ssg):
    """The logits that reached the sampling function are those of the formula, up to their own rounding."""
    assert len(run.guided) == len(run.raw) >= 3
    for got, expected in zip(run.guided, official.definition(run.raw, ssg), strict=True):
        digits = 32 * torch.finfo(got.dtype).eps
        torch.testing.assert_close(got.double(), expected, rtol=digits, atol=digits * expected.abs().max())


def snapshot(official):
    """Every attribute of the model, its classes and its module, and the insides of the method."""
    found = {}
    for place in (official.model, *type(official.model).__mro__, official.module):
        for name, value in list(vars(place).items()):
            found[id(place), name] = value
            if isinstance(value, dict):
                found.update({(id(place), name, key): entry for key, entry in value.items()})
    method = type(official.model).autoregressive_infer_cfg
    for function in (method, method.__wrapped__):
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        found[id(function)] = (function.__code__, function.__defaults__, dict(vars(function)), cells)
    return found


def identical(one, other):
    return one.keys() == other.keys() and all(
        one[key] is other[key] or (len(key) == 1 if isinstance(key, tuple) else one[key] == other[key])
        for key in one
    )


def same_result(official, run):
    """Whether a generation under the guides that are active now ends like that run."""
    again = official.run(None)
    return torch.equal(again.result, run.result) and torch.equal(again.random, run.random)


@pytest.fixture(autouse=True)
def _no_guide_is_left():
    yield
    left = dict(_ACTIVE)
    _ACTIVE.clear()
    assert not left


# --- what is sampled from -----------------------------------------------------------------------------


def test_strength_zero_is_the_code_on_its_own(official):
    plain = official.run(None)
    assert official.run(0.0).same(plain)
    assert official.run(ScaledSpatialGuidance(0.9, start=len(official.grids))).same(plain)


def test_every_draw_is_the_definition(official):
    plain, guided = official.run(None), official.run(SSG)
    assert_definition(official, guided, SSG)
    assert [logits.dtype for logits in guided.guided] == [logits.dtype for logits in plain.guided]
    assert not torch.equal(guided.result, plain.result)
    assert torch.equal(guided.random, plain.random)  # no random number was drawn
    assert torch.equal(guided.guided[0], guided.raw[0])  # the first step has no prior


@pytest.mark.parametrize(
    "ssg",
    [
        ScaledSpatialGuidance([9.0, 0.3, 0.0, 1.5, 0.7]),
        ScaledSpatialGuidance(0.8, schedule="bandwidth", prior="dct", norm="forward"),
        ScaledSpatialGuidance(0.8, schedule="linear", remember="guided"),
        ScaledSpatialGuidance(1.1, start=2, stop=4, prior="nearest"),
        ScaledSpatialGuidance(lambda step: 0.1 * step.index),
    ],
    ids=["list", "bandwidth", "guided", "range", "function"],
)
@pytest.mark.parametrize("name", ["var", "hart", "infinity"])
def test_settings_count_steps_not_draws(make, name, ssg):
    settings = {
        "var": {"patch_nums": (1, 2, 3, 4, 6)},
        "hart": {"num_maskgit_iters": 3},
        "infinity": {"schedule": [(1, n, n) for n in (1, 2, 3, 4, 6)]},
    }
    official = make(name, **settings[name])
    assert_definition(official, official.run(ssg), ssg)


def test_a_number_is_enough(make):
    official = make("var")
    assert official.run(0.6).same(official.run(SSG))


def test_the_official_tensor_is_overwritten(make):
    """With `more_smooth` it is read again after the draw: same tensor, guided and filtered."""
    official = make("var", more_smooth=True, dtype=torch.float16)
    sampled, passed, original = [], [], official.draw

    def inner(logits, *args, **kwargs):
        sampled.append(logits)
        return original(logits, *args, **kwargs)

    setattr(official.module, official.sampler, inner)
    with guide(official.model, SSG):
        outer = official.draw

        def watch(logits, *args, **kwargs):
            passed.append((logits, logits.clone(), logits.data_ptr()))
            return outer(logits, *args, **kwargs)

        setattr(official.module, official.sampler, watch)
        official.generate()
    for draw, (logits, before, place) in enumerate(passed):
        assert logits is sampled[draw]
        assert logits.data_ptr() == place
        assert (draw > 0) == (not torch.equal(logits, before))


def test_arithmetic_is_float32_under_autocast(official):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_definition(official, official.run(SSG), SSG)


def test_inference_mode(official):
    plain = official.run(SSG)
    with torch.inference_mode():
        assert official.run(SSG).same(plain)


def test_logits_by_keyword(make):
    official = make("var")
    original = official.draw
    with guide(official.model, SSG):
        outer = official.draw
        by_keyword = lambda logits, **settings: outer(**settings, logits=logits)  # noqa: E731
        setattr(official.module, official.sampler, by_keyword)
        guided = official.generate()
    assert official.draw is original
    assert torch.equal(guided, official.run(SSG).result)


# --- whose generations, and from when to when ---------------------------------------------------------


def test_a_method_bound_before(make):
    official = make("hart", more_smooth=True)
    infer = official.model.autoregressive_infer_cfg
    context = torch.randn(3, official.model.context_token, 6)
    plain = infer(3, context, g_seed=1)
    with guide(official.model, SSG):
        guided = infer(3, context, g_seed=1)
        assert torch.equal(guided, official.model.autoregressive_infer_cfg(3, context, g_seed=1))
        bound_inside = official.model.autoregressive_infer_cfg
    assert not torch.equal(guided, plain)
    assert torch.equal(infer(3, context, g_seed=1), plain)
    assert torch.equal(bound_inside(3, context, g_seed=1), plain)


def test_everything_is_restored(official):
    official.generate()
    before = snapshot(official)
    with guide(official.model, SSG):
        official.generate()
    assert identical(snapshot(official), before)
    with pytest.raises(RuntimeError, match="stop"), guide(official.model, SSG):
        raise RuntimeError("stop")
    assert identical(snapshot(official), before)


def test_only_the_name_of_the_sampling_function_changes(official):
    before = snapshot(official)
    with guide(official.model, SSG):
        during = snapshot(official)
    changed = {key for key in before if during[key] is not before[key] and isinstance(key, tuple)}
    assert {key for key in changed if len(key) == 2} == {(id(official.module), official.sampler)}


def test_someone_elses_wrapper_is_what_is_restored(make):
    official = make("var")
    with official.watched() as seen:
        theirs = official.draw
        with guide(official.model, SSG):
            official.generate()
            assert official.draw is not theirs
        assert official.draw is theirs
        assert len(seen) == 4
    with guide(official.model, SSG):
        setattr(official.module, official.sampler, theirs)
    assert official.draw.__module__ == official.module.__name__


def test_a_wrapper_between_two_guides(make):
    official = make("var")
    other = type(official.model)(official.model.patch_nums, seed=1)
    plain, guided, original = official.run(None), official.run(SSG), official.draw
    first, second = guide(official.model, 9.0), guide(official.model, SSG)
    first.__enter__()
    below = official.draw

    @functools.wraps(below)
    def theirs(*args, **kwargs):
        return below(*args, **kwargs)

    setattr(official.module, official.sampler, theirs)
    with guide(other, 9.0), second:
        assert same_result(official, guided)  # once, by the one entered last
    assert official.draw is theirs
    assert not same_result(official, plain)
    setattr(official.module, official.sampler, below)
    first.__exit__(None, None, None)
    assert official.draw is original
    assert official.run(None).same(plain)


def test_left_below_someone_elses_wrapper(make):
    """The first guide leaves while a wrapper and another guide are on top of it."""
    official = make("var")
    other = type(official.model)(official.model.patch_nums, seed=1)
    original = official.draw
    first, second = guide(official.model, SSG), guide(other, SSG)
    first.__enter__()
    below = official.draw

    def theirs(*args, **kwargs):
        return below(*args, **kwargs)

    setattr(official.module, official.sampler, theirs)
    second.__enter__()
    first.__exit__(None, None, None)
    assert official.draw not in {original, theirs}  # the second one still guides
    second.__exit__(None, None, None)
    assert official.draw is theirs
    setattr(official.module, official.sampler, below)
    with guide(official.model, SSG):  # what was left there is picked up, not wrapped
        assert official.draw is below
    assert official.draw is original


def test_the_inner_guide_replaces_the_outer_one(official):
    plain, weak, strong = (official.run(beta) for beta in (None, 0.2, 0.9))
    with guide(official.model, 0.2):
        with guide(official.model, 0.9):
            assert same_result(official, strong)
            with guide(official.model, 0.0):
                assert same_result(official, plain)
            assert same_result(official, strong)
        assert same_result(official, weak)


@pytest.mark.parametrize("same_model", [True, False])
def test_left_in_the_order_entered(make, same_model):
    official = make("var")
    other = official.model if same_model else copy.copy(official.model)
    original, plain = official.draw, official.run(None)
    first, second = guide(official.model, 0.2), guide(other, 0.9)
    strong = official.run(0.9)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert same_result(official, strong if same_model else plain)
    official.model, before = other, official.model
    second.__exit__(None, None, None)
    official.model = before
    assert official.draw is original
    assert official.run(None).same(plain)


def test_an_unguided_model_beside_it(official):
    twin = copy.copy(official.model)
    plain = official.run(None)
    with guide(twin, SSG):
        assert official.run(None).same(plain)
    assert official.run(None).same(plain)


def test_a_copy_made_inside_is_not_guided(make):
    official = make("var")
    plain = official.run(None)
    labels = torch.arange(2)
    with guide(official.model, SSG):
        twin = copy.copy(official.model)
        torch.manual_seed(0)
        assert torch.equal(twin.autoregressive_infer_cfg(2, labels, g_seed=3), plain.result)


def test_two_models_of_different_kinds(make):
    officials = [make("var"), make("hart", num_maskgit_iters=2), make("infinity")]
    expected = [official.run(beta) for official, beta in zip(officials, (0.3, 0.6, 0.9), strict=True)]
    with contextlib.ExitStack() as stack:
        for official, beta in zip(officials, (0.3, 0.6, 0.9), strict=True):
            stack.enter_context(guide(official.model, beta))
        for official, run in zip(officials, expected, strict=True):
            assert same_result(official, run)


def test_training_is_left_alone(make):
    official = make("hart")
    context, following = torch.randn(2, 5, 6), torch.randn(2, 36, 6)
    expected = official.model.rng.manual_seed(1) and official.model(context, following)
    with guide(official.model, SSG), official.watched() as seen:
        official.generate()
        del seen[:]
        drawn, logits = official.model.rng.manual_seed(1) and official.model(context, following)
    assert torch.equal(drawn, expected[0])
    assert torch.equal(seen[0], logits)


# --- one generation after another ---------------------------------------------------------------------


def test_batch_size_and_schedule_may_change(make):
    official = make("var")
    model = official.model
    with guide(model, SSG):
        for patch_nums, batch in (((1, 2, 3, 5), 2), ((1, 3, 4), 5), ((2, 4, 4, 6, 8), 1), ((1, 2, 3, 5), 2)):
            model.patch_nums = patch_nums
            fresh = make("var", patch_nums=patch_nums, batch=batch).run(SSG)
            guided = model.autoregressive_infer_cfg(batch, torch.arange(batch), g_seed=3)
            assert torch.equal(guided, fresh.result)


def test_resolution_may_change(make):
    official, tall = make("infinity"), [(1, 1, 1), (1, 2, 1), (1, 4, 3), (1, 6, 5)]
    text = torch.randn(1, 6)
    settings = {"cfg_list": [3] * 4, "tau_list": [0.5] * 4, "g_seed": 0}
    expected = make("infinity")
    with guide(expected.model, SSG):
        alone = expected.model.autoregressive_infer_cfg(tall, text, 1, **settings)
    with guide(official.model, SSG):
        square = official.generate()
        assert torch.equal(official.model.autoregressive_infer_cfg(tall, text, 1, **settings), alone)
        assert torch.equal(official.generate(), square)


@pytest.mark.parametrize("fail_at", [1, 2, 3])
def test_an_interrupted_generation_leaves_no_trace(make, fail_at):
    official = make("var")
    expected = official.run(SSG)
    with guide(official.model, SSG):
        for _ in range(2):
            with pytest.raises(RuntimeError, match="out of memory"):
                official.model.autoregressive_infer_cfg(5, torch.arange(5), fail_at=fail_at)
            assert torch.equal(official.generate(), expected.result)


def test_a_generation_cut_short_leaves_no_trace(make):
    official = make("infinity")
    expected = official.run(SSG)
    with guide(official.model, SSG):
        for scales in (1, 2, 3):
            official.model.autoregressive_infer_cfg(
                [(1, 1, 1), (1, 2, 2), (1, 4, 4)],
                torch.randn(3, 6),
                3,
                cfg_list=[3] * 3,
                tau_list=[1] * 3,
                trunk_scale=scales,
            )
            assert torch.equal(official.generate(), expected.result)


def test_given_bits_do_not_shift_the_steps(make):
    given = [torch.ones(2, 3, side, side) for side in (1, 2)]
    official = make("infinity", gt_leak=2, gt_ls_Bl=given)
    assert_definition(official, official.run(SSG), SSG)


def test_nothing_is_kept(official, monkeypatch):
    """Neither logits after a generation, also a failed one, nor the model after the guide."""
    alive = weakref.WeakSet()

    class Watched(_Generation):
        def __init__(self, *args):
            super().__init__(*args)
            alive.add(self)

        def guide_in_place(self, *args):
            seen.append(len(alive))
            super().guide_in_place(*args)
            if len(seen) == fail_at:
                raise RuntimeError("stop")

    monkeypatch.setattr("nextscale.integrations.context._Generation", Watched)
    gc.disable()  # nothing may wait for the garbage collector
    try:
        with guide(official.model, SSG) as active:
            for fail_at in (2, None):
                seen = []
                with pytest.raises(RuntimeError, match="stop") if fail_at else contextlib.nullcontext():
                    official.generate()
                assert set(seen) == {1}
                assert not alive
        model = weakref.ref(official.model)
        del official.model, official.generate
        assert model() is None
        assert active.ssg is SSG
    finally:
        gc.enable()


# --- threads, nesting, generators ---------------------------------------------------------------------


def test_two_threads(make):
    """Both generations are at the same step at the same time, each under its own guide or none."""
    official = make("var", patch_nums=(1, 2, 3, 4, 6, 8))
    barrier = threading.Barrier(3, timeout=30)

    class Waiting(type(official.model)):
        def get_logits(self, features, condition):
            if threading.current_thread() is not threading.main_thread():
                barrier.wait()
            return super().get_logits(features, condition)

    models = [Waiting(official.model.patch_nums, seed=seed) for seed in range(3)]
    strengths = (0.3, 0.9, None)

    def generate(model, beta):
        with guide(model, beta) if beta is not None else contextlib.nullcontext():
            return model.autoregressive_infer_cfg(2, torch.arange(2), g_seed=5)

    alone = [generate(*pair) for pair in zip(models, strengths, strict=True)]
    together = [None] * 3

    def work(index):
        together[index] = generate(models[index], strengths[index])

    original = official.draw
    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(map(torch.equal, together, alone))
    assert official.draw is original


def test_a_guide_covers_generations_in_other_threads(make):
    official = make("var")
    expected, results = official.run(SSG), []
    with guide(official.model, SSG):
        thread = threading.Thread(target=lambda: results.append(official.generate()))
        thread.start()
        thread.join()
    assert torch.equal(results[0], expected.result)


@pytest.mark.parametrize("inner_beta", [None, 0.9])
def test_a_generation_inside_of_a_generation(make, inner_beta):
    """Of another model of the same class, guided or not, in the middle of every step."""
    official, inner = make("var"), make("var")
    expected, expected_inner = official.run(SSG), inner.run(inner_beta)
    inner.model.__class__, results = type(official.model), []
    model, labels = official.model, torch.arange(2)
    original = model.get_logits

    def get_logits(features, condition):
        results.append(inner.model.autoregressive_infer_cfg(2, labels, g_seed=3))
        return original(features, condition)

    model.get_logits = get_logits
    inside = guide(inner.model, inner_beta) if inner_beta else contextlib.nullcontext()
    with guide(model, SSG), inside:
        assert torch.equal(official.generate(), expected.result)
    assert len(results) == 4
    assert all(torch.equal(result, expected_inner.result) for result in results)


def test_a_generation_of_the_same_model_inside_of_its_own(make):
    official = make("var")
    expected = official.run(SSG)
    model, depth = official.model, []
    original = model.get_logits

    def get_logits(features, condition):
        if not depth:
            depth.append(1)
            state = model.rng.get_state()
            assert torch.equal(official.generate(), expected.result)
            model.rng.set_state(state)
            depth.clear()
        return original(features, condition)

    model.get_logits = get_logits
    with guide(model, SSG):
        assert torch.equal(official.generate(), expected.result)


FORK = """
class Stream:
    patch_nums = (1, 2, 4)

    def autoregressive_infer_cfg(self, B):
        for step, side in enumerate(self.patch_nums):
            logits = torch.randn(B, side**2, 5, generator=torch.Generator().manual_seed(step))
            self.draw(logits)
            yield logits

    def draw(self, logits):
        return sample_with_top_k_top_p_(logits)
"""


def test_a_fork_that_yields_every_step_from_a_helper(repository):
    """Two generations of one model take turns, each with what it remembers itself."""
    module = repository("var")
    exec(FORK, vars(module))
    stream = module.Stream()
    with guide(stream, SSG):
        alone = list(stream.autoregressive_infer_cfg(2))
        first, second = stream.autoregressive_infer_cfg(2), stream.autoregressive_infer_cfg(2)
        pairs = [(next(first), next(second)) for _ in range(3)]
        unfinished = stream.autoregressive_infer_cfg(2)
        next(unfinished)
    for pair, expected in zip(pairs, alone, strict=True):
        assert torch.equal(pair[0], expected)
        assert torch.equal(pair[1], expected)
    plain = list(stream.autoregressive_infer_cfg(2))
    assert not torch.equal(alone[1], plain[1])
    assert torch.equal(next(unfinished), plain[1])  # the guide has ended
    with guide(stream, SSG), pytest.raises(GridError, match="must not be generating already"):
        next(unfinished)
    handed_over = stream.autoregressive_infer_cfg(2)
    with guide(stream, SSG):
        next(handed_over)
    with guide(stream, SSG), pytest.raises(GridError, match="must not be generating already"):
        next(handed_over)  # each guide has a memory of its own


# --- forks --------------------------------------------------------------------------------------------


def test_subclasses_in_another_module(make, repository):
    official = make("var")
    expected = official.run(SSG)
    for cls in repository("subclass").make(type(official.model)):
        official.model.__class__ = cls
        assert official.run(SSG).same(expected)


def test_a_method_put_on_the_object(make):
    official = make("var")
    expected = official.run(SSG)
    model = official.model
    model.autoregressive_infer_cfg = functools.partial(model.autoregressive_infer_cfg, top_k=0)
    assert official.run(SSG).same(expected)
    model.autoregressive_infer_cfg = types.MethodType(type(model).autoregressive_infer_cfg, model)
    assert official.run(SSG).same(expected)


def test_a_function_from_a_notebook(make, repository):
    """As VAR's editing notebook has it: a function of its own, which the class is told to use."""
    official, notebook = make("var"), repository("var")
    expected = official.run(SSG)
    source = type(official.model).autoregressive_infer_cfg.__wrapped__
    edit = types.FunctionType(
        source.__code__.replace(co_name="infer_with_mask"), vars(notebook), argdefs=source.__defaults__
    )
    type(official.model).autoregressive_infer_cfg = torch.no_grad()(edit)
    official.module, official.generate = notebook, lambda: edit(official.model, 2, torch.arange(2), g_seed=3)
    with torch.no_grad():
        assert official.run(SSG).same(expected)


def test_a_method_replaced_on_the_class(make):
    official = make("var")
    expected = official.run(SSG)
    exec(
        """
def hidden(function):
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper

VAR.autoregressive_infer_cfg = hidden(VAR.autoregressive_infer_cfg)
""",
        vars(official.module),
    )
    assert official.run(SSG).same(expected)
    with guide(official.model, SSG):
        stand_in = official.draw

        def wrapper(*args, **kwargs):  # of the same name, but not in the model's module
            return stand_in(*args, **kwargs)

        setattr(official.module, official.sampler, wrapper)
        assert torch.equal(official.generate(), expected.result)


@pytest.mark.slow
def test_torch_compile(make, monkeypatch):
    """The compiled model, and the compiled method, used before and after the guide."""
    official = make("var", g_seed=None)  # a generator of one's own confuses the compiler of torch 2.1
    monkeypatch.setitem(sys.modules, official.module.__name__, official.module)
    plain, guided, model = official.run(None).result, official.run(SSG).result, official.model
    compiled = torch.compile(model, backend="eager")
    method = torch.compile(model.autoregressive_infer_cfg, backend="eager")

    def generate(infer):
        torch.manual_seed(0)
        return infer(2, torch.arange(2))

    with guide(compiled, SSG):
        assert torch.equal(generate(compiled.autoregressive_infer_cfg), guided)
    for _ in range(2):
        with guide(model, SSG):
            assert torch.equal(generate(method), guided)
        assert torch.equal(generate(method), plain)
    torch.compiler.reset()
    assert torch.equal(generate(method), plain)
    with guide(model, SSG):
        result, complaint = None, ""
        try:
            result = generate(method)
        except AttributeError as error:  # torch 2.1 would not notice that a function is another one
            complaint = str(error)
        assert (result is None) == ("torch.compiler.reset()" in complaint)
        assert result is None or torch.equal(result, guided)
        torch.compiler.reset()
        assert torch.equal(generate(method), guided)
    assert torch.equal(generate(method), plain)


# --- what is refused ----------------------------------------------------------------------------------


def test_a_guide_is_for_a_single_use(make):
    official = make("var")
    active = guide(official.model, SSG)
    with active, pytest.raises(InvalidArgumentError, match="entered before"):
        active.__enter__()
    with pytest.raises(InvalidArgumentError, match=r"call guide\(model, ssg\) again"), active:
        pass


@pytest.mark.parametrize("ssg", [None, -1.0, "strong"])
def test_settings_are_checked_at_once(make, ssg):
    with pytest.raises(InvalidArgumentError):
        guide(make("var").model, ssg)


def test_one_strength_per_step(make):
    official = make("hart", num_maskgit_iters=4)
    with pytest.raises(InvalidArgumentError, match="beta has 8 values, but the generation has 5 steps"):
        official.run(ScaledSpatialGuidance([0.5] * 8))


def test_draws_that_do_not_fit(make):
    official = make("infinity")
    text, settings = torch.randn(1, 6), {"cfg_list": [3] * 5, "tau_list": [1] * 5}
    with guide(official.model, SSG):
        with pytest.raises(GridError, match="4 frames"):
            official.model.autoregressive_infer_cfg([(1, 1, 1), (4, 2, 2)], text, 1, **settings)
        with pytest.raises(GridError, match="smaller"):
            official.model.autoregressive_infer_cfg([(1, 2, 2), (1, 3, 1)], text, 1, **settings)
    other = make("var")
    original = type(other.model).get_logits
    other.model.get_logits = lambda *args: original(other.model, *args).repeat(1, 2, 1)
    with guide(other.model, SSG), pytest.raises(GridError, match=r"draw 1 .* has 2 cells"):
        other.generate()


def test_more_draws_than_steps(repository):
    module = repository("var")
    exec(FORK.replace("self.draw(logits)", "self.draw(logits), self.draw(logits)"), vars(module))
    stream = module.Stream()
    stream.patch_nums = (1,)
    with guide(stream, SSG), pytest.raises(GridError, match="went on drawing after the last of its 1 grids"):
        list(stream.autoregressive_infer_cfg(2))


# --- the module itself --------------------------------------------------------------------------------


def test_importing_it_changes_nothing_and_loads_no_model():
    code = """
import sys, torch
def state():
    return (torch.get_rng_state().tolist(), torch.get_default_dtype(), torch.is_grad_enabled(),
            torch.get_num_threads(), torch.is_inference_mode_enabled(), sys.gettrace(), sys.getprofile())
before = state()
import nextscale.integrations
assert state() == before
parts = sorted({name.split(".")[1] for name in sys.modules if name.startswith("nextscale.")})
assert parts == ["errors", "guidance", "integrations", "kernels", "whole"], parts
assert "torch._dynamo" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
