"""The routing policies: one file and one line here each.

A policy is a frozen Struct with `rank(targets, x, now_ns, rng, why) -> indexes`, best first; what is left out is not tried.
It is pure: time and randomness come in. Given a list `why` it writes there what it saw in the same pass (see why.py).
`turns`: it
has `took(targets)` too, which is called for the order that a request goes by. `counts` says whether it reads `Target.stats`: those that do not cost their routes no bookkeeping.
"""

from .conditional import Conditional
from .cost_optimized import CostOptimized
from .least_busy import LeastBusy
from .least_latency import LeastLatency
from .ordered import Ordered
from .prefix_affinity import PrefixAffinity
from .round_robin import RoundRobin
from .usage import Usage
from .weighted import Weighted

__all__ = ["POLICIES", "Ordered", "Weighted"]

POLICIES = (
    Ordered | Weighted | RoundRobin | LeastLatency | LeastBusy | CostOptimized | Conditional | Usage | PrefixAffinity
)
