"""Software that hears, explains, answers and speaks emotion, on SpeechBrain."""

import os

# Waiting OpenMP threads sleep instead of spinning: on two cores at load 4, a step of the tiny models with two
# threads took 8.2 s spinning and 1.6 s sleeping. Read when torch loads, so it stands before any import.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
