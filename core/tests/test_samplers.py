"""samplers: the field integrated from source to data."""

from dataclasses import replace

import pytest
import torch

from flowcore import guidance, paths, solvers
from flowcore.errors import UsageError
from flowcore.plugin.contracts import Leaf, Parts, Spec
from flowcore.samplers import empty, flow
from flowcore.seeds import generator

CPU = torch.device("cpu")


def parts(state=None, path=None, solver=None, **more):
    spec = Spec(state or Leaf((3,)))
    return Parts(
        spec, None, CPU, path=path or paths.linear(), predicts="velocity", solver=solver or solvers.euler(), **more
    )


@pytest.mark.parametrize(("solver", "calls"), [(solvers.euler, 5), (solvers.midpoint, 10)])
def test_a_constant_field_moves_every_sample_as_far(solver, calls):
    drawn = flow(parts(solver=solver()))(lambda x, t, c: torch.full_like(x, 2.0), None, 8, 5, generator(0))
    assert torch.equal(drawn.x0, torch.randn(8, 3, generator=generator(0)))
    assert torch.allclose(drawn.x1, drawn.x0 + 2, atol=1e-6)
    assert drawn.extra["calls"] == calls


def test_states_of_several_leaves_and_types():
    state = {"a": Leaf((2,)), "b": {"c": Leaf((), "float64")}}
    found = empty(state, 5, CPU)
    assert (found["a"].shape, found["a"].dtype) == ((5, 2), torch.float32)
    assert (found["b"]["c"].shape, found["b"]["c"].dtype) == ((5,), torch.float64)


def test_the_network_is_told_the_condition_and_guidance_steers():
    told = []

    def network(x, t, condition):
        told.append(condition)
        return torch.zeros_like(x)

    class Push(guidance.Guidance):
        def velocity(self, field, x, t, dt):
            return field.velocity(x, t) + 3.0

    wish = torch.arange(4)
    drawn = flow(parts(guidance=(Push(),)))(network, wish, 4, 2, generator(0))
    assert all(one is wish for one in told)
    assert drawn.condition is wish
    assert torch.allclose(drawn.x1, drawn.x0 + 3, atol=1e-6)


@pytest.mark.parametrize("name", ["ve", "linear", "cosine"])
def test_the_steps_of_rho_end_at_edms_noise_levels_on_any_path(name):
    path, told = getattr(paths, name)(), []

    def network(x, t, condition):
        told.append(float(t[0]))
        return torch.zeros_like(x)

    sampler = flow(replace(parts(path=path, solver=solvers.heun(correct_last=False)), predicts="edm"), rho=7)
    drawn = sampler(network, None, 2, 18, generator(0))
    assert drawn.extra["calls"] == 35
    ratios = [(1 - tau) / tau if tau else float("inf") for tau in told]
    top, bottom = 80 ** (1 / 7), 0.002 ** (1 / 7)
    levels = [(top + i / 17 * (bottom - top)) ** 7 for i in range(18)]
    assert ratios[2:35:2] == pytest.approx(levels[1:], rel=2e-3)  # told in single precision
    assert ratios[1:34:2] == pytest.approx(levels[1:], rel=2e-3)
    start = torch.tensor(path.start)
    assert told[0] == pytest.approx((path.alpha(start) / (path.alpha(start) + path.sigma(start))).item())


def test_rho_with_levels_that_do_not_descend_or_the_path_has_not_is_refused():
    for path, levels, told in (
        (paths.linear(), {"sigma_min": 1, "sigma_max": 0.5}, "make no noise levels"),
        (paths.ve(5.0), {}, "sigma_max=80 are not within the noise levels of path ve, 0 to 5"),
        (paths.vp(), {}, "sigma_min=0.002 to sigma_max=80 are not within the noise levels of path vp, 0.0105 to 152"),
    ):
        with pytest.raises(ValueError, match=told):
            flow(parts(path=path), rho=7, **levels)(lambda x, t, c: x, None, 2, 4, generator(0))
    product = paths.Product({"a": paths.linear()})
    with pytest.raises(UsageError, match=r"sample\.sampler\.rho"):
        flow(parts(path=product), rho=7)


def test_a_path_that_starts_elsewhere_is_followed_from_there():
    path = paths.ve()
    drawn = flow(parts(path=path))(lambda x, t, c: torch.zeros_like(x), None, 4, 3, generator(0))
    assert torch.equal(drawn.x1, path.initial(drawn.x0))
