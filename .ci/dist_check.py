"""Is all in the wheel and the source distribution that belongs there, and nothing else? `dist_check.py FOLDER`."""

import email
import pathlib
import subprocess
import sys
import tarfile
import zipfile

ROOT = pathlib.Path(__file__).parent.parent
LARGEST = 203 * 1024  # bytes of the wheel: code and templates, no data


def sources(folder: str, below: str) -> set[str]:
    """Files that git knows of in a folder of the checkout, as they lie below another."""
    listed = subprocess.run(["git", "ls-files", folder], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {below + name.removeprefix(folder) for name in listed.splitlines()}


def check_wheel(path: pathlib.Path) -> None:
    """The package, the studies, their templates, metadata; not a file more."""
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        (about,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
        metadata = email.message_from_bytes(wheel.read(f"{about}/METADATA"))
        entry_points = wheel.read(f"{about}/entry_points.txt").decode()
    package = {name for name in names if not name.startswith(f"{about}/")}
    wanted = sources("captum_attnkd", "captum_attnkd") | sources("evaluation", "captum_attnkd/evaluation")
    wanted -= sources("evaluation/benchmarks", "captum_attnkd/evaluation/benchmarks")  # of our own parts
    assert package == wanted, f"missing: {sorted(wanted - package)}; too many: {sorted(package - wanted)}"
    assert "captum_attnkd/py.typed" in package
    assert {"report.html", "report.css", "report.js"} <= {pathlib.PurePath(name).name for name in package}
    assert f"{about}/licenses/LICENSE" in names, "no licence"
    assert metadata["License-Expression"] or metadata["License"], "its metadata name no licence"
    assert "attnkd = captum_attnkd.evaluation.__main__:main" in entry_points
    assert not [line for line in metadata.get_all("Requires-Dist", []) if "@" in line], "a dependency by its address"
    size = path.stat().st_size
    assert size <= LARGEST, f"{size} bytes are more than {LARGEST}"
    print(f"{path.name}: {len(names)} files, {size} bytes")


def check_sdist(path: pathlib.Path) -> None:
    """What it takes to build and to test; nothing that a build or a study left behind."""
    with tarfile.open(path) as sdist:
        members = [member for member in sdist.getmembers() if member.isfile()]
        assert len(members) == sum(not member.isdir() for member in sdist.getmembers()), "a link or a device"
    names = {member.name.partition("/")[2] for member in members}
    wanted = {
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "Makefile",
        "MANIFEST.in",
        "pyproject.toml",
        "setup.cfg",
    }
    for folder in ("captum_attnkd", "evaluation", "tests", "examples", ".ci"):
        wanted |= sources(folder, folder)
    assert wanted <= names, f"missing: {sorted(wanted - names)}"
    made = {"PKG-INFO"}
    extra = {name for name in names - wanted - made if not name.startswith("captum_attnkd.egg-info/")}
    assert not extra, f"too many: {sorted(extra)}"
    print(f"{path.name}: {len(names)} files, {path.stat().st_size} bytes")


if __name__ == "__main__":
    dist = pathlib.Path(sys.argv[1])
    (built,), (source,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    check_wheel(built)
    check_sdist(source)
