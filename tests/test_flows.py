"""Flows against autograd, quadrature and importance identities; the prior of exemplars against its definition."""

import copy
import functools
import subprocess
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO

import pyrovae as pv
from pyrovae import flows
from pyrovae.bridge import zuko
from pyrovae.config import NAMES
from pyrovae.errors import ConfigError
from pyrovae.flows import Flow
from pyrovae.handlers import run
from pyrovae.priors import ExemplarPrior
from pyrovae.spec import build, describe

KINDS = {
    "RealNVP": flows.RealNVP,
    "NeuralSpline": flows.NeuralSpline,
    "NeuralSpline, four bins": functools.partial(flows.NeuralSpline, bins=4, bound=3.0, hidden=[8]),
    "MAF": flows.MAF,
    "IAF": flows.IAF,
    "IAF, two hidden": functools.partial(flows.IAF, hidden=[9, 7]),
    "Planar": flows.Planar,
    "Householder": flows.Householder,
    "Householder, two": functools.partial(flows.Householder, reflections=2),
    "Sylvester": flows.Sylvester,
    "Sylvester, two columns": functools.partial(flows.Sylvester, columns=2),
}
FORWARD_ONLY = ("Planar", "Sylvester")
INVERTIBLE = [name for name in KINDS if not name.startswith(FORWARD_ONLY)]
small = functools.partial(pv.MLP, hidden=(5,))
MAIN = [name for name in KINDS if "," not in name]
every = pytest.mark.parametrize("kind", KINDS)
invertible = pytest.mark.parametrize("kind", INVERTIBLE)


def shake(module, scale=0.3):
    """Away from the identity, where every map would look right."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn_like(p))
    return module


def close(a, b, atol=1e-8):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# -- maps


@every
@pytest.mark.parametrize("features", [0, 2])
@pytest.mark.parametrize("size", [2, 5])
def test_determinant_is_autograd_s(kind, features, size, float64):
    layer = shake(KINDS[kind](size, features))
    h, x = torch.randn(4, features) if features else None, 2 * torch.randn(4, size)
    f = layer(h)
    y = f(x)
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(h)(x).sum(0), x).movedim(1, 0)
    expected = torch.linalg.slogdet(jacobian)[1]
    close(f.log_abs_det_jacobian(x, y), expected)  # remembered
    close(layer(h).log_abs_det_jacobian(x, y), expected)  # computed
    assert f.event_dim == 1


@invertible
@pytest.mark.parametrize("features", [0, 2])
def test_inverse(kind, features, float64):
    layer = shake(KINDS[kind](5, features))
    h, x = torch.randn(400, features) if features else None, 2 * torch.randn(400, 5)
    y = layer(h)(x)
    assert (y - x).abs().max() > 0.1
    close(layer(h).inv(y), x, 1e-6)
    f = layer(h)
    x = f.inv(y)
    close(f.log_abs_det_jacobian(x, y), layer(h).log_abs_det_jacobian(x, y))


@pytest.mark.parametrize("kind", ["Planar", "Sylvester"])
def test_a_line_is_mapped_monotonically(kind, float64):
    """Also where raw parameters are extreme: the slope stays positive."""
    x = torch.linspace(-5, 5, 1001)[:, None]
    for scale in (1.0, 10.0, 100.0):
        y = shake(KINDS[kind](1), scale)()(x)
        assert (y.diff(dim=0) > 0).all()


@every
def test_maps_start_near_the_identity(kind):
    layer, x = KINDS[kind](4, 3), torch.randn(50, 4)
    y = layer(torch.randn(50, 3))(x)
    close(y.norm(dim=-1), x.norm(dim=-1), 0.3)
    if not kind.startswith("Householder"):
        close(y, x, 0.3)


@pytest.mark.parametrize(("kind", "forwards", "backwards"), [(flows.IAF, 1, 5), (flows.MAF, 5, 1)])
def test_passes_of_the_masked_network(kind, forwards, backwards):
    """IAF draws in one pass and inverts in as many as there are elements; MAF the other way round."""
    layer, calls = kind(5), []
    layer.network.register_forward_hook(lambda *_: calls.append(1))
    for call, expected in ((layer(), forwards), (layer().inv, backwards)):
        x = torch.randn(3, 5)
        call.log_abs_det_jacobian(x, call(x))
        assert len(calls) == expected
        calls.clear()


def test_half_of_the_elements_of_a_coupling_stay():
    x = torch.randn(6, 5)
    for kind in (flows.RealNVP, flows.NeuralSpline):
        y = shake(kind(5))()(x)
        assert torch.equal(y[:, :2], x[:, :2])
        assert (y[:, 2:] != x[:, 2:]).any(0).all()


def test_sylvester_has_orthonormal_columns(float64):
    f = shake(flows.Sylvester(5, columns=3))()
    rows = torch.stack([f.house(e) for e in torch.eye(5)], -1)[:3]
    close(rows @ rows.T, torch.eye(3), 1e-12)
    for matrix in (f.r, f.s):
        assert torch.equal(matrix, matrix.triu())
        assert matrix.triu(1).any()


# -- densities


def make(kind, size=2, context=3, **options):
    return shake(Flow(size, context=context, net=small, transform=KINDS[kind], **options), 0.15)


@invertible
@pytest.mark.parametrize("context", [None, 3])
def test_density_integrates_to_one(kind, context, float64):
    flow = make(kind, context=context, layers=2, base=functools.partial(pv.Normal, scale=0.7))
    t = torch.linspace(-10, 10, 501)
    points = torch.cartesian_prod(t, t)
    with torch.no_grad():
        density = flow(torch.randn(3)).log_prob(points).exp().reshape(501, 501)
    assert torch.trapezoid(torch.trapezoid(density, t), t).item() == pytest.approx(1, abs=1e-3)


@every
def test_draws_have_the_density(kind, float64):
    """``E_q r(z) / q(z) = 1`` for a density r narrower than q."""
    d = make(kind, layers=3)(torch.randn(3))
    with torch.no_grad():
        z = d.rsample((100_000,))
        centre = z.mean(0)
        ratio = (dist.Normal(centre, 0.4 * z.std(0)).to_event(1).log_prob(z) - d.log_prob(z)).exp()
    z_score = (ratio.mean() - 1) / (ratio.std() / len(ratio) ** 0.5)
    assert z_score.abs() < 5
    assert ratio.std() < 20


@invertible
def test_a_draw_and_its_copy_score_alike(kind, float64):
    d = make(kind, 5)(torch.randn(4, 3))
    z = d.rsample((6,))
    close(d.log_prob(z), d.log_prob(z.clone()))
    close(d.expand((6, 4)).log_prob(z), d.log_prob(z))


@pytest.mark.parametrize("kind", ["Planar", "Sylvester"])
def test_without_an_inverse_there_is_no_prior(kind):
    d = make(kind)(torch.randn(4, 3))
    z = d.rsample()
    d.log_prob(z)
    d.expand((4,)).log_prob(z)
    with pytest.raises(ConfigError, match=f"{kind} has no inverse in closed form: a flow of it can be a posterior, "):
        d.log_prob(z.clone())
    with torch.no_grad():
        d.log_prob(d.sample())
    z = d.sample()
    with pytest.raises(ConfigError, match="no inverse"):
        d.log_prob(z)  # its gradient would be another one
    vae = pv.VAE(Flow(2, transform=KINDS[kind]), pv.Bernoulli(6, context=2), pv.Normal(2, context=6))
    with pytest.raises(ConfigError, match="take RealNVP, MAF or NeuralSpline"):
        pv.fit(vae, torch.ones(8, 6), epochs=1)


@invertible
def test_a_draw_without_gradients_is_scored_with_the_right_ones(kind, float64):
    """What a transform remembers of the draw is a constant, but the inverse at a fixed point is not."""
    flow, c = make(kind, 3), torch.randn(4, 3)
    parameters = list(flow.parameters())
    d = flow(c)
    z = d.sample()
    gradients = [
        torch.autograd.grad(p.log_prob(v).sum(), parameters, allow_unused=True) for p, v in ((d, z), (flow(c), z))
    ]
    assert any(g is not None and g.any() for g in gradients[0])
    torch.testing.assert_close(gradients[0], gradients[1])


@every
@pytest.mark.parametrize("context", [None, 3])
def test_every_parameter_gets_a_gradient(kind, context):
    flow = make(kind, 4, context, base=functools.partial(pv.StudentT, scale=pv.LearnedScale))
    d = flow(torch.randn(8, 3))
    z = d.rsample() if context else d.rsample((8,))
    (d.log_prob(z) + z.sin().sum(-1)).sum().backward()
    for name, p in flow.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.any(), name
    assert not any("source.network" in name for name, _ in flow.named_parameters())


@every
def test_gradients_are_finite_differences(kind, float64):
    flow = make(kind, 3, layers=2)

    def draw_and_density(raw):
        torch.manual_seed(0)
        d = flow.at(raw)
        z = d.rsample()
        return z, d.log_prob(z)

    raw = flow.params(torch.randn(2, 3)).detach().requires_grad_()
    assert torch.autograd.gradcheck(draw_and_density, [raw])


@every
@pytest.mark.parametrize("size", [2, 7])
def test_extreme_outputs_in_float32(kind, size):
    flow = Flow(size, context=3, transform=KINDS[kind])
    raw = torch.cat([torch.randint(0, 2, (50, sum(flow._sizes))) * 100.0 - 50, 50 * torch.randn(50, sum(flow._sizes))])
    raw.requires_grad_()
    d = flow.at(raw)
    z = d.rsample()
    log_prob = d.log_prob(z)
    gradients = torch.autograd.grad((log_prob + z.sum(-1)).sum(), [raw, *flow.transforms.parameters()])
    assert all(t.isfinite().all() for t in (z, log_prob, *gradients))
    if kind in INVERTIBLE:
        d = flow.at(raw)
        log_prob = d.log_prob(3 * torch.randn(100, size))
        assert log_prob.isfinite().all()
        assert torch.autograd.grad(log_prob.sum(), [raw])[0].isfinite().all()


# -- a head like the others


@every
@pytest.mark.parametrize("batch", [(), (4,), (3, 4)])
def test_shapes(kind, batch, float64):
    flow, c = make(kind, 3), torch.randn(*batch, 3)
    d = flow(c)
    assert (d.batch_shape, d.event_shape) == (batch, (3,))
    assert d.support.event_dim == 1
    assert d.has_rsample
    assert d.mean.shape == (*batch, 3)
    z = d.rsample((2,))
    assert z.shape == (2, *batch, 3)
    assert d.log_prob(z).shape == (2, *batch)
    assert d.expand((5, *batch)).rsample().shape == (5, *batch, 3)


@every
def test_leading_dimensions_agree(kind, float64):
    """Particles (k, n) and a context (n,) give what each row gives alone, on the same noise."""
    flow, c = make(kind, 3), torch.randn(4, 3)
    d = flow(c).expand((6, 4))
    u = d.base_dist.rsample()
    z = functools.reduce(lambda x, f: f(x), d.transforms, u)
    density = d.log_prob(z)
    for k, n in ((0, 0), (5, 3), (2, 1)):
        row = flow(c[n])
        alone = functools.reduce(lambda x, f: f(x), row.transforms, u[k, n])
        close(z[k, n], alone)
        close(density[k, n], row.log_prob(alone))


@every
def test_the_centre_forgets_no_draw(kind):
    d = make(kind, 3)(torch.randn(4, 3))
    z = d.rsample()
    expected = d.log_prob(z)
    centre = d.mean
    assert torch.equal(d.log_prob(z), expected)
    base = functools.reduce(lambda x, f: f(x), d._build(), d.base_dist.mean)
    assert torch.equal(centre, base)


@every
@pytest.mark.parametrize("context", [None, 3])
def test_state_and_description_round_trip(kind, context):
    flow = make(kind, 4, context, base=functools.partial(pv.StudentT, df=4.0), layers=3)
    names = NAMES | {n: getattr(flows, n) for n in flows.__all__}
    table = describe(flow)
    again = build(table, names)
    assert describe(again) == table
    again.load_state_dict(flow.state_dict())
    c = torch.randn(5, 3)
    draws = []
    for part in (flow, again, copy.deepcopy(flow)):
        torch.manual_seed(0)
        draws.append(part(c).rsample())
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])


def vae_with(kind, role="posterior"):
    flow = functools.partial(Flow, 2, transform=KINDS[kind], layers=2)
    prior = flow() if role == "prior" else pv.StandardNormal(2)
    posterior = flow(context=6) if role == "posterior" else pv.Normal(2, context=6)
    return pv.VAE(prior=prior, likelihood=pv.Bernoulli(6, context=2), posterior=posterior)


@pytest.mark.parametrize(
    ("kind", "role"), [*((k, "posterior") for k in MAIN), *((k, "prior") for k in MAIN if k in INVERTIBLE)], ids=str
)
def test_captured_training_is_eager_training(kind, role):
    """Bit for bit, and that nothing falls back to eager: a warning of it would be an error."""
    results = []
    for level in ("eager", "replay"):
        torch.manual_seed(0)
        vae = vae_with(kind, role)
        before = copy.deepcopy(vae.state_dict())
        x = (torch.rand(24, 6) > 0.5).float()
        loss = pv.fit(vae, x, epochs=1, batch_size=8, compile=level, seed=0)["loss"]
        results.append((loss, vae.state_dict()))
        assert not [n for n, p in vae.named_parameters() if torch.equal(p, before[n])]
    assert results[0][0] == results[1][0]  # of three steps
    assert all(torch.equal(a, b) for a, b in zip(results[0][1].values(), results[1][1].values(), strict=True))


@every
def test_replay_and_particles(kind, float64):
    vae, x = vae_with(kind), (torch.rand(4, 6) > 0.5).double()
    model, guide = run(vae, x, particles=5)
    assert model.nodes["z"]["value"] is guide.nodes["z"]["value"]
    guide.compute_log_prob()
    assert guide.nodes["z"]["log_prob"].shape == (5, 4)
    assert pv.log_marginal(vae, x, k=20).values.shape == (4,)
    assert pv.active_units(vae, x).variances.shape == (2,)
    assert vae.reconstruct(x).shape == (4, 6)
    vectorised = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), vectorised).step(x)


@invertible
def test_priors_under_handlers(kind):
    prior = Flow(3, transform=KINDS[kind])

    def program():
        with pyro.plate("particles", 5, dim=-2), pyro.plate("batch", 4, dim=-1):
            return pyro.sample("z", prior())

    trace = poutine.trace(program).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["z"]["log_prob"].shape == (5, 4)
    seen = poutine.trace(poutine.condition(program, {"z": torch.randn(5, 4, 3)})).get_trace()
    seen.compute_log_prob()
    assert seen.nodes["z"]["log_prob"].shape == (5, 4)


def test_vamp_prior_of_a_flow(float64):
    q = make("RealNVP", context=6)
    u, z = torch.rand(5, 6), torch.randn(7, 2)
    expected = torch.stack([q(row).log_prob(z) for row in u]).logsumexp(0) - torch.tensor(5.0).log()
    close(pv.VampPrior(q, u)().log_prob(z), expected)


def test_more_layers_and_order():
    """Between layers that treat elements unlike, the order is reversed; between others nothing is."""
    for kind, count in (("RealNVP", 5), ("MAF", 5), ("Planar", 3), ("Householder", 3), ("Sylvester", 3)):
        assert len(Flow(4, transform=KINDS[kind], layers=3)().transforms) == count


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Flow((2, 3)), "a flow is over vectors"),
        (lambda: Flow(1), "RealNVP needs vectors of size 2 or more, received 1"),
        (lambda: Flow(1, transform=flows.IAF), "IAF needs vectors of size 2"),
        (lambda: Flow(4, layers=0), "layers: expected a positive int"),
        (lambda: Flow(4, features=3), "features: expected none without a context"),
        (lambda: Flow(4, context=2, features=-1), "features: expected an int from 0"),
        (lambda: Flow(4, base=pv.Bernoulli), "base: expected a head of real vectors"),
        (lambda: Flow(4, base=lambda *_, **__: pv.StandardNormal(4)), "base: expected a head"),
        (lambda: Flow(4, transform=functools.partial(flows.MAF, hidden=[3])), "at least the vector's size 4"),
        (lambda: Flow(4, transform=functools.partial(flows.Sylvester, columns=5)), "columns: expected an int from 1"),
        (lambda: Flow(4, transform=functools.partial(flows.Householder, reflections=0)), "reflections"),
        (lambda: Flow(4, transform=functools.partial(flows.NeuralSpline, bins=1)), "bins"),
        (lambda: Flow(4, transform=functools.partial(flows.NeuralSpline, bound=0.0)), "bound"),
    ],
)
def test_refusals(call, said):
    with pytest.raises(ConfigError, match=said):
        call()


def test_features_are_optional():
    alone = Flow(3, context=5, features=0)
    assert alone(torch.randn(4, 5)).rsample().shape == (4, 3)
    assert alone.params(torch.randn(4, 5)).shape == (4, 6)
    assert Flow(3, context=5).params(torch.randn(4, 5)).shape == (4, 12)


# -- zuko

PROBE = """
import sys, warnings
warnings.simplefilter("error")
import pyro, torch
from torch.distributions import Distribution
pyro.enable_validation({on})
def switches():
    return (
        Distribution._validate_args, pyro.distributions.is_validation_enabled(),
        pyro.poutine.util.is_validation_enabled(),
        pyro.infer.util.is_validation_enabled(), torch.distributions.Normal._validate_args,
        pyro.distributions.Normal._validate_args, dict(vars(Distribution)),
        torch.distributions.transforms._InverseTransform.__name__, torch.get_rng_state().tolist(),
    )
before = switches()
from pyrovae.flows import Flow, NeuralSpline
Flow(2)().rsample()
assert "zuko" not in sys.modules
torch.set_rng_state(torch.tensor(before[-1], dtype=torch.uint8))
from pyrovae.bridge import zuko
package = zuko()
assert switches() == before
assert package is zuko() is sys.modules["zuko"]
package.distributions.Truncated(torch.distributions.Normal(0.0, 1.0), torch.tensor(-1.0), torch.tensor(1.0)).sample()
package.flows.MAF(3)().sample()
try:
    pyro.distributions.Normal(0.0, -1.0)
except ValueError:
    print("checked")
else:
    print("unchecked")
"""


@pytest.mark.parametrize(("on", "said"), [(True, "checked"), (False, "unchecked")])
def test_zuko_changes_no_switch(on, said):
    command = [sys.executable, "-c", PROBE.format(on=on)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == said


def test_splines_are_zuko_s(float64):
    f, x = shake(flows.NeuralSpline(2))(), torch.randn(6, 2)
    spline = f.given(x[:, :1])
    assert isinstance(spline, zuko().transforms.MonotonicRQSTransform)
    close(f(x)[:, 1:], spline(x[:, 1:]))


# -- the posterior at rows of the data


def exemplar(**options):
    q = pv.Normal(2, context=4, net=small)
    return q, ExemplarPrior(q, torch.arange(40.0).reshape(10, 4) / 40, **options)


def test_exemplars_are_averaged(float64):
    q, prior = exemplar()
    rows, z = torch.arange(40.0).reshape(10, 4) / 40, torch.randn(7, 2)
    expected = torch.stack([q(r).log_prob(z) for r in rows]).logsumexp(0) - torch.tensor(10.0).log()
    close(prior().log_prob(z), expected)
    assert "inputs" in prior.state_dict()
    assert not any("inputs" in name for name, _ in prior.named_parameters())
    assert any("inputs" in name for name, _ in exemplar(learn=True)[1].named_parameters())


@pytest.mark.parametrize(("k", "rows"), [(1, [0]), (2, [0, 5]), (3, [0, 3, 6]), (10, list(range(10)))])
def test_exemplars_are_spread_over_the_data(k, rows):
    assert (exemplar(components=k)[1].inputs[:, 0] * 10).round().int().tolist() == rows


def test_a_subset_while_training(float64):
    q, prior = exemplar(subset=3)
    z = torch.randn(2)
    each = q(prior.inputs).log_prob(z)
    whole = each.logsumexp(0) - torch.tensor(10.0).log()
    draws = torch.stack([prior.train()().log_prob(z) for _ in range(4000)])
    assert draws.unique().numel() > 50
    density = draws.exp()
    assert ((density.mean() - whole.exp()) / (density.std() / 4000**0.5)).abs() < 5  # unbiased in p(z)
    assert draws.mean() < whole
    close(prior.eval()().log_prob(z), whole)
    trios = {
        round((each[list(t)].logsumexp(0) - torch.tensor(3.0).log()).item(), 9)
        for t in torch.combinations(torch.arange(10), 3).tolist()
    }
    assert {round(v, 9) for v in draws.tolist()} <= trios  # without replacement


def test_a_subset_is_captured():
    losses = []
    for level in ("eager", "replay"):
        torch.manual_seed(0)
        q = pv.Normal(2, context=6)
        x = (torch.rand(32, 6) > 0.5).float()
        vae = pv.VAE(ExemplarPrior(q, x, subset=5), pv.Bernoulli(6, context=2), q)
        losses.append(pv.fit(vae, x, epochs=3, batch_size=8, compile=level, seed=0)["loss"])
    assert losses[0] == losses[1]


def test_exemplars_come_back_from_a_file(tmp_path):
    q = pv.Normal(2, context=4)
    vae = pv.VAE(ExemplarPrior(q, torch.rand(30, 4), components=7, subset=2), pv.Bernoulli(4, context=2), q)
    table = describe(vae)
    assert (table["prior"]["components"], table["prior"]["subset"]) == (7, 2)
    again = build(table, NAMES | {"ExemplarPrior": ExemplarPrior})
    assert again.prior.posterior is again.posterior
    assert not again.prior.inputs.any()
    again.load_state_dict(vae.state_dict())
    assert torch.equal(again.prior.inputs, vae.prior.inputs)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"inputs": torch.rand(3, 4), "components": 5}, "as many components as rows, received 5 for 3"),
        ({"inputs": torch.rand(0, 4)}, r"expected shape \(rows, 4\), received \(0, 4\)"),
        ({"inputs": torch.rand(3, 5)}, r"expected shape \(rows, 4\), received \(3, 5\)"),
        ({}, "received neither"),
        ({"components": 0}, "components: expected a positive int"),
        ({"components": 3, "subset": 4}, "subset: expected at most the 3 components, received 4"),
        ({"components": 3, "subset": 0}, "subset: expected a positive int"),
    ],
)
def test_exemplar_refusals(arguments, said):
    with pytest.raises(ConfigError, match=said):
        ExemplarPrior(pv.Normal(2, context=4), **arguments)


def test_exemplars_need_a_posterior_of_x_alone():
    with pytest.raises(ConfigError, match="ExemplarPrior: expected a posterior given x alone"):
        ExemplarPrior(pv.Normal(2, context=[(4,), (3,)]), torch.rand(3, 4))


@pytest.mark.parametrize("prior", [pv.VampPrior, ExemplarPrior])
def test_aggregates_need_the_guides_part(prior):
    with pytest.raises(
        ConfigError, match=r"expected the guide's part, such as pv.Normal\(16, context=784\), received 2"
    ):
        prior(2, torch.rand(3, 4))
