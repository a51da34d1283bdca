"""The MCP server: Gradio's, but for where images come from and whose calls they are."""

import base64
import binascii
import secrets
from pathlib import Path
from typing import Any

import gradio.mcp
from cleanup import FOLDER
from doors import PROOF
from gradio_client import Client, handle_file


class ToolServer(gradio.mcp.GradioMCPServer):
    """Takes an image as a data URI; what came as an address, `doors` has fetched."""

    def convert_strings_to_filedata(
        self, value: dict[str, Any], filedata_positions: list[list[str | int]]
    ) -> dict[str, Any]:
        """A tool's arguments with each image as a file.

        Args:
            value: the arguments.
            filedata_positions: those that are images, [name] each.

        Raises:
            ValueError: one is no data URI.
        """
        images = {name: _file(value[name]) for name, *_ in filedata_positions if name in value}
        return value | images

    def _get_or_create_client(self) -> Client:
        client = super()._get_or_create_client()
        client.headers.update(PROOF)
        return client


def _file(text: Any) -> dict:
    head, _, data = str(text).partition(",")
    try:
        if not head.startswith("data:"):
            raise binascii.Error
        content = base64.b64decode(data, validate=True)
    except binascii.Error:
        raise ValueError("The image is neither an http(s) address nor a data URI.") from None
    path = Path(FOLDER, secrets.token_hex(32), "image")
    path.parent.mkdir()
    path.write_bytes(content)
    return handle_file(path)


gradio.mcp.GradioMCPServer = ToolServer
