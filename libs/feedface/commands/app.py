"""Serve the web page: people put into pictures in a browser.

    python app.py                                       models/mini, at http://127.0.0.1:7860
    python app.py --model models/feedface-v1 --inbrowser
    python app.py --host 0.0.0.0 --auth anna:secret     for others in the network, with a name and a password

Everything stays on this machine; nothing is fetched but YuNet's weights, if --detector asks for them. Ctrl-C ends it
and deletes what was uploaded and drawn.
"""

import logging
import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

from feedface.common.command_line import Parser
from feedface.common.errors import UserError, path_flag, run_cli
from feedface.common.progress import say
from feedface.settings import check_range


def make_parser() -> Parser:
    parser = Parser(prog="app.py", description=__doc__)
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        type=path_flag("--model"),
        help="model to begin with, a folder or user/name of the Hugging Face hub (models/mini); those of models/ can "
        "be chosen too",
    )
    model.add_argument("--detector", default="auto", help="who finds faces, see inference.py --help (auto)")
    model.add_argument("--device", default="auto", help="auto (default), cuda, cuda:N, mps or cpu")
    model.add_argument("--dtype", default="auto", help="auto (default: fp16 on a GPU, else fp32), fp32, bf16 or fp16")
    model.add_argument("--low_memory", action="store_true", help="load each part of the model when it is used")
    model.add_argument("--int8", action="store_true", help="weights in 8 bits")
    model.add_argument("--keep", type=int, default=2, help="models that stay in memory (2)")
    serving = parser.add_argument_group("serving")
    serving.add_argument("--host", help="address to listen on (127.0.0.1: this machine alone; 0.0.0.0: all networks)")
    serving.add_argument("--port", type=int, help="port (the first free one from 7860 on)")
    serving.add_argument(
        "--auth", nargs="+", metavar="NAME:PASSWORD", help="let in only who knows one of these; also $FEEDFACE_AUTH"
    )
    serving.add_argument("--share", action="store_true", help="a public link for a week, through gradio's servers")
    serving.add_argument("--inbrowser", action="store_true", help="open the page")
    return parser


def logins(texts: Sequence[str]) -> list[tuple[str, str]]:
    """ "anna:secret" -> ("anna", "secret"); `UserError` for others, without the password in it."""
    pairs = [text.partition(":")[::2] for text in texts]
    if bad := [name for name, password in pairs if not name or not password]:
        raise UserError(f"--auth {bad[0] or '(empty)'}: give NAME:PASSWORD")
    return pairs


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    check_range("--keep", args.keep, 1, 64)
    if args.port is not None:
        check_range("--port", args.port, 1, 65535)
    auth = logins(args.auth or os.environ.get("FEEDFACE_AUTH", "").split()) or None
    with tempfile.TemporaryDirectory(prefix="feedface-") as folder:
        # Before gradio is imported: it reads these once. What is uploaded lies here, and goes with it.
        os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False")
        try:
            import gradio  # noqa: F401
        except ImportError:
            raise UserError("the page needs gradio: pip install -r requirements-web.txt, or feedface[web]") from None
        serve(args, Path(folder), auth)
    return 0


def serve(args, folder: Path, auth: list[tuple[str, str]] | None) -> None:
    """Load the model, and serve until Ctrl-C or SIGTERM, as of `docker stop`: both leave nothing behind."""
    from feedface.app.look import CSS, THEME
    from feedface.app.models import Models
    from feedface.app.page import Page
    from feedface.checkpoints.hub import fetch_model, is_hub_name
    from feedface.faces.detect import make_detector

    options = {"device": args.device, "dtype": args.dtype, "low_memory": args.low_memory, "int8": args.int8}
    named = fetch_model(str(args.model)) if is_hub_name(str(args.model)) else args.model
    models = Models(named, options, args.keep)
    first = models.load(models.names[0])
    page = Page(models, make_detector(args.detector, first.bundle.faces_root), folder).blocks()
    if args.host not in (None, "127.0.0.1", "localhost") and auth is None:
        say("note: everybody in the network can use this page; --auth NAME:PASSWORD lets in those you know")
    logging.getLogger("uvicorn.error").addFilter(tells_more_than_a_leaving)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        page.launch(
            server_name=args.host,
            server_port=args.port,
            auth=auth,
            share=args.share,
            inbrowser=args.inbrowser,
            theme=THEME,
            css_paths=CSS,
            footer_links=["api"],
            run_history=False,
            ssr_mode=False,
            max_file_size="40mb",
            enable_monitoring=False,
        )
    except OSError as error:
        raise UserError(f"--port {args.port or 7860}: the page cannot be served there ({error})") from None
    finally:
        page.close()


def tells_more_than_a_leaving(record: logging.LogRecord) -> bool:
    """False for what uvicorn logs when a tab is closed in the middle of an upload, or while it fetches a picture, which
    is deleted then: nothing went wrong."""
    from starlette.requests import ClientDisconnect

    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, RuntimeError):  # so starlette says that a file is gone since it was asked for
        error = error.__context__
    if isinstance(error, FileNotFoundError):
        return not str(error.filename).startswith(os.environ["GRADIO_TEMP_DIR"])
    return not isinstance(error, ClientDisconnect)


def cli() -> None:
    run_cli(main)
