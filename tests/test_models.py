"""A model is an ordinary Pyro program: everything Pyro offers works on it, and several live in one process."""

import copy
import functools
import math
import shutil

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

import pyrovae as pv


def vae(latent=2, columns=6, context=None):
    given = [columns] if context is None else [[columns], [context]]
    both = [latent] if context is None else [[latent], [context]]
    return pv.VAE(
        prior=pv.StandardNormal(latent) if context is None else pv.Normal(latent, context=context),
        likelihood=pv.Bernoulli(columns, context=both),
        posterior=pv.Normal(latent, context=given),
    )


@pytest.fixture
def x():
    return (torch.rand(16, 6) > 0.5).float()


def moved(model, before):
    return [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]


def snapshot(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_svi_trains_every_parameter_of_every_instance(x, elbo):
    models = [vae() for _ in range(3)] + [vae(columns=6, latent=3)]
    for model in models:
        before = snapshot(model)
        svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-2}), elbo(max_plate_nesting=1))
        for _ in range(3):
            svi.step(x)
        assert moved(model, before) == list(before)


def test_interleaved_models_train_with_svi_and_fit(x):
    """Neither clears, moves or freezes the other."""
    first, second = vae(), vae()
    svi = SVI(first.model, first.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO(max_plate_nesting=1))
    svi.step(x)
    store = dict(pyro.get_param_store().items())
    for _ in range(3):
        one, two = snapshot(first), snapshot(second)
        pv.fit(second, x, epochs=1)
        assert moved(second, two) == list(two)
        assert moved(first, one) == []
        two = snapshot(second)
        svi.step(x)
        assert moved(first, one) == list(one)
        assert moved(second, two) == []
    assert dict(pyro.get_param_store().items()).keys() == store.keys()


def test_a_deep_copy_is_a_model_of_its_own(x):
    original = vae()
    pv.fit(original, x, epochs=1)
    twin = copy.deepcopy(original)
    torch.testing.assert_close(twin.state_dict(), original.state_dict(), rtol=0, atol=0)
    mine, its = snapshot(original), snapshot(twin)
    SVI(twin.model, twin.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO(max_plate_nesting=1)).step(x)
    assert moved(twin, its) == list(its)
    assert moved(original, mine) == []


def test_predictive(x):
    model = vae()
    drawn = Predictive(model.model, num_samples=7)(n=5)
    assert drawn["z"].shape == (7, 5, 2)
    assert drawn["x"].shape == (7, 5, 6)
    posterior = Predictive(model.model, guide=model.guide, num_samples=7, parallel=False)(x)
    assert posterior["z"].shape == (7, 16, 2)


def test_trace_sites_and_condition(x):
    model = vae()
    trace = poutine.trace(model.model).get_trace(x)
    assert trace.nodes["x"]["is_observed"]
    assert [n for n in trace.nodes if n in ("z", "x")] == ["z", "x"]
    z = torch.zeros(5, 2)
    fixed = poutine.trace(pyro.condition(model.model, data={"z": z})).get_trace(n=5)
    assert torch.equal(fixed.nodes["z"]["value"], z)
    drawn = pyro.condition(model.model, data={"x": x})(n=16)
    assert torch.equal(drawn, x)


def test_render_model(x):
    pytest.importorskip("graphviz")
    source = pyro.render_model(vae().model, model_args=(x,), render_params=False).source
    assert "z -> x" in source
    assert "batch" in source


def test_nuts_over_z_finds_the_posterior():
    """A linear-Gaussian decoder has a Gaussian posterior over z: NUTS on one row must find its mean and variance."""
    torch.set_default_dtype(torch.float64)
    model = pv.VAE(
        pv.StandardNormal(1),
        pv.Normal(3, context=1, net=torch.nn.Linear, scale=0.5),
        pv.Normal(1, context=3, net=torch.nn.Linear),
    )
    weight, bias = (p.detach() for p in model.likelihood.parameters())
    x = torch.tensor([[1.0, -0.5, 0.3]])
    precision = 1 + (weight.T @ weight) / 0.25
    mean = (weight.T @ (x[0] - bias) / 0.25) / precision[0]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.eval()
    mcmc = MCMC(NUTS(model.model, jit_compile=False), num_samples=400, warmup_steps=100, disable_progbar=True)
    mcmc.run(x)
    z = mcmc.get_samples()["z"].flatten()
    assert z.mean().item() == pytest.approx(mean.item(), abs=5 * precision.item() ** -0.5 / 10)
    assert z.var().item() == pytest.approx(1 / precision.item(), rel=0.6)


def test_context_reaches_all_three_parts(x):
    model = vae(context=3)
    c = torch.randn(16, 3)
    pv.fit(model, x, c, epochs=2)
    assert model.sample(4, c[:4]).shape == (4, 6)
    assert model.encode(x, c).batch_shape == (16,)
    assert model.reconstruct(x, c).shape == x.shape
    assert model.log_prob(x, c, k=5).shape == (16,)
    assert model.interpolate(x[:2], x[2:4], 3, c[:2]).shape == (3, 2, 6)
    shifted = pv.elbo_terms(model, x, c + 5).elbo
    assert not torch.allclose(shifted, pv.elbo_terms(model, x, c).elbo)


def test_vectorised_particles_equal_the_loop(x):
    """One term per particle and row, whatever the network: the mean of many draws is the same."""
    torch.set_default_dtype(torch.float64)
    x = x.double()
    model = pv.VAE(
        pv.StandardNormal(2),
        pv.Bernoulli((1, 2, 3), context=2, net=pv.ConvNet),
        pv.Normal(2, context=(1, 2, 3), net=pv.ConvNet),
    )
    images = x.reshape(16, 1, 2, 3)
    many = Trace_ELBO(num_particles=3000, vectorize_particles=True, max_plate_nesting=1)
    with torch.no_grad(), pyro.get_param_store().scope():
        loss = many.differentiable_loss(model.model, model.guide, images).item() / 16
    terms = pv.elbo_terms(model, images, k=3000)
    assert loss == pytest.approx(-terms.elbo.mean().item(), abs=0.02)


def test_methods_take_arrays_and_change_nothing(x):
    model = vae().train()
    before, state = snapshot(model), torch.get_rng_state()
    array = x.numpy().astype("int64")
    torch.testing.assert_close(model.reconstruct(array), model.reconstruct(x))
    torch.testing.assert_close(model.log_prob(array, k=4), model.log_prob(x, k=4))
    assert torch.equal(torch.get_rng_state(), state)
    assert moved(model, before) == []
    assert all(part.training for part in model.modules())
    assert not model.encode(x).mean.requires_grad
    assert not model.sample(2).requires_grad


def test_abstract_classes_cannot_be_built():
    with pytest.raises(TypeError, match="abstract"):
        pv.Model()
    with pytest.raises(TypeError, match="abstract"):
        pv.Head(3)


def test_a_model_of_ones_own(x):
    """Ten lines: a second latent that the prior of the first depends on."""
    from pyro.nn import pyro_method

    class Two(pv.Model):
        def __init__(self):
            super().__init__()
            self.top, self.middle = pv.StandardNormal(1), pv.Normal(2, context=1)
            self.likelihood = pv.Bernoulli(6, context=2)
            self.q2, self.q1 = pv.Normal(1, context=6), pv.Normal(2, context=[[6], [1]])

        @pyro_method
        def model(self, x=None, c=None, *, n=1):
            with pyro.plate("batch", n if x is None else len(x)):
                z2 = pyro.sample("z2", self.top())
                z1 = pyro.sample("z1", self.middle(z2))
                return pyro.sample("x", self.likelihood(z1), obs=x)

        @pyro_method
        def guide(self, x, c=None):
            with pyro.plate("batch", len(x)):
                z2 = pyro.sample("z2", self.q2(x))
                pyro.sample("z1", self.q1(x, z2))

        def encode(self, x, c=None):
            return self.q2(x)

        def decode(self, z, c=None):
            return self.likelihood(z)

    model = Two()
    before = snapshot(model)
    pv.fit(model, x, epochs=2)
    assert moved(model, before) == list(before)
    assert pv.log_marginal(model, x, k=20).values.isfinite().all()
    assert pv.active_units(model, x, site="z1").variances.shape == (2,)
    assert model.sample(3).shape == (3, 6)


def test_evaluation_needs_sites_in_the_plate(x):
    class Global(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.q = torch.nn.Parameter(torch.zeros(()))

        def model(self, x):
            p = pyro.sample("p", dist.Normal(0.0, 1.0))
            with pyro.plate("batch", len(x)):
                pyro.sample("x", dist.Bernoulli(logits=p.unsqueeze(-1) + 0 * x).to_event(1), obs=x)

        def guide(self, x):
            pyro.sample("p", dist.Normal(self.q, 1.0))

    with pytest.raises(pv.ConfigError, match="site 'p': expected inside a plate"):
        pv.log_marginal(Global(), x, k=3)
    pv.fit(Global(), x, epochs=1)  # SVI itself allows it


# --- evaluation: numbers in float32 and bfloat16 ---


class Written(torch.nn.Module):
    """What a user writes: torch's layers and Pyro's own Bernoulli."""

    def __init__(self, probs=False):
        super().__init__()
        self.decoder, self.encoder, self.probs = torch.nn.Linear(2, 200), torch.nn.Linear(200, 4), probs

    def model(self, x):
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            logits = self.decoder(z)
            p_x = dist.Bernoulli(probs=logits.sigmoid()) if self.probs else dist.Bernoulli(logits=logits)
            pyro.sample("x", p_x.to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("batch", len(x)):
            loc, raw = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, torch.exp(raw / 10)).to_event(1))


@pytest.mark.parametrize("probs", [False, True])
def test_scores_are_those_of_the_program_with_gradients_on(probs):
    program, x = Written(probs), torch.rand(4, 200).round()
    torch.manual_seed(0)
    weights = pv.log_weights(program, x, k=30)  # torch's log_prob throughout
    estimate = pv.log_marginal(program, x, k=30, seed=0)
    torch.testing.assert_close(estimate.values, weights.logsumexp(0).double() - math.log(30), rtol=1e-6, atol=1e-4)
    again = pv.log_marginal(program, x, k=30, seed=0)
    assert torch.equal(again.values, estimate.values)
    assert torch.equal(again.standard_errors, estimate.standard_errors)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    images = pv.data.load("digits")
    q = pv.Normal(4, context=(1, 8, 8))
    vae = pv.VAE(pv.StandardNormal(4), pv.Bernoulli((1, 8, 8), context=4), q)
    pv.fit(vae, images.train.x, preprocess=pv.Binarize(), epochs=10)
    return vae, pv.Binarize()(torch.tensor(images.test.x[:50]))


def test_bf16_is_within_its_error(trained):
    vae, x = trained
    exact, half = pv.log_marginal(vae, x, k=500), pv.log_marginal(vae, x, k=500, precision="bf16")
    difference = half.values - exact.values
    assert abs(difference.mean().item()) < 0.02
    assert 0 < difference.std().item() < 0.1
    assert half.values.dtype == exact.values.dtype
    assert torch.equal(half.values, pv.log_marginal(vae, x, k=500, precision="bf16").values)
    terms, rounded = pv.elbo_terms(vae, x, k=50), pv.elbo_terms(vae, x, k=50, precision="bf16")
    assert 0 < (rounded.elbo - terms.elbo).abs().max().item() < 0.5
    with torch.inference_mode():
        assert torch.equal(pv.log_marginal(vae, x, k=500, precision="bf16").values, half.values)


@pytest.mark.parametrize("net", [pv.MLP, pv.GatedMLP, pv.ConvNet, pv.ResNet])
def test_bf16_reaches_every_network_and_no_log_prob(net, monkeypatch):
    seen = []
    score = pv.evaluation.passes.score

    def watched(fn, value, *args, **kwargs):
        seen.append((value.dtype, score(fn, value, *args, **kwargs).dtype))
        return score(fn, value, *args, **kwargs)

    monkeypatch.setattr("pyrovae.evaluation.passes.score", watched)
    vae = pv.VAE(
        pv.StandardNormal(2),
        pv.Bernoulli((1, 8, 8), context=2, net=net),
        pv.Normal(2, context=(1, 8, 8), net=net),
    )
    x = torch.rand(150, 1, 8, 8).round()  # fewer have nothing to gain
    exact, half = pv.elbo_terms(vae, x, k=5), pv.elbo_terms(vae, x, k=5, precision="bf16")
    assert set(seen) == {(torch.float32, torch.float32)}
    assert (half.elbo != exact.elbo).float().mean() > 0.9  # a row can round to the same number by chance
    torch.testing.assert_close(half.elbo, exact.elbo, rtol=1e-2, atol=0.2)


@pytest.mark.parametrize("evaluate", [pv.log_marginal, pv.elbo_terms])
def test_an_unknown_precision_is_refused(evaluate):
    with pytest.raises(pv.ConfigError, match=r"precision: expected one of float32, bf16, received 'half'"):
        evaluate(Written(), torch.zeros(2, 200), precision="half")


@pytest.mark.parametrize("k", [1, 3])
def test_every_row_is_validated(k):
    x = torch.rand(9, 200).round()
    x[7, 3] = 0.5
    with pytest.raises(ValueError, match="support"):
        pv.log_marginal(Written(), x, k=k, chunk_size=4)
    assert pyro.poutine.util.is_validation_enabled()


def test_a_parameter_that_breaks_at_a_late_draw_is_named():
    class Late(Written):
        calls = 0

        def model(self, x):
            self.calls += 1
            if self.calls == 4:
                with torch.no_grad():
                    self.decoder.bias.fill_(float("nan"))
            super().model(x)

    with pytest.raises(ValueError, match="logits"):
        pv.log_marginal(Late(), torch.zeros(5, 200), k=3, chunk_size=3)


@pytest.mark.filterwarnings("error:inductor failed")
@pytest.mark.parametrize("latent", [2, 50])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_log_marginal_gives_the_same_at_every_level(precision, latent):
    """One noise: a captured pass gives what the program gives, a ragged last batch included."""
    torch.manual_seed(0)
    q = pv.Normal(latent, context=30, net=functools.partial(pv.MLP, hidden=(200,)))
    vae = pv.VAE(pv.StandardNormal(latent), pv.Bernoulli(30, context=latent), q)
    x = (torch.rand(23, 30) > 0.5).float()
    options = {"k": 50, "chunk_size": 250, "precision": precision}
    eager = pv.log_marginal(vae, x, compile="eager", **options).values
    levels = ["replay", *(["compiled"] if any(map(shutil.which, ("g++", "clang++", "c++"))) else [])]
    for level in levels:
        values = pv.log_marginal(vae, x, compile=level, **options).values
        torch.testing.assert_close(values, eager, rtol=1e-5, atol=0)
    assert torch.equal(eager, pv.log_marginal(vae, x, compile="eager", **options).values)
    with pytest.raises(pv.ConfigError, match="compile: expected one of auto, compiled, replay, eager"):
        pv.log_marginal(vae, x, compile="fast")


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="needs a C++ compiler")
def test_log_marginal_says_that_a_compiler_failed(monkeypatch):
    from pyrovae.graphs import CompilerFailed

    def fail(*_):
        raise CompilerFailed("out of order")

    monkeypatch.setattr("pyrovae.graphs.function.compile_graph", fail)
    vae = pv.VAE(pv.StandardNormal(2), pv.Bernoulli(30, context=2), pv.Normal(2, context=30))
    x = (torch.rand(7, 30) > 0.5).float()
    with pytest.warns(UserWarning, match="inductor failed.*out of order"):
        values = pv.log_marginal(vae, x, k=20, compile="compiled").values
    torch.testing.assert_close(values, pv.log_marginal(vae, x, k=20, compile="eager").values)


def test_log_marginal_of_a_program_that_cannot_be_captured():
    class Leaving(nn.Module):
        def forward(self, x):
            return torch.as_tensor(x.numpy()) * 1.0

    vae = pv.VAE(
        pv.StandardNormal(2),
        pv.Bernoulli(30, context=2),
        pv.Normal(2, context=30, net=lambda i, o: nn.Sequential(Leaving(), nn.Linear(i, o))),
    )
    x = (torch.rand(7, 30) > 0.5).float()
    values = [pv.log_marginal(vae, x, k=20, compile=level).values for level in ("eager", "replay")]
    assert torch.equal(*values)
