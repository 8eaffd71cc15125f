"""Wheels from the package index that pip is configured for; nothing of them is installed or run.

pip alone knows the user's indexes, links, certificates, proxies and credentials, so it is asked
where the wheel is. Its `index versions -vv` names every link without downloading anything (the
report of a dry-run install would download the whole wheel first). The file is then fetched by
`trivium.download`, which can resume; where the server does not serve us, or pip names no plain
link, `pip download` fetches it.
"""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from trivium.download import Declined, Progress, fetch, nothing, size_of, verify
from trivium.errors import TriviumError

LOOKUP_SECONDS = 180
FOUND = re.compile(r"Found link ([^\s,]+\.whl)[#, ].*version: (\S+)\s*$", re.MULTILINE)
TROUBLE = re.compile(r"(?:connection broken by|Could not fetch URL) (?!.*\b404\b)(.*)")
ERROR = re.compile(r"ERROR: (.*)")
QUIET = ("--disable-pip-version-check", "--no-input", "--no-color")


def wheel(
    package: str,
    version: str,
    folder: Path,
    *,
    sha256: str,
    size: int,
    offline: bool = False,
    progress: Progress = nothing,
) -> Path:
    """The checked wheel: a new file in `folder`, or where a local index already has it.

    `offline` leaves the links to local files, which need no network.
    """
    links = list(_links(package, version, offline))
    for link in links:
        if link.startswith("file:"):
            path = Path(url2pathname(urlsplit(link).path))
            verify(path, sha256)
            return path
    if offline:
        raise TriviumError(
            f"offline: the wheel {package} {version} is in no local folder that pip searches; "
            "go online once, or give it with `--from FILE`"
        )
    plain = [link for link in links if "****" not in link]  # pip hides passwords in its log
    if plain:
        target = folder / unquote(urlsplit(plain[0]).path).rpartition("/")[2]
        try:
            fetch(plain[0], target, sha256=sha256, size=size, progress=progress)
            return target
        except Declined:
            pass  # pip has credentials, a proxy or a certificate that we lack
    return _pip_download(package, version, folder, sha256=sha256, size=size, progress=progress)


def _pip(*arguments: str) -> list[str]:
    if importlib.util.find_spec("pip") is None:
        raise TriviumError(
            f"pip is missing from this environment: run `{sys.executable} -m ensurepip` or "
            "`uv pip install pip`, or download the file elsewhere and give it with `--from FILE`"
        )
    # -P: a folder named pip in the current directory must not be imported.
    return [sys.executable, "-P", "-m", "pip", *arguments, *QUIET]


def _links(package: str, version: str, offline: bool) -> Iterator[str]:
    """The addresses of the package's wheels of this version, in pip's order."""
    command = _pip("index", "versions", package, "-vv", *(["--no-index"] if offline else []))
    try:
        found = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=LOOKUP_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise TriviumError(
            f"the package index did not answer in {LOOKUP_SECONDS} s: check the network and "
            "`pip config list`, or download the wheel elsewhere and give it with `--from FILE`"
        ) from None
    if found.returncode and not offline:
        raise _failure(package, version, found.stdout)
    for link, link_version in FOUND.findall(found.stdout):
        if link_version == version:
            yield link


def _largest_wheel(folder: Path) -> int:
    """Bytes of the wheel that pip is writing somewhere below `folder`."""
    # os.walk passes over folders that vanish meanwhile; Path.rglob raises.
    names = (Path(place) / name for place, _, files in os.walk(folder) for name in files)
    return max((size_of(path) for path in names if path.suffix == ".whl"), default=0)


def _pip_download(
    package: str, version: str, folder: Path, *, sha256: str, size: int, progress: Progress
) -> Path:
    """Let pip fetch the wheel into `folder`; progress is read off its temporary files."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".pip-") as scratch:
        log, dest = Path(scratch, "log"), Path(scratch, "dest")
        options = ("--no-deps", "--only-binary=:all:", "--no-cache-dir", "--progress-bar=off")
        command = _pip("download", f"{package}=={version}", *options, "--dest", str(dest))
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=output, env=os.environ | {"TMPDIR": scratch}
            )
        try:
            while process.poll() is None:
                done = _largest_wheel(Path(scratch))
                progress(done, size)
                time.sleep(0.1)
        except BaseException:
            process.kill()
            process.wait()
            raise
        if process.returncode:
            raise _failure(package, version, log.read_text(encoding="utf-8", errors="replace"))
        (downloaded,) = dest.glob("*.whl")
        verify(downloaded, sha256)
        return downloaded.replace(folder / downloaded.name)


def _failure(package: str, version: str, output: str) -> TriviumError:
    # pip's last word is "no matching distribution", also where the network is the trouble.
    reasons = TROUBLE.findall(output) or ERROR.findall(output) or ["it does not say why"]
    reason = re.sub(r"<[^>]*>:? ?", "", reasons[-1]).removesuffix(" - skipping")
    reason = re.sub(r".*\(Caused by (.*)\)", r"\1", reason)
    return TriviumError(
        f"pip cannot get the wheel {package} {version} ({reason}): check the network and "
        "`pip config list`, or download the wheel elsewhere and give it with `--from FILE`"
    )
