"""`serve`: models over HTTP, for every program that speaks OpenAI's API."""

import os

import click

from trivium.cli import options
from trivium.errors import UsageError

PORT = 8765


@click.command()
@click.option(
    "-m",
    "--model",
    "models",
    multiple=True,
    metavar="NAME",
    shell_complete=options.complete_model,
    help="A model to serve (may be given again); see `trivium models`.",
)
@click.option(
    "--host",
    envvar="TRIVIUM_HOST",
    default="127.0.0.1",
    show_default=True,
    help="The address to listen on. Others than this machine's need --api-key.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=PORT,
    show_default=True,
    help="The port to listen on; 0 takes any that is free.",
)
@click.option(
    "--api-key",
    metavar="KEY",
    envvar="TRIVIUM_API_KEY",
    help="Answer only those who send this key. Better set TRIVIUM_API_KEY: other users of the "
    "machine can see the options of a command.",
)
@click.option(
    "--max-concurrent",
    type=click.IntRange(1, 256),
    default=8,
    show_default=True,
    help="How many answers are made at a time.",
)
@click.option(
    "--queue",
    type=click.IntRange(0, 10_000),
    default=64,
    show_default=True,
    help="How many may wait; more are told to try again later (429).",
)
@options.device
@options.threads
def serve(
    models: tuple[str, ...],
    host: str,
    port: int,
    api_key: str | None,
    max_concurrent: int,
    queue: int,
    device: str | None,
    threads: int | None,
) -> None:
    """Serve models over HTTP, as OpenAI's API.

    \b
    trivium serve
    trivium serve -m ./my-model -m ./all-minilm --port 9000
    TRIVIUM_API_KEY=… trivium serve --host 0.0.0.0

    Clients use http://127.0.0.1:8765/v1 as their base URL. Ctrl-C stops: answers that are being
    made have a few seconds to end.
    """
    from trivium import hub
    from trivium.cli.config import default_model

    names = models or (os.environ.get("TRIVIUM_MODEL") or default_model(),)
    for name in names:
        if name.startswith("remote:"):
            raise UsageError(f"{name} is served elsewhere already: serve models of this machine")
        hub.find(name)  # says what is missing before torch, which takes seconds, is loaded
    if api_key is not None and not api_key.isascii():
        raise UsageError("--api-key must be ASCII: it travels in an HTTP header")
    try:
        import torch

        from trivium.server.app import Settings
        from trivium.server.guard import Access, is_loopback
        from trivium.server.opening import open_models
        from trivium.server.run import bind, serve
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("trivium"):
            raise
        raise UsageError(
            f"a server needs {error.name}: pip install 'trivium[local,serve]'"
        ) from error
    opened = open_models(names, device=device or "auto")
    listener = bind(host, port, api_key)
    if threads is not None:
        torch.set_num_threads(threads)
    access = Access(api_key or None, is_loopback(listener.getsockname()[0]))
    serve(
        opened,
        Settings(access, max_concurrent, queue),
        listener,
        lambda line: click.echo(f"trivium: {line}", err=True),
    )
