"""Forward and reverse mode, alone and mapped, of every network as it stands on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from flax.traverse_util import flatten_dict, unflatten_dict
from tiny_model import random_variables, tiny_config

from gct_jax.components import build_component
from gct_jax.errors import ConfigError
from gct_jax.kernels.target import target_platform, tracing_for
from gct_jax.models.ctvit import CTViT
from gct_jax.models.discriminator import Discriminator
from gct_jax.models.transformer import Transformer

CONFIG = tiny_config()


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def with_scale(variables, path, scale):
    """The variables with one array, named by its path, multiplied by `scale`."""
    flat = flatten_dict(variables)
    return unflatten_dict({**flat, path: jnp.asarray(flat[path]) * scale})


def discriminator():
    module, images = Discriminator(base_dim=4, attention_sizes=(8,)), normal(2, 16, 16, 1)
    variables = module.init(jax.random.key(0), images)
    return lambda images: module.apply(variables, images), images


def ctvit():
    # The nearest code has no derivative; the straight-through estimate has.
    module, variables = network("ctvit")
    return lambda x: module.apply(variables, x).reconstruction, normal(1, 5, 16, 16, 1)


def ctvit_decode():
    module, variables = network("ctvit")
    ids = jnp.arange(12).reshape(1, 3, 2, 2)

    def volume(scale):
        scaled = with_scale(variables, ("codebook", "quantizer", "embedding"), scale)
        return module.apply(scaled, ids, method=CTViT.decode)

    return volume, jnp.ones(CONFIG.ctvit.dim)


def maskgit():
    module, variables = network("maskgit")
    ids = jnp.zeros((1, 3, 2, 2), jnp.int32)
    return lambda text: module.apply(variables, ids, text, MASK), TEXT


def superres():
    module, variables = network("superres")
    conditions = {"low_res": normal(1, 32, 32, 1, seed=1), "low_res_log_snr": jnp.ones(1)}
    conditions |= {"text": TEXT, "text_mask": MASK}
    return lambda x: module.apply(variables, x, jnp.zeros(1), **conditions), normal(1, 32, 32, 1)


def t5():
    module, variables = network("t5")
    (path,) = (path for path in flatten_dict(variables) if "token_embedder" in path)

    def embeddings(scale):
        return module.apply(with_scale(variables, path, scale), jnp.ones((1, 48), jnp.int32))

    return embeddings, jnp.ones(CONFIG.t5.dim)


def network(component):
    return build_component(CONFIG, component), random_variables(CONFIG, component)


TEXT, MASK = normal(1, 48, CONFIG.t5.dim), jnp.ones((1, 48), bool)


@pytest.mark.parametrize(
    "case",
    [
        ctvit,
        ctvit_decode,
        maskgit,
        t5,
        superres,
        pytest.param(discriminator, marks=pytest.mark.slow),
    ],
)
def test_both_modes_agree(case):
    """<J v, u> = <v, J^T u>, with J v in forward mode and J^T u in reverse mode."""
    call, x = case()
    v = normal(*x.shape, seed=2)

    @quick_jit
    def products(x, v):
        y, forward = jax.jvp(call, (x,), (v,))
        u = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        (backward,) = jax.vjp(call, x)[1](u)
        mapped = jax.vmap(lambda v: jax.jvp(call, (x,), (v,))[1])(jnp.stack([v, -v]))
        return jnp.vdot(forward, u), jnp.vdot(v, backward), forward, mapped

    one, other, forward, mapped = products(x, v)
    assert jnp.abs(forward).max() > 1e-6
    np.testing.assert_allclose(one, other, rtol=2e-3)
    tolerance = 1e-3 * float(jnp.abs(forward).max())
    np.testing.assert_allclose(mapped, jnp.stack([forward, -forward]), atol=tolerance)


def test_the_platform_can_be_stated():
    assert target_platform() == "cpu"
    with tracing_for("tpu"):
        assert target_platform() == "tpu"
    assert target_platform() == "cpu"
    with pytest.raises(ValueError, match="'cuda' is none of"), tracing_for("cuda"):
        pass


@pytest.mark.parametrize(
    ("options", "instead"),
    [({"backend": "chunked"}, 'backend="dense"'), ({"remat": True}, "remat=False")],
)
def test_where_only_reverse_mode_exists_the_error_names_the_option(options, instead):
    module = Transformer(dim=8, depth=1, heads=2, dim_head=4, attend="all", **options)
    x = jnp.ones((1, 2, 2, 2, 8))
    variables = module.init(jax.random.key(0), x)

    def run(x):
        return module.apply(variables, x).sum()

    jax.grad(run)(x)
    with pytest.raises(ConfigError, match=f"has reverse mode only; {instead} gives jvp too"):
        jax.jvp(run, (x,), (x,))
    plain = Transformer(dim=8, depth=1, heads=2, dim_head=4, attend="all", backend="dense")
    jax.jvp(lambda x: plain.apply(variables, x), (x,), (x,))
