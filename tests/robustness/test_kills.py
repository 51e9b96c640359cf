"""A fit killed at any moment, also while its state is written, and gone on with, ends with the weights it would have had."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.timeout(7200), pytest.mark.slow]

# One process imports torch and forks; each child fits, and is killed from outside by a real SIGKILL at a random moment. States are
# saved at every second step on a slow disk, so that a good part of the time goes into writing them.
_SCRIPT = """
    import functools, hashlib, json, os, random, signal, sys, time, traceback
    sys.path.insert(0, {here!r})
    import torch
    import captum_attnkd.attribution as door
    import test_resume as mine
    from accelerate import Accelerator  # imported once, before the forks
    from captum_attnkd.fitting import FitSettings
    from pathlib import Path
    from toy_task import random_net, weights_of

    torch.set_num_threads(1)
    door.FitSettings = functools.partial(FitSettings, check_every=2)
    folder, drawn = Path({folder!r}), random.Random({seed})
    wanted_kills = {kills}

    def slowly(handle, sync=os.fsync):
        time.sleep(0.1)
        sync(handle)

    os.fsync = slowly

    def child(student, state, result):
        # Everything in a process of its own: what it leaves behind is on disk, or nowhere.
        pid = os.fork()
        if pid:
            return pid
        try:
            attribution = mine.fit(random_net(11), student, mine.shuffling(), state, distil_steps=8, explain_steps=8)
            digest = hashlib.sha256()
            for name, tensor in sorted(weights_of(attribution).items()):
                digest.update(name.encode() + tensor.numpy().tobytes())
            draft = result.with_suffix(".draft")
            draft.write_text(digest.hexdigest())
            draft.rename(result)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def ended(pid):
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    told = {{"kills": 0, "in a write": 0, "with a state": 0, "unequal": 0, "not resumed": 0, "drafts left": 0}}
    for student in ("grafted", "compact"):
        result = folder / f"wanted-{{student}}"
        started = time.monotonic()
        assert ended(child(student, folder / f"state-{{student}}", result)) == 0
        long, wanted = time.monotonic() - started, result.read_text()
        kills = 0
        while kills < wanted_kills // 2:
            here = folder / f"{{student}}-{{kills}}"
            here.mkdir(exist_ok=True)
            state, result = here / "state", here / "result"
            pid = child(student, state, result)
            time.sleep(drawn.uniform(0.0, long))
            os.kill(pid, signal.SIGKILL)
            if ended(pid) != -signal.SIGKILL:
                for left in here.iterdir():  # it was done already
                    left.unlink()
                continue
            kills += 1
            told["kills"] += 1
            told["in a write"] += any(left.suffix == ".part" for left in here.iterdir())
            told["with a state"] += state.exists()
            if ended(child(student, state, result)) != 0:
                told["not resumed"] += 1
                continue
            told["unequal"] += result.read_text() != wanted
            told["drafts left"] += any(left.suffix == ".part" for left in here.iterdir())
    print(json.dumps(told))
"""


def test_killed_at_random_moments_and_gone_on_with(tmp_path: Path, counted: Callable[[int, int], int]) -> None:
    kills = counted(2, 30)
    script = textwrap.dedent(_SCRIPT).format(
        here=str(Path(__file__).parents[1]), folder=str(tmp_path), kills=kills, seed=1
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=7000, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    told = json.loads(ended.stdout.splitlines()[-1])
    print(told)
    assert told["kills"] == kills
    assert told["unequal"] == told["not resumed"] == 0, ended.stderr[-4000:]
    assert told["drafts left"] == 0
