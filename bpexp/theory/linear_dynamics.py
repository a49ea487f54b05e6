"""Exact dynamics of deep linear networks that learn by gradient descent of a small rate.

Letters: the loss is half the squared error on whitened inputs, so that its modes are the singular vectors of the
input-output correlation; s = the singular value of a mode, u(t) = how much of it the network has, from u_0 on; W = the
number of weight layers, N_l - 1 in the paper's count of layers of units; tau = 1 / learning rate, t in steps.
Source: Saxe, McClelland and Ganguli 2014, arXiv:1312.6120
"""

from __future__ import annotations

import math

import numpy as np

from bpexp.theory.moments import Array


def mode_strength(t: Array, s: float, u_0: float, tau: float, weights: int) -> Array:
    """Return how much of a mode a network with decoupled, balanced weights has learnt after t steps.

    Math:    tau du/dt = W u^(2 - 2/W) (s - u). W = 2, one hidden layer:
             u = s e^(2st/tau) / (e^(2st/tau) - 1 + s/u_0); W = 1, none: u = s - (s - u_0) e^(-t/tau);
             else v = log(u / (s - u)) is integrated, tau dv/dt = W s u^(1 - 2/W)
    Shapes:  t: (T,), rising
    Raises:  ValueError: u_0 not between 0 and s; tau not positive; fewer than 1 weight layer; t that are negative, do
             not rise, or are no finite numbers
    """
    from scipy.integrate import solve_ivp

    check(s, u_0, tau, weights)
    t = np.asarray(t, dtype=np.float64)
    if not (t.ndim == 1 and np.isfinite(t).all() and (np.diff(t, prepend=0.0) >= 0).all()):
        raise ValueError("t: must be a row of finite numbers that rise from 0 or later")
    if weights == 1:
        return np.asarray(s - (s - u_0) * np.exp(-t / tau))
    start = math.log(u_0 / (s - u_0))
    if weights == 2:
        return np.asarray(s / (1 + np.exp(-(start + 2 * s * t / tau))))

    def rate(_: float, v: Array) -> Array:
        return np.asarray(weights * s / tau * (s / (1 + np.exp(-v))) ** (1 - 2 / weights))

    if not t.size:
        return t
    found = solve_ivp(rate, (0.0, float(t[-1])), [start], method="DOP853", t_eval=t, rtol=1e-10, atol=1e-10)
    return np.asarray(s / (1 + np.exp(-found.y[0])))


def learning_time(s: float, u_0: float, u: float, tau: float, weights: int) -> float:
    """Return the steps from u_0 to u.

    Math:    t = tau/(W s) int u^(2/W - 1) dv, v = log(u / (s - u)), by Gauss-Legendre on 64 panels. W = 2:
             tau/(2s) log(u (s - u_0) / (u_0 (s - u))); W -> infinity: W t = tau (log(...)/s^2 + (1/u_0 - 1/u)/s), so
             that the time falls as 1/W, and as the largest stable rate does so too, the steps become independent of W
    Raises:  ValueError: as mode_strength; u not between u_0 and s
    """
    check(s, u_0, tau, weights)
    if not u_0 <= u < s:
        raise ValueError(f"u: {u} is not between u_0={u_0} and s={s}")
    ends = np.linspace(math.log(u_0 / (s - u_0)), math.log(u / (s - u)), 65)
    nodes, shares = np.polynomial.legendre.leggauss(12)
    half = np.diff(ends)[:, None] / 2
    v = ends[:-1, None] + half * (1 + nodes)
    integral = (half * shares * (s / (1 + np.exp(-v))) ** (2 / weights - 1)).sum()
    return float(tau / (weights * s) * integral)


def check(s: float, u_0: float, tau: float, weights: int) -> None:
    if not 0 < u_0 < s < math.inf:
        raise ValueError(f"u_0: {u_0} is not between 0 and s={s}")
    if not 0 < tau < math.inf:
        raise ValueError(f"tau: {tau} is not positive")
    if weights < 1:
        raise ValueError(f"weights: {weights} is not at least 1")
