"""What untrusted code may try. This package runs in the sandbox, where every function must fail.

An attack returns something true, best the stolen text, when it believes that it reached its goal;
the battery also looks at the world for traces. Those in HARMLESS touch nothing but the world that
the battery made for them, so they are run without a sandbox too, where every one must succeed:
that shows that the traces would be seen.
"""

import contextlib
import json
import os

from sandbox_attacks import changing, reaching, reading, rights
from sandbox_attacks.common import HARMLESS as HARMLESS
from sandbox_attacks.common import WORLD as WORLD

ATTACKS = {
    name: function
    for module in (reading, changing, reaching, rights)
    for name, function in vars(module).items()
    if getattr(function, "__module__", "") == module.__name__
}
# In the terminal these are allowed.
PYTHON_ONLY = {"fork", "vfork_without_libc", "spawn", "execute", "start_a_subprocess"}


def attempt(name):
    """Run one attack and print what came of it."""
    os.makedirs(name, exist_ok=True)
    os.chdir(name)
    record = {"name": name, "claim": None, "error": ""}
    try:
        claim = ATTACKS[name]()
        record["claim"] = claim and str(claim)[:4000]
    except BaseException as error:
        record["error"] = f"{type(error).__name__}: {error}"[:200]
    finally:
        with contextlib.suppress(OSError):
            os.chdir("..")
    print(json.dumps(record), flush=True)
