"""The losses of BC, CQL and IQL against plain loops and identities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from celr_ray.cortex.actions import N_ACTIONS
from celr_ray.cortex.algorithms import losses


def draw(seed: int, rows: int = 7):
    """Return random scores, masks and actions as tensors."""
    rng = np.random.default_rng(seed)
    mask = rng.random((2, rows, N_ACTIONS)) < 0.5
    mask[..., rng.integers(N_ACTIONS)] = True
    actions = np.array([rng.choice(np.flatnonzero(row)) for row in mask[0]])
    ends = rng.random(rows) < 0.3
    return {
        "scores": torch.tensor(rng.normal(size=(3, rows, N_ACTIONS)), requires_grad=True),
        "mask": torch.tensor(mask[0]),
        "next_mask": torch.tensor(mask[1]),
        "actions": torch.tensor(actions),
        "rewards": torch.tensor(rng.normal(size=rows)),
        "terminateds": torch.tensor(ends),
        "truncateds": torch.tensor(~ends & (rng.random(rows) < 0.3)),
    }


def td_rows(x):
    return (x[name] for name in ("actions", "rewards", "terminateds", "truncateds"))


def cql(x, scores=None, double=True, **kwargs):
    q, target, online = x["scores"] if scores is None else scores
    settings = {"alpha": 0.7, "gamma": 0.9, "online_next_q": online if double else None, **kwargs}
    return losses.cql_loss(q, target, x["mask"], x["next_mask"], *td_rows(x), **settings)


@given(st.integers(0, 10_000), st.booleans())
def test_cql_loss_equals_a_plain_loop(seed, double):
    x = draw(seed)
    q, target, online = x["scores"].detach().numpy()
    td, conservative = [], []
    for row, action in enumerate(x["actions"].tolist()):
        legal, after = np.flatnonzero(x["mask"][row]), np.flatnonzero(x["next_mask"][row])
        best = after[np.argmax((online if double else target)[row, after])]
        goal = float(x["rewards"][row]) + (0 if x["terminateds"][row] else 0.9 * target[row, best])
        td.append(0.0 if x["truncateds"][row] else 0.5 * (q[row, action] - goal) ** 2)
        conservative.append(np.log(np.exp(q[row, legal]).sum()) - q[row, action])
    found = cql(x, double=double)
    assert found.td.item() == pytest.approx(np.mean(td))
    assert found.conservative.item() == pytest.approx(np.mean(conservative))
    assert found.total.item() == pytest.approx(np.mean(td) + 0.7 * np.mean(conservative))
    assert found.conservative >= 0


@given(st.integers(0, 10_000))
def test_bc_loss_equals_a_plain_loop(seed):
    x = draw(seed)
    logits = x["scores"][0].detach()
    expected = [
        -float(torch.log_softmax(logits[row, x["mask"][row]], 0)[x["mask"][row, :action].sum()])
        for row, action in enumerate(x["actions"].tolist())
    ]
    assert losses.bc_loss(logits, x["mask"], x["actions"]).total.item() == pytest.approx(np.mean(expected))


def iql(x, **kwargs):
    logits, one, two = x["scores"]
    critics = tuple(losses.take(q, x["actions"]) for q in (one, two))
    value, following = logits.mean(dim=1), two.mean(dim=1).detach()
    settings = {"expectile": 0.8, "beta": 2.0, "gamma": 0.9, **kwargs}
    target = torch.minimum(*critics).detach()
    return losses.iql_loss(logits, critics, target, value, following, x["mask"], *td_rows(x), **settings)


@given(st.integers(0, 10_000))
def test_iql_loss_equals_a_plain_loop(seed):
    x = draw(seed)
    logits, one, two = x["scores"].detach().numpy()
    value, critic, policy = [], [], []
    for row, action in enumerate(x["actions"].tolist()):
        u = min(one[row, action], two[row, action]) - logits[row].mean()
        value.append((0.2 if u < 0 else 0.8) * u**2)
        goal = float(x["rewards"][row]) + (0 if x["terminateds"][row] else 0.9 * two[row].mean())
        errors = [0.5 * (q[row, action] - goal) ** 2 for q in (one, two)]
        critic.append(0.0 if x["truncateds"][row] else sum(errors))
        legal = np.flatnonzero(x["mask"][row])
        log_pi = logits[row, action] - np.log(np.exp(logits[row, legal]).sum())
        policy.append(-min(np.exp(2.0 * u), 3.0) * log_pi)
    found = iql(x, max_weight=3.0)
    assert found.value.item() == pytest.approx(np.mean(value))
    assert found.critic.item() == pytest.approx(np.mean(critic))
    assert found.policy.item() == pytest.approx(np.mean(policy))
    assert found.total.item() == pytest.approx(np.mean(value) + np.mean(critic) + np.mean(policy))


@given(st.integers(0, 10_000))
def test_iql_without_temperature_clones(seed):
    x = draw(seed)
    clone = losses.bc_loss(x["scores"][0], x["mask"], x["actions"]).total
    assert iql(x, beta=0.0).policy.item() == pytest.approx(clone.item())


@given(st.integers(0, 10_000))
def test_masked_scores_change_nothing_and_get_no_gradient(seed):
    x = draw(seed)
    masks = torch.stack([x["mask"], x["next_mask"], x["next_mask"]])
    moved = torch.where(masks, x["scores"].detach(), torch.tensor(1e6, dtype=torch.float64)).requires_grad_()
    assert cql(x, moved).total.item() == cql(x).total.item()
    cql(x, moved).total.backward()
    assert torch.isfinite(moved.grad).all()
    assert not moved.grad[0][~x["mask"]].any()
    assert not moved.grad[1:].any(), "targets get no gradient"
    logits = x["scores"][0].detach().requires_grad_()
    losses.bc_loss(logits, x["mask"], x["actions"]).total.backward()
    assert not logits.grad[~x["mask"]].any()


@given(st.integers(0, 10_000))
def test_what_follows_an_end_or_a_cut_is_not_used(seed):
    x = draw(seed)
    stop = (x["terminateds"] | x["truncateds"])[None, :, None] & torch.tensor([False, True, True])[:, None, None]
    moved = torch.where(stop, x["scores"].detach() + 1e6, x["scores"].detach())
    assert cql(x, moved).total.item() == pytest.approx(cql(x).total.item())
    x["rewards"] = torch.where(x["truncateds"], 1e6, x["rewards"])
    assert cql(x, moved).total.item() == pytest.approx(cql(x).total.item()), "a cut row has no target at all"


@given(st.integers(0, 10_000))
def test_equal_shares_average_to_the_whole(seed):
    x = draw(seed, rows=8)
    halves = [
        {name: value[:, part] if name == "scores" else value[part] for name, value in x.items()}
        for part in (slice(0, None, 2), slice(1, None, 2))
    ]
    for loss in (cql, iql):
        assert np.mean([loss(half).total.item() for half in halves]) == pytest.approx(loss(x).total.item())
