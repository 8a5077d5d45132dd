"""The loop: reproducible, neutral to everything around it, safe against what goes wrong."""

import copy
import random
import tracemalloc
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset

import pyrovae as pv


def vae(seed=0, columns=6, net=pv.MLP):
    torch.manual_seed(seed)
    return pv.VAE(
        pv.StandardNormal(2), pv.Bernoulli(columns, context=2, net=net), pv.Normal(2, context=columns, net=net)
    )


@pytest.fixture
def x():
    return (torch.rand(50, 6, generator=torch.Generator().manual_seed(1)) > 0.5).float()


def weights(model):
    return {n: t.clone() for n, t in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def trained(x, model=None, **options):
    model = vae() if model is None else model
    pv.fit(model, x, **({"epochs": 3, "batch_size": 16} | options))
    return weights(model)


class Noisy(pv.Callback):
    """A callback that draws noise and looks at everything."""

    def __init__(self):
        self.steps = self.epochs = self.ends = 0

    def on_step(self, state):
        torch.randn(100)
        state.model.eval()
        self.steps += 1
        state.model.train()

    def on_epoch(self, state):
        pv.log_marginal(state.model, torch.ones(2, 6), k=3)
        torch.manual_seed(0)
        self.epochs += 1

    def on_end(self, state):
        self.ends += 1


def test_same_seed_same_weights_bit_for_bit(x):
    assert same(trained(x, seed=3), trained(x, seed=3))
    assert not same(trained(x, seed=3), trained(x, seed=4))


def test_nothing_around_the_training_changes_a_weight(x, tmp_path, capsys):
    plain = trained(x)
    noisy = Noisy()
    assert same(plain, trained(x, validation=x[:20]))
    assert same(plain, trained(x, callbacks=[noisy]))
    assert (noisy.steps, noisy.epochs, noisy.ends) == (12, 3, 1)
    assert same(plain, trained(x, progress=True))
    assert "rows/s" in capsys.readouterr().err
    assert same(plain, trained(x, directory=tmp_path / "run"))
    torch.manual_seed(99)  # the caller's generator is not the training's
    model = vae()
    torch.rand(5)
    assert same(plain, trained(x, model))


def test_global_state_is_the_same_afterwards(x):
    pyro.param("mine", torch.tensor(1.0))
    random.seed(0)
    state = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # noqa: NPY002
    pyro.enable_validation(True)
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    model = vae(seed=torch.initial_seed())
    torch.set_rng_state(state[0])
    pv.fit(model, x, epochs=1, validation=x)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])  # noqa: NPY002
    assert random.getstate() == state[2]
    assert list(pyro.get_param_store().keys()) == ["mine"]
    assert torch.distributions.Distribution._validate_args
    assert pyro.poutine.util.is_validation_enabled() is not False
    assert (torch.get_num_threads(), torch.get_default_dtype()) == (threads, dtype)


def test_the_same_rows_in_every_container(x):
    expected = trained(x)
    array = x.numpy().copy()
    frozen = array.copy()
    frozen.setflags(write=False)
    for rows in (array, array.astype(np.float64), np.asfortranarray(array), array.astype(np.uint8), frozen):
        before = rows.copy()
        assert same(expected, trained(rows))
        assert np.array_equal(rows, before)
    assert same(expected, trained(array[::-1][::-1]))
    assert same(expected, trained(array.astype(">f4")))
    assert same(expected, trained(x.tolist()))


def test_memory_mapped_rows(x, tmp_path):
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert same(trained(x), trained(mapped))


def test_a_file_larger_than_what_may_be_held_trains_with_flat_memory(tmp_path):
    """128 MiB on disk; Python and NumPy together never hold a quarter of it."""
    mapped = np.lib.format.open_memmap(tmp_path / "big.npy", mode="w+", dtype=np.uint8, shape=(2**17, 1024))
    mapped[::100, :3] = 1
    mapped.flush()
    rows = np.load(tmp_path / "big.npy", mmap_mode="r")
    model = vae(columns=1024, net=torch.nn.Linear)
    tracemalloc.start()
    pv.fit(model, rows, epochs=1, batch_size=2048)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**27 / 4


def test_loaders_and_data_sets(x):
    loader = DataLoader(TensorDataset(x), batch_size=16, shuffle=True)
    assert same(trained(loader), trained(loader))
    assert same(trained(TensorDataset(x)), trained(TensorDataset(x)))
    plain = DataLoader(x, batch_size=10)  # bare tensors, no tuples
    history = pv.fit(vae(), plain, epochs=2, validation=plain)
    assert history["step"] == [5, 10]


def test_labels_travel_with_their_rows():
    """A program that fails unless every row meets its own context."""
    x = torch.arange(40.0)[:, None]

    class Pairs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = torch.nn.Parameter(torch.zeros(1))

        def model(self, x, c):
            assert torch.equal(x[:, 0], c * 2)
            with pyro.plate("batch", len(x)):
                pyro.sample("x", dist.Normal(self.loc, 100.0).to_event(1), obs=x)

        def guide(self, x, c):
            pass

    pv.fit(Pairs(), x, x[:, 0] / 2, epochs=2, batch_size=7)


def test_uint8_rows_are_converted_on_the_fly(x):
    grey = (torch.rand(50, 6) * 255).byte()
    torch.manual_seed(0)

    def new():
        torch.manual_seed(0)
        return pv.VAE(pv.StandardNormal(2), pv.ContinuousBernoulli(6, context=2), pv.Normal(2, context=6))

    assert same(trained(grey, new(), preprocess=pv.Rescale()), trained(grey.float() / 255, new()))


def test_dynamic_binarisation_is_fresh_every_pass_and_exact():
    seen = []

    def watch(model, x):
        seen.append(x.clone())
        return pv.ELBO()(model, x)

    levels = torch.tensor([0, 51, 204, 255], dtype=torch.uint8).expand(4000, 4)
    pv.fit(vae(columns=4), levels, objective=watch, preprocess=pv.Binarize(), epochs=2, batch_size=4000)
    first, second = seen[1], seen[2]  # before them the check of the program
    assert not torch.equal(first.sort(0).values, second.sort(0).values)
    assert set(first.unique().tolist()) == {0.0, 1.0}
    rates = torch.cat([first, second]).mean(0)
    assert rates[0] == 0
    assert rates[3] == 1
    for rate, p in zip(rates[1:3], (0.2, 0.8), strict=True):
        assert abs(rate.item() - p) < 5 * (p * (1 - p) / 8000) ** 0.5


def test_history_and_ragged_batches(x):
    """The epoch's loss is the mean over rows, not over batches: 50 rows in batches of 16 leave one of 2."""
    losses = []

    def objective(model, rows):
        loss = pv.ELBO()(model, rows)
        losses.append((loss.item(), len(rows)))
        return loss

    history = pv.fit(vae(), x, objective=objective, epochs=1, batch_size=16)
    assert [n for _, n in losses[1:]] == [16, 16, 16, 2]
    assert history["loss"][0] == pytest.approx(sum(v * n for v, n in losses[1:]) / 50)
    assert history.to_pandas().shape == (1, 7)
    assert "epoch" in repr(history)
    assert history.plot() is not None


def test_early_stopping_restores_the_best(x):
    stopping = pv.EarlyStopping(patience=3)
    model = vae()
    history = pv.fit(
        model, x, validation=x[:20], epochs=200, callbacks=[stopping], optimizer=lambda p: torch.optim.SGD(p, lr=2.0)
    )
    assert history.stopped
    assert len(history) < 200
    best = min(range(len(history)), key=history["validation"].__getitem__)
    assert stopping.best_epoch == best + 1
    again = vae()
    pv.fit(again, x, epochs=best + 1, optimizer=lambda p: torch.optim.SGD(p, lr=2.0))
    assert same(weights(model), weights(again))


def test_early_stopping_needs_validation(x):
    with pytest.raises(pv.ConfigError, match="validation"):
        pv.fit(vae(), x, callbacks=[pv.EarlyStopping()])


def test_schedulers(x):
    options = {"optimizer": lambda p: torch.optim.Adam(p, lr=0.1), "epochs": 4, "batch_size": 25}
    cosine = pv.fit(vae(), x, scheduler=CosineAnnealingLR, **options)["lr"]
    assert cosine[-1] == pytest.approx(0, abs=1e-12)
    assert cosine == sorted(cosine, reverse=True)
    model = vae()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    steps = pv.fit(model, x, optimizer=optimizer, scheduler=StepLR(optimizer, 2, 0.5), epochs=3, batch_size=25)
    assert steps["lr"] == pytest.approx([0.05, 0.025, 0.0125])
    plateau = pv.fit(vae(), x, scheduler=lambda o, n: ReduceLROnPlateau(o, patience=0, threshold=1e9), **options)
    assert plateau["lr"][-1] < 0.1


def test_clipping_is_of_the_global_norm(x):
    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            total = torch.stack([p.grad.norm() for g in self.param_groups for p in g["params"]]).norm()
            assert total <= 0.01 + 1e-6
            return super().step(closure)

    pv.fit(vae(), x, clip=0.01, optimizer=lambda p: Spy(p, lr=0.1), epochs=1)


def test_schedules_reach_the_objective(x):
    seen = []

    class Watch(pv.Objective):
        def __call__(self, model, *data):
            return pv.ELBO()(model, *data)

        def at(self, t):
            seen.append(t)
            return self

    pv.fit(vae(), x, objective=Watch(), epochs=2, batch_size=25)
    assert seen == [0.0, 0.25, 0.5, 0.75]
    warm = pv.ELBO(beta=pv.Warmup(over=0.5))
    assert [warm.at(t).beta for t in (0.0, 0.25, 0.5, 1.0)] == [0.0, 0.5, 1.0, 1.0]
    for t in torch.linspace(0, 1, 23):
        for schedule in (pv.Warmup(0.3, 0.1, 2.0), pv.Cyclical(3, 0.4)):
            assert schedule(t).item() == pytest.approx(schedule(t.item()), abs=1e-5)


@pytest.mark.parametrize("how", ["huge learning rate", "bad network"])
def test_divergence_stops_before_the_bad_update(x, how):
    if how == "bad network":

        class Breaks(torch.nn.Linear):
            calls = 0

            def forward(self, h):
                Breaks.calls += 1
                out = super().forward(h)
                bad = (torch.arange(len(out)) == 3) & (Breaks.calls > 9)
                return torch.where(bad[:, None], torch.nan, out)

        model, options = vae(net=Breaks), {}
    else:
        model, options = vae(), {"optimizer": lambda p: torch.optim.SGD(p, lr=1e30)}
    with pytest.raises(pv.TrainingDiverged) as caught:
        pv.fit(model, x, epochs=20, batch_size=10, **options)
    message = str(caught.value)
    assert "step" in message
    assert "learning rate" in message
    assert "site 'z'" in message or "gradient of" in message
    if how == "bad network":
        assert "row 3 of the batch" in message
    assert all(t.isfinite().all() for t in model.state_dict().values())


def test_training_that_fails_leaves_a_loadable_run(x, tmp_path):
    class Stop(pv.Callback):
        def on_step(self, state):
            if state.step == 5:
                raise KeyboardInterrupt

    model = vae()
    with pytest.raises(KeyboardInterrupt):
        pv.fit(model, x, epochs=9, batch_size=16, callbacks=[Stop()], directory=tmp_path / "run")
    run = pv.load(tmp_path / "run")
    assert run.manifest["stopped"] == "KeyboardInterrupt at step 5"
    assert same(weights(run.model), weights(model))


def test_wrong_programs_are_refused_before_training(x):
    class Forgetful(pv.VAE):
        def guide(self, x, c=None):
            pass

    parts = (pv.StandardNormal(2), pv.Bernoulli(6, context=2), pv.Normal(2, context=6))
    with pytest.raises(pv.ConfigError, match="'z'"):
        pv.fit(Forgetful(*parts), x)
    with pytest.raises(pv.ConfigError, match=r"site 'z': the posterior draws \(2,\), the prior scores \(3,\)"):
        pv.fit(pv.VAE(pv.StandardNormal(3), *parts[1:]), x)
    with pytest.raises(pv.ConfigError, match="scalar"):
        pv.fit(vae(), x, objective=lambda model, x: torch.ones(3, requires_grad=True))
    with pytest.raises(pv.ConfigError, match="parameters to train"):
        pv.fit(torch.nn.Module(), x, objective=lambda model, x: torch.ones((), requires_grad=True))
    with pytest.raises(pv.ConfigError, match="holds none"):
        pv.fit(vae(), x, optimizer=torch.optim.Adam(vae().parameters()))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs": -1}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"clip": 0.0}, "clip"),
        ({"seed": -1}, "seed"),
        ({"epochs": 1.5}, "epochs"),
    ],
)
def test_wrong_numbers(x, options, word):
    with pytest.raises(pv.ConfigError, match=word):
        pv.fit(vae(), x, **options)


def test_wrong_data(x):
    with pytest.raises(pv.DataError, match="row"):
        pv.fit(vae(), x[:0])
    with pytest.raises(pv.DataError, match="50 rows, received 7"):
        pv.fit(vae(), x, torch.zeros(7))
    grey = x.clone()
    grey[37, 4] = 0.5
    with pytest.raises(pv.DataError, match=r"row 37, column 4.*Binarize"):
        pv.fit(vae(), grey, batch_size=10)
    missing = x.clone()
    missing[3, 1] = torch.nan
    with pytest.raises(pv.DataError, match=r"row 3.*column 1"):
        pv.fit(vae(), missing)
    with pytest.raises(pv.DataError, match="validation"):
        pv.fit(vae(), x, validation=grey)
    with pytest.raises(pv.ConfigError, match="first batch"):
        pv.fit(vae(), x[:, :4])


def test_an_error_within_a_density_is_one_clean_sentence(x):
    model = vae()
    model.prior = pv.Flow(model.prior.shape, transform=pv.Planar)
    with pytest.raises(
        pv.ConfigError, match=r"(?s)^the model cannot score its first batch: [^\n]*'z'[^\n]*no inverse.*\)$"
    ):
        pv.fit(model, x)


def test_what_is_refused_leaves_no_directory(x, tmp_path):
    with pytest.raises(pv.DataError):
        pv.fit(vae(), x / 2, directory=tmp_path / "run")
    with pytest.raises(pv.ConfigError):
        pv.fit(vae(), x[:, :4], directory=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_row(x):
    assert len(pv.fit(vae(), x[:1], epochs=2)) == 2


def test_parameters_that_are_frozen_stay(x):
    model = vae()
    for parameter in model.posterior.parameters():
        parameter.requires_grad_(False)
    before = weights(model)
    after = trained(x, model)
    assert all(torch.equal(before[n], after[n]) == n.startswith("posterior") for n in before)


def test_mode_and_warnings(x):
    model = vae().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pv.fit(model, x, epochs=1)
    assert not any(part.training for part in model.modules())
    deep = copy.deepcopy(model)
    pv.fit(deep, x, epochs=1)
    assert not same(weights(deep), weights(model))
