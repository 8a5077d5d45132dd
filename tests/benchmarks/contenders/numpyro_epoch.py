"""NumPyro: a whole epoch in one compiled loop, gathering and updating inside; compilation is not counted."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, nn, random
from numpyro.infer import SVI, Trace_ELBO
from worker import serve


def epoch(setup, link):
    """One epoch; the short batch at its end is one more update in the same compiled function."""
    stored = np.load(Path(setup.data) / "binary.npy", mmap_mode="r")
    x = jnp.asarray(stored[: setup.rows, : setup.columns].astype(np.float32))
    model, guide = _programs(setup)
    svi = SVI(model, guide, numpyro.optim.Adam(1e-3), Trace_ELBO())
    rows, batch = len(x), setup.batch
    whole = rows // batch

    @jax.jit
    def run(state, x, key):
        order = random.permutation(key, rows)

        def body(i, carry):
            state, total = carry
            state, loss = svi.update(state, x[lax.dynamic_slice(order, (i * batch,), (batch,))])
            return state, total + loss

        state, total = lax.fori_loop(0, whole, body, (state, jnp.float32(0)))
        if rows % batch:
            state, loss = svi.update(state, x[order[whole * batch :]])
            total = total + loss
        return state, total / rows

    state, key = svi.init(random.PRNGKey(0), x[:batch]), random.PRNGKey(1)

    def unit():
        nonlocal state, key
        key, this = random.split(key)
        state, loss = run(state, x, this)
        loss = float(loss)  # waits for the epoch to end
        if not np.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss}")
        return loss

    serve(unit, link)


def _programs(setup):
    columns, hidden, latent = setup.columns, setup.hidden, setup.latent

    def network(name, x, sizes):
        for i, (into, out) in enumerate(itertools.pairwise(sizes)):
            bound = into**-0.5
            weight = numpyro.param(f"{name}.{i}.weight", lambda key, s=(into, out), b=bound: _uniform(key, s, b))
            bias = numpyro.param(f"{name}.{i}.bias", lambda key, s=(out,), b=bound: _uniform(key, s, b))
            x = (nn.softplus(x) if i else x) @ weight + bias
        return x

    def model(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(latent), 1).to_event(1))
            logits = network("decoder", z, (latent, hidden, columns))
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x):
        with numpyro.plate("data", len(x)):
            loc, log_scale = jnp.split(network("encoder", x, (columns, hidden, 2 * latent)), 2, -1)
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    return model, guide


def _uniform(key, shape, bound):
    return random.uniform(key, shape, minval=-bound, maxval=bound)
