"""The page as a person uses it, in headless Chromium; and what its server gives to nobody."""

import json
import shutil
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from page_models import save_models, save_noise

from densenet_backbones.demo import command

pytest.importorskip("gradio", reason="the page needs Gradio")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Address of a page with two models, served by this process."""
    files = save_models(tmp_path_factory.mktemp("models"))
    options = command.make_parser().parse_args([*map(str, files), "--device", "cpu"])
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        with command.serve(options) as address:
            yield address
    assert list(folder.iterdir()) == []


def fetch(address, **headers):
    request = urllib.request.Request(address, headers=headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.long
def test_nothing_of_the_machine_is_served(address, monkeypatch, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    monkeypatch.chdir(tmp_path)
    assert fetch(address) == 200 and address.startswith("http://127.0.0.1:")
    for path in ("/etc/passwd", tmp_path / "secret.txt", "secret.txt", "http://127.0.0.1:1/"):
        assert fetch(f"{address}gradio_api/file={path}") in (403, 404), path
    assert fetch(address, Host="evil.example") == 403
    assert fetch(f"{address}docs") == 404


@pytest.mark.long
def test_a_person_uses_the_page(address, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    if not CHROMIUM:
        pytest.skip("there is no Chromium here")
    picture = save_noise(tmp_path / "noise.png")
    with playwright.sync_playwright() as tools:
        sandbox = [] if Path("/root").owner() != Path.home().owner() else ["--no-sandbox"]
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        try:
            page = browser.new_page()
            page.set_default_timeout(60_000)
            asked, faults = [], []
            page.on("request", lambda request: asked.append(request.url))
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.goto(address)
            assert "25 megapixels" in page.inner_text("#limits")

            page.set_input_files("#drop input[type=file]", picture)
            page.wait_for_selector("#picture-0 img")
            page.wait_for_selector("#picture-1 img")
            page.wait_for_function("document.querySelector('#found-0').innerText.includes('dog')")
            page.fill("#score input[type=number]", "1")
            page.press("#score input[type=number]", "Enter")
            page.wait_for_function(
                "document.querySelector('#found-0').innerText.includes('nothing')"
            )

            with page.expect_download() as download:
                page.click("#json-0")
            content = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
            assert content["file"] == "noise.png" and content["detections"] == []
            with page.expect_download() as download:
                page.click("#save-1")
            assert download.value.suggested_filename == "noise-masks.png"

            damaged = tmp_path / "damaged.jpg"
            damaged.write_bytes(b"\xff\xd8\xff none")
            page.click(
                "#drop button[aria-label='Clear'], #drop button[aria-label='Remove this file']"
            )
            page.set_input_files("#drop input[type=file]", damaged)
            page.wait_for_selector("#trouble p")
            assert page.inner_text("#trouble").startswith("damaged.jpg: cannot be read")
            assert page.query_selector("#picture-0 img") is None
        finally:
            browser.close()
    # Nothing was asked of another machine, and no name of a class has acted.
    assert {url for url in asked if not url.startswith((address, "data:", "blob:"))} == set()
    assert faults == []
