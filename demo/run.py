"""The demonstration behind `make demo`: the requests of requests.txt, one conversation, real tools.

It is what `trivium chat` does, with the person played by a file.
"""

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from trivium import hub
from trivium.cli.render import Screen
from trivium.cli.session import Session, Settings
from trivium.llmos.messages import Answer, Message

HERE = Path(__file__).parent


def main() -> int:
    with TemporaryDirectory() as folder:
        workspace = Path(shutil.copytree(HERE / "workspace", Path(folder) / "workspace"))
        settings = Settings(model=hub.DEFAULT, workspace=workspace)
        with Session(settings, Screen()) as session:
            for request in (HERE / "requests.txt").read_text().splitlines():
                print(f"\n\x1b[1myou:\x1b[0m {request}" if sys.stdout.isatty() else f"\nyou: {request}", flush=True)
                if not isinstance(session.answer(Message("user", request)), Answer):
                    return 1
    print(
        "\nThat was SmolLM2-135M on this machine, offline. It is small: it often errs.\n"
        f"Go on:  {Path(sys.executable).with_name('trivium')} chat\n"
        '   or:  trivium run "…" · trivium --help · README.md'
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
