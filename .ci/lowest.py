"""Print pip constraints that pin every direct dependency to the lowest version setup.cfg allows: `lowest.py EXTRA...`."""

import configparser
import pathlib
import re
import sys

SETUP = pathlib.Path(__file__).parent.parent / "setup.cfg"
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?:\[(?P<extras>[\w,-]+)\])?(?:>=(?P<lowest>[\w.]+))?$")


def lowest(extras: list[str]) -> dict[str, str]:
    """Lowest version by name, of what the package and these extras of it need."""
    config = configparser.ConfigParser()
    config.read(SETUP, encoding="utf-8")
    own = config["metadata"]["name"]
    waiting = [config["options"]["install_requires"], *(config["options.extras_require"][extra] for extra in extras)]
    found: dict[str, str] = {}
    while waiting:
        for line in filter(None, waiting.pop().splitlines()):
            parts = _REQUIREMENT.match(line)
            if parts is None:
                raise SystemExit(f"{SETUP.name}: {line!r} is not of the form name>=version")
            if parts["name"] == own:
                waiting += [config["options.extras_require"][extra] for extra in parts["extras"].split(",")]
            elif parts["lowest"] is None:
                raise SystemExit(f"{SETUP.name}: {line!r} names no lowest version")
            else:
                found[parts["name"]] = parts["lowest"]
    return found


if __name__ == "__main__":
    print("\n".join(f"{name}=={version}" for name, version in sorted(lowest(sys.argv[1:]).items())))
