"""`atlas` and its subcommands, each imported when it is called: `atlas --help` must answer at once."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from atlas.errors import AtlasError

# name -> (where it is, what it does)
COMMANDS = {
    "serve": ("atlas.cli.serve:serve", "Serve a model to OpenAI and Anthropic clients."),
    "ask": ("atlas.cli.ask:ask", "Ask the running server one question."),
    "solve": ("atlas.cli.solve:solve", "Solve a task with code that was run."),
    "bench": ("atlas.cli.bench:bench_command", "Measure the model, alone and in the loop, on tasks with hidden tests."),
    "verify": ("atlas.cli.verify:verify", "Run code, or a change to a project, with its tests; or check a receipt."),
    "mcp": ("atlas.cli.mcp:mcp", "Offer `verify` to a coding agent over stdin and stdout."),
    "connect": ("atlas.cli.connect:connect", "Point a coding agent at the running server."),
    "worker": ("atlas.cli.worker:worker", "Solve tasks of a server, here or on another machine."),
    "keys": ("atlas.cli.keys:keys", "Create, list, rotate and revoke API keys."),
    "users": ("atlas.cli.users:users", "Invite, list and change users."),
    "usage": ("atlas.cli.usage:usage", "Print who used how much."),
    "backup": ("atlas.cli.backup:backup", "Write everything that cannot be made again to one file."),
    "restore": ("atlas.cli.backup:restore", "Unpack a backup into an empty data directory."),
    "models": ("atlas.cli.models:models", "List, download, add and remove models."),
    "doctor": ("atlas.cli.doctor:doctor", "Check this machine, its settings and its data."),
    "version": ("atlas.cli.version:version", "Print the version."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when named; `--help` lists them from COMMANDS alone."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:  # click's own annotation
        try:
            return super().invoke(ctx)
        except AtlasError as error:
            raise Refused(error.message) from None


class Refused(click.ClickException):
    """A user's mistake or a missing condition: one line on stderr, exit status 1."""

    def show(self, file: Any = None) -> None:  # click's own annotation
        click.echo(f"atlas: {self.message}", err=True)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """A coding model server for your own GPU.

    \b
    Example:
      atlas serve                              # serves the best model this machine can run
      atlas ask "reverse a linked list in C"   # asks it
    """


def main() -> None:
    """Entry point of the `atlas` script."""
    try:
        cli(prog_name="atlas")
    except KeyboardInterrupt:
        sys.exit(130)
