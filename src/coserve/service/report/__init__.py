"""What came in and what it cost: the bill and the chips' hours of some time, read from the database and shown.

`data.py` reads, `rows.py` makes tables, CSV and JSON of it, `page.py` a page and pictures. It only reads, so it works
beside a running server; nothing of HTTP, of keys or of the engine may live here.
"""

from coserve.service.report.data import Report, read_report

__all__ = ["Report", "read_report"]
