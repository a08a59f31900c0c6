"""`python -m coserve.cli`."""

from coserve.cli import main

main()
