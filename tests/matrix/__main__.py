"""Run the matrix: python -m matrix [--jobs N] [--json FILE] [OPERATION PLACE ASKER patterns]."""

from __future__ import annotations

import argparse
import fnmatch
import sys

from matrix import report
from matrix.run import cells, run_all


def main() -> int:
    parser = argparse.ArgumentParser(prog="matrix", description="run cells of the matrix and compare them with what is expected")
    parser.add_argument("operation", nargs="?", default="*")
    parser.add_argument("place", nargs="?", default="*")
    parser.add_argument("asker", nargs="?", default="*")
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--verbose", "-v", action="store_true", help="print every cell")
    parser.add_argument("--list", action="store_true", help="print the cells and what is expected of them")
    parser.add_argument("--save", metavar="FILE", help="write all outcomes there")
    options = parser.parse_args()
    chosen = [
        cell
        for cell in cells()
        if all(
            any(fnmatch.fnmatchcase(name, one) for one in pattern.split(","))
            for name, pattern in zip(cell, (options.operation, options.place, options.asker), strict=True)
        )
    ]
    if options.list:
        for cell in chosen:
            print(*cell, report.expected(cell))
        return 0
    outcomes = run_all(chosen, options.jobs, (lambda o: print(o.line, f"({o.seconds:.1f} s)", flush=True)) if options.verbose else None)
    if options.save:
        with open(options.save, "w", encoding="utf-8") as file:
            file.writelines(o.line + "\n" for o in outcomes)
    text, failures = report.table(outcomes)
    print(text)
    return 1 if failures else 0


sys.exit(main())
