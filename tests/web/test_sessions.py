"""Who may use the page: sessions, API keys, and servers that restart or are unavailable."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.async_api import Browser, Response, expect
from playwright.async_api import Error as PlaywrightError
from samserve.app import Running

from tests.cli.conftest import FAKE, start
from tests.secret_leaks import secret, secret_file
from tests.security.credentials import KeyFile
from tests.support.waiting import until, until_sync
from tests.web import photos
from tests.web.page import opened
from tests.web.serving import Address, address_of, handled, page_folder, web_service

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="package")]

ROLES = ("embed", "predict", "automask")


async def test_page_without_a_session_states_how_to_begin_one(
    chromium: Browser, service: Running
) -> None:
    async with opened(chromium, service.http_address) as page:
        await expect(page.alert).to_contain_text("Open the address that the server printed")
        page.expect_problems("status of 401 .*/ListModels")


async def test_address_works_once_and_for_one_tab(chromium: Browser, service: Running) -> None:
    address = address_of(service)
    async with opened(chromium, address) as page, opened(chromium, address) as other:
        await expect(page.button("Sample: coins")).to_be_visible()
        await expect(other.alert).to_contain_text("the token is not valid, or has been used")
        other.expect_problems("status of 401 .*/web/session")
        # The first tab keeps its session, also when it is loaded again.
        assert page.page.url == f"{service.http_address}/"
        await page.page.reload()
        await page.open_sample("coins")


async def test_page_asks_for_an_api_key(chromium: Browser, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    key, useless = keys.add("someone", *ROLES), keys.add("someone")
    async with (
        web_service(auth={"api_keys_file": keys.path}) as service,
        opened(chromium, service.http_address) as page,
    ):
        dialog = page.page.get_by_role("dialog", name="Sign in")
        field = dialog.get_by_label("API key or token")
        await field.fill(secret("wrong" * 5))
        await field.press("Enter")
        await expect(dialog.get_by_role("alert")).to_contain_text("does not accept it")
        await field.fill(useless)
        await field.press("Enter")
        await expect(dialog.get_by_role("alert")).to_contain_text("permission")
        await field.fill(key)
        await dialog.get_by_role("button", name="Sign in").click()
        await page.open_sample("coins")
        await page.click(100, 60)
        # Kept in the tab.
        await page.page.reload()
        await page.open_sample("coins")
        page.expect_problems("status of 40[13] .*/ListModels")


async def test_page_goes_on_after_its_server_was_unavailable_and_lost_the_embedding(
    chromium: Browser, tmp_path: Path
) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    key = keys.add("someone", *ROLES)
    port = free_port()
    settings = {"http": {"port": port}, "auth": {"api_keys_file": keys.path}}
    async with opened(chromium, f"http://127.0.0.1:{port}", wait=False) as page:
        async with web_service(**settings):
            await page.open()
            await page.page.get_by_label("API key or token").fill(key)
            await page.page.keyboard.press("Enter")
            await page.open_sample("coins")
            await page.click(100, 60)
        await page.page.mouse.click(*page.screen.place_of(160, 60))
        await expect(page.alert).to_contain_text(
            re.compile("The click was not answered: .*the server", re.IGNORECASE)
        )
        await page.alert.get_by_role("button", name="Dismiss").click()
        await page.settled()
        async with web_service(**settings) as service:
            before = page.traffic.count("Embed")
            request = await page.click(220, 60)
            assert len(request.prompts[0].points) == 3
            assert page.traffic.count("Embed") > before
            await expect(page.answers).to_have_count(1)
            await expect(page.alert).to_have_count(0)
            assert handled(service, "Predict", grpc_code="OK") > 0
            # Of the object with three points.
            _, content = await page.download("Masks (PNG)")
            assert photos.mask_of(content).any()
        page.expect_problems("ERR_CONNECTION|status of 40[14] .*/(ListModels|Predict)")


async def test_another_address_begins_a_new_session_with_the_objects_kept(
    chromium: Browser,
) -> None:
    port = free_port()
    async with opened(chromium, f"http://127.0.0.1:{port}", wait=False) as page:
        async with web_service(http={"port": port}) as service:
            await page.open(address_of(service))
            await page.open_sample("coins")
            await page.click(100, 60)
        async with web_service(http={"port": port}) as service:
            await page.page.mouse.click(*page.screen.place_of(160, 60))
            await expect(page.alert).to_contain_text("open the address that")
            # An address of the same page: the browser loads nothing.
            await page.page.goto(f"{service.http_address}/#token=used")
            await expect(page.alert).to_contain_text("The page is not connected")
            await page.page.goto(address_of(service))
            await page.page.wait_for_url(f"{service.http_address}/")
            await expect(page.alert).to_have_count(0)
            await expect(page.objects).to_have_count(1)
            await page.click(220, 60)
        page.expect_problems("status of 40[14] .*/(Predict|ListModels|web/session)")


async def test_page_that_is_loaded_while_its_server_starts_connects_on_demand(
    chromium: Browser, service: Running
) -> None:
    async with opened(chromium, address_of(service), wait=False) as page:
        await page.page.route("**/ListModels", lambda route: route.abort("connectionrefused"))
        await page.open()
        await expect(page.alert).to_contain_text("The server does not answer")
        await page.page.unroute("**/ListModels")
        await page.button("Try again").click()
        await expect(page.button("Sample: coins")).to_be_visible()
        page.expect_problems("ERR_CONNECTION_REFUSED")


def free_port() -> int:
    """Return a port that a server can use again after it was closed."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@dataclass(frozen=True)
class Printed:
    """The output of `samserve serve --web`: what is for the terminal, and the log."""

    out: Path
    log: Path

    def addresses(self) -> list[str]:
        return re.findall(r"http://\S+", self.out.read_text())


@contextmanager
def serve_web(folder: Path) -> Iterator[Printed]:
    """Run `samserve serve --web`, with all logs."""
    printed = Printed(secret_file(folder / "terminal.out"), folder / "server.log")
    options = [
        *("--web", "--port", "0", "--admin-port", "0", "--http-port", "0", *FAKE),
        *("--set", "log.level=debug", "--set", "log.format=json"),
        *("--set", f"http.web_page_folder={page_folder()}"),
    ]
    with printed.out.open("w") as out, printed.log.open("w") as log:
        process = start("serve", *options, stdout=out, stderr=log)
        try:
            until_sync(lambda: process.poll() is not None or "#token" in printed.out.read_text())
            assert process.poll() is None, printed.log.read_text()
            yield printed
        finally:
            process.terminate()
            process.wait()


async def test_token_and_credential_are_in_no_log_metric_or_other_response(
    chromium: Browser, tmp_path: Path
) -> None:
    received: list[tuple[str, str]] = []

    async def keep(response: Response) -> None:
        try:
            headers = json.dumps(await response.all_headers())
            sent = json.dumps(await response.request.all_headers())
            body = (await response.body()).decode("latin-1") if response.status != 204 else ""
        except PlaywrightError:
            # That of a preview which a newer one has cancelled, or of a closed page.
            return
        received.append((response.url, f"{response.url} {headers} {body}"))
        requested.append(f"{response.request.url} {sent.replace(credential_header(sent), '')}")

    requested: list[str] = []
    with serve_web(tmp_path) as printed:
        (address,) = printed.addresses()
        token = secret(address.partition("#token=")[2])
        async with opened(chromium, Address(address), wait=False) as page:
            page.page.on("response", keep)
            await page.open()
            await page.open_sample("coins")
            await page.click(100, 60)
            credential = secret(
                await page.page.evaluate("() => sessionStorage.getItem('samserve.credential')")
            )
            metrics = await metrics_of(printed)
            await until(lambda: len(received) > 8)
            page_text = await page.page.content()
        next_token = secret(printed.addresses()[-1].partition("#token=")[2])
        log = printed.log.read_text()

    assert next_token not in ("", token)
    found = [text for url, text in received if credential in text]
    assert len(found) == 1
    assert "/web/session" in found[0]
    everywhere = [log, metrics, page_text, *(text for _, text in received), *requested]
    for hidden in (token, next_token):
        assert [text for text in everywhere if hidden in text] == []
    for text in (log, metrics, page_text, *requested):
        assert credential not in text
    assert "page file" in log
    assert '"method": "Predict"' in log or "Predict" in log


def credential_header(headers: str) -> str:
    """Return the value of the header that must have the credential."""
    return str(json.loads(headers).get("authorization", "\0"))


async def metrics_of(printed: Printed) -> str:
    """Return all metrics of the server, whose log has the address."""
    lines = [json.loads(line) for line in printed.log.read_text().splitlines() if "{" in line]
    (admin,) = [each["admin"] for each in lines if each.get("event") == "serving"]
    with await asyncio.to_thread(urllib.request.urlopen, f"{admin}/metrics") as response:
        return str(response.read().decode())
