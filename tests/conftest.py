"""Before anything imports Triton: its kernels run in its interpreter, on CPU tensors (tests/kernels/gpu).

TRITON_INTERPRET=0 on a machine with a GPU runs the same tests there.
"""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
