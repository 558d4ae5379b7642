import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limbeck.report import write

from .folders import Digits

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver on the PATH"),
    pytest.mark.filterwarnings("default::ResourceWarning"),  # selenium's own sockets
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.execute_cdp_cmd("Network.enable", {})
    driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["http://*", "https://*", "ws://*", "wss://*"]})
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def written(sources: dict[str, Path], digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("written")
    return {name: write(shutil.copytree(source, folder / name), digits.data) for name, source in sources.items()}


@pytest.fixture
def page(request: pytest.FixtureRequest, browser: Any, written: dict[str, Path]) -> Any:
    browser.get_log("browser"), browser.get_log("performance")
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "light"}]}
    )
    _width(browser, 1200)
    browser.get(written[request.param].as_uri())
    return browser


def _width(browser: Any, width: int) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )


def _background(browser: Any) -> str:
    return browser.execute_script("return getComputedStyle(document.body).backgroundColor")


def _chart_colours(browser: Any) -> list[str]:
    script = "return [...document.querySelectorAll('.chart .main-svg:first-child')].map(e => e.style.background)"
    return browser.execute_script(script)


@pytest.mark.parametrize("page", ["run", "comparison"], indirect=True)
def test_every_chart_is_drawn_without_an_error_or_a_request(page: Any) -> None:
    charts = page.find_elements("css selector", ".chart")
    assert len(charts) >= 10
    assert page.execute_script("return document.querySelectorAll('.chart:not(:has(svg.main-svg))').length") == 0
    # a chart of which no trace is inside its frame would be an empty frame
    empty = "return [...document.querySelectorAll('.chart')].filter(c => !c.querySelector('.trace, .hm')).length"
    assert page.execute_script(empty) == 0
    assert page.get_log("browser") == []
    requests = [
        entry["message"] for entry in page.get_log("performance") if "Network.requestWillBeSent" in entry["message"]
    ]
    assert requests
    assert [r for r in requests if '"url":"http' in r or '"url":"ws' in r] == []


@pytest.mark.parametrize("page", ["comparison"], indirect=True)
def test_the_theme_follows_the_system_and_the_button(page: Any) -> None:
    light, light_charts = _background(page), _chart_colours(page)
    page.find_element("id", "theme").click()
    dark = _background(page)
    assert dark != light
    assert set(_chart_colours(page)) == {dark}
    page.find_element("id", "theme").click()
    assert _background(page) == light
    assert _chart_colours(page) == light_charts
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    page.refresh()
    assert _background(page) == dark
    assert set(_chart_colours(page)) == {dark}


@pytest.mark.parametrize("page", ["comparison"], indirect=True)
@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_is_wider_than_the_screen(page: Any, width: int) -> None:
    _width(page, width)
    page.refresh()
    assert page.execute_script("return innerWidth") == width
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    wide = """
      return [...document.querySelectorAll(".chart, h1, h2, p, img")]
        .filter((e) => e.getBoundingClientRect().right > innerWidth + 1).length;
    """
    assert page.execute_script(wide) == 0


@pytest.mark.parametrize("page", ["comparison"], indirect=True)
def test_text_can_be_read_on_its_background_in_both_themes(page: Any) -> None:
    # WCAG 2.2: 4.5 to 1 for text. Colour keys stand in charts and as words of the gallery.
    script = """
      const rgb = (name) => {
        const probe = document.body.appendChild(document.createElement("i"));
        probe.style.color = `var(--${name})`;
        const channels = getComputedStyle(probe).color.match(/[\\d.]+/g).map((v) => v / 255);
        probe.remove();
        return channels;
      };
      const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
      const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
      const paper = luminance(rgb("paper"));
      return arguments[0].map((name) => {
        const own = luminance(rgb(name));
        return [name, (Math.max(own, paper) + 0.05) / (Math.min(own, paper) + 0.05)];
      });
    """
    names = ["ink", "muted", "accent", "good", "bad", "teacher", *(f"arm-{i}" for i in range(1, 9))]
    for _ in range(2):
        low = {name: round(ratio, 2) for name, ratio in page.execute_script(script, names) if ratio < 4.5}
        assert low == {}
        page.find_element("id", "theme").click()


@pytest.mark.parametrize("page", ["run"], indirect=True)
def test_on_paper_it_is_light_and_unfolded_and_comes_back(page: Any) -> None:
    light = _background(page)
    page.find_element("id", "theme").click()
    dark = _background(page)
    page.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert _background(page) == light
    assert page.execute_script("return document.querySelectorAll('section > details:not([open])').length") == 0
    page.execute_script("dispatchEvent(new Event('afterprint'))")
    assert _background(page) == dark
    assert page.execute_script("return document.querySelectorAll('section > details[open]').length") == 0
