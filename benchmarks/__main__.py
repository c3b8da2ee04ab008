"""``python -m benchmarks``: all of them (see ``run_all.py``)."""

from benchmarks.run_all import main

main()
