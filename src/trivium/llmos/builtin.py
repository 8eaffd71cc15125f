"""The tools we ship, over the files of one workspace."""

from trivium.llmos.tools import Tool
from trivium.llmos.workspace import Workspace


def builtin_tools(workspace: Workspace) -> tuple[Tool, ...]:
    """calculate, python, terminal, read_file, write_file, list_files and search_files."""
    from trivium.llmos.calculator import calculate
    from trivium.llmos.code_tools import code_tools
    from trivium.llmos.file_tools import file_tools

    return (calculate, *code_tools(workspace), *file_tools(workspace))
