"""How much one may take: token buckets and leases, in this process, in Redis or in PostgreSQL.

Here live `Limit`s, what is drawn from them, and the stores that keep count, one file each behind one `LimitStore`.
A store knows keys and amounts, and no more: HTTP, tiers, prices and the ledger may not be known here. Whoever
draws says what a key means, such as a customer's tokens per minute, and what to do when it is refused.
"""

from coserve.service.limits.bucket import Draw, Level, Limit, Refusal
from coserve.service.limits.open import open_store
from coserve.service.limits.renewed import RenewedStore
from coserve.service.limits.store import LEASE_SECONDS, LimitStore

__all__ = ["LEASE_SECONDS", "Draw", "Level", "Limit", "LimitStore", "Refusal", "RenewedStore", "open_store"]
