"""PC-ASGD's step by hand, and what its options change (PAPERS.md B.2)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asgd

X = np.array([1.0, -2.0])
OTHERS = np.array([[1.0, -2.0], [0.5, 0.5], [3.0, -1.0]])
GRADS = np.array([[9.0, 9.0], [9.0, 9.0], [0.2, -0.4]])
TRAJECTORY = np.array([[1.0, -2.0], [1.1, -1.8], [1.4, -1.5]])
G = np.array([0.3, 0.7])
# Tables with rows in another order, and some that nobody may read.
ORDER = np.array([4, 0, 6, 2, 5, 1])
NEIGHBORS, OWN = ORDER[:3], ORDER[3:]


def table(first, second):
    out = np.full((7, 2), np.nan)
    out[NEIGHBORS], out[OWN] = first, second
    return out


ARGS = dict(past_params=table(OTHERS, TRAJECTORY), past_grads=table(GRADS, np.nan),
            neighbor_rows=NEIGHBORS, own_rows=OWN,
            delays=np.array([0, 0, 2]), mixing=np.array([0.5, 0.3, 0.2]),
            clipped=np.array([0.6, 0.4, 0.0]))
ETA, LAMBDA = 0.1, 0.5
# r = 0 moves nothing; r = 1 is the agent's own step from two rounds ago to one round ago.
TAYLOR = LAMBDA * GRADS[2] ** 2 * (TRAJECTORY[1] - TRAJECTORY[2])
PRE = 0.5 * X + 0.3 * OTHERS[1] + 0.2 * (OTHERS[2] - ETA * (2 * GRADS[2] + TAYLOR)) - ETA * G
ONE = 0.5 * X + 0.3 * OTHERS[1] - ETA * G + 0.2 * (
    OTHERS[2] - ETA * (GRADS[2] + LAMBDA * GRADS[2] ** 2 * (X - TRAJECTORY[2])))
CLIP = 0.6 * X + 0.4 * OTHERS[1] - ETA * G


def step(theta, inner=None, gradient=G, count=0, **options):
    tx = asgd.predict_clip(inner or optax.sgd(ETA), theta, strength=LAMBDA, **options)
    state = tx.init(jnp.asarray(X))
    for _ in range(count):  # Rounds in which nothing happens.
        _, state = tx.update(jnp.zeros(2), state, jnp.asarray(X), **ARGS)
    updates, _ = tx.update(jnp.asarray(gradient), state, jnp.asarray(X), **ARGS)
    return np.asarray(X + updates)


@pytest.mark.parametrize("options, expected", [
    (dict(theta=1.0), PRE), (dict(theta=0.0), CLIP), (dict(theta=0.25), 0.25 * PRE + 0.75 * CLIP),
    (dict(theta=1.0, all_steps=False), ONE),
    (dict(theta=lambda count: 1.0 / (1.0 + count), count=3), 0.25 * PRE + 0.75 * CLIP),
    (dict(theta=1.0, warmup_rounds=1), ARGS["mixing"] @ OTHERS - ETA * G),
    (dict(theta=1.0, warmup_rounds=1, count=1), PRE),
], ids=["predict", "clip", "both", "one gradient", "schedule", "warm-up", "after warm-up"])
def test_by_hand(x64, options, expected):
    np.testing.assert_allclose(step(**options), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("learning_rate", [None, lambda count: ETA / (1 + count)])
def test_the_prediction_follows_the_schedule_of_the_rate(x64, learning_rate):
    inner = optax.sgd(lambda count: ETA / (1 + count))
    slower = 0.5 * X + 0.3 * OTHERS[1] - ETA / 4 * G + 0.2 * (
        OTHERS[2] - ETA / 4 * (2 * GRADS[2] + TAYLOR))
    got = step(1.0, inner, count=3, learning_rate=learning_rate)
    np.testing.assert_allclose(got, slower, rtol=0, atol=1e-15)


def test_momentum_does_not_change_the_predicted_rate(x64):
    """The first step of a velocity is the gradient, so one round gives the same as plain SGD."""
    np.testing.assert_allclose(step(1.0, optax.sgd(ETA, 0.9)), PRE, rtol=0, atol=1e-15)
    # Nor does a velocity that is already there: the probe never saw the gradients.
    tx = asgd.predict_clip(optax.sgd(ETA, 0.9), 1.0, strength=LAMBDA)
    _, state = tx.update(jnp.asarray(G), tx.init(jnp.asarray(X)), jnp.asarray(X), **ARGS)
    updates, _ = tx.update(jnp.asarray(G), state, jnp.asarray(X), **ARGS)
    np.testing.assert_allclose(X + updates, PRE - 0.9 * ETA * G, rtol=0, atol=1e-15)


@pytest.mark.parametrize("criterion", ["paper", "descent"])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_condition_takes_the_candidate_it_names(x64, criterion, sign):
    """With g along x_pre - x, predicting has the larger inner product with g."""
    gradient = sign * (PRE - CLIP)
    got = step(criterion, gradient=gradient)
    pre, clip = (z + ETA * G - ETA * gradient for z in (PRE, CLIP))
    scores = [(z - X) @ gradient / np.linalg.norm(z - X) for z in (pre, clip)]
    assert abs(scores[0] - scores[1]) > 1e-3
    larger = scores[0] > scores[1]
    assert larger == (sign > 0)
    wanted = pre if larger == (criterion == "paper") else clip
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-15)


def test_per_tensor_decides_for_each(x64):
    """Two tensors of which one predicts and the other clips; together one of them has its way."""
    gradient = {"a": jnp.asarray(PRE - CLIP), "b": jnp.asarray(CLIP - PRE) * 0.1}
    both = {name: {k: v for k in "ab"} if name.startswith("past") else v
            for name, v in ARGS.items()}
    params = {"a": jnp.asarray(X), "b": jnp.asarray(X)}
    out = {}
    for per_tensor in (True, False):
        tx = asgd.predict_clip(optax.sgd(ETA), "paper", strength=LAMBDA, per_tensor=per_tensor)
        updates, _ = tx.update(gradient, tx.init(params), params, **both)
        out[per_tensor] = {k: np.asarray(X + updates[k] + ETA * gradient[k]) for k in "ab"}
    pre, clip = PRE + ETA * G, CLIP + ETA * G
    np.testing.assert_allclose(out[True]["a"], pre, atol=1e-15)
    np.testing.assert_allclose(out[True]["b"], clip, atol=1e-15)
    np.testing.assert_allclose(out[False]["a"], pre, atol=1e-15)
    np.testing.assert_allclose(out[False]["b"], pre, atol=1e-15)


@pytest.mark.parametrize("theta, expected", [
    (0.0, CLIP), (1.0, 0.5 * X + 0.3 * OTHERS[1] - ETA * G)], ids=["clip", "predict"])
def test_what_weighs_nothing_may_be_anything(x64, theta, expected):
    late = ARGS["delays"][:, None] > 0
    broken = {**ARGS, "past_grads": np.full((7, 2), np.inf),
              "past_params": table(np.where(late, np.nan, OTHERS), np.nan)}
    if theta:
        broken["mixing"] = np.array([0.5, 0.3, 0.0])
    tx = asgd.predict_clip(optax.sgd(ETA), theta)
    updates, _ = tx.update(jnp.asarray(G), tx.init(jnp.asarray(X)), jnp.asarray(X), **broken)
    np.testing.assert_allclose(X + updates, expected, rtol=0, atol=1e-15)


def test_theta_may_be_traced(x64):
    def traced(theta):
        tx = asgd.predict_clip(optax.sgd(ETA), theta, strength=LAMBDA, learning_rate=ETA)
        return X + tx.update(jnp.asarray(G), tx.init(jnp.asarray(X)), jnp.asarray(X), **ARGS)[0]

    for theta, expected in ((0.0, CLIP), (0.25, 0.25 * PRE + 0.75 * CLIP), (1.0, PRE)):
        np.testing.assert_allclose(jax.jit(traced)(theta), expected, rtol=0, atol=1e-15)


def test_a_reliable_neighbour_is_not_predicted(x64):
    reliable = {**ARGS, "delays": np.zeros(3, int), "past_grads": np.full((7, 2), np.nan)}
    tx = asgd.predict_clip(optax.sgd(ETA), 1.0)
    updates, _ = tx.update(jnp.asarray(G), tx.init(jnp.asarray(X)), jnp.asarray(X), **reliable)
    np.testing.assert_allclose(X + updates, ARGS["mixing"] @ OTHERS - ETA * G, rtol=0, atol=1e-15)


@pytest.mark.parametrize("options, words", [
    (dict(theta=-0.1), "theta must be a number from 0 to 1, got -0.1"),
    (dict(theta=None), "theta must be a number from 0 to 1, got None"),
    (dict(theta=np.array([0.1, 0.2])), "theta must be a number from 0 to 1"),
    (dict(theta="best"), "one of paper, descent, got 'best'"),
    (dict(warmup_rounds=-1), "warmup_rounds must be a whole number, 0 or more, got -1"),
    (dict(warmup_rounds=2.5), "warmup_rounds must be a whole number, 0 or more, got 2.5"),
    (dict(strength=np.nan), "strength must be a finite number, got nan"),
    (dict(strength="a"), "strength must be a finite number, got 'a'"),
    (dict(learning_rate=-1.0), "learning_rate must be a number, 0 or more, got -1.0"),
])
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        asgd.predict_clip(optax.sgd(0.1), **options)


LABELS = {"a": "slow", "b": "fast"}


@pytest.mark.parametrize("inner", [
    optax.partition({"slow": optax.sgd(0.1), "fast": optax.sgd(1.0)}, LABELS),
    optax.sgd(0.1, 0.9, nesterov=True), optax.adam(0.1), optax.rmsprop(0.1),
    optax.chain(optax.clip(0.5), optax.sgd(0.1)), optax.MultiSteps(optax.sgd(0.1), 2),
    optax.scale(1.0),
], ids=range(7))
def test_an_optimizer_without_a_rate_asks_for_it(inner):
    with pytest.raises(ValueError, match="learning_rate must be given"):
        asgd.predict_clip(inner)
    asgd.predict_clip(inner, learning_rate=0.1).init({"a": jnp.ones(2), "b": jnp.ones(2)})


@pytest.mark.parametrize("inner", [
    optax.sgd(0.1), optax.sgd(0.1, 0.9), optax.sgd(0.0), optax.sgd(lambda t: 0.1 / (1 + t)),
    optax.sgd(lambda t: 0.1 / (1 + t), 0.9), optax.sgd(optax.cosine_decay_schedule(0.1, 5), 0.5),
    optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, 0.9))], ids=range(7))
def test_sgd_tells_its_rate(inner):
    asgd.predict_clip(inner)


@pytest.mark.parametrize("criterion", ["paper", "descent"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200, 1e308])
def test_a_prediction_that_is_not_finite_is_never_chosen(x64, criterion, bad):
    broken = {**ARGS, "past_grads": table([[9.0], [9.0], [bad]], np.nan)}
    for gradient in (G, -G, PRE - CLIP, CLIP - PRE):
        tx = asgd.predict_clip(optax.sgd(ETA), criterion)
        updates, _ = tx.update(jnp.asarray(gradient), tx.init(jnp.asarray(X)), jnp.asarray(X),
                               **broken)
        np.testing.assert_allclose(X + updates, CLIP + ETA * G - ETA * gradient, atol=1e-15)


@pytest.mark.parametrize("tx", [asgd.consensus(optax.sgd(1.0)), asgd.predict_clip(optax.sgd(1.0))])
def test_params_are_needed(tx):
    with pytest.raises(ValueError, match="needs the current params"):
        tx.update(jnp.asarray(G), tx.init(jnp.asarray(X)), **ARGS)
