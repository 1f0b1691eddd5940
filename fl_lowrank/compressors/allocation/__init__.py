"""Which part of a byte budget goes where, so that the squared error is least.

With errors D_i and sizes R_i of the parts of an update, the sum of D_i under a bound on
the sum of R_i is least where every part has the same slope: it minimises
``D_i + price R_i`` for one common price (H. Everett, "Generalized Lagrange Multiplier
Method for Solving Problems of Optimum Allocation of Resources", Operations Research
1963). For Gaussian parts that is reverse water-filling: one common step for all that is
sent (T. Cover, J. Thomas, "Elements of Information Theory", theorem 13.3.3).

``magnitudes`` counts a tensor's entries by magnitude; ``families`` predict from that
what a setting costs and loses; ``plan`` finds the price, and what should travel
together; ``fit`` corrects the prediction by the sizes of real messages.
"""

from __future__ import annotations
