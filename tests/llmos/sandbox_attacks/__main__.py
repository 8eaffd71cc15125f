"""python -m sandbox_attacks WORLD.json NAME...   prints one JSON line for each attack."""

import json
import sys

from sandbox_attacks import WORLD, attempt

with open(sys.argv[1]) as file:
    WORLD.update(json.load(file))
for name in sys.argv[2:]:
    attempt(name)
    sys.stdin.readline()  # without a sandbox, the battery looks for traces now
