"""What every part promises, over one table. A new exported part that is missing from the table fails the suite."""

import copy
import functools
import inspect
import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, TraceMeanField_ELBO

import pyrovae as pv
from pyrovae.config import NAMES
from pyrovae.nn import batched
from pyrovae.spec import build, describe

# name -> constructor (shape, context): context None makes a learned prior
HEADS = {
    "Normal": pv.Normal,
    "Normal, learned scale": functools.partial(pv.Normal, scale=pv.LearnedScale),
    "Normal, shared scale": functools.partial(pv.Normal, scale=pv.SharedScale),
    "Normal, optimal scale": functools.partial(pv.Normal, scale=pv.OptimalScale),
    "Normal, fixed scale": functools.partial(pv.Normal, scale=0.5),
    "Laplace": pv.Laplace,
    "Laplace, shared scale": functools.partial(pv.Laplace, scale=pv.SharedScale),
    "StudentT": pv.StudentT,
    "StudentT, fixed df": functools.partial(pv.StudentT, df=5.0, scale=functools.partial(pv.LearnedScale, initial=0.5)),
    "Bernoulli": pv.Bernoulli,
    "ContinuousBernoulli": pv.ContinuousBernoulli,
    "Categorical": functools.partial(pv.Categorical, classes=3),
    "Ordinal": functools.partial(pv.Ordinal, classes=3),
    "Beta": pv.Beta,
    "Kumaraswamy": pv.Kumaraswamy,
    "Gamma": pv.Gamma,
    "LogNormal": pv.LogNormal,
    "VonMises": pv.VonMises,
    "Poisson": pv.Poisson,
    "NegativeBinomial": pv.NegativeBinomial,
    "ZeroInflatedNegativeBinomial": pv.ZeroInflatedNegativeBinomial,
    "DiscretizedLogistic": functools.partial(pv.DiscretizedLogistic, levels=8),
    "DiscretizedLogisticMixture": functools.partial(pv.DiscretizedLogisticMixture, components=2, levels=8),
    "CategoricalLevels": functools.partial(pv.CategoricalLevels, levels=8),
}
# events are vectors
VECTORS = {
    f"Flow, {kind.__name__}": functools.partial(pv.Flow, transform=kind, layers=2)
    for kind in (pv.RealNVP, pv.MAF, pv.IAF, pv.NeuralSpline, pv.Planar, pv.Householder, pv.Sylvester)
} | {
    "Flow, StudentT": functools.partial(pv.Flow, base=pv.StudentT, layers=1),
    "FullNormal": pv.FullNormal,
    "LowRankNormal": functools.partial(pv.LowRankNormal, rank=2),
    "Dirichlet": pv.Dirichlet,
    "LogisticNormal": pv.LogisticNormal,
    "VonMisesFisher": pv.VonMisesFisher,
    "PowerSpherical": pv.PowerSpherical,
    "Multinomial": functools.partial(pv.Multinomial, total=7),
    "OneHotCategorical": pv.OneHotCategorical,
    "Concrete": pv.Concrete,
    "StraightThrough": functools.partial(pv.StraightThrough, temperature=1.0),
    "Delta": pv.Delta,
}
WITHOUT_INVERSE = ("Flow, Planar", "Flow, Sylvester")  # they score their own draws alone
PRIORS = {
    "StandardNormal": lambda shape: pv.StandardNormal(shape),
    "Mixture": lambda shape: pv.Mixture(shape, components=3),
    "VampPrior": lambda shape: pv.VampPrior(pv.Normal(shape, context=6), torch.rand(5, 6)),
    "VampPrior, as given": lambda shape: pv.VampPrior(pv.Laplace(shape, context=6), torch.rand(5, 6), learn=False),
    "VampPrior, bounded": lambda shape: pv.VampPrior(pv.Normal(shape, context=6), components=4, bounds=(0.0, 1.0)),
    "ExemplarPrior": lambda shape: pv.ExemplarPrior(pv.Normal(shape, context=6), torch.rand(5, 6)),
    "ExemplarPrior, learned": lambda shape: pv.ExemplarPrior(pv.Normal(shape, context=6), torch.rand(5, 6), learn=True),
    "ExemplarPrior, a part": lambda shape: pv.ExemplarPrior(pv.Normal(shape, context=6), torch.rand(5, 6), subset=3),
    "Normal": lambda shape: pv.Normal(shape),
    "Laplace": lambda shape: pv.Laplace(shape),
    "StudentT": lambda shape: pv.StudentT(shape),
}
# without context: of vectors of that size, or of as many variables
SIZED = {
    "SphereUniform": pv.SphereUniform,
    "Autoregressive": lambda size: pv.Autoregressive((size, 4), hidden=(8,)),
    "Columns": lambda size: pv.Columns({f"column {i}": pv.Laplace for i in range(size)}),
    "Masked": lambda size: pv.Masked(pv.Normal(size)),
    "Text": lambda size: pv.Text(size, net=functools.partial(pv.GRUDecoder, hidden=5), vocabulary=3),
}
REAL = ("Normal", "Laplace", "StudentT")
# torch's Linear is a network too: a linear VAE
NETWORKS = {"MLP": pv.MLP, "GatedMLP": pv.GatedMLP, "ConvNet": pv.ConvNet, "ResNet": pv.ResNet}
SEQUENCES = {"GRUDecoder", "GRUEncoder"}  # of strings alone: tests/test_text.py
small = functools.partial(pv.MLP, hidden=(5,))


def test_the_table_holds_every_exported_part():
    parts = {name for name in pv.__all__ if inspect.isclass(getattr(pv, name))}
    conditionals = {
        n for n in parts if issubclass(getattr(pv, n), pv.Conditional) and not inspect.isabstract(getattr(pv, n))
    }
    assert conditionals == {n.split(",")[0] for n in (*HEADS, *VECTORS, *PRIORS, *SIZED)}
    assert {n for n in parts if getattr(pv, n).__module__.startswith("pyrovae.nn")} == set(NETWORKS) | SEQUENCES
    scales = {n for n in parts if issubclass(getattr(pv, n), pv.Scale) and not inspect.isabstract(getattr(pv, n))}
    assert scales == {n for n in NAMES if n.endswith("Scale")}


PARTS = HEADS | VECTORS | {f"{n} (prior)": p for n, p in (PRIORS | SIZED).items()}


def new(make, size):
    """A part of that size: a head is given a context."""
    return make(size) if make in (*PRIORS.values(), *SIZED.values()) else make(size, context=2, net=small)


def every(table):
    return pytest.mark.parametrize("make", list(table.values()), ids=list(table))


def check_distribution(d, batch, shape):
    assert d.event_shape == torch.Size(shape)
    assert d.batch_shape == torch.Size(batch)
    value = d.rsample() if d.has_rsample else d.sample()
    assert value.shape == torch.Size([*batch, *shape])
    assert d.log_prob(value).shape == torch.Size(batch)
    assert d.log_prob(value).isfinite().all()
    assert d.expand((2, *batch)).sample().shape == torch.Size([2, *batch, *shape])


@every(HEADS)
@settings(deadline=None, max_examples=15)
@given(
    batch=st.lists(st.integers(1, 4), max_size=3),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    context=st.lists(st.integers(1, 4), min_size=1, max_size=2),
)
def test_head_shapes(make, batch, shape, context):
    head = make(tuple(shape), context=tuple(context), net=small).eval()
    check_distribution(head(torch.randn(*batch, *context)), batch, shape)


@every({n: p for n, p in (HEADS | VECTORS).items() if n not in (*WITHOUT_INVERSE, "Delta")})
def test_leading_dimensions_agree(make, float64):
    head = new(make, 3).eval()
    context = torch.randn(4, 5, 2)
    value = head(context).sample()
    whole = head(context).log_prob(value)
    rows = torch.stack([head(c).log_prob(v) for c, v in zip(context.flatten(0, 1), value.flatten(0, 1), strict=True)])
    torch.testing.assert_close(whole.flatten(), rows)


@every(HEADS | VECTORS)
def test_head_without_context_is_a_learned_constant(make):
    shape = (3,) if make in VECTORS.values() else (2, 3)
    head = make(shape).eval()
    check_distribution(head(), (), shape)
    check_distribution(head(torch.randn(7, 4)), (), shape)  # a context is ignored


@every(VECTORS)
@pytest.mark.parametrize("size", [2, 3, 6])
@pytest.mark.parametrize("batch", [(), (4,), (5, 4)], ids=str)
def test_vector_shapes(make, size, batch):
    check_distribution(make(size, context=(2, 3), net=small).eval()(torch.randn(*batch, 2, 3)), batch, (size,))


@every(PRIORS)
@pytest.mark.parametrize("shape", [3, (2, 3)])
def test_prior_shapes(make, shape):
    check_distribution(make(shape)(), (), (3,) if shape == 3 else shape)
    check_distribution(make(shape)(None), (), (3,) if shape == 3 else shape)


@every(SIZED)
@pytest.mark.parametrize("size", [2, 3, 5])
def test_sized_prior_shapes(make, size):
    prior = make(size)
    event = (size, 4) if isinstance(prior, pv.Autoregressive) else (size,)
    check_distribution(prior(), (), event)
    check_distribution(prior(None), (), event)


@every({n: p for n, p in PARTS.items() if n not in (*WITHOUT_INVERSE, "Delta", "SphereUniform (prior)")})
def test_every_parameter_gets_a_gradient(make):
    part = new(make, 3)
    d = part(torch.randn(8, 2))
    value = d.sample() if d.batch_shape else d.sample((8,))
    (d.log_prob(value).sum() + 0 * torch.ones((), requires_grad=True)).backward()
    for name, parameter in part.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def element(support):
    """The constraint on one number."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


def mass(d):
    """The total probability of a one-dimensional distribution, by sum or by quadrature on a fine grid."""
    support = element(d.support)
    if support.is_discrete:
        counts = support is dist.constraints.nonnegative_integer
        points = torch.arange(1_000_000.0) if counts else d.base_dist.enumerate_support()
        return d.log_prob(points.reshape(-1, 1).to(torch.get_default_dtype())).exp().sum()
    t = torch.linspace(0, 1, 200_001)[1:-1]
    low, high = (support.lower_bound, support.upper_bound) if hasattr(support, "upper_bound") else (0.0, 1.0)
    if support.check(torch.tensor(0.5)) and not support.check(torch.tensor(9.0)):
        x = low + (high - low) * t
        return torch.trapezoid(d.log_prob(x[:, None]).exp(), x)
    u = (t * 2 - 1) * (1 - 1e-6)
    x, jacobian = u / (1 - u**2), (1 + u**2) / (1 - u**2) ** 2  # the whole line, so that heavy tails are counted
    if not support.check(torch.tensor(-1.0)):
        x, jacobian = x.exp().clamp(1e-30, 1e30), jacobian * x.exp()
        inside = (x > 1e-30) & (x < 1e30)
        return torch.trapezoid(torch.where(inside, d.log_prob(x[:, None]).exp() * jacobian, 0.0), u)
    return torch.trapezoid(d.log_prob(x[:, None]).exp() * jacobian, u)


@every(HEADS | {f"{n} (prior)": p for n, p in PRIORS.items()})
def test_density_integrates_to_one(make, float64):
    assert mass(new(make, 1).eval()(torch.zeros(2))).item() == pytest.approx(1.0, abs=1e-4)


@every({n: p for n, p in PARTS.items() if n not in WITHOUT_INVERSE})
def test_state_dict_round_trip(make):
    first, second = new(make, 3).eval(), new(make, 3).eval()
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    second.load_state_dict(first.state_dict())
    d = first(torch.ones(4, 2))
    value = d.sample() if d.batch_shape else d.sample((4,))
    torch.testing.assert_close(second(torch.ones(4, 2)).log_prob(value), d.log_prob(value), rtol=0, atol=0)


@every(PARTS)
def test_description_builds_the_part_again(make):
    part = new(make, 3)
    table = describe(part)
    again = build(table, NAMES)
    assert describe(again) == table
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in part.state_dict().items()}


def test_a_linear_network_is_described_as_torch_s():
    table = describe(pv.Normal(3, context=2, net=torch.nn.Linear))
    assert isinstance(build(table, NAMES).network, torch.nn.Linear)


@every(HEADS | VECTORS)
def test_head_works_in_plates(make):
    head = new(make, 3).eval()

    def program(context):
        with pyro.plate("particles", 5, dim=-2), pyro.plate("batch", 4, dim=-1):
            return pyro.sample("a", head(context))

    trace = poutine.trace(program).get_trace(torch.randn(4, 2))
    trace.compute_log_prob()
    assert trace.nodes["a"]["log_prob"].shape == (5, 4)


TWO_CONTEXTS = {
    "decoder": (lambda net: pv.Bernoulli(784, context=[(50,), (10,)], net=net), 50),
    "encoder": (lambda net: pv.Normal(50, context=[(784,), (10,)], net=net), 784),
}
two_contexts = pytest.mark.parametrize(("make", "size"), list(TWO_CONTEXTS.values()), ids=list(TWO_CONTEXTS))
dense = pytest.mark.parametrize("net", [pv.MLP, pv.GatedMLP])


def joint_params(head, *context):
    """The network's output on the concatenation, row by row as `Head` promises it."""
    return batched(head.network, head.join(*context), 1)


@two_contexts
@dense
@pytest.mark.parametrize("particles", [(), (3, 1)], ids=["", "particles"])
@pytest.mark.parametrize("labels", [(10, 1), (10, 4), (1, 4), (4,), ()], ids=str)
def test_a_split_head_is_the_joint_one(make, size, net, particles, labels, float64):
    head = make(functools.partial(net, hidden=(9, 8)))
    x = torch.randn(*particles, 4, size, requires_grad=True)
    y = torch.randn(*labels, 10, requires_grad=True)
    split, joint = head.params(x, y), joint_params(head, x, y)
    assert split.shape == joint.shape
    assert head(x, y).batch_shape == torch.broadcast_shapes(x.shape[:-1], y.shape[:-1])
    torch.testing.assert_close(split, joint, rtol=1e-12, atol=1e-12)
    wrt = [x, y, *head.parameters()]
    gradients = [torch.autograd.grad(out.sin().sum(), wrt) for out in (split, joint)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(
    shapes=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=2), min_size=2, max_size=3),
    batch=st.lists(st.integers(1, 4), max_size=3),
    data=st.data(),
    net=st.sampled_from([pv.MLP, pv.GatedMLP, torch.nn.Linear]),
)
def test_a_split_head_of_any_shape_is_the_joint_one(shapes, batch, data, net):
    builder = net if net is torch.nn.Linear else functools.partial(net, hidden=(3,))
    head = pv.Normal(2, context=[tuple(s) for s in shapes], net=builder).double()
    leads = [[data.draw(st.sampled_from([1, n])) for n in batch] for _ in shapes]
    context = [torch.randn(*b, *s, dtype=torch.float64) for b, s in zip(leads, shapes, strict=True)]
    ours, theirs = head.params(*context), joint_params(head, *context)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(out.sin().sum(), [*head.parameters()]) for out in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


@two_contexts
def test_a_head_of_two_contexts_keeps_names_and_initial_values(make, size):
    torch.manual_seed(3)
    head = make(functools.partial(pv.GatedMLP, hidden=(6,)))
    torch.manual_seed(3)
    first, last = torch.nn.Linear(size + 10, 12), torch.nn.Linear(6, head.network.out_shape)
    initial = {f"network.layers.{i}.{n}": p for i, m in ((0, first), (2, last)) for n, p in m.state_dict().items()}
    assert list(head.state_dict()) == list(initial)
    assert all(torch.equal(value, initial[name]) for name, value in head.state_dict().items())
    table = describe(head)
    assert build(table, NAMES).load_state_dict(initial)
    assert table["context"] == [[size], [10]]


@dense
def test_enumerated_labels_in_a_program(net, float64):
    """Labels summed out, with vectorised particles: the loss and gradients of heads that concatenate."""

    def hidden_in_a_sequence(i, o):
        return torch.nn.Sequential(net(i, o, hidden=(6,)))

    def loss_and_gradients(builder):
        torch.manual_seed(3)
        decoder = pv.Bernoulli(12, context=[(5,), (3,)], net=builder)
        encoder = pv.Normal(5, context=[(12,), (3,)], net=builder)
        seen = set()

        def model(x):
            with pyro.plate("batch", 4, dim=-1):
                y = pyro.sample("y", dist.OneHotCategorical(logits=torch.zeros(3)))
                z = pyro.sample("z", pv.StandardNormal(5)())
                pyro.sample("x", decoder(z, y), obs=x)
                seen.add((tuple(y.shape), tuple(z.shape)))

        def guide(x):
            with pyro.plate("batch", 4, dim=-1):
                y = pyro.sample("y", dist.OneHotCategorical(logits=torch.zeros(3)), infer={"enumerate": "parallel"})
                pyro.sample("z", encoder(x, y))

        elbo = TraceEnum_ELBO(max_plate_nesting=1, num_particles=7, vectorize_particles=True)
        loss = elbo.differentiable_loss(model, guide, torch.rand(4, 12).round())
        gradients = torch.autograd.grad(loss, [*decoder.parameters(), *encoder.parameters()])
        assert ((3, 1, 1, 3), (3, 7, 4, 5)) in seen
        assert all(g.any() for g in gradients)
        return loss, *gradients

    split, joint = loss_and_gradients(functools.partial(net, hidden=(6,))), loss_and_gradients(hidden_in_a_sequence)
    torch.testing.assert_close(split, joint, rtol=1e-10, atol=1e-12)


@every(PRIORS)
def test_prior_works_in_plates(make):
    prior = make(3)

    def program():
        with pyro.plate("particles", 5, dim=-2), pyro.plate("batch", 4, dim=-1):
            return pyro.sample("z", prior())

    trace = poutine.trace(program).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["z"]["value"].shape == (5, 4, 3)
    assert trace.nodes["z"]["log_prob"].shape == (5, 4)


def data_for(likelihood, rows=8, shape=(1, 5, 6)):
    """Rows in the support of a likelihood."""
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(rows, *shape, generator=generator).clamp(0.01, 0.99)
    vector = uniform / uniform.sum(-1, keepdim=True)
    family = likelihood.split(",")[0]
    values = {
        "Bernoulli": uniform > 0.5,
        "ContinuousBernoulli": uniform,
        **dict.fromkeys(("Categorical", "Ordinal"), (uniform * 3).floor()),
        **dict.fromkeys(("Beta", "Kumaraswamy", "Gamma", "LogNormal"), uniform),
        **dict.fromkeys(
            ("Poisson", "NegativeBinomial", "ZeroInflatedNegativeBinomial", "Multinomial"), (uniform * 9).floor()
        ),
        **dict.fromkeys(
            ("DiscretizedLogistic", "DiscretizedLogisticMixture", "CategoricalLevels"), (uniform * 7).round() / 7
        ),
        **dict.fromkeys(("Dirichlet", "LogisticNormal"), vector),
        **dict.fromkeys(("VonMisesFisher", "PowerSpherical"), vector / vector.norm(dim=-1, keepdim=True)),
        "OneHotCategorical": vector == vector.max(-1, keepdim=True).values,
    }
    return values.get(family, uniform * 4 - 2).float()


def make_vae(prior, likelihood, posterior, net, latent=2):
    q = posterior(latent, context=(1, 5, 6), net=net)
    p = pv.VampPrior(q, torch.rand(4, 1, 5, 6)) if prior == "VampPrior" else PRIORS[prior](latent)
    return pv.VAE(p, HEADS[likelihood]((1, 5, 6), context=latent, net=net), q)


ANY_PRIOR = ("StandardNormal", "Mixture", "VampPrior", *REAL)
SWAPS = [  # what needs crossing with networks; tests/test_catalogue.py crosses the parts with each other
    *itertools.product(["StandardNormal"], HEADS, ["Normal"], NETWORKS),
    *itertools.product(ANY_PRIOR[1:], ["Bernoulli"], REAL, NETWORKS),
]


@pytest.mark.parametrize(("prior", "likelihood", "posterior", "net"), SWAPS)
def test_swap(prior, likelihood, posterior, net):
    """Three steps to a finite loss, with one line changed."""
    network = functools.partial(
        NETWORKS[net], **({"channels": (3,)} if net in ("ConvNet", "ResNet") else {"hidden": (6,)})
    )
    vae = make_vae(prior, likelihood, getattr(pv, posterior), network)
    before = copy.deepcopy(vae.state_dict())
    history = pv.fit(vae, data_for(likelihood), epochs=3, batch_size=8)
    assert torch.tensor(history["loss"]).isfinite().all()
    after = vae.state_dict()
    unmoved = [n for n, _ in vae.named_parameters() if torch.equal(before[n], after[n])]
    assert not unmoved


@pytest.mark.parametrize("likelihood", HEADS)
def test_outputs_of_every_likelihood(likelihood):
    vae = make_vae("StandardNormal", likelihood, pv.Normal, small)
    x = data_for(likelihood)
    assert vae.sample(3).shape == (3, 1, 5, 6)
    assert vae.encode(x).batch_shape == (8,)
    reconstructed = vae.reconstruct(x)
    assert reconstructed.shape == x.shape
    assert reconstructed.isfinite().all()
    assert vae.interpolate(x[:2], x[2:4], steps=5).shape == (5, 2, 1, 5, 6)
    assert vae.log_prob(x, k=7).shape == (8,)
    terms = pv.elbo_terms(vae, x)
    torch.testing.assert_close(terms.elbo, terms.reconstruction - terms.kl)


@pytest.mark.parametrize(
    "objective",
    [
        pv.ELBO(),
        pv.ELBO(beta=0.0),
        pv.ELBO(beta=pv.Warmup(over=0.5)),
        pv.ELBO(beta=pv.Cyclical(cycles=2)),
        pv.ELBO(estimator=TraceMeanField_ELBO(max_plate_nesting=1)),
        pv.IWAE(k=5),
    ],
    ids=["elbo", "beta 0", "linear", "cyclical", "analytic", "iwae"],
)
@pytest.mark.parametrize("prior", ["StandardNormal", "Mixture", "VampPrior"])
def test_objectives(objective, prior):
    vae = make_vae(prior, "Bernoulli", pv.Normal, small)
    history = pv.fit(vae, data_for("Bernoulli"), objective=objective, epochs=4, batch_size=4)
    assert torch.tensor(history["loss"]).isfinite().all()
