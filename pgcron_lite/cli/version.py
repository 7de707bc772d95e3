"""`pgcron version` and `pgcron completion`."""

from __future__ import annotations

import platform
import sys

import click
from click.shell_completion import get_completion_class

from . import output


@click.command()
@output.as_json
def version(as_json: bool) -> None:
    """Print the versions of pgcron_lite and of its dependencies."""
    from importlib import metadata

    from .. import __version__

    names = ("psycopg", "gevent", "croniter", "click")
    versions = {"pgcron_lite": __version__, "python": platform.python_version()}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    if as_json:
        output.print_json({**versions, "platform": sys.platform})
    else:
        rest = ", ".join(f"{name} {number}" for name, number in list(versions.items())[1:])
        output.echo(f"pgcron_lite {__version__} ({rest})")


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    bash:  eval "$(pgcron completion bash)"       in ~/.bashrc
    zsh:   eval "$(pgcron completion zsh)"        in ~/.zshrc
    fish:  pgcron completion fish | source        in ~/.config/fish/config.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    output.echo(output.Styled(found(ctx.find_root().command, {}, "pgcron", "_PGCRON_COMPLETE").source()))
