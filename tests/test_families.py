"""Where scales come from, what the optimal one does, and the words of a head that cannot be built."""

import functools
import math

import pytest
import torch
from torch import nn

import pyrovae as pv

HEADS = {"Normal": pv.Normal, "Laplace": pv.Laplace, "StudentT": functools.partial(pv.StudentT, df=5.0)}
TRAINED = {"network": pv.NetworkScale, "learned": pv.LearnedScale, "shared": pv.SharedScale}
every_head = pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)


def scale_of(head, context):
    return head(context).base_dist.scale


@every_head
def test_network_scale(make):
    head = make(3, context=2, net=nn.Linear)
    context = torch.randn(5, 2)
    out = context @ head.network.weight.T + head.network.bias
    assert out.shape == (5, 6)
    d = head(context).base_dist
    torch.testing.assert_close(d.loc, out[:, :3])
    torch.testing.assert_close(d.scale, torch.exp(10 * torch.tanh(out[:, 3:] / 10)))
    assert not torch.equal(d.scale[0], d.scale[1])


@every_head
@pytest.mark.parametrize("scale", [pv.LearnedScale, pv.SharedScale])
def test_scale_that_is_a_parameter(make, scale):
    head = make((2, 3), context=2, scale=scale)
    assert head.scale_source.raw.shape == ((2, 3) if scale is pv.LearnedScale else ())
    context = torch.randn(5, 2)
    torch.testing.assert_close(scale_of(head, context), torch.ones(5, 2, 3))
    with torch.no_grad():
        head.scale_source.raw.copy_(torch.full_like(head.scale_source.raw, -1.0))
    expected = math.exp(10 * math.tanh(-0.1))
    torch.testing.assert_close(scale_of(head, torch.randn(4, 2)), torch.full((4, 2, 3), expected))


@every_head
@pytest.mark.parametrize("scale", [0.1, 2, pv.FixedScale, functools.partial(pv.FixedScale, value=0.25)])
def test_fixed_scale(make, scale):
    head = make(3, context=2, scale=scale)
    expected = 1.0 if scale is pv.FixedScale else scale if isinstance(scale, (int, float)) else 0.25
    torch.testing.assert_close(scale_of(head, torch.randn(5, 2)), torch.full((5, 3), float(expected)))
    assert not list(head.scale_source.parameters())
    assert not head.scale_source.state_dict()
    assert head.double()(torch.zeros(1, 2).double()).log_prob(torch.zeros(1, 3)).dtype == torch.float64


@pytest.mark.parametrize("scale", [pv.LearnedScale, pv.SharedScale])
@pytest.mark.parametrize("initial", [1e-3, 0.01, 0.1, 0.5, 1, 7.0, 100.0])
def test_initial_scale_is_the_value_before_training(scale, initial):
    part = scale(2, initial=initial)
    torch.testing.assert_close(part(), torch.full_like(part(), float(initial)), rtol=1e-5, atol=0)


@every_head
@pytest.mark.parametrize("scale", TRAINED.values(), ids=TRAINED)
def test_gradient_of_the_scale(make, scale, float64):
    """By finite differences of the summed log density, through every parameter of the head."""
    head = make(3, context=2, net=nn.Linear, scale=scale)
    context, x = torch.randn(5, 2), torch.randn(5, 3)
    parameters = list(head.parameters())
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(head(context).log_prob(x).sum(), parameters)])
    start = nn.utils.parameters_to_vector(parameters).detach()
    for i in range(len(start)):
        values = []
        for sign in (1, -1):
            moved = start.clone()
            moved[i] += sign * 1e-6
            nn.utils.vector_to_parameters(moved, parameters)
            values.append(head(context).log_prob(x).sum().item())
        assert gradient[i].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5, abs=1e-5)
    assert all(p.grad_fn is None for p in parameters)


@every_head
@pytest.mark.parametrize("extreme", [-1e6, -200.0, 200.0, 1e6])
def test_scale_is_bounded(make, extreme):
    head = make(1, context=1, net=nn.Linear)
    with torch.no_grad():
        head.network.bias.copy_(torch.tensor([0.0, extreme]))
    scale = scale_of(head, torch.zeros(1, 1))
    assert math.exp(-10.01) < scale.item() < math.exp(10.01)
    head(torch.zeros(1, 1)).log_prob(torch.ones(1, 1)).sum().backward()
    assert head.network.bias.grad.isfinite().all()


def test_learned_degrees_of_freedom():
    head = pv.StudentT(3, context=2)
    df = head(torch.zeros(4, 2)).base_dist.df
    assert (df > 2).all()
    torch.testing.assert_close(df, torch.full_like(df, 2 + math.log1p(math.exp(3.0))))
    with torch.no_grad():
        head.raw_df.fill_(-200.0)
    d = head(torch.zeros(4, 2))
    assert (d.base_dist.df >= 2).all()
    d.log_prob(torch.ones(4, 3)).sum().backward()
    assert head.raw_df.grad.isfinite()
    assert not any(n == "raw_df" for n, _ in pv.StudentT(3, df=4.0).named_parameters())


# --- the optimal scale ---


def best_log_likelihood(x, loc):
    return -x.numel() / 2 * (math.log(2 * math.pi * ((x - loc) ** 2).mean().item()) + 1)


def test_optimal_scale_in_training(float64):
    head = pv.Normal(4, context=2, scale=pv.OptimalScale)
    context, x = torch.randn(6, 2), 3 * torch.randn(6, 4)
    loc = head(context).mean
    log_prob = head(context).log_prob(x)
    assert log_prob.shape == (6,)
    assert log_prob.sum().item() == pytest.approx(best_log_likelihood(x, loc), abs=1e-9)
    particles = head(context.expand(3, 6, 2)).log_prob(x)
    assert particles.shape == (3, 6)
    assert particles.sum().item() == pytest.approx(3 * log_prob.sum().item(), abs=1e-9)


def test_optimal_scale_keeps_a_running_average(float64):
    head = pv.Normal(4, context=2, scale=functools.partial(pv.OptimalScale, momentum=0.25))
    source, context, expected = head.scale_source, torch.randn(6, 2), 0.0
    for n in range(1, 9):
        x = n * torch.randn(6, 4)
        head(context).log_prob(x)
        batch = ((x - head(context).mean) ** 2).mean().item()
        share = max(1 / n, 0.25)
        expected = (1 - share) * expected + share * batch
        assert source.variance.item() == pytest.approx(expected)
    head.eval()
    d = head(context)
    torch.testing.assert_close(d.base_dist.scale, torch.full((6, 4), math.sqrt(expected)))
    state = {k: v.clone() for k, v in head.state_dict().items()}
    whole = d.log_prob(x)
    torch.testing.assert_close(whole[:2], head(context[:2]).log_prob(x[:2]))  # in evaluation rows do not see each other
    torch.testing.assert_close(whole, torch.distributions.Normal(d.mean, math.sqrt(expected)).log_prob(x).sum(-1))
    assert all(torch.equal(state[k], v) for k, v in head.state_dict().items())  # and nothing is learned there
    assert {"scale_source.variance", "scale_source.seen"} <= set(state)
    head.train()
    torch.testing.assert_close(head(context).base_dist.scale, torch.full((6, 4), math.sqrt(expected)))  # of draws


def test_optimal_scale_trains(float64):
    """On a linear model it lands where a learned scale lands: the noise of the data."""
    x = torch.randn(400, 2) @ torch.randn(2, 6) + 0.3 * torch.randn(400, 6)
    vae = pv.VAE(
        pv.StandardNormal(2),
        pv.Normal(6, context=2, net=nn.Linear, scale=functools.partial(pv.OptimalScale, momentum=0.05)),
        pv.Normal(2, context=6, net=nn.Linear),
    )
    pv.fit(
        vae,
        x,
        optimizer=functools.partial(torch.optim.Adam, lr=0.03),
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR,
        epochs=100,
        batch_size=100,
    )
    assert vae.likelihood.scale_source.seen == 400
    assert vae.decode(torch.zeros(1, 2)).base_dist.scale[0, 0].item() == pytest.approx(0.3, rel=0.1)


@pytest.mark.parametrize("make", [pv.Laplace, pv.StudentT])
def test_optimal_scale_is_for_normal_alone(make):
    head = make(3, context=2, scale=pv.OptimalScale)
    with pytest.raises(pv.ConfigError, match="OptimalScale"):
        head(torch.zeros(1, 2))


# --- what cannot be built ---


@every_head
@pytest.mark.parametrize("value", [0, 0.0, -1.0, math.inf, math.nan])
def test_impossible_scales_are_refused(make, value):
    with pytest.raises(pv.ConfigError, match=r"scale: expected a positive number, received"):
        make(3, context=2, scale=value)
    for source in (pv.LearnedScale, pv.SharedScale):
        with pytest.raises(pv.ConfigError, match=r"initial: expected a positive number, received"):
            make(3, context=2, scale=functools.partial(source, initial=value))


@pytest.mark.parametrize("df", [0, -1.0, math.nan, math.inf])
def test_impossible_degrees_of_freedom_are_refused(df):
    with pytest.raises(pv.ConfigError, match="df: expected a positive number"):
        pv.StudentT(3, df=df)


@pytest.mark.parametrize("classes", [-1, 0, 1])
def test_impossible_classes_are_refused(classes):
    with pytest.raises(pv.ConfigError, match="classes: expected at least 2"):
        pv.Categorical(3, classes=classes)


def test_network_that_is_built_already():
    for net in (nn.Linear(2, 6), pv.MLP(2, 6)):
        with pytest.raises(pv.ConfigError, match=rf"net: expected a function.*{type(net).__name__} that is built"):
            pv.Normal(3, context=2, net=net)


@pytest.mark.parametrize("shape", [0, -1, (), (3, 0), (2, -1), 1.5, "3", None, (2.0,), True])
def test_impossible_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="expected a positive int or a tuple of them"):
        pv.Normal(shape, context=2)
    if shape is not None and shape != ():
        with pytest.raises(ValueError, match="expected"):
            pv.Normal(3, context=shape)


def test_wrong_contexts_name_what_was_expected():
    one, two = pv.Normal(3, context=2), pv.Normal(3, context=[(2,), (4,)])
    with pytest.raises(ValueError, match=r"context 0: expected shape \(\*batch, 2\), received \(5, 7\)"):
        one(torch.zeros(5, 7))
    with pytest.raises(ValueError, match="expected 1 contexts, received 2"):
        one(torch.zeros(5, 2), torch.zeros(5, 2))
    with pytest.raises(ValueError, match="expected 1 contexts, received 0"):
        one(None)
    with pytest.raises(ValueError, match="expected 2 contexts, received 1"):
        two(torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"context 1: expected shape \(\*batch, 4\), received \(5, 3\)"):
        two(torch.zeros(5, 2), torch.zeros(5, 3))
    assert two(torch.zeros(5, 2), torch.zeros(6, 5, 4)).batch_shape == (6, 5)
    assert one(torch.zeros(5, 2), None).batch_shape == (5,)  # an absent context is left out


def test_swapping_the_family_resizes_the_network():
    outputs = {
        pv.Normal: 6,
        pv.Laplace: 6,
        pv.StudentT: 6,
        pv.Bernoulli: 3,
        pv.ContinuousBernoulli: 3,
        functools.partial(pv.Categorical, classes=5): 15,
        functools.partial(pv.Normal, scale=0.1): 3,
        functools.partial(pv.Normal, scale=pv.SharedScale): 3,
    }
    for make, size in outputs.items():
        assert make(3, context=2, net=nn.Linear).network.out_features == size
