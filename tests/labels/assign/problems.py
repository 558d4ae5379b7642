"""Assignment problems, and an independent solver of them."""

import math

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor


def costs(rows, columns, seed=0, scale=1.0, skew=2.0, dtype=torch.float64) -> Tensor:
    """``-log p`` of confident predictions [N, K] whose most probable classes are skewed."""
    generator = np.random.default_rng(seed)
    sizes = np.exp(-skew * np.arange(columns) / columns)
    logits = generator.normal(size=(rows, columns))
    logits[np.arange(rows), generator.choice(columns, rows, p=sizes / sizes.sum())] += 3
    logits *= scale
    return torch.from_numpy(logsumexp(logits, axis=1, keepdims=True) - logits).to(dtype)


def scaled(cost, epsilon, gamma=math.inf, mass=1.0, a=None, b=None, iterations=50_000):
    """The scaling iterations in the log domain, NumPy float64, until nothing moves: the plan [N, K]."""
    cost = np.asarray(cost, dtype=np.float64)
    rows, columns = cost.shape
    a = np.full(rows, 1 / rows) if a is None else np.asarray(a)
    b = np.full(columns, mass * a.sum() / columns) if b is None else np.asarray(b)
    gamma = np.broadcast_to(np.asarray(gamma, dtype=np.float64), columns)
    power = np.where(np.isinf(gamma), 1.0, gamma / np.where(np.isinf(gamma), 1.0, gamma + epsilon))
    if mass < 1:
        cost = np.concatenate([cost, np.zeros((rows, 1))], axis=1)
        b, power = np.append(b, (1 - mass) * a.sum()), np.append(power, 1.0)
    exponents, log_v = -cost / epsilon, np.zeros(len(b))
    with np.errstate(divide="ignore"):
        log_a = np.log(a)
    for _ in range(iterations):
        log_u = log_a - logsumexp(exponents + log_v, axis=1)
        new = power * (np.log(b) - logsumexp(exponents + log_u[:, None], axis=0))
        moved, log_v = np.abs(new - log_v).max(), new
        if moved < 1e-12:
            break
    log_u = log_a - logsumexp(exponents + log_v, axis=1)
    return np.exp(log_u[:, None] + exponents + log_v)[:, :columns]


def objective(plan, cost, epsilon, gamma=math.inf, mass=1.0, a=None, b=None):
    """What is minimised, term by term; a prescribed column is taken to be met."""
    plan, cost = np.asarray(plan, dtype=np.float64), np.asarray(cost, dtype=np.float64)
    rows, columns = cost.shape
    a = np.full(rows, 1 / rows) if a is None else np.asarray(a)
    b = np.full(columns, mass * a.sum() / columns) if b is None else np.asarray(b)
    entropy = lambda q: np.sum(q * np.log(np.where(q > 0, q, 1)) - q)  # noqa: E731
    value = np.sum(plan * cost) + epsilon * entropy(plan)
    if mass < 1:
        value += epsilon * entropy(np.maximum(a - plan.sum(1), 0))
    if 0 < gamma < math.inf:
        q = plan.sum(0)
        value += gamma * np.sum(q * np.log(q / b) - q + b)
    return value
