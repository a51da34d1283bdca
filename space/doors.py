"""What a request may ask for: a table of routes and limits, kept before Gradio sees anything.

Gradio leaves open what its authors' own tools need; here only what the page, `gradio_client`, curl
and MCP clients use gets through. Numbers are of one client, which is an address (IPv6: a /64).
"""

import asyncio
import base64
import ipaddress
import json
import os
import re
import secrets
import socket
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import safehttpx
from batch import MAX_TOTAL_BYTES, MEGABYTE
from cleanup import FOLDER, UPLOAD_MINUTES
from gradio import routes
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HERE = Path(__file__).parent
API = "/gradio_api"
ON_SPACES = "SPACE_ID" in os.environ

SMALL = 64 * 1024  # bytes
JOB = 512 * 1024  # names and addresses of 200 files
TOOL_IMAGE = 16 * MEGABYTE  # by its address, or in a data URI
TOOL_CALL = 4 * TOOL_IMAGE // 3 + SMALL  # base64
PARTS = 20_000  # brackets and commas of a JSON text; half a million take Gradio seconds
UPLOAD = MAX_TOTAL_BYTES + MEGABYTE
QUOTA_BYTES, QUOTA_UPLOADS = 2 * MAX_TOTAL_BYTES, 10_000  # in UPLOAD_MINUTES
ALL_BYTES = 8 * MAX_TOTAL_BYTES  # of all clients in that time
FETCH_SECONDS, REDIRECTS = 20, 5

READ, SEND = ("GET", "HEAD"), ("POST",)


class Route(NamedTuple):
    """What is open.

    Attributes:
        methods: HTTP methods.
        path: a regular expression for all of it.
        body: most bytes of the request's body.
        seconds: until that body has arrived.
        at_once: requests of one client.
    """

    methods: tuple[str, ...]
    path: str
    body: int = 0
    seconds: int = 10
    at_once: int = 100


PAGE = Route(
    READ,
    r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/pwa_icon(/\d+)?"
    r"|/(assets|static|svelte)/.+",
)
ASK = Route(
    READ,
    rf"{API}/(info/?|openapi\.json|theme\.css|startup-events|app_id/?|login_check/?|upload_progress"
    r"|queue/(data|status)|heartbeat/\w+|call/\w+/\w+|mcp/schema)",
)
FILE = Route(READ, rf"{API}/file={re.escape(str(FOLDER))}/.+")
STOP = Route(SEND, rf"{API}/(cancel|reset/?)", SMALL)
RUN = Route(SEND, rf"{API}/(queue/join|call/\w+/?|run/\w+/?)", JOB)
SEND_FILES = Route(SEND, rf"{API}/upload", UPLOAD, 900, at_once=20)
TOOLS = Route(SEND, rf"{API}/mcp/?", TOOL_CALL, 60, at_once=4)
TOOL_STREAM = Route(("GET", "DELETE"), rf"{API}/mcp/?")
ROUTES = (PAGE, ASK, FILE, STOP, RUN, SEND_FILES, TOOLS, TOOL_STREAM)

# Gradio's page starts inline scripts and compiles those of `gr.HTML`; on Spaces it lies in a frame.
PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'self' https://huggingface.co https://*.huggingface.co https://*.hf.space"
)
FILE_POLICY = "default-src 'none'; sandbox"

ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)
NAMES = frozenset(
    f"localhost,{os.environ.get('GRADIO_SERVER_NAME', '')},{os.environ.get('ALLOWED_HOSTS', '')}"
    .lower().split(",")
)  # fmt: skip
# IPv6 networks that lead to IPv4 addresses, and the bit where these begin: RFC 4291 (compatible,
# mapped), RFC 6052 (NAT64), RFC 3056 (6to4). Others of RFC 8215 have their own way of it.
TRANSLATED = {
    ipaddress.ip_network("::/96"): 0,
    ipaddress.ip_network("::ffff:0:0/96"): 0,
    ipaddress.ip_network("64:ff9b::/96"): 0,
    ipaddress.ip_network("2002::/16"): 80,
}
LOCAL_TRANSLATION = ipaddress.ip_network("64:ff9b:1::/48")
# The MCP server is a client of this very server: the first header proves it, the second says for
# whom it asks.
PROOF, ASKER = {"x-cxr-proof": secrets.token_hex(16)}, "x-cxr-asker"
ITSELF = "itself"


class Refusal(Exception):
    """A request that gets no further: HTTP status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class Doors:
    """ASGI middleware that lets through what ROUTES has.

    Args:
        app: Gradio's server.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.at_once: Counter = Counter()
        self.quota = Quota()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, or lets Gradio do it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = find(scope)
        send = with_headers(send, FILE_POLICY if route is FILE else PAGE_POLICY)
        try:
            check_host(Headers(scope=scope).get("host", ""))
            if route is None:
                raise Refusal(404, "There is nothing at this address.")
            scope["client_key"] = client = client_of(scope)
            with self._counted(client, route):
                headers = Headers(scope=scope)
                length = headers.get("content-length", "")
                if length.isdecimal() and int(length) > route.body:
                    raise too_large(route.body)
                if route is SEND_FILES:
                    # Where chunks are announced, too, they count, and not the length.
                    if not length.isdecimal() or "transfer-encoding" in headers:
                        raise Refusal(411, "The request states no Content-Length; send it alone.")
                    await self._upload(int(length), scope, receive, send)
                elif scope["method"] != "POST":
                    await self.app(scope, receive, send)
                elif route is TOOLS:
                    await self._tool(scope, receive, send)
                else:
                    body = await read(receive, route)
                    parse(body)
                    await self.app(scope, replayed(body, receive), send)
        except Refusal as refusal:
            plain = route is SEND_FILES  # Gradio's page shows the body as it is
            answer = refusal.sentence if plain else {"detail": refusal.sentence}
            response = (PlainTextResponse if plain else JSONResponse)(answer, refusal.status)
            await response(scope, receive, send)
        except ToolError as error:
            await JSONResponse(error.answer)(scope, receive, send)
        except ClientDisconnect:  # hung up while sending
            return
        except Exception as error:  # already answered, with status 500
            log_fault(error)

    async def _upload(self, length: int, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets an upload through, which is charged as it arrives and as far as it stays."""
        deadline = asyncio.get_running_loop().time() + SEND_FILES.seconds
        with self.quota.upload(scope["client_key"]) as upload:
            upload.check(length)
            refusals, arrived = [], False

            async def receiving() -> Message:
                nonlocal arrived
                if arrived:
                    return await receive()
                try:
                    async with asyncio.timeout_at(deadline):
                        message = await receive()
                    upload.add(len(message.get("body", b"")))
                except TimeoutError:
                    refusals.append(too_slow(SEND_FILES))
                except Refusal as refusal:
                    refusals.append(refusal)
                if refusals:  # Gradio's server passes it on, but answers before
                    raise refusals[0]
                arrived = not message.get("more_body")
                return message

            async def sending(message: Message) -> None:
                if message["type"] == "http.response.start":
                    upload.stays = message["status"] < 400
                if not refusals:
                    await send(message)

            await self.app(scope, receiving, sending)

    async def _tool(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets an MCP message through, which is charged with what is fetched for it."""
        client = scope["client_key"]
        with self.quota.upload(client) as upload:
            body = await read(receive, TOOLS)
            upload.add(len(body))
            body = await without_addresses(body, upload)
            upload.stays = True
            await self.app(speaking_for(scope, client), replayed(body, receive), send)

    @contextmanager
    def _counted(self, client: str, route: Route) -> Iterator[None]:
        key = client, route
        if client != ITSELF and self.at_once[key] >= route.at_once:
            raise Refusal(429, f"There are {route.at_once} such requests at once; wait for one.")
        self.at_once[key] += 1
        try:
            yield
        finally:
            self.at_once[key] -= 1
            if not self.at_once[key]:
                del self.at_once[key]


def log_fault(error: Exception) -> None:
    """Logs where an error arose, and of what kind; its words may name uploads.

    What passed it on, on the way into Gradio, is left out.
    """
    trace = error.__traceback__
    while trace.tb_next and Path(trace.tb_frame.f_code.co_filename).parent == HERE:
        trace = trace.tb_next
    traceback.print_tb(trace)
    print(type(error).__name__, file=sys.stderr)


class Quota:
    """What each client has sent in the last UPLOAD_MINUTES, after which it is deleted."""

    def __init__(self) -> None:
        self.sent: deque[tuple[float, str, int]] = deque()
        self.bytes: Counter = Counter()
        self.uploads: Counter = Counter()
        self.total = 0

    @contextmanager
    def upload(self, client: str) -> Iterator["Upload"]:
        """Charges a client with an upload; if it does not stay, until its end alone.

        Raises:
            Refusal: the client has sent too many.
        """
        while self.sent and self.sent[0][0] < time.monotonic() - 60 * UPLOAD_MINUTES:
            self.change(*self.sent.popleft()[1:], uploads=-1)
        if client != ITSELF and self.uploads[client] >= QUOTA_UPLOADS:
            raise over_quota()
        self.change(client, 0, uploads=1)
        upload = Upload(self, client)
        try:
            yield upload
        finally:
            if upload.stays and client != ITSELF:
                self.sent.append((time.monotonic(), client, upload.bytes))
            else:
                self.change(client, -upload.bytes, uploads=-1)

    def change(self, client: str, size: int, uploads: int = 0) -> None:
        """Counts bytes and uploads of a client, or takes them away."""
        self.bytes[client] += size
        self.uploads[client] += uploads
        self.total += size
        if not self.uploads[client]:
            del self.bytes[client], self.uploads[client]


class Upload:
    """What of a client's upload has arrived.

    Attributes:
        bytes: of it.
        stays: whether it does once all has arrived.
    """

    def __init__(self, quota: Quota, client: str) -> None:
        self.quota, self.client = quota, client
        self.bytes, self.stays = 0, False

    def check(self, size: int) -> None:
        """Refuses so many bytes more than have arrived.

        Raises:
            Refusal: it is more than the client or the server may hold.
        """
        if self.client == ITSELF:
            return
        if self.quota.bytes[self.client] + size > QUOTA_BYTES:
            raise over_quota()
        if self.quota.total + size > ALL_BYTES:
            raise Refusal(503, "The server holds as many uploads as it can; try again later.")

    def add(self, size: int) -> None:
        """Counts so many bytes, or raises what `check` does."""
        self.check(size)
        self.bytes += size
        self.quota.change(self.client, size)


def over_quota() -> Refusal:
    """The refusal of a client that has sent too much."""
    return Refusal(
        429,
        f"More than {QUOTA_BYTES // MEGABYTE} MB or {QUOTA_UPLOADS} uploads in "
        f"{UPLOAD_MINUTES} minutes came from your address; try again later.",
    )


def find(scope: Scope) -> Route | None:
    """The route of a request, or None. OPTIONS is a browser's question before it asks another."""
    for route in ROUTES:
        known = scope["method"] in (*route.methods, "OPTIONS")
        if known and re.fullmatch(route.path, scope["path"]):
            return route
    return None


def check_host(host: str) -> None:
    """Refuses names that are not this server's.

    By such a one, any web page could reach a server on its reader's machine (DNS rebinding). On
    Spaces, the proxy checks.

    Args:
        host: the request's header.

    Raises:
        Refusal: the name is neither an IP address, localhost, nor in ALLOWED_HOSTS.
    """
    name = re.sub(r":\d+$", "", host).strip("[]").lower()
    if ON_SPACES or name and name in NAMES:
        return
    try:
        ipaddress.ip_address(name)
    except ValueError:
        raise Refusal(
            421, "This server is not known by that name; put it into ALLOWED_HOSTS."
        ) from None


def client_of(scope: Scope) -> str:
    """Who asks: an IPv4 address or an IPv6 network.

    Behind the proxies of Spaces it is the last public address of X-Forwarded-For, which they write;
    what stands before it, a client can write itself.
    """
    headers = Headers(scope=scope)
    if all(headers.get(name) == value for name, value in PROOF.items()):
        return headers.get(ASKER, ITSELF)
    address = scope["client"][0] if scope["client"] else ""
    if ON_SPACES:
        forwarded = headers.get("x-forwarded-for", "").split(",")
        public = (one.strip() for one in reversed([*forwarded, address]) if is_public(one.strip()))
        address = next(public, address)
    if ":" in address:
        return str(ipaddress.ip_network(f"{address.partition('%')[0]}/64", strict=False))
    return address


def is_public(address: str) -> bool:
    """Whether a text is an IP address that is reached over the Internet.

    Of an IPv6 address that leads to an IPv4 address, the latter counts.
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    for network, place in TRANSLATED.items():
        if found in network:
            found = ipaddress.IPv4Address(int(found) >> place & 0xFFFFFFFF)
    return found.is_global and not found.is_multicast and found not in LOCAL_TRANSLATION


def with_headers(send: Send, policy: str) -> Send:
    """Adds the headers that bind a browser, and takes Gradio's leave to send cookies away."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["X-Content-Type-Options"] = "nosniff"
            headers["Content-Security-Policy"] = policy
            del headers["Access-Control-Allow-Credentials"]
        await send(message)

    return sending


def too_large(most: int) -> Refusal:
    """The refusal of a body of more than so many bytes."""
    return Refusal(413, f"The request is too large; the most is {most:,} bytes.")


def too_slow(route: Route) -> Refusal:
    """The refusal of a body that takes longer than its route has time."""
    return Refusal(408, f"The request took more than {route.seconds} seconds.")


async def read(receive: Receive, route: Route) -> bytes:
    """A request's body.

    Raises:
        Refusal: it is too large, too slow, or cut off.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(route.seconds):
            while True:
                message = await receive()
                body += message.get("body", b"")
                if len(body) > route.body:
                    raise too_large(route.body)
                if message["type"] == "http.disconnect":
                    raise Refusal(400, "The request was cut off.")
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        raise too_slow(route) from None


def replayed(body: bytes, receive: Receive) -> Receive:
    """What receives a body that has been read, and then what follows it."""
    messages = [{"type": "http.request", "body": body}]

    async def receiving() -> Message:
        return messages.pop() if messages else await receive()

    return receiving


def parse(body: bytes) -> Any:
    """A JSON text's content.

    Raises:
        Refusal: it is none, has too many parts, names a thing twice, or tells Gradio to fetch a
            file from an address.
    """

    def checked(pairs: list[tuple[str, Any]]) -> dict:
        content = dict(pairs)
        if len(content) < len(pairs):
            raise Refusal(400, "The request names a thing twice.")
        if ADDRESS.match(str(content.get("path"))):
            raise Refusal(400, "No address is fetched; upload the file, then name its path.")
        return content

    if sum(map(body.count, (b"[", b"{", b","))) > PARTS:
        raise Refusal(400, f"The request has more than {PARTS} parts.")
    try:
        return json.loads(body, object_pairs_hook=checked)
    except (ValueError, RecursionError):
        raise Refusal(400, "The request is no JSON.") from None


class ToolError(Exception):
    """An MCP tool's call that failed before the tool was asked."""

    def __init__(self, call: dict, sentence: str) -> None:
        result = {"content": [{"type": "text", "text": sentence}], "isError": True}
        self.answer = {"jsonrpc": "2.0", "id": call.get("id"), "result": result}


async def without_addresses(body: bytes, upload: Upload) -> bytes:
    """An MCP message whose tool call holds what lies at an address instead of the address.

    It is fetched here, where nobody else waits for it, and added to the message's `upload`.

    Raises:
        Refusal: the message is not one that MCP clients send, or what it names is too much.
        ToolError: the address cannot be fetched.
    """
    call = parse(body)
    if not isinstance(call, dict):
        raise Refusal(400, "Send one MCP message at a time.")
    if call.get("method") != "tools/call":
        return body
    params = call.get("params")
    arguments = params.get("arguments") if isinstance(params, dict) else None
    fetched = {}
    for name, value in (arguments if isinstance(arguments, dict) else {}).items():
        if isinstance(value, dict | list):  # a path in it would be read on this machine
            raise ToolError(call, f"{name} is not a text; give an image's address or data URI.")
        if isinstance(value, str) and ADDRESS.match(value):
            if fetched:  # a tool takes one image
                raise ToolError(call, "A call names one image; give one address.")
            try:
                content = await fetch(value.strip())
            except ValueError as error:
                raise ToolError(call, str(error)) from None
            upload.add(len(content))
            content = base64.b64encode(content).decode()
            fetched[name] = f"data:application/octet-stream;base64,{content}"
    if not fetched:
        return body
    arguments.update(fetched)
    return json.dumps(call).encode()


def speaking_for(scope: Scope, client: str) -> Scope:
    """A request whose headers say who asks; the MCP server passes them on with the job."""
    others = [one for one in scope["headers"] if one[0] != ASKER.encode()]
    return {**scope, "headers": [*others, (ASKER.encode(), client.encode())]}


async def fetch(url: str) -> bytes:
    """What lies at a public http(s) address.

    Raises:
        ValueError: it is not public, cannot be reached, or is too large or too slow.
    """
    try:
        async with asyncio.timeout(FETCH_SECONDS):
            for _ in range(REDIRECTS):
                parsed = httpx.URL(url)
                if parsed.scheme not in ("http", "https"):
                    break
                transport = safehttpx.AsyncSecureTransport(await public_ip(parsed.host))
                async with (
                    httpx.AsyncClient(
                        transport=transport, headers=[("Accept", "image/*, */*")]
                    ) as http,
                    http.stream("GET", url, headers={"Accept-Encoding": "identity"}) as reply,
                ):
                    if not reply.has_redirect_location:
                        return await _content(reply)
                    url = str(reply.url.join(reply.headers["location"]))
    except TimeoutError:
        raise ValueError(f"The image did not arrive within {FETCH_SECONDS} seconds.") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise ValueError(f"The image cannot be fetched: {type(error).__name__}.") from None
    raise ValueError("The image's address leads nowhere; give one with http or https.")


async def _content(reply: httpx.Response) -> bytes:
    if reply.status_code != 200:
        raise ValueError(f"The image's address answers with status {reply.status_code}.")
    content = bytearray()
    async for piece in reply.aiter_raw():
        content += piece
        if len(content) > TOOL_IMAGE:
            raise ValueError(f"The image is larger than {TOOL_IMAGE // MEGABYTE} MB; upload it.")
    return bytes(content)


async def public_ip(host: str) -> str:
    """An IP address of a host that has only public ones.

    Raises:
        ValueError: it has others, or none.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    addresses = [address[0] for *_, address in found]
    if not addresses or not all(map(is_public, addresses)):
        raise ValueError("The image's address is not a public one.")
    return addresses[0]


class App(routes.App):
    """Gradio's server behind `Doors`, which stand before its own middleware."""

    def build_middleware_stack(self) -> ASGIApp:
        """What the server calls."""
        return Doors(super().build_middleware_stack())
