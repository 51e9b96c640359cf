"""Print what `coverage json` wrote as a table: which share of each file's lines and branches ran. `covered.py FILE`."""

import json
import pathlib
import sys


def share(ran: int, of: int) -> str:
    """A percentage, of nothing all of it; rounded down, so that 100.0 % means all."""
    return f"{(1000 * ran // of if of else 1000) / 10:.1f} %"


def row(name: str, counted: dict[str, int]) -> str:
    """One file's."""
    lines, branches = counted["num_statements"], counted["num_branches"]
    return (
        f"| {name} | {share(counted['covered_lines'], lines)} of {lines} "
        f"| {share(counted['covered_branches'], branches)} of {branches} |"
    )


if __name__ == "__main__":
    found = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))
    print("| file | lines | branches |\n|---|---|---|")
    for name, file in sorted(found["files"].items()):
        print(row(f"`{pathlib.Path(name).name}`", file["summary"]))
    print(row("all", found["totals"]))
