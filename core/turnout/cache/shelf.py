"""What a worker has of the cache, whatever config is in force."""

from .flight import Flights
from .memory import Memory
from .spec import MemorySpec
from .tier import Depot, OverRedis, Tier


class Shelf:
    """`board`: what the workers of this host share their caches through, where that is not Redis."""

    def __init__(self, spec: MemorySpec, board: Tier | None) -> None:
        self.memory = Memory(*spec.bounds)
        self.flights = Flights()
        self.board = board
        self._over_redis: OverRedis | None = None

    def tier(self, depot: Depot | None) -> Tier | None:
        """What this worker shares its cache through; None: nothing."""
        if depot is None:
            return self.board
        if self._over_redis is None or self._over_redis.depot is not depot:
            self._over_redis = OverRedis(depot, self.memory)
        return self._over_redis
