"""What the benchmarks share: interleaved timing, memory of a process, Markdown tables.

A time is worth little on a machine with other work, so variants run in turns (first A, B, then B, A, ...), the
result is the median over the rounds, and the ratio to the reference is the median of the ratios of the rounds.
"""

import argparse
import os
import platform
import resource
import statistics
import sys
import time
from dataclasses import dataclass, field

import torch
from tqdm import tqdm


@dataclass(frozen=True)
class Timing:
    """Times of one variant against the reference of the same run.

    Arguments
    ---------
    seconds : float
        Median over the rounds.
    ratio : float
        Median over the rounds of this variant's time by the reference's time in the same round.
    lowest, highest : float
        Smallest and largest of these ratios.

    Example
    -------
    >>> Timing(2.0, 0.5, 0.4, 0.6).ratio
    0.5
    """

    seconds: float
    ratio: float
    lowest: float
    highest: float


def take_turns(variants, rounds, warmup=1):
    """Run every variant once a round, in an order that turns round every time.

    Arguments
    ---------
    variants : dict of str to callable
        Called without arguments.
    rounds : int
        At least 1.
    warmup : int
        Rounds before that are not timed.

    Returns
    -------
    dict of str to list of float
        Seconds of each round.

    Raises
    ------
    ValueError
        If ``rounds`` is below 1.

    Example
    -------
    >>> calls = []
    >>> times = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, warmup=0)
    >>> calls, len(times["a"])
    (['a', 'b', 'b', 'a'], 2)
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; allowed: 1 and above")
    times = {name: [] for name in variants}
    for number in tqdm(range(-warmup, rounds), desc="rounds", leave=False, disable=None):
        for name in list(variants) if number % 2 == 0 else list(reversed(variants)):
            start = time.perf_counter()
            variants[name]()
            if number >= 0:
                times[name].append(time.perf_counter() - start)
    return times


def compare(times, reference):
    """Summary of :func:`take_turns` against one of its variants.

    Arguments
    ---------
    times : dict of str to list of float
        Seconds of each round, as many for every variant.
    reference : str
        A key of ``times``.

    Returns
    -------
    dict of str to Timing

    Example
    -------
    >>> compare({"slow": [2.0, 4.0, 6.0], "fast": [1.0, 1.0, 1.5]}, "slow")["fast"]
    Timing(seconds=1.0, ratio=0.25, lowest=0.25, highest=0.5)
    """
    summary = {}
    for name, seconds in times.items():
        ratios = [own / other for own, other in zip(seconds, times[reference], strict=True)]
        summary[name] = Timing(
            statistics.median(seconds), statistics.median(ratios), min(ratios), max(ratios)
        )
    return summary


def _status(name):
    """A size in /proc/self/status in bytes, None on systems without it."""
    if not os.path.exists("/proc/self/status"):
        return None
    with open("/proc/self/status", encoding="ascii") as stream:
        for line in stream:
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    return None


def peak_memory():
    """Largest resident size of this process so far, in bytes.

    On Linux this is ``VmHWM``: ``ru_maxrss`` of a process that was started by a larger one begins at the size of
    that one.
    """
    peak = _status("VmHWM")
    if peak is None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak *= 1 if sys.platform == "darwin" else 1024
    return peak


def resident_memory():
    """Resident size of this process now, in bytes; its peak on systems that do not tell."""
    resident = _status("VmRSS")
    return peak_memory() if resident is None else resident


@dataclass
class Table:
    """A table that prints as Markdown.

    Arguments
    ---------
    title : str
        Heading.
    header : sequence of str
        Names of the columns.
    rows : list of sequence of str
        One cell a column.
    notes : list of str
        Lines below the table.

    Example
    -------
    >>> print(Table("T", ["a", "b"], [["1", "2"]], ["n"]))
    ### T
    <BLANKLINE>
    | a | b |
    |---|---|
    | 1 | 2 |
    <BLANKLINE>
    n
    """

    title: str
    header: list
    rows: list = field(default_factory=list)
    notes: list = field(default_factory=list)

    def __str__(self):
        lines = [f"### {self.title}", ""]
        lines += ["| " + " | ".join(self.header) + " |", "|" + "---|" * len(self.header)]
        lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in self.rows]
        return "\n".join(lines + ["", *self.notes]).rstrip()


def ratio_cell(timing):
    """A ratio with its spread over the rounds.

    Example
    -------
    >>> ratio_cell(Timing(1.0, 0.5, 0.25, 0.75))
    '0.50 (0.25-0.75)'
    """
    return f"{timing.ratio:.2f} ({timing.lowest:.2f}-{timing.highest:.2f})"


def machine():
    """One line about where this runs and how busy it is."""
    load = f"load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} torch "
        f"thread(s), {load}, Python {platform.python_version()}, torch {torch.__version__}"
    )


def argument_parser(doc, example, rounds):
    """Parser with the options that every benchmark has.

    Arguments
    ---------
    doc : str
        Docstring of the benchmark.
    example : str
        A command, for the end of ``--help``.
    rounds : int
        Default number of timed rounds.

    Returns
    -------
    argparse.ArgumentParser
    """
    parser = argparse.ArgumentParser(
        description=doc,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--rounds", type=int, default=rounds, help="timed rounds, after one that is not (%(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, help="torch threads (%(default)s)")
    return parser


def print_tables(tables):
    """Print tables with a line about the machine."""
    for table in tables:
        print(f"{table}\n")
    print(machine(), flush=True)
