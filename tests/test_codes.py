"""One-hot codes: exact, relaxed and autoregressive, against sums over every code."""

import functools
import itertools

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from scipy import stats
from torch.distributions import kl_divergence
from torch.fx.experimental.proxy_tensor import make_fx

import pyrovae as pv
from pyrovae.autoregressive import Autoregressive
from pyrovae.distributions import center
from pyrovae.distributions.codes import OneHotCategorical as OneHot
from pyrovae.distributions.codes import RelaxedOneHot, StraightThroughOneHot, all_codes
from pyrovae.families.discrete import Concrete, OneHotCategorical, StraightThrough
from pyrovae.spec import build, describe

RARE = 2e-5
small = functools.partial(pv.MLP, hidden=(5,))
exact = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
HEADS = {"OneHotCategorical": OneHotCategorical, "Concrete": Concrete, "StraightThrough": StraightThrough}
RELAXED = {"Concrete": Concrete, "StraightThrough": StraightThrough}


def autoregressive(shape, context=None, net=None):
    return Autoregressive(shape, hidden=(16,), context=context)


every = pytest.mark.parametrize("make", list(HEADS.values()), ids=list(HEADS))
relaxed = pytest.mark.parametrize("make", list(RELAXED.values()), ids=list(RELAXED))
everything = pytest.mark.parametrize("make", [*HEADS.values(), autoregressive], ids=[*HEADS, "Autoregressive"])


def moved(part, size=1.0):
    """With parameters anywhere."""
    with torch.no_grad():
        for p in part.parameters():
            p.add_(size * torch.randn_like(p))
    return part


def check_draws(d, count=20_000):
    """Chi-squared of draws against the probability of every code."""
    codes = d.enumerate_support()
    x = d.sample((count,))
    seen = (x[:, None] == codes).flatten(2).all(-1).sum(0).numpy()
    assert seen.sum() == count
    p = d.log_prob(codes).detach().double().exp().numpy()
    keep = p * count >= 5
    observed, expected = np.append(seen[keep], seen[~keep].sum()), np.append(p[keep], p[~keep].sum()) * count
    statistic = ((observed - expected) ** 2 / expected.clip(1)).sum()
    assert stats.chi2.sf(statistic, keep.sum()) > RARE


# --- what every one promises ---


@everything
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("batch", [(), (4,), (5, 4)], ids=str)
def test_shapes(make, training, batch):
    d = make((2, 3), context=2, net=small).train(training)(torch.randn(*batch, 2))
    value = d.sample()
    assert value.shape == (*batch, 2, 3)
    assert d.log_prob(value).shape == batch
    wide = d.expand((2, *batch))
    torch.testing.assert_close(wide.log_prob(value), d.log_prob(value).expand(2, *batch))
    assert wide.sample((3,)).shape == (3, 2, *batch, 2, 3)
    assert center(d).shape == value.shape
    assert center(d).isfinite().all()
    assert d.enumerate_support().shape == (9, *batch, 2, 3)
    assert d.enumerate_support(expand=False).shape == (9, *[1] * len(batch), 2, 3)
    torch.testing.assert_close(d.log_prob(d.enumerate_support()).exp().sum(0), torch.ones(batch))


@everything
def test_in_plates(make):
    prior, conditional = make((2, 3)), make((2, 3), context=2, net=small)

    def program(context):
        with pyro.plate("particles", 5, dim=-2), pyro.plate("batch", 4, dim=-1):
            pyro.sample("prior", prior())
            return pyro.sample("conditional", conditional(context))

    trace = poutine.trace(program).get_trace(torch.randn(4, 2))
    trace.compute_log_prob()
    for name in ("prior", "conditional"):
        assert trace.nodes[name]["value"].shape == (5, 4, 2, 3)
        assert trace.nodes[name]["log_prob"].shape == (5, 4)


@everything
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_program_can_be_captured(make, training):
    torch.manual_seed(0)
    head = make((3, 4), context=2, net=small).train(training)
    context = torch.randn(5, 2)

    def gradients(c):
        d = head(c)
        draw = d.rsample() if d.has_rsample else d.sample()
        loss = (d.log_prob(draw) + draw.sum((-1, -2)).sin()).sum()
        return draw, loss, *torch.autograd.grad(loss, list(head.parameters()))

    with pyro.validation_enabled(False):
        graph = make_fx(gradients)(context)
    other = torch.randn(5, 2)
    if isinstance(head, (Concrete, StraightThrough)):
        head.anneal(0.2)
    torch.manual_seed(1)
    captured = graph(other)
    torch.manual_seed(1)
    torch.testing.assert_close(captured, gradients(other))


@everything
def test_describes_itself(make):
    names = HEADS | {"Autoregressive": Autoregressive, "MLP": pv.MLP}
    for context in (None, 2, [(2,), (1, 3, 3)]):
        head = make((2, 3), context=context)
        again = build(describe(head), names)
        assert describe(again) == describe(head)
        assert again.load_state_dict(head.state_dict())


@everything
def test_every_parameter_gets_a_gradient(make):
    head = make((3, 2), context=2, net=small)
    d = head(torch.randn(32, 2))
    d.log_prob(d.sample()).sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in head.parameters())


@pytest.mark.parametrize("shape", [1, (3, 1), (2, 2, 1)])
@every
def test_one_class_is_refused(make, shape):
    with pytest.raises(pv.ConfigError, match="at least 2 classes"):
        make(shape)


# --- exact codes ---


@exact
@pytest.mark.parametrize("shape", [(4,), (3, 3), (2, 2, 2)], ids=str)
def test_codes_sum_to_one(shape, dtype, tolerance):
    head = OneHotCategorical(shape if len(shape) > 1 else shape[0]).to(dtype)
    for logits in (torch.zeros(shape), 50 * torch.randn(shape).sign(), torch.full(shape, -50.0)):
        raw = logits.to(dtype).requires_grad_()
        log_prob = head.at(raw).log_prob(head.at(raw).enumerate_support())
        assert log_prob.isfinite().all()
        assert abs(log_prob.double().exp().sum().item() - 1) < tolerance
        assert torch.autograd.grad(log_prob.sum(), raw)[0].isfinite().all()


def test_one_hot_against_torch(float64):
    logits = torch.randn(6, 3, 4)
    ours, theirs = OneHot(logits, 2), torch.distributions.OneHotCategorical(logits=logits)
    x = theirs.sample()
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x).sum(-1))
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.mode, theirs.mode)
    torch.testing.assert_close(ours.entropy(), theirs.entropy().sum(-1))
    other = torch.randn(6, 3, 4)
    expected = kl_divergence(theirs, torch.distributions.OneHotCategorical(logits=other)).sum(-1)
    torch.testing.assert_close(kl_divergence(ours, OneHot(other, 2)), expected)
    torch.testing.assert_close(kl_divergence(RelaxedOneHot(logits, torch.ones(()), 2), OneHot(other, 2)), expected)


def test_one_hot_is_linear_in_relaxed_codes(float64):
    d, a, b = OneHot(torch.randn(3, 4), 2), *torch.randn(2, 3, 4).softmax(-1)
    torch.testing.assert_close(d.log_prob(0.3 * a + 0.7 * b), 0.3 * d.log_prob(a) + 0.7 * d.log_prob(b))


@pytest.mark.parametrize("bad", [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [2.0, -1.0, 0.0], [float("nan"), 0.0, 1.0]], ids=str)
def test_what_is_no_code_is_refused(bad):
    with pytest.raises(ValueError, match="support"):
        OneHotCategorical((2, 3))().log_prob(torch.tensor([[1.0, 0.0, 0.0], bad]))


def test_relaxed_codes_of_many_classes_are_in_the_support():
    y = RelaxedOneHot(5 * torch.randn(50, 10_000), torch.tensor(0.1)).sample()
    assert OneHot(torch.zeros(10_000)).log_prob(y).isfinite().all()


def test_too_many_codes_are_not_enumerated():
    with pytest.raises(NotImplementedError, match=r"10\^20 codes"):
        OneHotCategorical((20, 10))().enumerate_support()


@pytest.mark.parametrize("shape", [5, (3, 3)], ids=str)
def test_draws_follow_the_probabilities(shape):
    check_draws(moved(OneHotCategorical(shape))())


# --- relaxed codes ---


@relaxed
def test_evaluation_is_exact(make):
    head = moved(make((2, 3), context=2, net=small)).eval()
    plain = OneHotCategorical((2, 3), context=2, net=small)
    plain.load_state_dict(head.state_dict())
    d, expected = head(torch.ones(4, 2)), plain(torch.ones(4, 2))
    assert type(d) is OneHot
    torch.testing.assert_close(d.logits, expected.logits, rtol=0, atol=0)


def test_hard_draws_follow_the_probabilities():
    check_draws(moved(StraightThrough((3, 3)))())


def test_the_largest_of_a_relaxed_draw_follows_the_probabilities():
    """And a straight-through draw is that one, and an exact draw too."""
    logits = torch.randn(3, 4)
    draws = []
    for d in (
        RelaxedOneHot(logits, torch.tensor(0.7), 2),
        StraightThroughOneHot(logits, torch.tensor(0.7), 2),
        OneHot(logits, 2),
    ):
        torch.manual_seed(5)
        draws.append(d.sample((1000,)))
    assert torch.equal(draws[1], draws[2])
    assert torch.equal(draws[0].argmax(-1), draws[2].argmax(-1))
    assert draws[0].max() < 1


@relaxed
@pytest.mark.parametrize("temperature", [1e-3, 0.01, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("size", [0.0, 1.0, 50.0])
def test_any_temperature_is_finite(make, temperature, size):
    head = make((4, 1000), temperature=temperature)
    logits = (size * torch.randn(20, 4, 1000)).requires_grad_()
    d = head.at(logits)
    y = d.rsample()
    assert d.support.check(y).all()
    value = d.log_prob(y) + (y * torch.arange(1000)).sum((-1, -2))
    assert value.isfinite().all()
    assert torch.autograd.grad(value.sum(), logits)[0].isfinite().all()


def test_straight_through_gradients_are_those_of_the_relaxed_draw(float64):
    logits, slope = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    gradients = []
    for kind in (RelaxedOneHot, StraightThroughOneHot):
        torch.manual_seed(2)
        y = kind(logits, torch.tensor(0.4), 2).rsample()
        gradients.append(torch.autograd.grad((y * slope).sum(), logits)[0])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kind", [RelaxedOneHot, StraightThroughOneHot])
def test_bias_of_the_gradient_vanishes_with_the_temperature(kind, float64):
    """Of ``d/dlogits E f(y)`` with a quadratic f, against the sum over the codes.

    Straight through, the slopes at both ends of an edge stand for that between them: exact where f is quadratic.
    """
    logits = torch.tensor([0.5, -0.3, 0.1], requires_grad=True)
    target = torch.tensor([0.2, -0.4, 0.9])

    def f(y):
        return (y * target).sum(-1) + (y @ torch.tensor([1.0, 2.0, -1.0])) ** 2

    exact = torch.autograd.grad((logits.softmax(-1) * f(torch.eye(3))).sum(), logits)[0]
    errors, noise = [], []
    for temperature in (1.0, 0.3, 0.1, 0.03):
        torch.manual_seed(0)
        many = logits.expand(300_000, 3).detach().requires_grad_()
        y = kind(many, torch.tensor(temperature)).rsample()
        each = torch.autograd.grad(f(y).sum(), many)[0]
        errors.append((each.mean(0) - exact).norm())
        noise.append((each.var(0) / len(each)).sum().sqrt())
    assert errors[0] > 20 * noise[0]  # biased
    assert errors[-1] < 5 * noise[-1] + 0.02 * errors[0]
    if kind is RelaxedOneHot:
        assert errors[0] > 1.5 * errors[1] > 1.5 * errors[2]


def test_annealing():
    head = Concrete((2, 3), temperature=0.5)
    before = describe(head)
    head.anneal(0.05)
    assert head.temperature == 0.5
    assert head().temperature.item() == pytest.approx(0.05)
    assert describe(head) == before
    assert "current_temperature" not in head.state_dict()
    assert head.double()().rsample().dtype == torch.float64
    torch.manual_seed(0)
    assert head().rsample((100,)).max(-1).values.mean() > 0.95
    for wrong in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(pv.ConfigError, match="temperature: expected a positive number"):
            head.anneal(wrong)
        with pytest.raises(pv.ConfigError, match="temperature: expected a positive number"):
            Concrete(3, temperature=wrong)


# --- in a model ---


def tiny(posterior, prior=None, **kw):
    torch.manual_seed(0)
    vae = pv.VAE(
        prior=OneHotCategorical((2, 3)) if prior is None else prior,
        likelihood=pv.Bernoulli(4, context=(2, 3), net=small),
        posterior=posterior((2, 3), context=4, net=small, **kw),
    )
    return moved(vae)


def enumerated(vae, x):
    """ELBO and log p(x) of every row, by the sum over all codes."""
    q, p = vae.posterior.eval()(x), vae.prior()
    z = q.enumerate_support()
    joint = p.log_prob(z) + vae.likelihood(z).log_prob(x)
    log_q = q.log_prob(z)
    return (log_q.exp() * (joint - log_q)).sum(0), joint.logsumexp(0)


@every
def test_the_elbo_in_evaluation_is_the_enumerated_one(make, float64):
    vae, x = tiny(make), torch.rand(3, 4).round()
    elbo, log_p = enumerated(vae, x)
    with torch.no_grad():
        values = torch.stack([pv.log_weights(vae.eval(), x, k=500)[i] for i in range(500)])
        for _ in range(9):
            values = torch.cat([values, pv.log_weights(vae, x, k=500)])
    error = values.std(0) / len(values) ** 0.5
    assert ((values.mean(0) - elbo).abs() < 5 * error).all()
    estimate = pv.log_marginal(vae, x, k=5000)
    assert ((estimate.values - log_p).abs() < 5 * estimate.standard_errors + 1e-9).all()
    assert (elbo < log_p).all()


def test_the_straight_through_loss_is_the_enumerated_one_in_training_too(float64):
    vae, x = tiny(StraightThrough), torch.rand(3, 4).round()
    elbo, _ = enumerated(vae, x)
    with torch.no_grad():
        values = pv.log_weights(vae.train(), x, k=5000)
    assert ((values.mean(0) - elbo).abs() < 5 * values.std(0) / 5000**0.5).all()


def test_codes_of_several_variables_are_enumerated_by_pyro(float64):
    vae, x = tiny(OneHotCategorical), torch.rand(3, 4).round()
    guide = poutine.infer_config(vae.guide, lambda site: {"enumerate": "parallel"})
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(vae.model, guide, x)
    torch.testing.assert_close(-loss, enumerated(vae, x)[0].sum())


@pytest.mark.parametrize(
    ("make", "estimator"),
    [
        (Concrete, Trace_ELBO(max_plate_nesting=1)),
        (Concrete, TraceMeanField_ELBO(max_plate_nesting=1)),
        (StraightThrough, Trace_ELBO(max_plate_nesting=1)),
        (OneHotCategorical, Trace_ELBO(max_plate_nesting=1)),
    ],
)
@pytest.mark.parametrize("prior", ["fixed", "autoregressive"])
def test_codes_are_learned(make, estimator, prior):
    """Data of four patterns: from log 16 nats a row, the bound comes down towards log 4."""
    torch.manual_seed(0)
    patterns = torch.tensor([[0.0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 1], [1, 0, 1, 0]])
    x = patterns[torch.randint(4, (256,))].repeat(1, 2)
    p = OneHotCategorical((2, 3)) if prior == "fixed" else Autoregressive((2, 3), hidden=(16,))
    net = functools.partial(pv.MLP, hidden=(32,))
    vae = pv.VAE(p, pv.Bernoulli(8, context=(2, 3), net=net), make((2, 3), context=8, net=net))
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.01)
    objective = pv.ELBO(estimator=estimator)
    for _ in range(250):
        optimizer.zero_grad()
        objective(vae, x).backward()
        optimizer.step()
    with torch.no_grad():
        final = -enumerated(vae, x)[0].mean().item()
    assert final < (4.0 if make is OneHotCategorical else 2.2)


# --- autoregressive codes ---


@exact
@pytest.mark.parametrize("size", [0.0, 1.0, 20.0])
def test_autoregressive_codes_sum_to_one(size, dtype, tolerance):
    prior = moved(Autoregressive((3, 3), hidden=(16, 16)), size).to(dtype)
    d = prior()
    log_prob = d.log_prob(d.enumerate_support())
    assert log_prob.isfinite().all()
    assert abs(log_prob.double().exp().sum().item() - 1) < tolerance
    log_prob.sum().backward()
    assert all(p.grad.isfinite().all() for p in prior.parameters())


def test_autoregressive_draws_follow_it():
    torch.manual_seed(3)
    check_draws(moved(Autoregressive((3, 3), hidden=(16,)))())
    check_draws(moved(Autoregressive((3, 2), hidden=(16,), context=4))(torch.randn(4)))


@pytest.mark.parametrize("hidden", [(), (4,), (17, 9)], ids=str)
def test_variables_depend_on_those_before_and_no_others(hidden, float64):
    torch.manual_seed(1)
    prior = moved(Autoregressive((4, 3), hidden=hidden, context=2))
    y, context = torch.rand(4, 3), torch.randn(2)

    def log_probs(y, c):
        return prior(c).log_probs(y)

    by_code, by_context = torch.autograd.functional.jacobian(log_probs, (y, context))
    for i, j in itertools.product(range(4), range(4)):
        assert (by_code[i, :, j] != 0).any() == (j < i), (i, j)
    assert (by_context != 0).flatten(2).any(-1).all()


def test_autoregressive_is_the_product_of_its_conditionals(float64):
    """Built up variable by variable: the total of all codes that share a beginning."""
    d = moved(Autoregressive((3, 2), hidden=(8,)))()
    p, codes = d.log_prob(all_codes(3, 2)).exp().reshape(2, 2, 2), all_codes(3, 2).reshape(2, 2, 2, 3, 2)
    first = p.sum((1, 2))
    second = p.sum(2) / first[:, None]
    third = p / p.sum(2, keepdim=True)
    conditionals = d.log_probs(codes).exp()
    for i, j in itertools.product(range(2), range(2)):
        torch.testing.assert_close(conditionals[i, j, 0, 0], first)
        torch.testing.assert_close(conditionals[i, j, 0, 1], second[i])
        torch.testing.assert_close(conditionals[i, j, 0, 2], third[i, j])


def test_mode_of_an_autoregressive_code_is_greedy(float64):
    d = moved(Autoregressive((3, 3), hidden=(8,)))()
    code = d.mode
    p = d.log_probs(code)
    assert torch.equal(p.argmax(-1), code.argmax(-1))
    assert d.mean.isnan().all()


def test_autoregressive_learns_a_dependence():
    """Three bits with even parity, which no independent code can describe: log 4 nats."""
    torch.manual_seed(0)
    codes = all_codes(3, 2)
    even = codes[codes.argmax(-1).sum(-1) % 2 == 0]
    prior = Autoregressive((3, 2), hidden=(32,))
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.03)
    for _ in range(300):
        optimizer.zero_grad()
        loss = -prior().log_prob(even).mean()
        loss.backward()
        optimizer.step()
    assert loss.item() == pytest.approx(np.log(4), abs=0.02)
    assert (prior().sample((200,)).argmax(-1).sum(-1) % 2 == 0).float().mean() > 0.95


def test_validation_is_left_as_it_was():
    before = torch.distributions.Distribution._validate_args
    Autoregressive((2, 2), hidden=(4,))
    assert torch.distributions.Distribution._validate_args == before
    with pytest.raises(ValueError, match="support"):
        Autoregressive((2, 2), hidden=(4,))().log_prob(torch.ones(2, 2))


@pytest.mark.parametrize(
    ("shape", "hidden", "what"),
    [
        (5, (8,), r"expected \(variables, classes\)"),
        ((1, 5), (8,), r"expected \(variables, classes\)"),
        ((5, 1), (8,), r"expected \(variables, classes\)"),
        ((2, 3, 4), (8,), r"expected \(variables, classes\)"),
        ((5, 2), (8, 4), "hidden: expected widths of at least 5"),
        ((5, 2), 8, "hidden: expected a sequence of ints"),
        ((5, 2), (8.0,), "hidden: expected a sequence of ints"),
    ],
)
def test_what_cannot_be_built(shape, hidden, what):
    with pytest.raises(pv.ConfigError, match=what):
        Autoregressive(shape, hidden=hidden)
