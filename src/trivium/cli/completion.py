"""`completion`: the shell script that completes commands, options and model names."""

import os
from pathlib import PurePath

import click
from click.shell_completion import get_completion_class

from trivium.errors import UsageError

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS), required=False)
@click.pass_context
def completion(ctx: click.Context, shell: str | None) -> None:
    """Print the completion script of a shell.

    \b
    bash  trivium completion bash >> ~/.bashrc
    zsh   trivium completion zsh >> ~/.zshrc
    fish  trivium completion fish > ~/.config/fish/completions/trivium.fish

    Without SHELL it is the one you use.
    """
    shell = shell or PurePath(os.environ.get("SHELL", "")).name
    if shell not in SHELLS:
        raise UsageError(
            f"the shell {shell!r} has no completion script: give one of bash, zsh, fish"
        )
    template = get_completion_class(shell)
    assert template is not None
    script = template(ctx.find_root().command, {}, "trivium", "_TRIVIUM_COMPLETE")
    click.echo(script.source_template % script.source_vars())
