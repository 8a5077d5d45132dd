"""Models with labels against closed forms, enumeration and quadrature; the losses of their classifiers."""

import copy
import functools
import math

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from torch.distributions import MultivariateNormal

import pyrovae as pv
from pyrovae.data.rows import batches
from pyrovae.distributions.given import clamped, known

K, D, L, N = 3, 5, 2, 12
LINEAR = torch.nn.Linear


def m2(net=LINEAR):
    return pv.SemiSupervisedVAE(
        labels=pv.OneHotCategorical(K),
        prior=pv.StandardNormal(L),
        likelihood=pv.Bernoulli(D, context=[(L,), (K,)], net=net),
        posterior=pv.Normal(L, context=[(D,), (K,)], net=net),
        classifier=pv.OneHotCategorical(K, context=D, net=net),
    )


def auxiliary(cls, **parts):
    return cls(
        labels=pv.OneHotCategorical(K),
        prior=pv.StandardNormal(L),
        auxiliary=pv.Normal(L, context=D, net=LINEAR),
        posterior=pv.Normal(L, context=[(D,), (K,), (L,)], net=LINEAR),
        classifier=pv.OneHotCategorical(K, context=[(D,), (L,)], net=LINEAR),
        **parts,
    )


def adgm():
    return auxiliary(
        pv.AuxiliaryVAE,
        likelihood=pv.Bernoulli(D, context=[(L,), (K,)], net=LINEAR),
        auxiliary_likelihood=pv.Normal(L, context=[(L,), (K,), (D,)], net=LINEAR),
    )


def sdgm():
    return auxiliary(
        pv.SkipVAE,
        likelihood=pv.Bernoulli(D, context=[(L,), (L,), (K,)], net=LINEAR),
        auxiliary_prior=pv.Normal(L, context=[(L,), (K,)], net=LINEAR),
    )


def gmvae():
    return pv.GaussianMixtureVAE(
        labels=pv.OneHotCategorical(K),
        prior=pv.Normal(L, context=K, net=LINEAR),
        likelihood=pv.Bernoulli(D, context=L, net=LINEAR),
        posterior=pv.Normal(L, context=[(D,), (K,)], net=LINEAR),
        classifier=pv.OneHotCategorical(K, context=D, net=LINEAR),
    )


def vade():
    return pv.VaDE(
        labels=pv.OneHotCategorical(K),
        prior=pv.Normal(L, context=K, net=LINEAR),
        likelihood=pv.Bernoulli(D, context=L, net=LINEAR),
        posterior=pv.Normal(L, context=D, net=LINEAR),
    )


MODELS = {"M2": m2, "ADGM": adgm, "SDGM": sdgm, "GMVAE": gmvae, "VaDE": vade}
models = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(N, D, generator=generator).round()
    y = torch.tensor([0, 1, 2, 1] + [-1] * (N - 4))
    return x, y


def many(estimator):
    return estimator(num_particles=100, vectorize_particles=True, max_plate_nesting=1)


def loss_at(seed, objective, *data, **weights):
    torch.manual_seed(seed)
    return objective(*data, **weights)


def exact_m2():
    """x = W z + b_y + noise with the exact q(z|x, y) and q(y|x): every row's ELBO is its log-probability."""
    torch.manual_seed(0)
    w, b, s, pi = torch.randn(D, L), torch.randn(D, K), 0.7, torch.tensor([0.2, 0.5, 0.3])
    covariance = w @ w.T + s**2 * torch.eye(D)
    precision = torch.eye(L) + w.T @ w / s**2

    class Labels(pv.Conditional):
        def forward(self, *context):
            return pyro.distributions.OneHotCategorical(pi)

    class Likelihood(pv.Conditional):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(w.clone())

        def forward(self, z, y):
            return pyro.distributions.Normal(z @ self.w.T + y @ b.T, s).to_event(1)

    class Posterior(pv.Conditional):
        def forward(self, x, y):
            loc = (x - y @ b.T) @ w @ torch.linalg.inv(precision) / s**2
            return pyro.distributions.MultivariateNormal(loc, precision_matrix=precision)

    class Classifier(pv.Conditional):
        def forward(self, x):
            return pyro.distributions.OneHotCategorical(logits=joint(x))

    def joint(x):
        parts = [MultivariateNormal(b[:, k], covariance).log_prob(x) + pi[k].log() for k in range(K)]
        return torch.stack(parts, -1)

    model = pv.SemiSupervisedVAE(Labels(), pv.StandardNormal(L), Likelihood(), Posterior(), Classifier())
    return model, joint


def test_elbo_of_a_mixed_batch_is_exact_where_the_guide_is(float64):
    model, joint = exact_m2()
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(3))
    y = torch.tensor([0, 1, 2, 2] + [-1] * (N - 4))
    expected = torch.cat([joint(x[:4]).gather(1, y[:4, None])[:, 0], joint(x[4:]).logsumexp(-1)])
    assert -pv.ELBO()(model, x, y).item() == pytest.approx(expected.mean().item(), abs=1e-9)
    weights = torch.rand(N, generator=torch.Generator().manual_seed(4))
    weighted = -pv.ELBO()(model, x, y, weights=weights).item()
    assert weighted == pytest.approx((weights * expected).mean().item(), abs=1e-9)
    estimate = pv.log_marginal(model, x[:4], y[:4], k=3)  # draws from the exact posterior have no variance
    torch.testing.assert_close(estimate.values, expected[:4])
    torch.testing.assert_close(pv.log_marginal(model, x[4:], k=3).values, expected[4:])


@models
def test_mixed_batch_is_the_sum_of_its_parts(make, data, float64):
    torch.manual_seed(0)
    model, (x, y) = make(), (data[0].double(), data[1])
    objective = pv.ELBO(estimator=many(TraceEnum_ELBO))

    def mean(*batch):
        draws = torch.stack([objective(model, *batch).detach() for _ in range(16)])
        return draws.mean().item() * len(batch[0]), draws.std().item() * len(batch[0]) / 4

    mixed, known_rows, others, all_missing = mean(x, y), mean(x[:4], y[:4]), mean(x[4:], y[4:]), mean(x[4:])
    error = math.hypot(mixed[1], known_rows[1], others[1])
    assert abs(mixed[0] - known_rows[0] - others[0]) < 5 * error
    assert abs(others[0] - all_missing[0]) < 5 * math.hypot(others[1], all_missing[1])


def test_enumeration_is_brute_force_over_classes(data, float64):
    """sum_y q(y|x) [E_z log p(x|z, y) + log p(z)/q(z) + log p(y)] + H, with beta on the divergences of y and z."""
    torch.manual_seed(0)
    model, x, beta = m2(), data[0].double(), 0.3
    roots, weights = np.polynomial.hermite_e.hermegauss(24)
    nodes, masses = torch.tensor(roots), torch.tensor(weights / weights.sum())
    grid, mass = torch.cartesian_prod(nodes, nodes), torch.outer(masses, masses).flatten()
    q_y = model.classifier(x)
    log_q = q_y.logits.log_softmax(-1)
    total = torch.zeros(N)
    for k in range(K):
        y = torch.nn.functional.one_hot(torch.full((N,), k), K).double()
        q_z = model.posterior(x, y)
        z = q_z.mean + q_z.base_dist.scale * grid[:, None]
        kl = torch.distributions.kl_divergence(q_z.base_dist, torch.distributions.Normal(0.0, 1.0)).sum(-1)
        fit = (mass[:, None] * model.likelihood(z, y).log_prob(x)).sum(0)
        log_p = model.labels().log_prob(y)
        total = total + log_q[:, k].exp() * (fit - beta * (kl + log_q[:, k] - log_p))
    objective = pv.ELBO(beta=beta, estimator=many(TraceEnum_ELBO))
    draws = torch.stack([-objective(model, x).detach() for _ in range(25)])
    assert abs(draws.mean() - total.mean()) < 5 * draws.std() / 5


@models
def test_equals_pyro_and_trains_under_svi(make, data):
    torch.manual_seed(0)
    model, (x, y) = make(), data
    ours = loss_at(5, pv.ELBO(), model, x, y)
    torch.manual_seed(5)
    with pyro.get_param_store().scope():
        theirs = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model.model, model.guide, x, y) / N
    assert ours == theirs
    before = copy.deepcopy(model.state_dict())
    with pyro.get_param_store().scope():
        svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.1}), TraceEnum_ELBO(max_plate_nesting=1))
        svi.step(x, y)
    assert all(not torch.equal(before[name], value) for name, value in model.state_dict().items())


@models
def test_fit_captures_and_save_load(make, data, tmp_path):
    (x, y), trained = data, []
    adam = functools.partial(torch.optim.Adam, lr=0.02)
    objective = pv.ELBO() + pv.Classification(5.0) + pv.VirtualAdversarial(0.5) + pv.LabelEntropy() + pv.LabelMarginal()
    for wanted in ("eager", "replay"):
        torch.manual_seed(0)
        model = make()
        objective = objective if make is not vade else pv.ELBO() + pv.Classification(5.0)
        before = loss_at(0, objective, model, x, y)
        settings = {"optimizer": adam, "epochs": 4, "batch_size": 5, "compile": wanted}
        pv.fit(model, x, y, objective=objective, directory=tmp_path / wanted, progress=False, **settings)
        assert loss_at(0, objective, model, x, y) < before
        trained.append(model.state_dict())
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])
    read = pv.load(tmp_path / "replay").model
    torch.testing.assert_close(read.classify(x).mean, model.classify(x).mean)


@models
def test_encode_decode_classify_reconstruct_sample(make, data):
    torch.manual_seed(0)
    model, (x, y) = make(), data
    q = model.encode(x)
    assert q.batch_shape == (N,)
    assert q.mean.shape == (N, L)
    probs = model.classify(x).mean
    torch.testing.assert_close(probs.sum(-1), torch.ones(N))
    given_all = y.clamp(min=0)
    by_hand = sum(probs[:, k, None] * model.encode(x, torch.full((N,), k)).mean for k in range(K))
    torch.testing.assert_close(q.mean, by_hand)
    torch.testing.assert_close(model.encode(x, y).mean[4:], q.mean[4:])
    assert model.decode(torch.zeros(N, L), given_all).mean.shape == (N, D)
    assert model.reconstruct(x).shape == model.reconstruct(x, y).shape == (N, D)
    assert model.sample(4).shape == (4, D)
    assert model.sample(N, given_all).shape == (N, D)
    if make is not vade and make is not gmvae:
        with pytest.raises(pv.errors.ConfigError, match="needs a label"):
            model.decode(torch.zeros(N, L))


def test_label_of_a_row_that_is_masked_changes_nothing(data):
    """Whatever stands in the place of a missing label: bitwise the same."""
    torch.manual_seed(0)
    model, (x, y) = m2(), data
    objective = pv.ELBO() + pv.Classification(2.0)
    fillings = [torch.where(y < 0, missing, y.float()) for missing in (-1.0, -7.0, math.nan)]
    assert len({loss_at(0, objective, model, x, filled).item() for filled in fillings}) == 1


@pytest.mark.parametrize("rows", ["no label", "all labelled", "one class once"])
def test_nothing_degenerates(rows, data):
    x, y = data
    y = {"no label": torch.full_like(y, -1), "all labelled": torch.arange(N) % K, "one class once": y}[rows]
    torch.manual_seed(0)
    model = m2()
    objective = pv.ELBO() + pv.Classification(5.0) + pv.LabelEntropy() + pv.LabelMarginal() + pv.VirtualAdversarial(0.5)
    loss = objective(model, x, y)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in gradients)
    if rows == "no label":
        assert pv.Classification(5.0)(model, x, y) == 0


def test_classification_is_cross_entropy_of_the_labelled_rows(data):
    torch.manual_seed(0)
    model, (x, y) = m2(), data
    logits = model.classifier(x).logits
    expected = torch.nn.functional.cross_entropy(logits, y, ignore_index=-1)
    torch.testing.assert_close(pv.Classification(3.0)(model, x, y), 3 * expected)
    soft = torch.full((N, K), math.nan)
    soft[:2] = torch.tensor([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])
    expected = torch.nn.functional.cross_entropy(logits[:2], soft[:2])
    torch.testing.assert_close(pv.Classification()(model, x, soft), expected)
    doubled = pv.Classification()(model, x, y, weights=torch.full((N,), 2.0))
    torch.testing.assert_close(doubled, 2 * pv.Classification()(model, x, y))
    with pytest.raises(pv.errors.ConfigError, match="needs labels"):
        pv.Classification()(model, x)


def test_entropy_and_marginal(data):
    torch.manual_seed(0)
    model, (x, y) = m2(), data
    probs = model.classifier(x).mean.detach()[4:]
    torch.testing.assert_close(pv.LabelEntropy()(model, x, y), -(probs * probs.log()).sum(-1).mean())
    mean, prior = probs.mean(0), torch.tensor([0.5, 0.2, 0.3])
    torch.testing.assert_close(pv.LabelMarginal()(model, x, y), (mean * (mean * K).log()).sum())
    expected = (mean * (mean / prior).log()).sum()
    torch.testing.assert_close(pv.LabelMarginal(prior.tolist())(model, x, y), expected)
    for bad in ([0.5, 0.6], [1.0, 0.0], [0.9, 0.05]):
        with pytest.raises(pv.errors.ConfigError, match="prior"):
            pv.LabelMarginal(bad)(model, x, y)


def test_virtual_adversarial_finds_the_steepest_direction(float64):
    """Two classes, linear logits: the steepest direction is the difference of the weights, either way."""
    torch.manual_seed(0)
    model = pv.SemiSupervisedVAE(
        pv.OneHotCategorical(2),
        pv.StandardNormal(L),
        pv.Bernoulli(D, context=[(L,), (2,)]),
        pv.Normal(L, context=[(D,), (2,)]),
        pv.OneHotCategorical(2, context=D, net=LINEAR),
    )
    x, radius = torch.randn(6, D), 0.8
    weight, p = model.classifier.network.weight.detach(), model.classifier(x).mean.detach()
    step = radius * torch.nn.functional.normalize(weight[1] - weight[0], dim=0)
    both = []
    for sign in (1, -1):
        log_q = model.classifier(x + sign * step).logits.log_softmax(-1)
        both.append((p * (p.log() - log_q)).sum(-1))
    received = pv.VirtualAdversarial(radius, probe=1e-3)(model, x)
    lowest, highest = torch.minimum(*both).mean(), torch.maximum(*both).mean()
    assert lowest - 1e-9 <= received <= highest + 1e-9
    assert highest < 3 * lowest


def test_real_valued_targets_are_exact_where_the_guide_is(float64):
    """x = W z + b y + noise: log p(x, y) of rows with a target, log p(x) of rows without."""
    torch.manual_seed(0)
    w, b, s = torch.randn(D, L), torch.randn(D), 0.7
    rest, precision = w @ w.T + s**2 * torch.eye(D), torch.eye(L) + w.T @ w / s**2
    whole = rest + torch.outer(b, b)
    gain = torch.linalg.solve(whole, b)

    class Part(pv.Conditional):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def forward(self, *context):
            return self.function(*context)

    normal = pyro.distributions.Normal
    slope = torch.nn.Parameter(torch.ones(()))
    likelihood = Part(lambda z, y: normal(z @ w.T + slope * y * b, s).to_event(1))
    likelihood.slope = slope
    posterior = Part(
        lambda x, y: pyro.distributions.MultivariateNormal(
            (x - y * b) @ w @ torch.linalg.inv(precision) / s**2, precision_matrix=precision
        )
    )
    classifier = Part(lambda x: normal((x @ gain)[:, None], (1 - b @ gain).sqrt()).to_event(1))
    labels = Part(lambda: normal(torch.zeros(1), 1.0).to_event(1))
    model = pv.SemiSupervisedVAE(labels, pv.StandardNormal(L), likelihood, posterior, classifier)
    assert model.enumerated == ()
    x, y = torch.randn(N, D), torch.where(torch.arange(N) < 5, torch.randn(N), math.nan)
    joint = MultivariateNormal(y[:5, None] * b, rest).log_prob(x[:5]) + normal(0.0, 1.0).log_prob(y[:5])
    marginal = MultivariateNormal(torch.zeros(D), whole).log_prob(x[5:])
    expected = torch.cat([joint, marginal]).mean().item()
    assert -pv.ELBO()(model, x, y).item() == pytest.approx(expected, abs=1e-9)


def test_regression_learns_from_few_targets(float64):
    torch.manual_seed(0)
    model = pv.SemiSupervisedVAE(
        labels=pv.Normal(1),
        prior=pv.StandardNormal(L),
        likelihood=pv.Normal(D, context=[(L,), (1,)], net=LINEAR),
        posterior=pv.Normal(L, context=[(D,), (1,)], net=LINEAR),
        classifier=pv.Normal(1, context=D, net=LINEAR),
    )
    target = torch.randn(200)
    x = target[:, None] * torch.randn(D) + 0.5 * torch.randn(200, D)
    y = torch.where(torch.arange(200) < 40, target, math.nan)
    objective = pv.ELBO() + pv.Classification(200.0)
    adam = functools.partial(torch.optim.Adam, lr=0.02)
    pv.fit(model, x, y, objective=objective, optimizer=adam, epochs=60, batch_size=50, labelled=0.5)
    error = (model.classify(x[40:]).mean[:, 0] - target[40:]).pow(2).mean()
    assert error < 0.4 * target.var()
    assert model.encode(x, y).mean.shape == (200, L)


def test_given_distributions(float64):
    base = pyro.distributions.Normal(torch.zeros(3, 2), 1.0).to_event(1)
    y = torch.tensor([[1.0, 2.0], [math.nan, 0.0], [3.0, 4.0]])
    q, p = known(base, y), clamped(base, y)
    for d in (q, p):
        draw = d.expand(torch.Size([4, 3])).rsample()
        assert torch.equal(draw[:, [0, 2]], y[[0, 2]].expand(4, 2, 2))
        assert draw[:, 1].unique().numel() == 8
    value = q.rsample()
    torch.testing.assert_close(p.log_prob(value), base.log_prob(value))
    torch.testing.assert_close(q.log_prob(value)[[0, 2]], torch.zeros(2))
    torch.testing.assert_close(q.log_prob(value)[1], base.log_prob(value)[1])
    assert known(base, None) is base
    with pytest.raises(pv.errors.ConfigError, match=r"y: expected the shape \(batch, 2\), received \(3,\)"):
        known(base, y[:, 0])


def test_batches_mix_labelled_rows_by_share(data):
    """Every batch has its share of labelled rows, unlabelled ones come once a pass, labelled ones equally often."""
    y = torch.full((50,), -1)
    y[[3, 7, 11]] = torch.tensor([0, 1, 2])
    mixed = batches(torch.arange(50.0)[:, None], y, batch_size=8, labelled=0.25, seed=(1,))
    first, again, other = ([*mixed.epoch(number)] for number in (0, 0, 1))
    assert mixed.steps == len(first) == 8
    assert mixed.rows == sum(len(x) for x, _ in first) == 47 + 16
    assert all(torch.equal(a, b) for one, two in zip(first, again, strict=True) for a, b in zip(one, two, strict=True))
    assert not torch.equal(first[0][0], other[0][0])
    for x, labels in first:
        assert (labels[:2] >= 0).all()
        assert (labels[2:] == -1).all()
        assert torch.equal(y[x[:, 0].long()], labels)
    rows = torch.cat([x[:, 0] for x, _ in first]).long()
    counts = rows.bincount(minlength=50)
    assert (counts[y < 0] == 1).all()
    assert set(counts[y >= 0].tolist()) == {5, 6}
    targets = torch.where(y < 0, math.nan, y.float())
    continuous = batches(torch.arange(50.0)[:, None], targets, batch_size=8, labelled=0.25, seed=(1,))
    assert torch.equal(next(continuous.epoch(0))[0], first[0][0])


@pytest.mark.parametrize(
    ("y", "share", "words"),
    [
        ([-1] * 9, 0.5, "0 with and 9 without"),
        ([1] * 9, 0.5, "9 with and 0 without"),
        ([1] + [-1] * 8, 0.01, "rows of both kinds"),
        ([1] + [-1] * 8, 1.0, "rows of both kinds"),
        (None, 0.5, "x and y as arrays"),
    ],
)
def test_shares_that_cannot_be(y, share, words):
    y = None if y is None else torch.tensor(y)
    with pytest.raises(pv.errors.PyrovaeError, match=words):
        pv.fit(m2(), torch.ones(9, D), y, labelled=share, batch_size=8, epochs=1)


def test_fit_mixes_and_weighs_together(data):
    (x, y), trained = data, []
    objective = pv.ELBO() + pv.Classification(5.0)
    weights = torch.rand(N)
    for level in ("eager", "replay"):
        torch.manual_seed(0)
        model = m2()
        history = pv.fit(
            model, x, y, objective=objective, labelled=0.5, weights=weights, batch_size=4, epochs=2, compile=level
        )
        trained.append(model.state_dict())
        assert history["step"][-1] == 8
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])
