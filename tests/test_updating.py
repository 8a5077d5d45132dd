"""The update in compiled code against torch's own optimizers, on the gradients of Pyro and autograd."""

import copy
import math
import shutil

import pyro
import pytest
import torch
from pyro.nn import pyro_method
from torch import nn

import pyrovae as pv
from pyrovae.compiled.step import Step
from pyrovae.compiled.updating import Updating
from tests.test_compiled import Branching, Program, SemiSupervised, by_pyro, enumerated
from tests.test_contract import data_for, make_vae

pytestmark = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="no C++ compiler")
ADAM = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    "not fused": lambda p: torch.optim.AdamW(p, lr=0.01),
    "weight decay": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, eps=1e-3, fused=True),
    "groups": lambda p: torch.optim.Adam(
        [{"params": p[:1], "lr": 0.1}, {"params": p[1:], "betas": (0.5, 0.9), "weight_decay": 0.2}], fused=True
    ),
}
PROGRAMS = {
    "vae": lambda: (make_vae("StandardNormal", "Bernoulli", pv.Normal, pv.MLP), pv.ELBO(), data_for("Bernoulli")),
    "iwae": lambda: (Program(), pv.IWAE(k=3), torch.randn(5, 6)),
    "enumeration": lambda: (SemiSupervised(), enumerated, (torch.rand(7, 6) > 0.5).float()),
    "normalisation": lambda: (
        Program(encoder=nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 4))),
        pv.ELBO(),
        torch.randn(5, 6),
    ),
}


def made(program, objective=None, make=ADAM["adam"], **options):
    adam = make([p for p in program.parameters() if p.requires_grad])
    return Step(program, objective or pv.ELBO(), adam, level="compiled", **options), adam


def inside(step):
    """Whether the last plan's update is in its graph."""
    *_, kind = step._plans.values()
    return isinstance(kind.plan, Updating) and bool(kind.plan.groups)


def check(step, adam, program, objective, make, x, *, seed):
    """One step from the same weights and state: the optimizer's, but for the order of sums and a division."""
    twin = copy.deepcopy(program)
    parameters = [p for p in program.parameters() if p.requires_grad]
    theirs = make([p.detach().clone().requires_grad_() for p in parameters])
    theirs.load_state_dict(copy.deepcopy(adam.state_dict()))
    loss, gradients = by_pyro(program, objective, (x,), 1.0, seed)
    for ours, buffer in zip(program.buffers(), twin.buffers(), strict=True):
        ours.copy_(buffer)
    others = [p for group in theirs.param_groups for p in group["params"]]
    for p, g in zip(others, gradients, strict=True):
        p.grad = g
    theirs.step()
    before, largest = [p.detach().clone() for p in parameters], {}
    for name in ("exp_avg", "exp_avg_sq"):
        largest[name] = max(s[name].abs().max().item() for s in theirs.state.values())
    torch.manual_seed(seed)
    torch.testing.assert_close(step(x), loss, rtol=1e-6, atol=0)
    for p, old, other in zip(parameters, before, others, strict=True):
        ours, expected = adam.state[p], theirs.state[other]
        assert ours["step"] == expected["step"]
        for name, scale in largest.items():
            torch.testing.assert_close(ours[name], expected[name], rtol=1e-4, atol=1e-6 * scale)
        # where a gradient is a rounding error, so is the direction of its step
        sure = expected["exp_avg_sq"] > 1e-6 * largest["exp_avg_sq"]
        torch.testing.assert_close((p - old)[sure], (other - old)[sure], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("program", "optimizer", "options"),
    [
        ("vae", "adam", {}),
        ("vae", "groups", {"guard": True}),
        ("vae", "weight decay", {"guard": True}),
        ("vae", "adamw", {}),
        ("vae", "not fused", {}),
        ("iwae", "adam", {"guard": True}),
        ("enumeration", "adam", {}),
        ("normalisation", "adam", {}),
    ],
)
def test_the_update_is_the_optimizer_s(program, optimizer, options):
    """Through a schedule of learning rates and moments, a state that is loaded, and a new capture in the middle."""
    program, objective, x = PROGRAMS[program]()
    step, adam = made(program, objective, ADAM[optimizer], **options)
    for number in range(9):
        check(step, adam, program, objective, ADAM[optimizer], x, seed=number)
        assert inside(step)
        for group in adam.param_groups:
            group["lr"] *= 0.9
            group["betas"] = (0.8, 0.95)
        if number == 3:
            adam.load_state_dict(copy.deepcopy(adam.state_dict()))
        if number == 6:
            step._plans.clear()
    assert step.level == "compiled"


def test_in_float64(float64):
    program = Program()
    step, adam = made(program)
    for number in range(3):
        check(step, adam, program, pv.ELBO(), ADAM["adam"], torch.randn(5, 6), seed=number)
        assert inside(step)


def test_clipping_comes_before_the_update():
    program, x = Program(), 10 * torch.randn(5, 6)
    step, _ = made(program, make=lambda p: torch.optim.Adam(p, betas=(0.0, 0.5), fused=True), guard=True, clip=0.5)
    torch.manual_seed(0)
    step(x)
    _, gradients = by_pyro(program_before(program, step), pv.ELBO(), (x,), 1.0, seed=0)
    norm = math.sqrt(sum(g.square().sum() for g in gradients))
    torch.testing.assert_close(step.norm.item(), norm, rtol=1e-5, atol=0)
    for p, g in zip(program.parameters(), gradients, strict=True):
        torch.testing.assert_close(step._update.optimizer.state[p]["exp_avg"], g * 0.5 / norm, rtol=1e-4, atol=1e-7)


def program_before(program, step):
    """A copy with the weights before the first update, which with these moments is one of size lr."""
    before = copy.deepcopy(program)
    before._pyro_set_supermodule("before", before._pyro_context)
    for p, old in zip(program.parameters(), before.parameters(), strict=True):
        state = step._update.optimizer.state[p]
        old.data += 1e-3 * state["exp_avg"] / ((state["exp_avg_sq"] / 0.5).sqrt() + 1e-8)
    return before


class Rooted(Program):
    """Its loss is finite where its gradient is not."""

    @pyro_method
    def model(self, x):
        super().model(x)
        pyro.factor("root", (self.decoder.weight.sum() * x[:, :1]).abs().sqrt().sum())


@pytest.mark.filterwarnings("ignore:Encountered NaN", "ignore:.*isn't finite")
@pytest.mark.parametrize("bad", [math.inf, math.nan, 0.0])
def test_a_number_that_is_not_finite_moves_nothing(bad):
    program, x = Rooted(), torch.randn(5, 6)
    step, adam = made(program, guard=True)
    step(x)
    step(x)
    assert inside(step)
    before = copy.deepcopy((program.state_dict(), adam.state_dict()["state"]))
    broken = x.clone()
    broken[0, 0] = bad
    with pyro.validation_enabled(False):
        step(broken)
    after = program.state_dict(), adam.state_dict()["state"]
    assert not (step.norm is not None and step.norm.isfinite())
    assert all(torch.equal(a, b) for a, b in zip(before[0].values(), after[0].values(), strict=True))
    for a, b in zip(before[1].values(), after[1].values(), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    step(x)
    assert all(p.isfinite().all() for p in program.parameters())
    assert adam.state[program.decoder.weight]["step"] == 3


def test_a_branch_that_comes_out_differently_is_updated_once():
    program, x = Branching(), torch.rand(5, 6)
    step, adam = made(program)
    for seed, data in enumerate([x, -x, x, x - 2, x]):
        check(step, adam, program, pv.ELBO(), ADAM["adam"], data, seed=seed)
        assert inside(step)


def test_hooks_that_come_later_are_called():
    program, x, calls = Program(), torch.randn(5, 6), []
    step, adam = made(program)
    step(x)
    adam.register_step_post_hook(lambda *_: calls.append(1))
    step(x)
    assert calls == [1]
    assert not inside(step)


def test_parameters_that_were_not_updated_equally_often():
    program, x = Program(), torch.randn(5, 6)
    step, adam = made(program)
    step(x)
    adam.state[program.decoder.bias]["step"] += 7
    check(step, adam, program, pv.ELBO(), ADAM["adam"], x, seed=1)
    assert not inside(step)
    check(step, adam, program, pv.ELBO(), ADAM["adam"], x, seed=2)


def test_parameters_that_come_to_share_memory():
    """One is then updated after the other, as by the optimizer."""
    program, x = Program(first=nn.Linear(6, 2), second=nn.Linear(6, 2)), torch.randn(5, 6)
    program.encoder = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), Two(program.first, program.second))
    twin = copy.deepcopy(program)
    twin._pyro_set_supermodule("sharing", twin._pyro_context)
    ours, theirs = (torch.optim.Adam(p.parameters(), lr=0.01, fused=True) for p in (program, twin))
    step, eager = (
        Step(p, pv.ELBO(), o, level=level) for p, o, level in [(program, ours, "compiled"), (twin, theirs, "eager")]
    )
    for number in range(4):
        if number == 1:
            assert inside(step)
            for p in (program, twin):
                p.second.weight.data = p.first.weight.data
        for each in (step, eager):
            torch.manual_seed(number)
            each(x)
    assert not inside(step)
    for a, b in zip(program.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


class Two(nn.Module):
    """The outputs of two layers side by side."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        return torch.cat([layer(x) for layer in self.layers], -1)


def test_data_in_the_memory_of_a_parameter():
    program = Program()
    step, adam = made(program)
    step(torch.randn(2, 6))
    assert inside(step)
    x = program.decoder.weight.detach().view(2, 6)  # which the update writes over before the last gradient reads it
    check(step, adam, program, pv.ELBO(), ADAM["adam"], x, seed=3)
    assert step._gradients  # by the program, and then updated by torch


@pytest.mark.parametrize("make", [lambda p: torch.optim.Adam(p, amsgrad=True), lambda p: torch.optim.SGD(p, 0.01)])
def test_other_optimizers_update_by_themselves(make):
    program, x = Program(), torch.randn(5, 6)
    step, _ = made(program, make=make)
    before = copy.deepcopy(program.state_dict())
    loss, gradients = by_pyro(program, pv.ELBO(), (x,), 1.0, seed=0)
    theirs = make([p.detach().clone().requires_grad_() for p in program.parameters()])
    for p, g in zip(theirs.param_groups[0]["params"], gradients, strict=True):
        p.grad = g
    theirs.step()
    torch.manual_seed(0)
    torch.testing.assert_close(step(x), loss, rtol=1e-6, atol=0)
    assert not inside(step)
    for p, old, other in zip(program.parameters(), before.values(), theirs.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(p - old, other - old, rtol=1e-3, atol=1e-6)
