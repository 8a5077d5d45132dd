"""The thin edge between text and objects: what text means, what is refused and which name is offered."""

import functools
import itertools

import pytest
import torch

import pyrovae as pv
from pyrovae import config
from pyrovae.config import instance, part, parts, read_toml
from pyrovae.errors import ConfigError
from pyrovae.spec import build, describe

Q = pv.Normal(2, context=4)
TABLE = pv.Columns(
    [
        pv.Column("size", pv.Normal, shift=170.0, scale=8.0),
        pv.Column("city", functools.partial(pv.Categorical, classes=2), categories=["Bonn", "Rome"]),
    ],
    context=2,
)
CLASSES = {"labels": pv.OneHotCategorical(3)}
XZY, ZXY, YX = pv.Bernoulli(4, context=[(2,), (3,)]), pv.Normal(2, context=[(4,), (3,)]), pv.OneHotCategorical(3, 4)
ZY = pv.Normal(2, context=3, net=torch.nn.Linear)
AUXILIARY = {
    "auxiliary": pv.Normal(2, context=4),
    "posterior": pv.Normal(2, context=[(4,), (3,), (2,)]),
    "classifier": pv.OneHotCategorical(3, context=[(4,), (2,)]),
}
OBJECTS = {
    "StandardNormal": [pv.StandardNormal(2), pv.StandardNormal((2, 3))],
    "Mixture": [pv.Mixture(2, components=5)],
    "VampPrior": [pv.VampPrior(Q, components=3), pv.VampPrior(Q, torch.rand(4, 4), learn=False, bounds=(0.0, 1.0))],
    "Normal": [
        pv.Normal(2, context=4, net=functools.partial(pv.MLP, hidden=[3], activation=torch.nn.SiLU)),
        pv.Normal(2, context=4, net=functools.partial(pv.MLP, hidden=[3], norm=torch.nn.BatchNorm1d)),
        pv.Normal(2, scale=functools.partial(pv.FixedScale, value=0.5)),
        pv.Normal((1, 8, 8), context=2, net=pv.ConvNet, scale=0.1),
    ],
    "Laplace": [pv.Laplace(3, scale=pv.SharedScale)],
    "StudentT": [pv.StudentT(3, df=4.0)],
    "Bernoulli": [pv.Bernoulli(784, context=2)],
    "ContinuousBernoulli": [pv.ContinuousBernoulli((1, 8, 8), context=2, net=pv.ResNet)],
    "Categorical": [pv.Categorical(5, context=2, classes=17)],
    "ELBO": [pv.ELBO(), pv.ELBO(beta=pv.Cyclical(cycles=2)), pv.ELBO(beta=4.0, sites=["z"])],
    "Sum": [pv.ELBO(beta=0.0) + 10.0 * pv.MMD(), pv.Warmup() * pv.IWAE(2) + pv.ELBO()],
    "GSNN": [pv.GSNN(3)],
    "Hybrid": [pv.Hybrid(), pv.Hybrid(alpha=pv.Warmup())],
    "Classification": [pv.Classification(50.0), pv.Classification(pv.Warmup(end=10.0))],
    "VirtualAdversarial": [pv.VirtualAdversarial(2.0, probe=0.01, steps=2)],
    "LabelEntropy": [pv.LabelEntropy()],
    "LabelMarginal": [pv.LabelMarginal(), pv.LabelMarginal([0.25, 0.75])],
    "FreeBits": [pv.FreeBits(), pv.FreeBits(nats=pv.Warmup(end=2.0), group=4)],
    "SiteFreeBits": [pv.SiteFreeBits()],
    "Capacity": [pv.Capacity(), pv.Capacity(gamma=30.0, capacity=pv.Warmup(over=0.5, end=25.0))],
    "IWAE": [pv.IWAE(k=5)],
    "DReG": [pv.DReG(k=5)],
    "STL": [pv.STL(k=5)],
    "Renyi": [pv.Renyi(alpha=-1.0, k=5)],
    "MIWAE": [pv.MIWAE(k=5, m=3)],
    "CIWAE": [pv.CIWAE(k=5, beta=pv.Warmup())],
    "PIWAE": [pv.PIWAE(k=5, m=3)],
    "BetaTCVAE": [pv.BetaTCVAE(100), pv.BetaTCVAE(100, beta=pv.Warmup(end=6.0), sampling=pv.StratifiedSampling())],
    "WeightedSampling": [pv.WeightedSampling()],
    "StratifiedSampling": [pv.StratifiedSampling()],
    "DIPVAE": [pv.DIPVAE(), pv.DIPVAE(off_diagonal=5.0)],
    "DIPVAEII": [pv.DIPVAEII()],
    "MMD": [pv.MMD(), pv.MMD(kernel=pv.RBF(2.0)), pv.MMD(kernel=pv.IMQ(scale=2.0))],
    "RBF": [pv.RBF(2.0)],
    "IMQ": [pv.IMQ()],
    "FactorVAE": [pv.FactorVAE(3, gamma=10.0, net=pv.MLP)],
    "AdversarialAutoencoder": [pv.AdversarialAutoencoder(3, net=functools.partial(pv.MLP, hidden=[5]))],
    "Warmup": [pv.Warmup(over=0.5, end=2.0)],
    "Cyclical": [pv.Cyclical(rise=0.25)],
    "Identity": [pv.Identity()],
    "Rescale": [pv.Rescale(16.0)],
    "Binarize": [pv.Binarize()],
    "DrawNormal": [pv.DrawNormal()],
    "Threshold": [pv.Threshold(3)],
    "Standardize": [pv.Standardize([0.0, 1.0], [2.0, 3.0])],
    "VAE": [
        pv.VAE(pv.StandardNormal(2), pv.Bernoulli(4, context=2), Q),
        pv.VAE(pv.VampPrior(Q, components=3), pv.Normal(4, context=2, scale=pv.OptimalScale), Q),
        pv.VAE(
            pv.StandardNormal(2),
            pv.Masked(pv.Normal(4, context=2)),
            pv.Normal(2, context=4, net=functools.partial(pv.MaskAware, net=pv.MLP)),
        ),
        pv.VAE(pv.StandardNormal(2), TABLE, pv.Normal(2, context=2, net=TABLE.encoder())),
    ],
    "SemiSupervisedVAE": [
        pv.SemiSupervisedVAE(**CLASSES, prior=pv.StandardNormal(2), likelihood=XZY, posterior=ZXY, classifier=YX)
    ],
    "GaussianMixtureVAE": [
        pv.GaussianMixtureVAE(**CLASSES, prior=ZY, likelihood=pv.Bernoulli(4, context=2), posterior=ZXY, classifier=YX)
    ],
    "VaDE": [pv.VaDE(**CLASSES, prior=ZY, likelihood=pv.Bernoulli(4, context=2), posterior=pv.Normal(2, context=4))],
    "AuxiliaryVAE": [
        pv.AuxiliaryVAE(
            **CLASSES | AUXILIARY,
            prior=pv.StandardNormal(2),
            likelihood=XZY,
            auxiliary_likelihood=pv.Normal(2, context=[(2,), (3,), (4,)]),
        )
    ],
    "SkipVAE": [
        pv.SkipVAE(
            **CLASSES | AUXILIARY,
            prior=pv.StandardNormal(2),
            auxiliary_prior=pv.Normal(2, context=[(2,), (3,)]),
            likelihood=pv.Bernoulli(4, context=[(2,), (2,), (3,)]),
        )
    ],
}
BUILDERS = {  # described as arguments of a head, never alone
    *("MLP", "GatedMLP", "ConvNet", "ResNet", "Linear", "GRUDecoder", "GRUEncoder"),
    *("MaskAware", "ColumnAware", "Column"),
    *("NetworkScale", "LearnedScale", "SharedScale", "FixedScale", "OptimalScale"),
}
NOT_A_PART = {"Conditional", "Head", "Labelled", "Scale", "Model", "Objective", "Preprocess"}  # abstract


def exported_parts():
    """Those with no contract of their own in tests/test_contract.py, which describes and builds each conditional."""
    concrete = (pv.Model, pv.Objective, pv.Preprocess, pv.Scale)
    classes = {n for n in pv.__all__ if isinstance(getattr(pv, n), type) and issubclass(getattr(pv, n), concrete)}
    return classes - NOT_A_PART


def test_every_exported_part_can_be_named_and_is_tried_here():
    assert exported_parts() <= set(config.NAMES)
    assert exported_parts() <= set(OBJECTS) | BUILDERS
    conditionals = {name for role in ("prior", "posterior", "likelihood", "base") for name in parts()[role]}
    elsewhere = conditionals | set(parts()["transform"]) | set(parts()["activation"]) | set(parts()["norm"])
    assert {name for table in parts().values() for name in table} - elsewhere <= set(OBJECTS) | BUILDERS


@pytest.mark.parametrize("obj", [*itertools.chain(*OBJECTS.values())], ids=lambda o: type(o).__name__)
def test_describe_and_build_are_inverse(obj):
    table = describe(obj)
    rebuilt = build(table, config.NAMES)
    assert type(rebuilt) is type(obj)
    assert describe(rebuilt) == table
    if isinstance(obj, torch.nn.Module):
        shapes = {n: t.shape for n, t in obj.state_dict().items()}
        assert {n: t.shape for n, t in rebuilt.state_dict().items()} == shapes
        rebuilt.load_state_dict(obj.state_dict())


def test_a_shared_part_is_described_once_and_shared_again():
    vae = OBJECTS["VAE"][1]
    table = describe(vae)
    assert table["prior"]["posterior"] == "$posterior"
    rebuilt = build(table, config.NAMES)
    assert rebuilt.prior.posterior is rebuilt.posterior


def test_references_are_built_in_any_order():
    names = {"P": lambda q: ("P", q), "Q": lambda: ["Q"], "M": lambda a, b: (a, b)}
    (_, q), b = build({"type": "M", "a": {"type": "P", "q": "$b"}, "b": {"type": "Q"}}, names)
    assert q is b


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"type": "StandardNormel", "shape": 2}, ["model", "'StandardNormel'", "did you mean 'StandardNormal'"]),
        ({"type": "Mixture", "shape": 2, "component": 3}, ["Mixture", "'component'", "did you mean 'components'"]),
        ({"shape": 2}, ["'type'", "['shape']"]),
        ({"type": "Mixture", "partial": "Mixture"}, ["one of 'type' and 'partial'"]),
        ({"type": ["Mixture"]}, ["no part"]),
        ({"type": "Mixture", "shape": 2, "components": 0}, ["components", "positive int", "0"]),
        ({"type": "Mixture"}, ["shape"]),
        ({"type": "VampPrior", "posterior": "$guide"}, ["model.posterior", "'$guide'", "not there"]),
        ({"type": "VampPrior", "posterior": "$posterior"}, ["model.posterior", "no table"]),
        ({"type": "VampPrior", "posterior": ["$posterior"]}, ["model.posterior.0", "no table"]),
        ({"type": "VampPrior", "posterior": {"type": "VampPrior", "posterior": "$posterior"}}, ["refers to itself"]),
        ({"type": "Normal", "shape": 2, "scale": {"partial": "FixdScale"}}, ["model.scale", "'FixedScale'"]),
    ],
)
def test_tables_that_build_nothing(table, words):
    with pytest.raises(ConfigError) as caught:
        build(table, config.NAMES)
    assert all(word in str(caught.value) for word in words), caught.value


def test_what_no_table_can_hold():
    with pytest.raises(ConfigError, match=r"model\.net: a function of your own"):
        describe(pv.Bernoulli(4, context=2, net=lambda i, o: pv.MLP(i, o)))
    objective = pv.ELBO()
    objective.beta = {}
    with pytest.raises(ConfigError, match=r"model\.beta: a dict cannot"):
        describe(objective)

    class Forgetful(pv.Preprocess):
        def __init__(self, level):
            pass

        def __call__(self, x, generator=None):
            return x

    with pytest.raises(ConfigError, match="Forgetful does not keep its argument 'level'"):
        describe(Forgetful(3))


@pytest.mark.parametrize(
    ("text", "role", "expected"),
    [
        ("mixture", "prior", {"partial": "Mixture"}),
        ("Mixture(components=5)", "prior", {"partial": "Mixture", "components": 5}),
        ("vamp(components=5)", "prior", {"partial": "VampPrior", "components": 5}),
        (" standard-normal ", "prior", {"partial": "StandardNormal"}),
        ("StandardNormal", "prior", {"partial": "StandardNormal"}),
        ("continuous_bernoulli", "likelihood", {"partial": "ContinuousBernoulli"}),
        ("normal(scale=learned-scale)", "likelihood", {"partial": "Normal", "scale": {"partial": "LearnedScale"}}),
        (
            "normal(scale=fixed-scale(value=1e-3))",
            "likelihood",
            {"partial": "Normal", "scale": {"partial": "FixedScale", "value": 1e-3}},
        ),
        ("normal(scale=0.1)", "likelihood", {"partial": "Normal", "scale": 0.1}),
        ("mlp(hidden=[3, 4])", "net", {"partial": "MLP", "hidden": [3, 4]}),
        (
            "normal(net=mlp(hidden=[3], activation=leaky-relu))",
            "posterior",
            {
                "partial": "Normal",
                "net": {"partial": "MLP", "hidden": [3], "activation": {"partial": "LeakyReLU"}},
            },
        ),
        (
            {"type": "normal", "scale": {"type": "shared-scale"}},
            "likelihood",
            {"partial": "Normal", "scale": {"partial": "SharedScale"}},
        ),
        (
            {"type": "mlp", "activation": "silu", "hidden": [3]},
            "net",
            {"partial": "MLP", "activation": {"partial": "SiLU"}, "hidden": [3]},
        ),
    ],
)
def test_text_and_tables_mean_the_same_parts(text, role, expected):
    assert describe(part(text, role)) == expected


def test_instances():
    assert instance("elbo(beta=warmup(over=0.5))", "objective").beta(0.25) == 0.5
    assert instance("elbo(beta=4)", "objective").beta == 4
    assert instance({"type": "IWAE", "k": 3}, "objective").k == 3
    assert isinstance(instance("binarize", "preprocess"), pv.Binarize)


@pytest.mark.parametrize(
    ("text", "role", "words"),
    [
        ("vapm", "prior", ["--prior", "'vapm'", "did you mean 'vamp'", "vamp-prior"]),
        ("StudenT3", "posterior", ["--posterior", "did you mean 'student-t'"]),
        ("standard-normal", "posterior", ["there is no posterior", "laplace, ", "student-t"]),
        ("vamp(component=5)", "prior", ["--prior", "VampPrior", "'component'", "did you mean 'components'"]),
        ("vamp(5)", "prior", ["--prior", "by name"]),
        ("vamp(components=5", "prior", ["--prior", "name(argument=value)"]),
        ("vamp(components=n)", "prior", ["'components'", "'n'"]),
        ("vamp(**x)", "prior", ["--prior"]),
        ("", "prior", ["--prior", "''"]),
        ("s(", "prior", ["--prior"]),
        ("a" * 9 + "(" * 300, "prior", ["--prior"]),
        ("x\0y", "prior", ["--prior"]),
        ("os.system('x')", "prior", ["--prior"]),
        ("mixture(components=__import__('os').getpid())", "prior", ["'components'"]),
        (3, "prior", ["--prior", "3"]),
        ({"components": 3}, "prior", ["--prior", "type = NAME", "components"]),
        ("normal(scale=learnd-scale)", "likelihood", ["--scale", "did you mean 'learned-scale'"]),
        ("normal(scale=fixed(valu=3))", "likelihood", ["--likelihood.scale", "did you mean 'value'"]),
        ("elbo - mmd", "objective", ["--objective", "elbo + 10 * mmd"]),
        ("elbo + 3", "objective", ["--objective", "elbo + 3"]),
        ("2 * elob", "objective", ["--objective", "did you mean 'elbo'"]),
        ("mlp(activation=rleu)", "net", ["--activation", "did you mean 'relu'", "leaky-relu"]),
    ],
)
def test_text_that_means_no_part(text, role, words):
    with pytest.raises(ConfigError) as caught:
        part(text, role)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("iwae(k=0)", ["--objective", "k", "positive int", "0"]),
        ("elbo(beta=-1)", ["--objective", "beta", "-1"]),
        ("elbo(beta=warmup(over=2))", ["--objective.beta", "over", "2"]),
        ("elbo(beta=warmpu)", ["--schedule", "did you mean 'warmup'"]),
    ],
)
def test_objectives_out_of_range(text, words):
    with pytest.raises(ConfigError) as caught:
        instance(text, "objective")
    assert all(word in str(caught.value) for word in words), caught.value


def test_every_part_is_found_under_the_name_that_is_shown():
    for role, table in parts().items():
        for name, thing in table.items():
            assert part(config.hyphenated(name), role) is thing
            assert config.first_sentence(thing), name
    assert config.hyphenated("GatedMLP") == "gated-mlp"
    assert config.hyphenated("LeakyReLU") == "leaky-relu"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"epoch = 3\n", ["unknown key 'epoch'", "did you mean 'epochs'"]),
        (b"epochs =\n", ["not a TOML file", "line 1"]),
        (b"\xff\xfe", ["not a TOML file"]),
        (b"epochs = " + b"[" * 10_000, ["not a TOML file"]),
    ],
)
def test_bad_toml(tmp_path, content, words):
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_toml(path, ("epochs", "prior"))
    assert all(word in str(caught.value) for word in (str(path), *words)), caught.value


def test_missing_and_good_toml(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        read_toml(tmp_path / "nope.toml", ())
    with pytest.raises(ConfigError, match="not a TOML file"):
        read_toml(tmp_path, ())
    path = tmp_path / "run.toml"
    path.write_text('epochs = 3\n[prior]\ntype = "Mixture"\n')
    assert read_toml(path, ("epochs", "prior")) == {"epochs": 3, "prior": {"type": "Mixture"}}


@pytest.mark.parametrize(
    "text",
    [
        "elbo(beta=0) + 10 * mmd(kernel=rbf(scale=2))",
        "elbo(beta=0) + mmd(kernel=rbf(scale=2)) * 10",
        {"type": "Sum", "terms": ["elbo(beta=0)", {"type": "MMD", "kernel": "rbf(scale=2)"}], "weights": [1.0, 10]},
    ],
)
def test_sum_of_objectives(text):
    objective = instance(text, "objective")
    elbo, mmd = objective.terms
    assert (type(objective), type(elbo), type(mmd)) == (pv.Sum, pv.ELBO, pv.MMD)
    assert (objective.weights, elbo.beta, mmd.kernel.scale) == ([1.0, 10], 0, 2)


def test_objectives_are_given_what_only_the_run_knows():
    objective = instance("warmup(over=0.5) * beta-tcvae + factor-vae(shape=3)", "objective", rows=100, shape=2)
    assert isinstance(objective.weights[0], pv.Warmup)
    assert [getattr(term, name) for term, name in zip(objective.terms, ("rows", "shape"), strict=True)] == [100, 3]
