"""Text: strings against enumeration and torch's own GRU, labels at every step, characters as numbers and back."""

import functools
import itertools

import numpy as np
import pyro
import pytest
import torch
from torch import nn

import pyrovae as pv
from pyrovae.config import NAMES
from pyrovae.distributions.text import Strings
from pyrovae.errors import ConfigError, DataError
from pyrovae.nn import GRUDecoder, GRUEncoder
from pyrovae.spec import build, describe
from pyrovae.text import Text, decode_text, encode_text

V, T, K, L, N = 4, 5, 3, 2, 12
small = functools.partial(GRUDecoder, hidden=6, embedding=3)
reader = functools.partial(GRUEncoder, hidden=4, embedding=3)


def strings(vocabulary, length):
    """Every string once."""
    rows = itertools.product(range(vocabulary + 1), repeat=length)
    return torch.tensor([r for r in rows if all(b == 0 for a, b in itertools.pairwise(r) if a == 0)])


def reads(length, vocabulary):
    return functools.partial(reader, length=length, vocabulary=vocabulary)


def m2(word_dropout=0.0, net=small):
    return pv.SemiSupervisedVAE(
        labels=pv.OneHotCategorical(K),
        prior=pv.StandardNormal(L),
        likelihood=Text(T, context=[(L,), (K,)], net=net, vocabulary=V, word_dropout=word_dropout),
        posterior=pv.Normal(L, context=[(T,), (K,)], net=reads(T, V)),
        classifier=pv.OneHotCategorical(K, context=T, net=reads(T, V)),
    )


@pytest.fixture
def rows():
    every = strings(V, T)
    return every[torch.randperm(len(every), generator=torch.Generator().manual_seed(1))[:N]]


@pytest.mark.parametrize("context", [None, 2])
@pytest.mark.parametrize(("vocabulary", "length"), [(2, 3), (1, 1), (3, 4)])
def test_probabilities_of_all_strings_sum_to_one(context, vocabulary, length, float64):
    part = Text(length, context=context, net=small, vocabulary=vocabulary)
    x = strings(vocabulary, length)
    assert len(x) == sum(vocabulary**n for n in range(length + 1))
    for scale in (1.0, 30.0):
        p = part(scale * torch.randn(2)).log_prob(x).exp()
        torch.testing.assert_close(p.sum(), torch.ones(()), rtol=0, atol=1e-13)


def test_draws_have_these_probabilities_and_the_mode_is_greedy():
    d = Text(3, context=2, net=small, vocabulary=2)(torch.tensor([2.0, -3.0]))
    x = strings(2, 3)
    draws = d.sample((20_000,))
    counts = (draws[:, None] == x).all(-1).sum(0).double()
    assert counts.sum() == 20_000  # nothing but strings
    p = d.log_prob(x).exp().detach().double()
    assert ((counts - 20_000 * p).abs() / (20_000 * p * (1 - p)).sqrt()).max() < 5
    assert d.mean.isnan().all()
    best = [0, 0, 0]
    for t in range(3):  # the likeliest next symbol, by sums over all strings that go on in this way
        begun = (x[:, :t] == torch.tensor(best[:t])).all(-1)
        best[t] = max(range(3), key=lambda k: p[begun & (x[:, t] == k)].sum().item())
        if best[t] == 0:
            break
    assert torch.equal(d.mode.long(), torch.tensor(best))
    assert torch.equal(pv.distributions.center(d), d.mode)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.long, torch.float32])
def test_what_stands_after_the_end_changes_nothing(rows, dtype):
    model, z, y = m2(), torch.randn(N, L), torch.eye(K)[torch.arange(N) % K]
    after = (rows == 0).cumsum(-1) - (rows == 0).long() > 0
    assert after.any()
    results = []
    for filling in (0, 3, 200):
        x = torch.where(after, filling, rows).to(dtype)
        with pyro.validation_enabled(False):
            d = model.likelihood(z, y)
            log_p, code, label = d.log_prob(x), model.posterior(x, y).mean, model.classifier(x).mean
            gradients = torch.autograd.grad(
                log_p.sum() + code.sum() + label.square().sum(), list(model.parameters())[1:]
            )
        results.append((log_p, code, label, *gradients))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_only_what_stands_before_the_end_counts(float64):
    """With equal logits, minus the logarithm of 5 for every symbol and the end."""
    part = Text(T, context=L, net=small, vocabulary=V)
    nn.init.zeros_(part.network.output.weight)
    nn.init.zeros_(part.network.output.bias)
    x = torch.tensor([[0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 2, 3, 4, 0], [1, 2, 3, 4, 1]])
    expected = -torch.tensor([1, 2, 5, 5]) * torch.tensor(5.0).log()
    torch.testing.assert_close(part(torch.zeros(4, L)).log_prob(x), expected)


def test_the_decoder_is_torch_s_gru_on_symbol_and_context(rows, float64):
    part = Text(T, context=[(L,), (K,)], net=small, vocabulary=V)
    net, z, y = part.network, torch.randn(N, L), torch.eye(K)[torch.arange(N) % K]
    gru = nn.GRU(3 + L + K, 6, batch_first=True)
    context = net.context.layers[0]
    with torch.no_grad():
        gru.weight_ih_l0.copy_(torch.cat([net.inputs.weight, context.weight], 1))
        gru.bias_ih_l0.copy_(context.bias)
        gru.weight_hh_l0.copy_(net.recurrent.weight)
        gru.bias_hh_l0.copy_(net.recurrent.bias)
    before = torch.cat([torch.zeros(N, 1, dtype=torch.long), rows[:, :-1]], 1)
    seen = torch.cat([net.vectors(before), torch.cat([z, y], -1)[:, None].expand(-1, T, -1)], -1)
    log_p = net.output(gru(seen)[0]).log_softmax(-1).gather(-1, rows[..., None])[..., 0]
    counts = (rows == 0).cumsum(-1) - (rows == 0).long() == 0
    torch.testing.assert_close(part(z, y).log_prob(rows), (log_p * counts).sum(-1))


def test_the_encoder_is_torch_s_gru_from_both_ends(rows, float64):
    net = reader(T, 2, length=T, vocabulary=V)
    x = rows[rows[:, 0] > 0]  # torch packs no empty sequences
    gru = nn.GRU(3, 4, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for i, end in enumerate(("", "_reverse")):
            getattr(gru, f"weight_ih_l0{end}").copy_(net.inputs.weight[12 * i : 12 * i + 12])
            getattr(gru, f"weight_hh_l0{end}").copy_(net.weight[i].T)
            getattr(gru, f"bias_hh_l0{end}").copy_(net.bias[i, 0])
            getattr(gru, f"bias_ih_l0{end}").zero_()
    packed = nn.utils.rnn.pack_padded_sequence(net.vectors(x), (x > 0).sum(-1), batch_first=True, enforce_sorted=False)
    states = gru(packed)[1]
    torch.testing.assert_close(net(x), net.readout(torch.cat([*states], -1)))
    assert torch.equal(net(torch.zeros(1, T)), net.readout(torch.zeros(1, 8)))


def test_labels_and_particles_are_leading_dimensions(rows, float64):
    """An enumerated label in every row, by parts; and row by row as one input."""
    likelihood, encoder = m2().likelihood, pv.Normal(L, context=[(T,), (K,)], net=reads(T, V))
    y, z = torch.eye(K)[:, None, None], torch.randn(K, 4, N, L)
    whole, codes = likelihood(z, y), encoder(rows, y[:, 0])
    assert whole.batch_shape == (K, 4, N)
    assert codes.batch_shape == (K, N)
    log_p = whole.log_prob(rows)
    assert log_p.shape == (K, 4, N)
    for k in range(K):
        label = torch.eye(K)[k].expand(N, K)
        torch.testing.assert_close(codes.mean[k], encoder(rows, label).mean)
        for s in range(4):
            torch.testing.assert_close(log_p[k, s], likelihood(z[k, s], label).log_prob(rows))
    one = likelihood(torch.zeros(L), torch.eye(K)[0])
    assert one.log_prob(rows).shape == (N,)
    assert one.expand((2, 1)).log_prob(rows).shape == (2, N)
    assert one.expand((2, N)).sample((3,)).shape == (3, 2, N, T)


def test_every_parameter_gets_a_gradient(rows):
    model = m2(word_dropout=0.4)
    loss = (pv.ELBO() + pv.Classification(2.0))(model, rows, torch.arange(N) % K - 1)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
        assert gradient.isfinite().all(), name
        assert gradient.any(), name


def test_enumerated_labels_are_brute_force(rows, float64):
    """``sum_y q(y|x) [log p(x|z, y) p(z) p(y) - log q(y|x)]``: the posterior is a point, so that z is known."""
    model = m2()
    model.posterior = pv.Delta(L, context=[(T,), (K,)], net=reads(T, V))
    log_q, total = model.classifier(rows).logits.log_softmax(-1), torch.zeros(N)
    for k in range(K):
        y = torch.eye(K)[k].expand(N, K)
        z = model.posterior(rows, y).mean
        joint = model.likelihood(z, y).log_prob(rows) + model.prior().log_prob(z) + model.labels().log_prob(y)
        total = total + log_q[:, k].exp() * (joint - log_q[:, k])
    torch.testing.assert_close(-pv.ELBO()(model, rows), total.mean())


def test_words_are_dropped_in_training_mode_alone(rows):
    likelihood, z, y = m2(word_dropout=0.5).likelihood, torch.randn(N, L), torch.eye(K)[torch.arange(N) % K]
    again = m2().likelihood
    again.load_state_dict(likelihood.state_dict())
    d = likelihood(z, y)
    assert torch.equal(d.log_prob(rows), d.log_prob(rows))
    assert not torch.equal(d.log_prob(rows), likelihood(z, y).log_prob(rows))
    likelihood.eval()
    assert torch.equal(likelihood(z, y).log_prob(rows), again(z, y).log_prob(rows))


def test_dropped_words_are_the_same_for_all_labels_and_particles(rows):
    likelihood = m2(word_dropout=0.5).likelihood
    log_p = likelihood(torch.zeros(K, 4, N, L), torch.eye(K)[0]).log_prob(rows)
    assert torch.equal(log_p, log_p[:1, :1].expand(K, 4, N))


def test_a_dropped_word_is_hidden_from_what_follows_and_still_written(float64):
    likelihood = Text(2, context=L, net=small, vocabulary=V, word_dropout=1 - 1e-12)
    d = likelihood(torch.zeros(1, L))
    first = torch.stack([d.log_prob(torch.tensor([[k, 0]])) for k in range(1, V + 1)])
    both = torch.stack([d.log_prob(torch.tensor([[k, 1]])) for k in range(1, V + 1)])
    torch.testing.assert_close((both - first).std(), torch.zeros(()), atol=1e-12, rtol=0)
    assert first.std() > 0.01


@pytest.mark.parametrize("word_dropout", [0.0, 0.3])
def test_fit_replays_the_same_steps(rows, word_dropout):
    trained, y = [], torch.arange(N) % (K + 1) - 1
    objective = pv.ELBO(beta=pv.Warmup(over=0.5)) + pv.Classification(5.0)
    for level in ("eager", "replay"):
        torch.manual_seed(0)
        model = m2(word_dropout)
        history = pv.fit(
            model, rows.to(torch.uint8), y, objective=objective, epochs=3, batch_size=N, compile=level, progress=False
        )
        trained.append(model.state_dict())
        assert history["step"][-1] == 3
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


def test_description_builds_the_model_again(rows):
    model = m2(word_dropout=0.25)
    table = describe(model)
    again = build(table, NAMES)
    assert describe(again) == table
    assert (again.likelihood.word_dropout, again.likelihood.vocabulary, again.likelihood.shape) == (0.25, V, T)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.classify(rows).mean, model.classify(rows).mean)
    net = small(3, 5, symbols=6)
    kept = {"in_shape": 3, "out_shape": 5, "symbols": 6, "hidden": 6, "embedding": 3}
    assert {name: getattr(net, name) for name in kept} == kept
    net = reader(7, 2, length=5, vocabulary=4)
    kept = {"in_shape": 7, "out_shape": 2, "length": 5, "vocabulary": 4, "hidden": 4, "embedding": 3}
    assert {name: getattr(net, name) for name in kept} == kept


def test_a_model_of_text_answers_what_models_answer(rows):
    model = m2(word_dropout=0.5)
    assert model.sample(7).shape == (7, T)
    assert model.reconstruct(rows).shape == (N, T)
    assert model.encode(rows).mean.shape == (N, L)
    assert pv.log_marginal(model, rows, torch.zeros(N, dtype=torch.long), k=3).values.isfinite().all()
    vae = pv.VAE(
        pv.StandardNormal(L),
        Text(T, context=L, net=small, vocabulary=V),
        pv.Normal(L, context=T, net=reads(T, V)),
    )
    assert vae.interpolate(rows[:2], rows[2:4], steps=3).shape == (3, 2, T)
    assert pv.IWAE(k=3)(vae, rows).isfinite()


def test_extreme_contexts_are_finite(rows):
    likelihood = m2().likelihood
    z = torch.full((N, L), 1e4, requires_grad=True)
    log_p = likelihood(z, torch.eye(K)[0].expand(N, K)).log_prob(rows)
    (gradient,) = torch.autograd.grad(log_p.sum(), z)
    assert log_p.isfinite().all()
    assert gradient.isfinite().all()


def test_the_label_is_fed_at_every_step():
    """A unit without a memory, whose state is that of its last symbol alone, still tells labels apart there."""
    decoder = GRUDecoder(K, 3, symbols=V, hidden=6, embedding=3)
    forgetful(decoder)
    symbols = torch.tensor([2, 1, 3, 1])
    fixed, states = decoder(torch.eye(K)), {}
    outputs = {}
    for length in (1, 4):
        state = None
        for symbol in symbols[-length:]:
            outputs[length], state = decoder.step(symbol.expand(K), fixed, state)
        states[length] = state[1]
    torch.testing.assert_close(states[1], states[4], rtol=0, atol=1e-6)
    assert torch.pdist(outputs[4]).min() > 1e-2


@torch.no_grad()
def forgetful(decoder):
    """Update gate open, nothing of the state read."""
    decoder.recurrent.weight.zero_()
    decoder.recurrent.bias.zero_()
    decoder.recurrent.bias[decoder.hidden : 2 * decoder.hidden] = -50.0


def test_text_is_encoded_and_decoded():
    words = ["soepbedeling", "królikom", "", "ab"]
    alphabet = "".join(sorted(set("".join(words))))
    codes = encode_text(words, alphabet)
    assert codes.shape == (4, 12)
    assert codes.dtype == np.uint8
    assert decode_text(codes, alphabet) == decode_text(torch.tensor(codes).float(), alphabet) == words
    assert encode_text(words, alphabet, 20).shape == (4, 20)
    assert encode_text([], alphabet, 3).shape == (0, 3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: encode_text(["ab", "aß"], "ab"),
            DataError,
            r"row 1, 'aß', has the character 'ß' \(U\+00DF\) at place 1",
        ),
        (lambda: encode_text(["a", "abab"], "ab", 3), DataError, "row 1 has 4 characters: expected at most 3"),
        (lambda: encode_text(["a", None], "ab"), DataError, "row 1 is None"),
        (lambda: encode_text(["a"], "aba"), ConfigError, "each of them once"),
        (lambda: encode_text(["a"], ""), ConfigError, "1 to 255"),
        (lambda: decode_text([[1, 3]], "ab"), DataError, "row 0 has the code 3 at place 1"),
        (lambda: decode_text([1, 2], "ab"), DataError, r"expected \(rows, T\)"),
        (lambda: Text((2, 3), context=2, vocabulary=4), ConfigError, "one int"),
        (lambda: Text(3, context=2, vocabulary=0), ConfigError, "vocabulary"),
        (lambda: Text(3, context=2, vocabulary=4, word_dropout=1.0), ConfigError, "below 1"),
        (lambda: Text(3, vocabulary=4, word_dropout=0.5), ConfigError, "without a context"),
        (lambda: Text(3, context=2, net=pv.MLP, vocabulary=4), ConfigError, "step by step, such as GRUDecoder"),
        (lambda: Text(3, context=2, net=small(2, 5, 6), vocabulary=4), ConfigError, "builder of a network"),
        (lambda: encode_text(["a"], "ab", 0), ValueError, "length: expected a positive int"),
        (lambda: GRUEncoder(3, 2, length=4, vocabulary=5), ValueError, "at least the 4 numbers"),
        (lambda: GRUEncoder(3, 2, length=3, vocabulary=5, hidden=0), ValueError, "hidden"),
        (
            lambda: reader(7, 2, length=4, vocabulary=5)(torch.zeros(2, 3), torch.zeros(2, 4)),
            ValueError,
            "sequence of 4",
        ),
        (lambda: GRUDecoder(None, 3, 4)(torch.zeros(2, 3)), ValueError, "no context"),
    ],
)
def test_what_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_codes_beyond_the_vocabulary_are_refused(rows):
    model = m2()
    with pytest.raises(DataError, match="row 0, column 0"):
        pv.fit(model, torch.full((N, T), V + 1), epochs=1)
    with pytest.raises(ValueError, match="support"):
        Strings(lambda *_: (torch.zeros(V + 1), None), torch.zeros(T), V).log_prob(torch.full((T,), 9.0))
