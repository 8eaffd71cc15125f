"""The demonstration behind `make demo`: the requests of requests.txt, in one conversation.

It is what `trivium chat` does, with the person played by a file.
"""

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from trivium import hub
from trivium.cli.render import Screen
from trivium.cli.session import Session
from trivium.cli.settings import Settings
from trivium.llmos.messages import Answer, Message

HERE = Path(__file__).parent


def main() -> int:
    with TemporaryDirectory() as folder:
        workspace = Path(shutil.copytree(HERE / "workspace", Path(folder) / "workspace"))
        print("The LLM OS at work: a small model on this machine, and its tools in a sandbox.")
        with Session(Settings(hub.DEFAULT, workspace), Screen()) as session:
            for request in (HERE / "requests.txt").read_text().splitlines():
                print(f"\n> {request}", flush=True)
                if not isinstance(session.answer(Message("user", request)), Answer):
                    return 1
    command = Path(sys.executable).with_name("trivium")
    print(
        "\nThat was SmolLM2-135M, offline. It is small, and often wrong; the tools are not.\n"
        f"Talk with it:          {command} chat\n"
        f'One request:           {command} run "What is 15% of 80?"\n'
        f"What else works here:  {command} doctor"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
