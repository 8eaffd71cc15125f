"""Two processes on this machine, as `torchrun --nproc-per-node 2` starts them."""

import os
import re
import subprocess
import sys
from pathlib import Path

# torchrun chooses a free port and only then takes it: another test may have been faster.
LOST_PORT = re.compile(
    r"address already in use|EADDRINUSE|connection (refused|reset)", re.IGNORECASE
)


def torchrun(*script: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """What `python SCRIPT` did in two processes, which must end well."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    for _ in range(2):
        done = subprocess.run(
            [*command, "--nproc-per-node", "2", *script],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=180,
        )
        if done.returncode == 0 or not LOST_PORT.search(done.stderr):
            break
    assert done.returncode == 0, done.stderr[-6000:]
    return done
