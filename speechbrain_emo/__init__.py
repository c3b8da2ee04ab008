"""Software that hears, explains, answers and speaks emotion, on SpeechBrain."""

import os

# Waiting OpenMP threads sleep instead of spinning: beside one other busy process, steps of the tiny models with two
# threads took 8.2 s spinning and 1.6 s sleeping on two cores. Read when torch loads, so it stands before any import.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
