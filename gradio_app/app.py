"""The app: builds the page, starts the server, loads the model behind it."""

import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any

import gradio as gr
from gradio.themes import Base
from starlette.middleware import Middleware

from circuitsae.errors import MissingExtraError
from gradio_app.frontpage import FrontPage
from gradio_app.guard import Guard
from gradio_app.page import build_page
from gradio_app.preload import component_files
from gradio_app.service import Service
from gradio_app.settings import Settings, make_settings
from gradio_app.view import page_head, page_style

QUEUE = 128
SESSIONS = 200
EVERYWHERE = ("0.0.0.0", "::")


def build(settings: Settings) -> tuple[gr.Blocks, Service]:
    """Returns the app and its service; nothing is loaded or served yet."""
    service = Service(settings)
    demo = build_page(service)
    demo.queue(max_size=QUEUE, api_open=False)  # whoever calls past the queue would take the threads that serve files
    return demo, service


def launch_options(demo: gr.Blocks, service: Service, hosts: Iterable[str] | None = None) -> dict[str, Any]:
    """Returns what `Blocks.launch` is told, wherever the app runs: nothing from another host, nothing kept.

    Args:
        demo: The app.
        service: Its service.
        hosts: Names by which alone it may be reached, see `Guard`; any name when `None`.
    """
    settings = service.settings
    files = component_files(frozenset(block.get_block_name() for block in demo.blocks.values()))
    return {
        "theme": Base(
            primary_hue="slate",
            neutral_hue="slate",
            spacing_size="sm",
            text_size="sm",
            font=["ui-sans-serif", "system-ui", "sans-serif"],
            font_mono=["ui-monospace", "Consolas", "monospace"],
        ),
        "css": page_style(),  # again: gradio gives it precedence over its own
        "footer_links": ["api"],
        "ssr_mode": False,
        "run_history": False,
        "state_session_capacity": SESSIONS,
        "max_file_size": max(settings.upload_bytes, 1),
        "enable_monitoring": False,
        "app_kwargs": {
            "middleware": [
                Middleware(Guard, body_bytes=settings.body_bytes, hosts=hosts),
                Middleware(FrontPage, head=page_head(service), files=files),
            ]
        },
    }


def serve(
    preset: str | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    browser: bool = False,
    *,
    share: bool = False,
    public: bool = False,
    mcp: bool = False,
    allow_hosts: Sequence[str] = (),
) -> None:
    """Starts the app and stays until it is stopped. The page is there at once; the model is loaded behind it.

    Args:
        preset: What is chosen at first: smollm2 if it is there, else tiny.
        host: Address to listen at.
        port: Port, the first free one from 7860 by default.
        browser: Whether to open a browser.
        share: Whether gradio makes a public link, through its own servers.
        public: For strangers: only models that are there, shorter prompts, no uploads.
        mcp: Whether the named endpoints are also tools of an MCP server.
        allow_hosts: Names by which the app may be reached, besides loopback names and addresses. With `share` any name is
            allowed, and with `public` any unless some are given here.

    Raises:
        UnknownNameError: No preset is called that.
        MissingExtraError: `mcp` is asked for and not installed.
    """
    logging.basicConfig(level=logging.WARNING)
    if mcp:
        check_mcp()
    settings = make_settings(preset, public=public)
    demo, service = build(settings)
    service.models.start()
    hosts = None if share or (public and not allow_hosts) else [*allow_hosts, *({host} - {*EVERYWHERE})]
    demo.launch(
        server_name=host,
        server_port=port,
        inbrowser=browser,
        share=share,
        mcp_server=mcp,
        **launch_options(demo, service, hosts),
    )


def check_mcp() -> None:
    """Says what is missing for an MCP server.

    Raises:
        MissingExtraError: The package mcp is not installed.
    """
    import importlib.util

    if importlib.util.find_spec("mcp") is None:
        raise MissingExtraError("--mcp", "mcp", "mcp")


def space() -> tuple[gr.Blocks, dict[str, Any]]:
    """Returns the app as a Hugging Face Space starts it, for the public, and what its `launch` is to be told."""
    preset = os.environ.get("CIRCUITSAE_PRESET") or None
    settings = make_settings(preset, public=True)
    demo, service = build(settings)
    service.models.start()
    return demo, launch_options(demo, service)
