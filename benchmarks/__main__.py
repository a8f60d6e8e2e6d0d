"""The suite: runs parts, prints their tables, and writes what was measured as JSON.

``python -m benchmarks [PART ...] [--quick] [--folder build/benchmarks] [--minutes 15]``

Without names it runs every part that is not long.  ``--publish`` copies the results of the folder
to the pages: see `benchmarks.document`.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from pathlib import Path

from samserve.system.limits import core_count

from benchmarks import document, machine, results
from benchmarks.parts import PARTS, SEPARATE, Plan, runner

FOLDER = Path("build/benchmarks")


def main() -> int:
    """Run the suite."""
    chosen = _options()
    if chosen.publish:
        document.publish(chosen.folder)
        return 0
    plan = Plan(chosen.folder.absolute(), core_count(), minutes=chosen.minutes, quick=chosen.quick)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    for name in chosen.parts or [each for each in PARTS if each not in SEPARATE]:
        result = measure(name, plan)
        path = chosen.folder / f"{name}.json"
        path.write_text(results.dumps([result]), encoding="utf-8")
        sys.stdout.write(f"## {name}: {PARTS[name]}\n\n{document.tables(result)}\n")
        sys.stdout.flush()
    return 0


def measure(name: str, plan: Plan) -> results.Result:
    """Run one part, and add to its result when and on what machine it ran."""
    before, started = machine.load_average(), time.perf_counter()
    result = runner(name)(plan)
    result.date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    result.commit, result.machine = machine.commit(), machine.machine()
    result.versions = machine.versions()
    result.load = (before, machine.load_average())
    result.seconds, result.quick = time.perf_counter() - started, plan.quick
    return result


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"{name:10} {text}" for name, text in PARTS.items()),
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="a name from the list below")
    parser.add_argument("--quick", action="store_true", help="a third of the blocks")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where results are written")
    parser.add_argument("--minutes", type=float, default=15.0, help="the length of `soak`")
    parser.add_argument("--publish", action="store_true", help="copy the results to the pages")
    chosen = parser.parse_args()
    unknown = [each for each in chosen.parts if each not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    return chosen


if __name__ == "__main__":
    sys.exit(main())
