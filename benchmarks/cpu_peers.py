"""Corral beside its peers on a CPU: the same work on the same weights, in turn, on the same cores.

    python benchmarks/cpu_peers.py [--rows ROW,...] [--peers PEER,...] [--rounds 5] [--json FILE]

Each peer is installed into a virtual environment of its own, under Corral's cache (`~/.cache/corral/peers`),
where the model files are made, too: all from the weights of the default model, but for the rows of the 8B
shape, whose weights are random. A peer that cannot be installed or run here is told of in one line and left
out. The first time takes a while, some GB of disk, and a C++ compiler for those peers that are built here.
`--setup-only` does that and no more.

Every run is a process of its own, which loads the model, warms up, and is timed by the same clock; the peers'
runs alternate with Corral's. All use one thread for each physical core, are greedy, and are given the same
token ids. Decoding is timed after the first token; prefill is the prompt over the time to the first token.

The table has medians over the rounds in tokens per second, and in brackets the median of the rounds' own
ratios Corral / peer: above 1 Corral is faster. Run it on an idle machine. torch should come from an index of
CPU builds (PIP_EXTRA_INDEX_URL, or PIP_FIND_LINKS), or gigabytes of CUDA come with it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from peers import models
from peers.base import Peer
from peers.catalog import PEERS
from peers.environment import Environment, SetupError, prepare
from peers.machine import Machine, busy_share, describe, physical_cores
from peers.run import RunError, run
from peers.table import CORRAL, markdown, median, samples, summary
from peers.work import ROWS, Row, Work

import corral

_BUSY = 0.1  # share of the processors' time

Results = dict[tuple[str, str], list[dict[str, Any] | None]]


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a run that is going on is ended, too
    options = parse()
    rows = [ROWS[name] for name in options.rows]
    works = list(dict.fromkeys(row.work for row in rows))
    environments = set_up([PEERS[name] for name in options.peers])
    files = make_models(environments, works)
    if options.setup_only:
        return
    cores = physical_cores()[: options.threads]
    machine, busy = describe(cores), busy_share()
    print(f"{machine}\n", flush=True)
    if busy > _BUSY:
        print(f"Other processes take {busy:.0%} of the processors: no ratio can be trusted.\n", flush=True)
    results: Results = {}
    for work in works:
        run_interleaved(work, environments, files, cores, options.rounds, results)
    report(rows, environments, machine, results, options)
    if "decode-8b" in options.rows and "8b-q4_0" in files:
        print(f"\n{bandwidth_used(results, files['8b-q4_0'], machine)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=names_of(ROWS), default=list(ROWS), help=", ".join(ROWS))
    parser.add_argument("--peers", type=names_of(PEERS), default=list(PEERS), help=", ".join(PEERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: the number of physical cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample to this file")
    parser.add_argument("--setup-only", action="store_true", help="install peers, make models, run nothing")
    options = parser.parse_args()
    options.peers = list(dict.fromkeys([CORRAL, *options.peers]))
    return options


def names_of(known: Mapping[str, object]) -> Any:
    """A type for argparse: names with commas between them, all of them known."""

    def read(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(known)}")
        return names

    return read


def set_up(peers: Sequence[Peer]) -> dict[str, Environment]:
    """The environments of those peers that can be installed."""
    found = {}
    for peer in peers:
        try:
            found[peer.name] = prepare(peer)
        except SetupError as error:
            print(error, flush=True)
    return found


def make_models(environments: dict[str, Environment], works: Sequence[Work]) -> dict[str, Path]:
    """The model files that the works need, by kind; those that cannot be made are told of and left out."""
    kinds = {
        environment.peer.models.get(work.weights) for environment in environments.values() for work in works
    }
    found = {}
    for kind in sorted(kind for kind in kinds if kind):
        try:
            found[kind] = models.make(kind, environments)
        except SetupError as error:
            print(error, flush=True)
    return found


def run_interleaved(
    work: Work,
    environments: Mapping[str, Environment],
    files: Mapping[str, Path],
    cores: tuple[int, ...],
    rounds: int,
    results: Results,
) -> None:
    """Each round runs every peer once, Corral first. A peer that fails is not tried again."""
    able = {
        name: files[environment.peer.models[work.weights]]
        for name, environment in environments.items()
        if environment.peer.models.get(work.weights) in files and (work.slots == 1 or environment.peer.many)
    }
    for number in range(rounds):
        for name, file in list(able.items()):
            found: dict[str, Any] | None = None
            try:
                figures = found = run(environments[name], file, work, cores, seed=2 * number)
                told = ", ".join(f"{key} {value:.1f}" for key, value in figures.items() if "tok_s" in key)
                print(f"round {number + 1}, {work.name}, {name}: {told}", flush=True)
            except RunError as error:
                print(error, flush=True)
                del able[name]
            results.setdefault((work.name, name), []).append(found)


def bandwidth_used(results: Results, file: Path, machine: Machine) -> str:
    """What decoding the 8B shape reads of the weights in a second, and its share of what can be read."""
    size = models.weights_read(file)
    speeds = {peer: median(samples(results, ROWS["decode-8b"], peer)) for _, peer in results}
    told = [
        f"{peer} {speed * size / 1e9:.1f} GB/s ({speed * size / machine.bandwidth:.0%})"
        for peer, speed in speeds.items()
        if speed is not None
    ]
    return f"Weights read when decoding the 8B shape, {size / 1e9:.2f} GB per token: {', '.join(told)}"


def report(
    rows: Sequence[Row],
    environments: Mapping[str, Environment],
    machine: Machine,
    results: Results,
    options: argparse.Namespace,
) -> None:
    peers = list(environments)
    table = summary(results, rows, peers)
    versions = {name: environment.version for name, environment in environments.items()}
    versions[CORRAL] = corral.__version__
    command = "python " + shlex.join(sys.argv)
    print(f"\n{machine}; {date.today()}; medians of {options.rounds} rounds")
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    print(f"`{command}`\n")
    print(markdown(table, peers))
    if options.json is not None:
        told = {
            "date": str(date.today()),
            "machine": asdict(machine),
            "versions": versions,
            "all_versions": {name: environment.versions for name, environment in environments.items()},
            "command": command,
            "rows": table,
            "runs": [
                {"work": work, "peer": peer, "rounds": found} for (work, peer), found in results.items()
            ],
        }
        options.json.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
