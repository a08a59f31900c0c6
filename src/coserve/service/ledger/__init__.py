"""The bill: what was delivered to whom, at what price, exactly once, whatever is killed or away meanwhile.

A request has a `Line` here from its first moment to its last. While it runs, `meter.py` holds what was delivered;
when it is over, `spool.py` holds its `Entry` until the database has it (`writer.py`). Here lives also what is read
from the bill (`totals.py`), what becomes of old rows (`rollup.py`), and what the chips did meanwhile (`chips.py`).
Nothing of HTTP, of limits or of the engine may live here: who calls says what was delivered, and what it costs.
"""

from coserve.service.ledger.entry import Entry, Rates
from coserve.service.ledger.ledger import Ledger
from coserve.service.ledger.line import Line

__all__ = ["Entry", "Ledger", "Line", "Rates"]
