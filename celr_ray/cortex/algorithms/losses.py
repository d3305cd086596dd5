"""The losses of masked BC, CQL(H) and IQL, as pure functions of tensors. The Learners and the tests use the same ones.

Sizes: B rows, A actions. A mask is true where an action is legal, at least once in each row. Masked entries become a
large negative finite number, never −inf: −inf times a zero gradient is NaN. Every loss is a plain mean over the B rows
of a minibatch, so equal shares of it on several Learners average to the loss of the whole.

What follows a row:

* terminated: nothing, so the target is the reward alone;
* truncated: the log was cut there and what followed is unknown. The row has no target and counts 0 in the TD loss
  (bootstrapping from a made-up next state would teach garbage, taking the end as terminal would teach that the future
  is worth 0). It stays in the terms that need no future.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["MASKED", "BcLoss", "CqlLoss", "IqlLoss", "bc_loss", "cql_loss", "iql_loss", "mask_scores", "take"]

MASKED = -1e9
"""In place of a masked score: exp of it is 0 in float32, and arithmetic with it stays finite."""


def mask_scores(scores: Tensor, mask: Tensor) -> Tensor:
    """Return the scores [B, A] with `MASKED` where `mask` [B, A] is false."""
    return scores.masked_fill(~mask, MASKED)


def take(values: Tensor, actions: Tensor) -> Tensor:
    """Return the value of each row's action: [B] of `values` [B, A] at `actions` [B]."""
    return values.gather(1, actions[:, None])[:, 0]


class BcLoss(NamedTuple):
    """Result of `bc_loss`; scalars.

    Attributes:
        total: what to minimise.
        accuracy: share of rows whose most probable legal action is the logged one.
    """

    total: Tensor
    accuracy: Tensor


def bc_loss(logits: Tensor, mask: Tensor, actions: Tensor) -> BcLoss:
    """Return the cross-entropy of the logged actions under the masked policy.

        L = mean −log π(a|s),   π(·|s) = softmax of the legal logits

    Args:
        logits: [B, A].
        mask: [B, A] bool.
        actions: [B] logged actions, legal ones.
    """
    masked = mask_scores(logits, mask)
    accuracy = (masked.detach().argmax(dim=1) == actions).to(logits.dtype).mean()
    return BcLoss(functional.cross_entropy(masked, actions), accuracy)


class CqlLoss(NamedTuple):
    """Result of `cql_loss`; scalars.

    Attributes:
        total: what to minimise: td + alpha · conservative.
        td: half the mean squared TD error.
        conservative: how far the softmax of all legal actions lies above the logged one, ≥ 0.
        q_mean: mean Q of the logged actions.
    """

    total: Tensor
    td: Tensor
    conservative: Tensor
    q_mean: Tensor


def _td_loss(q_logged: Tensor, next_value: Tensor, rewards: Tensor, ends: Tensor, cuts: Tensor, gamma: float) -> Tensor:
    """Return ½ mean (Q(s,a) − r − γ·(1 − end)·next)², rows that were cut counting 0; all [B]."""
    target = rewards + gamma * next_value * ~ends
    return 0.5 * ((q_logged - target.detach()).square() * ~(cuts & ~ends)).mean()


def cql_loss(
    q: Tensor,
    target_next_q: Tensor,
    mask: Tensor,
    next_mask: Tensor,
    actions: Tensor,
    rewards: Tensor,
    terminateds: Tensor,
    truncateds: Tensor,
    *,
    alpha: float,
    gamma: float,
    online_next_q: Tensor | None = None,
) -> CqlLoss:
    """Return the loss of discrete CQL(H).

        L = ½ mean (Q(s,a) − r − γ·(1 − end)·max_a' Q̄(s',a'))²  +  α · mean [logsumexp_a' Q(s,a') − Q(s,a)]

    with the maximum and the logsumexp over legal actions only, and Q̄ the target network. With `online_next_q` the
    online network chooses a' and the target network values it (double Q-learning), which lessens overestimation.

    Source: Kumar et al. (2020), arXiv 2006.04779, equation 4 (CQL(H)); van Hasselt et al. (2016), arXiv 1509.06461.

    Args:
        q: [B, A] online network in s.
        target_next_q: [B, A] target network in s'.
        mask, next_mask: [B, A] bool, legal actions in s and s'.
        actions: [B] logged actions, legal ones.
        rewards: [B], scaled.
        terminateds, truncateds: [B] bool, see the module.
        alpha: weight of the conservative term, ≥ 0; 0 is plain Q-learning.
        gamma: discount, 0 to 1.
        online_next_q: [B, A] online network in s', for double Q-learning.
    """
    choice = mask_scores(target_next_q if online_next_q is None else online_next_q, next_mask).argmax(dim=1)
    q_logged = take(q, actions)
    td = _td_loss(q_logged, take(target_next_q, choice), rewards, terminateds, truncateds, gamma)
    conservative = (torch.logsumexp(mask_scores(q, mask), dim=1) - q_logged).mean()
    return CqlLoss(td + alpha * conservative, td, conservative, q_logged.detach().mean())


class IqlLoss(NamedTuple):
    """Result of `iql_loss`; scalars.

    Attributes:
        total: what to minimise: value + critic + policy; the three share no parameters.
        value: expectile loss of V.
        critic: half the mean squared TD error, summed over the critics.
        policy: advantage-weighted cross-entropy.
        weight_mean: mean weight of the policy term.
        clipped: share of weights at their limit.
    """

    total: Tensor
    value: Tensor
    critic: Tensor
    policy: Tensor
    weight_mean: Tensor
    clipped: Tensor


def iql_loss(
    logits: Tensor,
    critics: tuple[Tensor, ...],
    target_q: Tensor,
    value: Tensor,
    next_value: Tensor,
    mask: Tensor,
    actions: Tensor,
    rewards: Tensor,
    terminateds: Tensor,
    truncateds: Tensor,
    *,
    expectile: float,
    beta: float,
    gamma: float,
    max_weight: float = 100.0,
) -> IqlLoss:
    """Return the loss of discrete IQL.

        L_V = mean |τ − 1{u < 0}|·u²,   u = Q̄(s,a) − V(s)
        L_Q = ½ mean (Q(s,a) − r − γ·(1 − end)·V(s'))²
        L_π = mean −min(exp(β·u), w_max)·log π(a|s)

    Q̄ is the least of the target critics. No action outside the data is ever valued; masks enter through π alone. As τ
    goes to 1, V goes to the best value that the data support; as β goes to 0, π goes to behavior cloning.

    Source: Kostrikov, Nair & Levine (2021), arXiv 2110.06169, equations 5–7; weights clipped at 100 as in its code.

    Args:
        logits: [B, A] policy.
        critics: each [B], Q of the logged action.
        target_q: [B] least target critic of the logged action.
        value, next_value: [B] V in s and in s'.
        mask: [B, A] bool.
        actions: [B] logged actions, legal ones.
        rewards: [B], scaled.
        terminateds, truncateds: [B] bool, see the module.
        expectile: τ, .5 to below 1.
        beta: inverse temperature, ≥ 0, in units of 1 / scaled reward.
        gamma: discount, 0 to 1.
        max_weight: w_max.
    """
    advantage = target_q.detach() - value
    side = torch.where(advantage < 0, 1 - expectile, expectile)
    value_loss = (side * advantage.square()).mean()
    critic_loss = torch.stack([_td_loss(q, next_value, rewards, terminateds, truncateds, gamma) for q in critics]).sum()
    weight = torch.exp(beta * advantage.detach()).clamp(max=max_weight)
    cross_entropy = functional.cross_entropy(mask_scores(logits, mask), actions, reduction="none")
    policy_loss = (weight * cross_entropy).mean()
    total = value_loss + critic_loss + policy_loss
    clipped = (weight >= max_weight).to(weight.dtype).mean()
    return IqlLoss(total, value_loss, critic_loss, policy_loss, weight.mean(), clipped)
