"""How a request is let in, and let go: its tier's terms, its limits, its line in the ledger.

A `Passage` goes around each request that costs something. Nothing here knows what was asked: only how many tokens.
"""

from coserve.service.admission.admission import Admission
from coserve.service.admission.passage import Passage
from coserve.service.admission.wish import Wish

__all__ = ["Admission", "Passage", "Wish"]
