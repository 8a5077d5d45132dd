"""The captured step against Pyro's own ELBOs, autograd and torch's optimizers, on the same noise."""

import copy
import functools
import itertools
import shutil
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule, PyroSample, pyro_method
from torch import nn
from torch.nn import functional as F

import pyrovae as pv
from pyrovae.compiled import kept_heap
from pyrovae.compiled.update import Update
from pyrovae.graphs import Function
from pyrovae.graphs.capture import trace
from pyrovae.graphs.fewer import fewer_instructions
from pyrovae.graphs.half import half_graph, half_products
from pyrovae.graphs.inductor import compile_graph
from pyrovae.graphs.running import matrix_first
from tests.test_contract import HEADS, PRIORS, REAL, data_for, make_vae, small

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="no C++ compiler")
LEVELS = ["replay", pytest.param("compiled", marks=needs_compiler)]
OBJECTIVES = {
    "elbo": lambda: pv.ELBO(),
    "beta": lambda: pv.ELBO(beta=0.3),
    "warmup": lambda: pv.ELBO(beta=pv.Warmup(over=0.7)),
    "cyclical": lambda: pv.ELBO(beta=pv.Cyclical(cycles=2)),
    "analytic": lambda: pv.ELBO(estimator=TraceMeanField_ELBO(max_plate_nesting=1)),
    "particles": lambda: pv.ELBO(estimator=Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)),
    "particles one by one": lambda: pv.ELBO(estimator=Trace_ELBO(num_particles=2, max_plate_nesting=1)),
    "iwae": lambda: pv.IWAE(k=4),
}


def by_pyro(program, objective, data, t, seed):
    """Loss and gradients of an objective by Pyro and autograd, noise from a seed."""
    objective = objective.at(t) if isinstance(objective, pv.Objective) else objective
    parameters = [p for p in program.parameters() if p.requires_grad]
    torch.manual_seed(seed)
    with pyro.validation_enabled(False):
        loss = objective(program, *data)
        return loss.detach(), torch.autograd.grad(loss, parameters, allow_unused=True)


def step_of(program, objective, level="replay", **options):
    optimizer = torch.optim.Adam([p for p in program.parameters() if p.requires_grad], lr=1e-3, fused=True)
    return pv.compile_step(program.model, program.guide, objective, optimizer, level=level, **options)


def train(step, x, steps):
    for _ in range(steps):
        step(x)


def check_equal(program, objective, data, level):
    """Four batches, weights drifting in between: the step's loss and gradients are Pyro's.

    Compiled sums are taken in another order. Of the loss and of the whole gradient 1e-6 is asked; a single parameter's
    gradient can be a small difference of large numbers, and Pyro's own rounding then is as large as what is left.
    """
    step = step_of(program, objective, level)
    for number in range(4):
        t = number / 4
        loss, gradients = by_pyro(program, objective, data, t, seed=number)
        torch.manual_seed(number)
        received = step.gradients(*data, t=t)
        assert step.level == level
        assert received.dtype == loss.dtype
        for name, a, b in zip(
            ["loss", *(n for n, p in program.named_parameters() if p.requires_grad)],
            [loss, *gradients],
            [received, *step._gradients],
            strict=True,
        ):
            if a is None:
                assert b is None, name
            elif level in ("eager", "replay"):
                assert torch.equal(a, b), name
            else:
                assert (a - b).norm() <= (1e-6 if name == "loss" else 1e-5) * a.norm() + 1e-9, name
        if level == "compiled":
            whole, error = (
                torch.cat([g.flatten() for g in gs if g is not None]) for gs in (gradients, _gaps(step, gradients))
            )
            # an importance weight exp(log w) is as exact as log w, a sum of many, allows
            assert error.norm() <= (5e-6 if isinstance(objective, pv.IWAE) else 1e-6) * whole.norm()
        step.update()
        data = tuple(d[torch.randperm(len(d))] for d in data)


def _gaps(step, gradients):
    return [None if a is None else a - b for a, b in zip(gradients, step._gradients, strict=True)]


# -- every part, every objective


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("prior", ["StandardNormal", "Mixture", "VampPrior"])
def test_objectives_bitwise(prior, objective):
    if (prior, objective) in itertools.product(["Mixture", "VampPrior"], ["analytic"]):
        pytest.skip("no closed form")
    vae = make_vae(prior, "Bernoulli", pv.Normal, small)
    check_equal(vae, OBJECTIVES[objective](), (data_for("Bernoulli"),), "replay")


@pytest.mark.parametrize("prior", PRIORS)
def test_priors_bitwise(prior):
    q = pv.Normal(2, context=6, net=small)
    p = pv.VampPrior(q, torch.rand(5, 6)) if prior == "VampPrior" else PRIORS[prior](2)
    vae = pv.VAE(p, pv.Bernoulli(6, context=2, net=small), q)
    check_equal(vae, pv.ELBO(beta=pv.Warmup()), ((torch.rand(8, 6) > 0.5).float(),), "replay")


@pytest.mark.parametrize("likelihood", HEADS)
def test_likelihoods_bitwise(likelihood):
    vae = make_vae("StandardNormal", likelihood, pv.Normal, small)
    check_equal(vae, pv.ELBO(beta=pv.Warmup()), (data_for(likelihood),), "replay")


@pytest.mark.parametrize("net", [pv.MLP, pv.GatedMLP, pv.ConvNet, pv.ResNet], ids=lambda n: n.__name__)
@pytest.mark.parametrize("posterior", REAL)
def test_posteriors_and_networks_bitwise(posterior, net):
    vae = make_vae("StandardNormal", "Bernoulli", getattr(pv, posterior), net)
    check_equal(vae, pv.ELBO(), (data_for("Bernoulli"),), "replay")


@needs_compiler
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objectives_compiled(objective):
    vae = make_vae("StandardNormal", "Bernoulli", pv.Normal, small)
    check_equal(vae, OBJECTIVES[objective](), (data_for("Bernoulli"),), "compiled")


@needs_compiler
@pytest.mark.parametrize("likelihood", [n for n in HEADS if n.split(",")[0] not in ("Bernoulli",)])
def test_likelihoods_compiled(likelihood):
    vae = make_vae("Mixture", likelihood, pv.Laplace, small)
    check_equal(vae, pv.ELBO(), (data_for(likelihood),), "compiled")


@needs_compiler
def test_images_of_many_pixels_compiled():
    """Logarithms of products stand for sums of logarithms."""
    q = pv.Normal(2, context=(1, 8, 8), net=small)
    vae = pv.VAE(pv.StandardNormal(2), pv.Bernoulli((1, 8, 8), context=2, net=small), q)
    check_equal(vae, pv.ELBO(), (torch.rand(8, 1, 8, 8).round(),), "compiled")


@needs_compiler
@pytest.mark.parametrize("net", [pv.GatedMLP, functools.partial(pv.ConvNet, channels=(3,))], ids=["gated", "conv"])
def test_networks_compiled(net):
    vae = make_vae("VampPrior", "Bernoulli", pv.Normal, net)
    check_equal(vae, pv.ELBO(), (data_for("Bernoulli"),), "compiled")


@needs_compiler
@pytest.mark.parametrize("prior", ["Mixture", "VampPrior"])
@pytest.mark.parametrize("objective", ["elbo", "iwae"])
def test_compiled_in_float64(objective, prior, float64):
    """Where rounding is out of the way, nothing is left: not one gradient differs."""
    vae, x = make_vae(prior, "Bernoulli", pv.Normal, small), data_for("Bernoulli").double()
    step = step_of(vae, OBJECTIVES[objective](), "compiled")
    loss, gradients = by_pyro(vae, OBJECTIVES[objective](), (x,), 1.0, seed=0)
    torch.manual_seed(0)
    torch.testing.assert_close(step.gradients(x), loss, rtol=1e-13, atol=0)
    for a, b in zip(gradients, step._gradients, strict=True):
        assert (a - b).norm() <= 1e-12 * a.norm() + 1e-14


@pytest.mark.parametrize("level", LEVELS)
def test_context(level):
    vae = pv.VAE(
        pv.Normal(2, context=3, net=small),
        pv.Bernoulli(6, context=[(2,), (3,)], net=small),
        pv.Normal(2, context=[(6,), (3,)], net=small),
    )
    check_equal(vae, pv.ELBO(beta=pv.Warmup()), ((torch.rand(8, 6) > 0.5).float(), torch.randn(8, 3)), level)


# -- programs of a user's own


class SemiSupervised(PyroModule):
    """M2, the label enumerated in the guide."""

    def __init__(self, probabilities=None):
        super().__init__(f"m2_{next(names)}")
        self.q_y, self.q_z, self.p_x = nn.Linear(6, 3), nn.Linear(9, 4), nn.Linear(5, 6)

    @pyro_method
    def model(self, x):
        with pyro.plate("batch", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(x.new_ones(3) / 3))
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            z, y = torch.broadcast_tensors(z[..., None], y[..., None, :])[0][..., 0], y
            joint = torch.cat([z.expand(*torch.broadcast_shapes(z.shape[:-1], y.shape[:-1]), 2), self._wide(y, z)], -1)
            pyro.sample("x", dist.Bernoulli(logits=self.p_x(joint)).to_event(1), obs=x)

    @pyro_method
    def guide(self, x):
        with pyro.plate("batch", len(x)):
            logits = self.q_y(x)
            y = pyro.sample("y", dist.OneHotCategorical(logits=logits), infer={"enumerate": "parallel"})
            wide = x.expand(*torch.broadcast_shapes(x.shape[:-1], y.shape[:-1]), 6)
            loc, raw = self.q_z(torch.cat([wide, y.expand(*wide.shape[:-1], 3)], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    def _wide(self, y, z):
        return y.expand(*torch.broadcast_shapes(z.shape[:-1], y.shape[:-1]), 3)


names = itertools.count()
enumerated = pv.ELBO(estimator=TraceEnum_ELBO(max_plate_nesting=1))


@pytest.mark.parametrize("level", LEVELS)
def test_enumeration(level):
    check_equal(SemiSupervised(), enumerated, ((torch.rand(7, 6) > 0.5).float(),), level)


def test_a_probability_of_zero_under_enumeration():
    """Pyro leaves costs of probability zero out by their number, which no graph of fixed sizes can."""
    program, x = SemiSupervised(), (torch.rand(7, 6) > 0.5).float()
    step = step_of(program, enumerated)
    step(x)
    with torch.no_grad():
        program.q_y.bias[0] += 1000.0
    loss, gradients = by_pyro(program, enumerated, (x,), 1.0, seed=3)
    torch.manual_seed(3)
    torch.testing.assert_close(step.gradients(x), loss, rtol=1e-6, atol=0)
    for a, b in zip(gradients, step._gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


class Program(PyroModule):
    """A linear model whose pieces tests replace."""

    def __init__(self, **parts):
        super().__init__(f"program_{next(names)}")
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(2, 6)
        for name, part in parts.items():
            setattr(self, name, part)

    def before(self, x):
        return x

    @pyro_method
    def model(self, x, *rest):
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    @pyro_method
    def guide(self, x, *rest):
        with pyro.plate("batch", len(x)):
            loc, raw = self.encoder(self.before(x)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


class Discrete(Program):
    """A site without reparameterisation: score-function gradients."""

    @pyro_method
    def model(self, x):
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", dist.Bernoulli(x.new_full((2,), 0.3)).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    @pyro_method
    def guide(self, x):
        with pyro.plate("batch", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=self.encoder(x)[:, :2]).to_event(1))


class Scaled(Program):
    """Scale, mask and subsampling around sites."""

    @pyro_method
    def model(self, x, mask):
        with pyro.plate("batch", 50, subsample=x), poutine.scale(scale=0.5):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            with poutine.mask(mask=mask):
                pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    @pyro_method
    def guide(self, x, mask):
        with pyro.plate("batch", 50, subsample=x):
            loc, raw = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


class Conversant(Program):
    """Draws more than it uses, and takes numbers out of tensors."""

    def before(self, x):
        torch.rand(3)
        return x * (1 + 0.1 * x.mean().item())


class Branching(Program):
    """Another network for batches of another sign."""

    def before(self, x):
        return torch.tanh(x) if x.sum() > 0 else x * 2


class Plated(Program):
    """Plates of every kind: in one another, of one value for all, by their rows, of a part of them, named twice."""

    @pyro_method
    def model(self, x):
        rows, columns = pyro.plate("rows", len(x), dim=-2), pyro.plate("columns", 6, dim=-1)
        with pyro.plate("batch", len(x), dim=-1) as index:
            index += 1  # ours alone
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with rows, columns as index:
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5 + index), obs=x)
        with rows:
            pyro.sample("row", dist.Normal(z.sum(-1, keepdim=True), 1.0), obs=x[:, :1])
        with columns:
            pyro.sample("one", dist.Normal(self.decoder.bias.mean(), 1.0), obs=x[0])
        with pyro.plate("few", len(x), subsample_size=3) as index:
            pyro.sample("part", dist.Normal(z[index].sum(-1), 1.0), obs=x[index, 0])
        with poutine.condition(data={"every": torch.tensor([2, 1])}), pyro.plate("every", 2) as index:
            pyro.sample("chosen", dist.Normal(z[index, 0], 1.0), obs=x[:2, 0])
        for i in pyro.plate("loop", 2):
            pyro.sample(f"loop_{i}", dist.Normal(z[i, 0], 1.0), obs=x[i, 1])
        with pyro.plate("others", 4):
            pyro.sample("w", dist.Normal(0.0, 1.0))

    @pyro_method
    def guide(self, x):
        super().guide(x)
        with pyro.plate("others", 4):
            pyro.sample("w", dist.Normal(self.encoder.bias.mean(), 1.0))


@pytest.mark.parametrize("level", ["eager", *LEVELS])
@pytest.mark.parametrize("program", [Program, Discrete, Conversant, Plated])
def test_programs(program, level):
    check_equal(program(), pv.ELBO(estimator=Trace_ELBO(max_plate_nesting=2)), (torch.randn(5, 6),), level)


@pytest.mark.parametrize("level", ["eager", *LEVELS])
def test_scale_and_mask(level):
    check_equal(Scaled(), pv.ELBO(), (torch.randn(5, 6), torch.tensor([True, False, True, True, False])), level)


@pytest.mark.parametrize("level", LEVELS)
def test_dropout_and_normalisation(level):
    """The same masks, and running statistics that move by one step each."""
    program = Program(
        encoder=nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 4)),
        decoder=nn.Sequential(nn.Linear(2, 8), nn.LayerNorm(8), nn.Linear(8, 6)),
    )
    twin, x = copy.deepcopy(program), torch.randn(5, 6)
    twin._pyro_set_supermodule(f"twin_{next(names)}", twin._pyro_context)
    # not Adam, which makes a step of full size even of rounding errors: a bias before a normalisation has no gradient
    ours, theirs = (torch.optim.SGD(p.parameters(), lr=1e-2) for p in (program, twin))
    step = pv.compile_step(program.model, program.guide, pv.ELBO(), ours, level=level)
    for number in range(5):
        torch.manual_seed(number)
        loss = step(x)
        expected, gradients = by_pyro(twin, pv.ELBO(), (x,), 1.0, seed=number)
        Update(theirs)(list(twin.parameters()), list(gradients))
        torch.testing.assert_close(loss, expected, rtol=0 if level == "replay" else 1e-5, atol=0)
    for (name, a), b in zip(program.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0 if level == "replay" else 1e-4, atol=1e-6, msg=name)
    assert program.encoder[1].num_batches_tracked == 5


@pytest.mark.parametrize("level", LEVELS)
def test_moving_average_in_a_buffer(level):
    class Averaging(Program):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(6))

        def before(self, x):
            with torch.no_grad():
                self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
            return x - self.mean

    program, x = Averaging(), torch.randn(5, 6)
    step, mean = step_of(program, pv.ELBO(), level), torch.zeros(6)
    for _ in range(3):
        step(x)
        mean = mean * 0.9 + x.mean(0) * 0.1
    assert step.level == level
    torch.testing.assert_close(program.mean, mean)


def test_plain_functions_with_modules_and_params():
    """A program that registers by pyro.module and pyro.param, with one of Pyro's ELBOs: as SVI, store included."""
    pyro.clear_param_store()
    encoder, decoder = nn.Linear(6, 2), nn.Linear(2, 6)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        scale = pyro.param("scale", torch.full((2,), 0.5), constraint=dist.constraints.positive)
        with pyro.plate("batch", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), scale).to_event(1))

    x = torch.randn(5, 6)
    guide(x)
    free = pyro.param("scale").unconstrained()
    trained = [*encoder.parameters(), *decoder.parameters(), free]
    elbo = Trace_ELBO(max_plate_nesting=1)
    step = pv.compile_step(model, guide, elbo, torch.optim.SGD(trained, lr=0.01), level="replay")
    for seed in range(3):
        torch.manual_seed(seed)
        expected = elbo.differentiable_loss(model, guide, x)
        gradients = torch.autograd.grad(expected, trained)
        torch.manual_seed(seed)
        assert torch.equal(step.gradients(x), expected.detach())
        assert step.level == "replay"
        assert all(map(torch.equal, gradients, step._gradients))
        before = free.detach().clone()
        step.update()
        assert not torch.equal(free, before)
    pyro.clear_param_store()


def test_several_losses_over_disjoint_parameters():
    class Adversarial(pv.Objective):
        def __init__(self):
            self.critic = nn.Linear(2, 1)

        def __call__(self, model, x):
            loss = pv.ELBO()(model, x)
            score = self.critic(model.encoder(x)[:, :2])
            return {"model": loss + score.mean(), "critic": F.softplus(score).mean()}

        def parameters(self, model):
            return {"model": list(model.parameters()), "critic": list(self.critic.parameters())}

    program, objective, x = Program(), Adversarial(), torch.randn(5, 6)
    every = [*program.parameters(), *objective.critic.parameters()]
    adam = torch.optim.Adam(every, fused=True)
    step = pv.compile_step(program.model, program.guide, objective, adam, level="replay")
    for seed in range(3):
        torch.manual_seed(seed)
        losses = objective(program, x)
        expected = [
            *torch.autograd.grad(losses["model"], list(program.parameters()), retain_graph=True),
            *torch.autograd.grad(losses["critic"], list(objective.critic.parameters())),
        ]
        torch.manual_seed(seed)
        assert torch.equal(step.gradients(x), losses["model"].detach())
        assert all(map(torch.equal, expected, step._gradients))
        step.update()
    assert step.level == "replay"


# -- what changes from step to step


def test_branches_on_data_come_out_as_they_should():
    program, x = Branching(), torch.rand(5, 6)
    step = step_of(program, pv.ELBO())
    for seed, data in enumerate([x, -x, x, x - 2, x, x]):
        loss, gradients = by_pyro(program, pv.ELBO(), (data,), 1.0, seed)
        torch.manual_seed(seed)
        assert torch.equal(step.gradients(data), loss)
        assert all(map(torch.equal, gradients, step._gradients))


def test_a_branch_that_always_changes_ends_in_eager_steps():
    program, x = Branching(), torch.rand(5, 6)
    step = step_of(program, pv.ELBO())
    step(x)
    with pytest.warns(UserWarning, match="branches on data"):
        train(step, -x, 12)
    assert step.level == "eager"


def test_the_level_is_that_of_the_plan_that_ran():
    program, x = Branching(), torch.rand(5, 6)
    step = step_of(program, pv.ELBO())
    step(x)

    def until_given_up():
        while step.wanted == "replay":
            step(-x)

    with pytest.warns(UserWarning, match="branches on data"):
        until_given_up()
    assert step.level == "eager"  # of the very step that gave up


def test_plain_attributes_make_a_new_capture():
    class Tempered(Program):
        factor = 1.0

        def before(self, x):
            return x * self.factor

    program, x = Tempered(), torch.randn(5, 6)
    program.factor = 1.0
    step = step_of(program, pv.ELBO())
    for factor in (1.0, 2.0, 2.0, 0.5):
        program.factor = factor
        loss, _ = by_pyro(program, pv.ELBO(), (x,), 1.0, seed=1)
        torch.manual_seed(1)
        assert torch.equal(step.gradients(x), loss)
        assert step.level == "replay"


def test_an_attribute_that_always_changes_ends_in_eager_steps():
    program, x = Program(), torch.randn(5, 6)
    step = step_of(program, pv.ELBO())

    def train():
        for count in range(20):
            program.count = count
            step(x)

    with pytest.warns(UserWarning, match="'count' changes again and again"):
        train()
    assert step.level == "eager"


def test_modes_parameters_and_state_are_followed():
    program = Program(encoder=nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5)))
    x = torch.randn(5, 6)
    step = step_of(program, pv.ELBO())

    def agrees():
        loss, gradients = by_pyro(program, pv.ELBO(), (x,), 1.0, seed=2)
        torch.manual_seed(2)
        same = torch.equal(step.gradients(x), loss)
        return same and all(map(torch.equal, gradients, step._gradients))

    assert agrees()
    program.eval()
    assert agrees()
    program.train()
    state = copy.deepcopy(program.state_dict())
    step(x)
    program.load_state_dict(state)
    assert agrees()
    program.decoder.weight.data = torch.ones(6, 2)
    assert agrees()
    program.decoder.weight.data = torch.rand(2, 6).T  # other strides
    assert agrees()
    assert step.level == "replay"
    program.double()
    x = x.double()
    assert agrees()
    assert agrees()
    assert step.level == "replay"


@pytest.mark.filterwarnings("ignore:.*not registered in the param store")
@pytest.mark.parametrize("level", ["eager", "replay"])
def test_parameters_can_be_frozen_and_thawed(level):
    program, x = Program(), torch.randn(5, 6)
    step = step_of(program, pv.ELBO(), level)
    step(x)
    for frozen in (True, False):
        program.decoder.weight.requires_grad_(not frozen)
        before = program.decoder.weight.detach().clone(), program.encoder.weight.detach().clone()
        for _ in range(3):
            step(x)
        assert torch.equal(before[0], program.decoder.weight) == frozen
        assert not torch.equal(before[1], program.encoder.weight)
        assert step.level == level


@needs_compiler
def test_compiled_code_never_reads_memory_of_another_shape():
    """Machine code checks nothing: a parameter of another layout or type makes a new graph, or an error."""
    program, x = Program(), torch.randn(5, 6)
    step = step_of(program, pv.ELBO(), "compiled")
    step(x)
    program.decoder.weight.data = torch.rand(2, 6).T
    loss, gradients = by_pyro(program, pv.ELBO(), (x,), 1.0, seed=1)
    torch.manual_seed(1)
    torch.testing.assert_close(step.gradients(x), loss, rtol=1e-6, atol=0)
    for a, b in zip(gradients, step._gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    program.decoder.weight.data = torch.rand(7, 2)
    with pytest.raises((RuntimeError, ValueError), match=r"size|shape|must match"):
        step(x)
    with pytest.raises((RuntimeError, ValueError), match=r"size|shape|must match"):
        step(torch.randn(5, 7))


def test_a_replaced_parameter_is_refused():
    program, x = Program(), torch.randn(5, 6)
    step = step_of(program, pv.ELBO())
    step(x)
    program.decoder.weight = nn.Parameter(torch.ones(6, 2))
    with pytest.raises(pv.ConfigError, match="'weight' was replaced"):
        step(x)


def test_shapes_and_types_of_data():
    program = Program()
    step = step_of(program, pv.ELBO())
    for rows in (5, 5, 3, 3, 3, 5, 1, 1):
        x = torch.randn(rows, 6)
        loss, gradients = by_pyro(program, pv.ELBO(), (x,), 1.0, seed=rows)
        torch.manual_seed(rows)
        assert torch.equal(step.gradients(x), loss)
        assert all(map(torch.equal, gradients, step._gradients))
    x = torch.randn(6, 5).T  # not contiguous
    loss, _ = by_pyro(program, pv.ELBO(), (x.contiguous(),), 1.0, seed=0)
    torch.manual_seed(0)
    assert torch.equal(step.gradients(x), loss)


def test_kinds_of_data_do_not_pile_up():
    """A number that differs in every batch makes a kind of each; those that come back are captured in between."""
    step, x = step_of(Program(), pv.ELBO()), torch.randn(5, 6)
    levels = []
    for number in range(200):
        step(x, number / 7)
        assert step.level == ("eager" if number else "replay")
        if number % 20 == 0:
            step(x)
            levels.append(step.level)
    assert levels == ["eager"] + ["replay"] * 9
    assert len(step._plans) == 64


def test_graphs_do_not_pile_up(monkeypatch):
    monkeypatch.setattr("pyrovae.compiled.step._GRAPHS", 3)
    step, captured = step_of(Program(), pv.ELBO()), set()
    for rows in (*range(1, 6), *range(1, 6), 1):
        step(torch.randn(rows, 6))
        captured |= {rows} if step.level == "replay" else set()
    assert captured == {1, 2, 3}
    assert step.level == "replay"


def test_one_tensor_in_two_places_is_two_inputs():
    class Two(Program):
        def before(self, x):
            return x

        @pyro_method
        def guide(self, x, c):
            with pyro.plate("batch", len(x)):
                loc, raw = self.encoder(x + 2 * c).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    program, x, c = Two(), torch.randn(5, 6), torch.randn(5, 6)
    step = step_of(program, pv.ELBO())
    step(x, x)
    loss, _ = by_pyro(program, pv.ELBO(), (x, c), 1.0, seed=0)
    torch.manual_seed(0)
    assert torch.equal(step.gradients(x, c), loss)


# -- what cannot be captured


class Leaving(Program):
    def before(self, x):
        return torch.as_tensor(x.numpy() * 2.0)


class Sized(Program):
    def before(self, x):
        return x * x[x > 0].mean()


class Elsewhere(Program):
    def before(self, x):
        return x * float(np.random.rand())  # noqa: NPY002


class Counting(Program):
    calls = 0

    def before(self, x):
        self.calls = self.calls + 1
        return x


class Replacing(Program):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))

    def before(self, x):
        self.mean = self.mean * 0.9 + x.mean(0) * 0.1
        return x - self.mean


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (Leaving, "numpy"),
        (Sized, "size depends on the numbers"),
        (Elsewhere, "generator of numpy"),
        (Counting, "'calls'"),
        (Replacing, "'mean'"),
    ],
)
def test_refused_with_a_reason_and_trained_all_the_same(program, reason):
    model, x = program(), torch.randn(5, 6)
    if program is Counting:
        model.calls = 0
    step = step_of(model, pv.ELBO())
    before = model.decoder.weight.detach().clone()
    with pytest.warns(UserWarning, match=f"cannot be captured.*{reason}") as said:
        train(step, x, 3)
    assert len(said) == 1
    assert step.level == "eager"
    assert not torch.equal(before, model.decoder.weight)


def test_hidden_state_is_found_out():
    """A list that grows is nothing to watch: the program is compared with its graph now and then."""

    class Growing(Program):
        def before(self, x):
            seen.append(1)
            return x * (1.0 if len(seen) < 12 else 3.0)

    seen = []
    program, x = Growing(), torch.randn(5, 6)
    step = step_of(program, pv.ELBO())

    def train():
        for _ in range(40):
            step(x)
            seen.append(1)

    with pytest.raises(pv.ConfigError, match="not the one that was captured"):
        train()


def test_bad_arguments():
    program = Program()
    adam = torch.optim.Adam(program.parameters())
    for options, words in [
        ({"level": "fast"}, "level: expected one of auto, compiled, replay, eager"),
        ({"precision": "fp8"}, "precision: expected one of float32, bf16"),
        ({"precision": "bf16", "level": "eager"}, "bf16"),
        ({"clip": 0}, "clip"),
        ({"accumulate": 0}, "accumulate"),
    ]:
        with pytest.raises(pv.ConfigError, match=words):
            pv.compile_step(program.model, program.guide, pv.ELBO(), adam, **options)
    with pytest.raises(pv.ConfigError, match="optimizer"):
        pv.compile_step(program.model, program.guide, pv.ELBO())
    with pytest.raises(pv.ConfigError, match="objective"):
        pv.compile_step(program.model, program.guide, 3, adam)


def test_an_error_of_the_program_is_its_own():
    step = step_of(Program(), pv.ELBO())
    with pytest.raises(RuntimeError, match="shapes"):
        step(torch.randn(5, 7))


def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr("pyrovae.compiled.step.compiler", lambda device: None)
    program, x = Program(), torch.randn(5, 6)
    with pytest.raises(pv.ConfigError, match=r"C\+\+ compiler"):
        step_of(program, pv.ELBO(), "compiled")
    step = step_of(program, pv.ELBO(), "auto", steps=10**9)
    step(x)
    assert step.level == "replay"


def test_a_compiler_that_fails(monkeypatch):
    from pyrovae.graphs import CompilerFailed

    def fail(*_):
        raise CompilerFailed("out of order")

    monkeypatch.setattr("pyrovae.compiled.step.compiler", lambda device: "g++")
    monkeypatch.setattr("pyrovae.graphs.function.compile_graph", fail)
    step = step_of(Program(), pv.ELBO(), "compiled")
    with pytest.warns(UserWarning, match="inductor failed.*out of order"):
        step(torch.randn(5, 6))
    assert step.level == "replay"


def test_a_compiled_step_with_other_numbers_is_replayed(monkeypatch):
    """Where a program divides by what is nearly 0, another order of sums is another result."""
    monkeypatch.setattr("pyrovae.compiled.step.compiler", lambda device: "g++")

    def careless(graph, inputs):
        return lambda *given: [out * 1.01 if out.is_floating_point() else out for out in graph.forward(*given)]

    monkeypatch.setattr("pyrovae.graphs.function.compile_graph", careless)
    step = step_of(Program(), pv.ELBO(), "compiled")
    with pytest.warns(UserWarning, match="replayed instead: loss or gradients differ"):
        step(torch.randn(5, 6))
    assert step.level == "replay"


@pytest.mark.parametrize(("steps", "level"), [(3, "eager"), (20_000, "replay"), (10**6, "compiled"), (None, "eager")])
def test_auto_weighs_costs(monkeypatch, steps, level):
    """By the numbers of the job alone, so that the same run makes the same choice."""
    monkeypatch.setattr("pyrovae.compiled.step.compiler", lambda device: "g++")
    monkeypatch.setattr("pyrovae.graphs.function.compile_graph", lambda graph, inputs: graph.forward)
    step = step_of(Program(), pv.ELBO(), "auto", steps=steps)
    for _ in range(3):
        step(torch.randn(5, 6))
    assert step.level == level


def test_auto_without_a_length_waits_until_it_pays(monkeypatch):
    monkeypatch.setattr("pyrovae.compiled.step._SECONDS_CAPTURE", 0.0015)
    step = step_of(Program(), pv.ELBO(), "auto")
    levels = [(step(torch.randn(5, 6)), step.level)[1] for _ in range(8)]
    assert levels == ["eager"] * 4 + ["replay"] * 4


# -- around the step


def test_capturing_leaves_everything_alone():
    program, x = Program(), torch.randn(5, 6)
    pyro.clear_param_store()
    torch.manual_seed(0)
    torch.randn(64)
    expected = torch.rand(3)
    torch.manual_seed(0)
    step = step_of(program, pv.ELBO())
    step._plan((x,), whole=True)
    torch.randn(64)
    assert torch.equal(torch.rand(3), expected)
    assert not list(pyro.get_param_store().keys())
    assert all(p.grad is None for p in program.parameters())


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
        lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, fused=True),
        lambda p: torch.optim.Adam(p, lr=0.01),
        lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
        lambda p: torch.optim.Adam([{"params": p[:1], "lr": 0.1}, {"params": p[1:], "betas": (0.5, 0.9)}], fused=True),
    ],
    ids=["adam", "adamw", "weight decay", "not fused", "amsgrad", "sgd", "groups"],
)
def test_updates_are_the_optimizer_s(make):
    """Bit for bit, through a schedule, a missing gradient and a state that is loaded in between."""
    torch.manual_seed(0)
    ours = [
        torch.randn(3, 4, requires_grad=True),
        torch.randn(2, requires_grad=True),
        torch.randn(5, requires_grad=True),
    ]
    theirs = [p.detach().clone().requires_grad_() for p in ours]
    first, second = make(ours), make(theirs)
    update = Update(first)
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.9) for o in (first, second)]
    for number in range(12):
        gradients = [torch.randn_like(p) for p in ours]
        if number % 5 == 3:
            gradients[1] = None
        for p, g in zip(theirs, gradients, strict=True):
            p.grad = g
        update(ours, gradients)
        second.step()
        for schedule in schedules:
            schedule.step()
        if number == 6:
            first.load_state_dict(copy.deepcopy(first.state_dict()))
        assert all(map(torch.equal, ours, theirs)), number
    for a, b in zip(first.state.values(), second.state.values(), strict=True):
        assert all(torch.equal(torch.as_tensor(a[n]), torch.as_tensor(b[n])) for n in a if a[n] is not None)


def test_an_optimizer_with_hooks_is_called_by_its_own_step():
    parameter, calls = torch.randn(3, requires_grad=True), []
    adam = torch.optim.Adam([parameter], fused=True)
    update = Update(adam)
    update([parameter], [torch.ones(3)])
    adam.register_step_post_hook(lambda *_: calls.append(1))
    update([parameter], [torch.ones(3)])
    assert calls == [1]


@pytest.mark.parametrize("level", ["eager", "replay"])
def test_clipping_is_torch_s(level):
    program, x = Program(), 10 * torch.randn(5, 6)
    step = step_of(program, pv.ELBO(), level, clip=0.5)
    for seed in range(3):
        _, gradients = by_pyro(program, pv.ELBO(), (x,), 1.0, seed)
        for p, g in zip(program.parameters(), gradients, strict=True):
            p.grad = g.clone()
        norm = nn.utils.clip_grad_norm_(list(program.parameters()), 0.5)
        torch.manual_seed(seed)
        step.gradients(x)
        torch.testing.assert_close(step.norm, norm, rtol=1e-6, atol=0)
        for p, g in zip(program.parameters(), step._gradients, strict=True):
            torch.testing.assert_close(g, p.grad, rtol=1e-6, atol=0)


@pytest.mark.parametrize("level", ["eager", "replay"])
def test_accumulation(level):
    program, x = Program(), torch.randn(3, 5, 6)
    step = step_of(program, pv.ELBO(), level, accumulate=3, clip=0.5)
    before = copy.deepcopy(program.state_dict())
    parts = [by_pyro(program, pv.ELBO(), (x[i],), 1.0, seed=i)[1] for i in range(3)]
    for p, *g in zip(program.parameters(), *parts, strict=True):
        p.grad = sum(g) / 3
    norm = nn.utils.clip_grad_norm_(list(program.parameters()), 0.5)
    expected = [p.grad.clone() for p in program.parameters()]
    for i in range(3):
        assert all(torch.equal(before[n], p) for n, p in program.named_parameters())
        torch.manual_seed(i)
        step(x[i])
    torch.testing.assert_close(step.norm, norm)
    for g, e in zip(step._gradients, expected, strict=True):
        torch.testing.assert_close(g, e)
    assert any(not torch.equal(before[n], p) for n, p in program.named_parameters())


@pytest.mark.parametrize("level", LEVELS)
def test_half_precision(level, monkeypatch):
    """Matrix products in bfloat16: gradients point the same way, sums and log-probabilities stay in float32."""
    program = make_vae("StandardNormal", "Bernoulli", pv.Normal, pv.MLP)
    x = data_for("Bernoulli", rows=64)
    monkeypatch.setattr("pyrovae.graphs.half._FEW", 0)  # so small a network has nothing to gain
    step = step_of(program, pv.ELBO(), level, precision="bf16")
    loss, gradients = by_pyro(program, pv.ELBO(), (x,), 1.0, seed=0)
    torch.manual_seed(0)
    received = step.gradients(x)
    assert received.dtype == torch.float32
    assert abs(received - loss) < 3e-3 * loss
    assert not torch.equal(received, loss)
    for a, b in zip(gradients, step._gradients, strict=True):
        assert b.dtype == torch.float32
        assert (a - b).norm() < 0.03 * a.norm()


@pytest.mark.parametrize(("net", "rows"), [(pv.ConvNet, 16), (pv.ResNet, 16), (pv.ResNet, 256)])
def test_half_precision_of_convolutions(net, rows):
    program = make_vae("StandardNormal", "Bernoulli", pv.Normal, net)
    x = data_for("Bernoulli", rows=rows)
    step = step_of(program, pv.ELBO(), precision="bf16")
    _, gradients = by_pyro(program, pv.ELBO(), (x,), 1.0, seed=0)
    torch.manual_seed(0)
    step.gradients(x)
    for a, b in zip(gradients, step._gradients, strict=True):
        assert (a - b).norm() < 0.05 * a.norm()


@pytest.mark.parametrize("native", [True, False])
def test_a_processor_without_half_precision_is_named(native, monkeypatch):
    program = Program()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "amx_bf16": native})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        step_of(program, pv.ELBO(), precision="bf16")
        pv.log_marginal(program, torch.randn(5, 6), precision="bf16", compile="eager")
        step_of(program, pv.ELBO())
    assert ["has no instructions for bfloat16" in str(w.message) for w in said] == [True] * (0 if native else 2)


def test_half_precision_that_cannot_be_captured_is_refused():
    with pytest.raises(pv.ConfigError, match="bf16"):
        step_of(Leaving(), pv.ELBO(), precision="bf16")(torch.randn(5, 6))


@pytest.mark.parametrize("level", ["eager", *LEVELS])
def test_the_same_seed_gives_the_same_weights_and_state_can_be_restored(level):
    """Noise comes from torch's generators alone: their state, weights and moments are all there is to save."""
    x = (torch.rand(64, 30) > 0.5).float()

    def run(steps, state=None):
        torch.manual_seed(0)
        vae = pv.VAE(pv.StandardNormal(2), pv.Bernoulli(30, context=2), pv.Normal(2, context=30))
        adam = torch.optim.Adam(vae.parameters(), fused=True)
        step = pv.compile_step(vae.model, vae.guide, pv.ELBO(), adam, level=level)
        if state is not None:
            vae.load_state_dict(state[0])
            adam.load_state_dict(state[1])
            torch.set_rng_state(state[2])
        for _ in range(steps):
            step(x)
        return copy.deepcopy((vae.state_dict(), adam.state_dict(), torch.get_rng_state()))

    whole, again, resumed = run(9), run(9), run(5, run(4))
    for other in (again, resumed):
        assert all(torch.equal(a, b) for a, b in zip(whole[0].values(), other[0].values(), strict=True))
        assert torch.equal(whole[2], other[2])


@pytest.mark.parametrize("batch", [16, 30])
def test_fit_gives_the_same_weights_at_every_level(batch):
    """A ragged last batch, a schedule of the learning rate, warm-up, clipping: bit for bit without a compiler."""
    weights = []
    for level in ("eager", "replay"):
        torch.manual_seed(0)
        vae = pv.VAE(pv.StandardNormal(2), pv.Bernoulli(30, context=2), pv.Normal(2, context=30))
        pv.fit(
            vae,
            (torch.rand(50, 30, generator=torch.Generator().manual_seed(1)) * 255).byte(),
            preprocess=pv.Binarize(),
            objective=pv.ELBO(beta=pv.Warmup(over=0.5)),
            scheduler=torch.optim.lr_scheduler.CosineAnnealingLR,
            clip=5.0,
            epochs=4,
            batch_size=batch,
            compile=level,
        )
        weights.append(vae.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(weights[0].values(), weights[1].values(), strict=True))


def test_fit_refuses_a_number_that_is_not_finite_when_captured():
    vae = pv.VAE(pv.StandardNormal(2), pv.Normal(4, context=2), pv.Normal(2, context=4))
    with pytest.raises(pv.TrainingDiverged, match=r"training diverged at step [1-9]"):
        pv.fit(vae, torch.randn(20, 4), epochs=99, optimizer=lambda p: torch.optim.SGD(p, lr=1e9), compile="replay")
    assert all(p.isfinite().all() for p in vae.parameters())


def test_kept_heap_can_be_nested_and_ends():
    with kept_heap(), kept_heap():
        assert torch.ones(2**20).sum() == 2**20
    assert torch.ones(2**20).sum() == 2**20


def test_what_changes_no_number_is_left_out_and_signs_of_zero_stay():
    def program(x):
        zeros, ones = torch.zeros(3), torch.ones(3)
        return [x - zeros, x * ones, ones * x, x / ones, x + zeros, x - -zeros]

    x = torch.tensor([-0.0, 0.0, 2.0])
    function = Function(program, [], [x])
    for received, expected in zip(function(x), program(x), strict=True):
        assert torch.equal(received, expected)
        assert torch.equal(received.signbit(), expected.signbit())
    assert [n.target.name() for n in _arithmetic(function)] == ["aten::add.Tensor", "aten::sub.Tensor"]


def test_large_constants_of_one_number_are_worked_out():
    def program(x):
        return [x * -torch.full((len(x), 1), 0.5).expand(x.shape)]

    x = torch.randn(400, 400)
    function = Function(program, [], [x])
    assert torch.equal(function(x)[0], program(x)[0])
    assert [n.target.name() for n in _arithmetic(function)] == ["aten::mul.Tensor"]


def _arithmetic(function):
    names = ("add", "sub", "mul", "div", "neg", "expand")
    return [n for n in function._graph.graph.nodes if n.op == "call_function" and n.target._opname in names]


def test_half_products_leave_other_operations_alone():
    def program(a, b):
        return [(a @ b).exp().sum()]

    a, b = torch.rand(300, 800) / 800, torch.rand(800, 50)
    graph = trace(program, [a, b])
    expected = (a.bfloat16() @ b.bfloat16()).float().exp().sum()
    assert torch.equal(half_graph(graph, [a, b])(a, b)[0], expected)
    with half_products():
        assert torch.equal(program(a, b)[0], expected)


def test_half_products_round_a_matrix_once_and_short_sums_or_few_never():
    def program(x, w):
        y = x @ w.T
        return [y, y @ w, y[:2].T @ x[:2], y[:500] @ w]

    inputs = [torch.rand(700, 90), torch.rand(80, 90)]
    graph = half_graph(trace(program, inputs), inputs)
    rounded = [n for n in graph.graph.nodes if n.kwargs.get("dtype") is torch.bfloat16]
    assert len(rounded) == 3  # x, w and y
    with half_products():
        for received, expected in zip(graph(*inputs), program(*inputs), strict=True):
            assert torch.equal(received, expected)
    y = graph(*inputs)[0]
    assert torch.equal(graph(*inputs)[2], y[:2].T @ inputs[0][:2])
    assert torch.equal(graph(*inputs)[3], y[:500] @ inputs[1])


def with_derivatives(a, x):
    """Softplus of every a, which a product reads, the sum of its cross-entropy 32 times, and the derivatives."""
    leaf = a.detach().requires_grad_()
    many = leaf[..., None, None].repeat(1, 1, 4, 8)
    terms = F.binary_cross_entropy_with_logits(many, x[..., None, None].expand(many.shape), reduction="none")
    values = [F.softplus(leaf), terms.flatten(2).sum(-1)]
    return [*values, *(torch.autograd.grad(v.sum(), leaf)[0] for v in values), values[0].detach().T @ x]


def sites_of(*numbers):
    """Two columns, x = 0 and x = 1, each for all numbers."""
    a = torch.tensor(numbers)
    return a[:, None].expand(-1, 2).contiguous(), torch.tensor([0.0, 1.0]).expand(len(a), 2).contiguous()


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_compiler)])
def test_fewer_instructions_give_the_same_numbers(compiled):
    inputs = sites_of(*torch.linspace(-80, 80, 2001), 0.0, -0.0, 1e-30, 20.0, 1e4, -1e4)
    graph = fewer_instructions(trace(with_derivatives, inputs))
    assert not any(word in str(n.target) for n in graph.graph.nodes for word in ("softplus", "cross_entropy"))
    run = compile_graph(graph, inputs) if compiled else graph
    exact = with_derivatives(*(i.double() for i in inputs))
    softplus, total, slope, residual, _ = zip(run(*inputs), exact, strict=True)
    for received, expected in (softplus, slope):  # the smallest numbers too, which are all that far units have
        torch.testing.assert_close(received.double(), expected, rtol=2e-6, atol=1e-37)
    for received, expected in (total, residual):  # a term that is much smaller than 1 is rounded as 1 is
        torch.testing.assert_close(received.double(), expected, rtol=1e-6, atol=32 * 1.2e-7)


def test_products_of_many_factors_stay_within_float32():
    def program(a):
        return [F.binary_cross_entropy_with_logits(a, torch.zeros(2, 3200), reduction="none").sum(-1)]

    graph = fewer_instructions(trace(program, [torch.zeros(2, 3200)]))
    assert any(n.target == "prod" for n in graph.graph.nodes)
    torch.testing.assert_close(graph(torch.zeros(2, 3200))[0], torch.full((2,), 3200 * np.log(2.0).astype(np.float32)))


@pytest.mark.parametrize(("rows", "turned"), [(1, False), (15, False), (16, True), (32, True), (33, False)])
def test_products_of_few_rows_multiply_the_matrix_first(rows, turned):
    x, matrix, small = torch.randn(rows, 400), torch.randn(300, 400), torch.randn(3, 400)

    def program(x, matrix, small):
        return [F.linear(x, matrix).tanh(), x @ matrix.t().contiguous(), F.linear(x, small), x.t() @ x]

    inputs = [x, matrix, small]
    graph = matrix_first(trace(program, inputs))
    first = [n.args[0] for n in graph.graph.nodes if n.target is torch.ops.aten.mm.default]
    assert first.count(list(graph.graph.nodes)[1]) == turned
    for received, expected in zip(graph(*inputs), program(*inputs), strict=True):
        torch.testing.assert_close(received, expected, rtol=1e-5, atol=1e-4)
        assert received.stride() == expected.stride()


@needs_compiler
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rows", [5, 20])
def test_few_rows_of_a_large_network_are_compiled_with_particles(rows):
    """What a product of few rows is turned into can be viewed as the product itself."""
    torch.manual_seed(0)
    q = pv.Normal(50, context=100, net=functools.partial(pv.MLP, hidden=(200,)))
    vae, x = pv.VAE(pv.StandardNormal(50), pv.Bernoulli(100, context=50), q), torch.rand(rows, 100).round()
    step = step_of(vae, pv.IWAE(k=4), "compiled")
    step(x)
    assert step.level == "compiled"


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_expm1_keeps_the_digits_of_small_numbers(dtype):
    small = torch.logspace(-30, 1.9, 500, dtype=dtype)
    x = torch.cat([-small, small, torch.tensor([0.0, float("inf"), float("-inf"), float("nan")], dtype=dtype)])
    function = Function(lambda x: [x.expm1()], [torch.zeros(())], [x])
    function.compile([x])
    close = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 0, "equal_nan": True}
    torch.testing.assert_close(function(x)[0], x.expm1(), **close)


def test_fewer_instructions_let_infinity_and_nan_through():
    inputs = sites_of(float("inf"), float("-inf"), float("nan"))
    graph = fewer_instructions(trace(with_derivatives, inputs))
    for received, expected in zip(graph(*inputs), with_derivatives(*inputs), strict=True):
        torch.testing.assert_close(received, expected, equal_nan=True)


def test_fewer_instructions_only_where_they_are_the_same_function():
    def program(a, x):
        parts = [{"pos_weight": torch.ones(64)}, {"weight": torch.ones(64)}, {}]
        terms = [F.binary_cross_entropy_with_logits(a, x, reduction="none", **part) for part in parts]
        sums = [terms[0].sum(-1), terms[1].sum(-1), terms[2].sum(0), terms[2].sum(-1, keepdim=True)]
        others = [F.softplus(a, beta=2), F.softplus(a, threshold=5), F.softplus(a.double()).float()]
        return [F.softplus(a), a.sigmoid(), *sums, *(other @ x.T for other in others)]

    graph = trace(program, [torch.zeros(3, 64), torch.zeros(3, 64)])
    before = [n.target for n in graph.graph.nodes]
    assert [n.target for n in fewer_instructions(graph).graph.nodes] == before


def test_pyro_sample_modules_are_captured():
    """A Bayesian decoder: weights with a prior of their own, drawn once a batch."""

    class Bayesian(Program):
        def __init__(self):
            super().__init__()
            self.head = PyroModule[nn.Linear](2, 6)
            self.head.weight = PyroSample(dist.Normal(0.0, 1.0).expand([6, 2]).to_event(2))
            self.loc = nn.Parameter(torch.zeros(6, 2))

        @pyro_method
        def model(self, x):
            weight = self.head.weight  # drawn outside the plate
            with pyro.plate("batch", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z @ weight.T + self.head.bias, 1.0).to_event(1), obs=x)

        @pyro_method
        def guide(self, x):
            pyro.sample(f"{self._pyro_name}.head.weight", dist.Normal(self.loc, 0.1).to_event(2))
            with pyro.plate("batch", len(x)):
                loc, raw = self.encoder(x).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    check_equal(Bayesian(), pv.ELBO(), (torch.randn(5, 6),), "replay")
