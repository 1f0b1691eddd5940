"""Importance weights: which entries of a step lower the loss most.

For a function f, a point x and a step u, with ``*`` entry by entry::

    w = argmin over w in Q of  phi(w) = f(x + w * u)
    grad phi(w) = u * grad f(x + w * u)

    simplex  Q = {w >= 0, sum w = s}   log w+ = log w - eta grad phi(w) + constant
    cube     Q = [a, b]^d              w+ = clip(w - eta grad phi(w), a, b)

The first is mirror descent with the entropy as mirror. An entropic regulariser ``lam
sum w log w`` is taken implicitly, ``log w+ = (log w - eta grad phi(w)) / (1 + eta lam)
+ constant``.

References
----------
F. Khafizov, "Adaptive compression in distributed optimization", bachelor thesis, MIPT,
2025, and its slides of 2024 (repository intsystems/Khafizov-BS-Thesis): the problem,
s = 1 (slides) or s = d, so that w = 1 is the plain step (thesis), for each tensor on
its own; the cube; the regulariser. A. Beck, M. Teboulle, "Mirror descent and nonlinear
projected subgradient methods for convex optimization", Operations Research Letters,
2003.

Differences: the steps of the sources, eta = 1 to 1e7, fit one model each. Here eta is
found while going, one for each tensor: it starts where the largest change is by a
factor e (or half the cube's width); a trial ``w+`` is taken if ``<grad phi(w+), w+ - w>
<= 0``, that is, if it has not gone past the least value on its way, and eta doubles;
otherwise eta is divided by four. With L-smoothness relative to the mirror every ``eta
<= 1 / L`` passes, and for convex f no taken trial raises it. Only gradients are needed,
and each trial, taken or not, counts as one.
"""

from __future__ import annotations

from .domains import Cube, Domain, Simplex
from .solver import Gradient, Solution, solve

__all__ = ["Cube", "Domain", "Gradient", "Simplex", "Solution", "solve"]
