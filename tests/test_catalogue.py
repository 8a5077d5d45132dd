"""Every prior with every posterior, every likelihood with data of its support: what fits trains, the rest says why."""

import pytest
import torch
from test_contract import HEADS, PRIORS, SIZED, VECTORS, WITHOUT_INVERSE, data_for, small

import pyrovae as pv

SIZE = 3  # of the latent
VALUES = {  # of the latent site, the one property that decides what goes with what
    "positive": ("Gamma", "LogNormal"),
    "unit": ("Beta", "Kumaraswamy", "ContinuousBernoulli"),
    "angle": ("VonMises",),
    "simplex": ("Dirichlet", "LogisticNormal"),
    "sphere": ("VonMisesFisher", "PowerSpherical", "SphereUniform"),
    "one-hot": ("OneHotCategorical", "Concrete", "StraightThrough", "Autoregressive"),
    "bits": ("Bernoulli",),
    "classes": ("Categorical", "Ordinal"),
    "counts": ("Poisson", "NegativeBinomial", "ZeroInflatedNegativeBinomial"),
    "levels": ("DiscretizedLogistic", "DiscretizedLogisticMixture", "CategoricalLevels"),
}
KIND = {name: kind for kind, names in VALUES.items() for name in names}
# (posterior, prior)
INSIDE = {
    ("positive", "real"),
    ("unit", "real"),
    ("unit", "positive"),
    ("unit", "angle"),
    ("angle", "real"),
}  # (posterior, prior)

# Of the variants of one class the first; of flows every one.
PLAIN = {name: make for name, make in (HEADS | VECTORS).items() if "," not in name or name.startswith("Flow")}
POSTERIORS = [name for name in PLAIN if name != "Multinomial"]  # which scores a row given its sum: no density of rows
LATENT_ALONE = ("Delta", "Concrete", "StraightThrough", *WITHOUT_INVERSE)  # a point, draws made for gradients
LEARNED = [name for name in POSTERIORS if name not in LATENT_ALONE]
ALONE = [*(name for name in PRIORS if name not in HEADS), "SphereUniform", "Autoregressive"]


def kind(name):
    return KIND.get(name.split(",")[0], "real")


def aggregate(prior):
    """Whether it is an average of posteriors, which these must then score at each other's draws."""
    return prior.split(",")[0] in ("VampPrior", "ExemplarPrior")


def fits(posterior, prior):
    if aggregate(prior):
        return posterior not in ("Delta", *WITHOUT_INVERSE)
    q, p = kind(posterior), kind(prior)
    return q == p or (q, p) in INSIDE


def make_vae(prior, posterior, likelihood="Bernoulli", shape=(6,)):
    latent = (SIZE, 4) if prior == "Autoregressive" else SIZE
    torch.manual_seed(0)
    q = PLAIN[posterior](latent, context=shape, net=small)
    if aggregate(prior):
        made = PRIORS[prior](latent)
        options = {"learn": made.learn} | {n: getattr(made, n) for n in ("bounds", "subset") if hasattr(made, n)}
        p = type(made)(q, made.inputs.detach(), **options)
    else:
        p = (SIZED.get(prior) or PRIORS.get(prior) or PLAIN[prior])(SIZE)
    return pv.VAE(p, (HEADS | VECTORS)[likelihood](shape, context=latent, net=small), q)


def check_training(vae, x, directory):
    """Three steps: a finite loss, every parameter moved, log p(x) finite, and the saved model scores alike."""
    before = {name: value.clone() for name, value in vae.named_parameters()}
    history = pv.fit(vae, x, epochs=3, batch_size=8, compile="eager", directory=directory)
    assert torch.tensor(history["loss"]).isfinite().all()
    assert [name for name, value in vae.named_parameters() if torch.equal(before[name], value)] == []
    values = pv.log_marginal(vae, x, k=5, compile="eager").values
    assert values.isfinite().all()
    again = pv.log_marginal(pv.load(directory).model, x, k=5, compile="eager").values
    torch.testing.assert_close(again, values, rtol=0, atol=0)


@pytest.mark.parametrize(("prior", "posterior"), [(p, q) for p in (*ALONE, *LEARNED) for q in POSTERIORS if fits(q, p)])
def test_prior_with_posterior(prior, posterior, tmp_path):
    check_training(make_vae(prior, posterior), data_for("Bernoulli", shape=(6,)), tmp_path / "run")


@pytest.mark.parametrize("likelihood", [name for name in HEADS | VECTORS if name not in LATENT_ALONE])
def test_likelihood_with_its_data(likelihood, tmp_path):
    shape = (6,) if likelihood in VECTORS else (1, 5, 6)
    vae = make_vae("StandardNormal", "Normal", likelihood, shape)
    check_training(vae, data_for(likelihood, shape=shape), tmp_path / "run")


FIRST = {kind(name): name for name in reversed([*POSTERIORS])}
UNFIT = [(p, q) for p in [*FIRST.values(), "SphereUniform", "Mixture"] for q in FIRST.values() if not fits(q, p)]


@pytest.mark.parametrize(("prior", "posterior"), UNFIT)
def test_supports_that_do_not_fit_are_refused(prior, posterior):
    with pytest.raises(pv.ConfigError, match=r"site 'z': the posterior.* the prior") as caught:
        pv.fit(make_vae(prior, posterior), data_for("Bernoulli", shape=(6,)), epochs=1)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("prior", [pv.StandardNormal(2), pv.Mixture(5, 3), pv.StandardNormal((3, 1)), pv.Normal(2)])
def test_sizes_that_do_not_fit_are_refused(prior):
    q = pv.Normal(3, context=6)
    vae = pv.VAE(prior, pv.Bernoulli(6, context=3), q)
    with pytest.raises(pv.ConfigError, match=r"site 'z': the posterior draws \(3,\), the prior scores \("):
        pv.fit(vae, data_for("Bernoulli", shape=(6,)), epochs=1)


@pytest.mark.parametrize(
    ("prior", "posterior"), [*((p, "Normal") for p in WITHOUT_INVERSE), *(("VampPrior", q) for q in WITHOUT_INVERSE)]
)
def test_a_flow_without_inverse_is_no_prior(prior, posterior):
    with pytest.raises(pv.ConfigError, match=r"no inverse.*posterior, not a prior"):
        pv.fit(make_vae(prior, posterior), data_for("Bernoulli", shape=(6,)), epochs=1)


def test_data_outside_the_support_are_named():
    for likelihood, bad in [("Poisson", 0.5), ("Beta", 0.0), ("VonMises", 10.0), ("CategoricalLevels", 0.3)]:
        table = data_for(likelihood, shape=(6,))
        table[4, 2] = bad
        with pytest.raises(pv.DataError, match="row 4, column 2"):
            pv.fit(make_vae("StandardNormal", "Normal", likelihood), table, epochs=1)
