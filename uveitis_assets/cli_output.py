"""The console that all commands print to, and the end of a command that cannot go on."""

from typing import NoReturn

import typer
from rich.console import Console

console = Console()


def printable(text: str) -> str:
    """The text with what is no character, such as bytes of a file's name, as escape sequences."""
    return text.encode("utf-8", "backslashreplace").decode()


def fail(message: str) -> NoReturn:
    """Print an error and end the command with code 2."""
    console.print(printable(f"error: {message}"), style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(2)
