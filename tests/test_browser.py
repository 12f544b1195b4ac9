"""Pages in a headless browser: they open, answer to pointer and keyboard, and can be read by everybody.

Needs ``pip install -e '.[browser]'`` and a Chromium: playwright's own (``playwright install chromium``), one on PATH, or
the one that CHROMIUM names.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import LayerCase, NetCase, model_of

import lstm_engine as le
from lstm_engine.pages import diagram, walk
from lstm_engine.report.explain import Request, explained
from lstm_engine.report.inspect import described
from lstm_engine.report.labelled import read_labelled
from lstm_engine.report.picture import pictured
from lstm_engine.trace import LayerTrace, Trace

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.browser

MODELS = Path(__file__).resolve().parent.parent / "models"
TEXT = (
    'def explain(model, text):\n    """Return what the gates did with a text."""\n    trace = model.trace(text)\n' * 2
)[:200]
PHONE = {"width": 375, "height": 760}
SCREEN = {"width": 1400, "height": 950}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    names = ("chromium", "chromium-headless-shell", "google-chrome", "chrome")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    with playwright.sync_playwright() as driver:
        try:
            started = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except playwright.Error as fault:
            pytest.skip(f"no browser: {str(fault).splitlines()[0]}")
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages by name, written once."""
    folder = tmp_path_factory.mktemp("pages")
    char, digits = (le.load(MODELS / name / f"{name}.onnx") for name in ("char", "digits"))
    net = model_of(NetCase(hidden=(8, 5), T=30, B=2))
    gru = model_of(LayerCase(op="GRU", H=6, T=12, direction="bidirectional"))
    written = {
        "char": walk.page(explained(char, Request(text=TEXT))),
        "digits": walk.page(explained(digits, Request())),
        "readings": walk.page(net.trace(NetCase(hidden=(8, 5), T=30, B=2).feeds()).walk()),
        "gru": walk.page(gru.trace(LayerCase(op="GRU", H=6, T=12).feeds()).walk()),
        "rnn": walk.page(model_of(LayerCase(op="RNN")).trace(LayerCase(op="RNN").feeds()).walk()),
        "large": walk.page(large().walk()),
        "hostile": walk.page(hostile()),
        "agreement": walk.page(agreement()),
        "network": diagram.page(pictured(char, described(char))),
        "whole": diagram.page(pictured(digits, described(digits))),
    }
    for name, html in written.items():
        (folder / f"{name}.html").write_text(html, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in written}


def agreement() -> walk.Walk:
    folder = MODELS / "agreement"
    return explained(le.load(folder / "agreement.onnx"), Request(labelled=read_labelled(folder / "labelled.json")))


def large() -> Trace:
    """2,000 steps of 512 units."""
    rng = np.random.default_rng(0)
    arrays = {part: rng.uniform(0, 1, (2000, 1, 512)).astype(np.float32) for part in "figoch"}
    return Trace([LayerTrace("large", "LSTM", arrays, False, ("Sigmoid", "Tanh", "Tanh"))], {}, {}, {})


HARM = '"><img src=x onerror="document.title=1"></td></script><script>document.title=1</script>'


def hostile() -> walk.Walk:
    """A page whose every text means harm."""
    arrays = {part: np.full((4, 1, 2), 0.25, np.float32) for part in "figoch"}
    trace = Trace([LayerTrace(HARM, "LSTM", arrays, False, (HARM,) * 3)], {}, {}, {HARM: HARM})
    chances = np.full((4, 1, 2), 0.5)
    return replace(
        trace.walk(labels=["<b>x</b>", "\n", "\u202e", HARM], title="<i>a</i>"),
        about=[(HARM, HARM)],
        notes=[HARM],
        inputs=[walk.Signal(HARM, chances[:, :, 0])] * 2,
        tracks=[walk.Track(HARM, [HARM] * 4)],
        candidates=walk.Candidates([[[HARM] * 2]] * 4, chances, [[HARM]] * 4, chances[:, :, 0]),
        findings=[walk.Finding(HARM, [HARM], [[HARM], [HARM]], [walk.Jump(HARM, 3, HARM, 1)])],
    )


@pytest.fixture
def opened(browser: Any, pages: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[Any]:
    """Opens pages; nothing may go wrong on any, and none may ask the network for anything."""
    contexts: list[Any] = []
    troubles: list[str] = []

    def open_page(name: str, size: dict[str, int] = SCREEN, **options: Any) -> Any:
        context = browser.new_context(viewport=size, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda fault: troubles.append(str(fault)))
        page.on("console", lambda said: troubles.append(said.text))
        page.on("request", lambda asked: asked.url.startswith("file:") or troubles.append(asked.url))
        page.goto(pages[name].as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not troubles


def numbers(text: str) -> dict[str, str]:
    """{part: value} of a line of hovered values."""
    return {part: value.replace("−", "-") for part, value in re.findall(r"(?:^|[ ·,])([a-z]) (−?[\d.]+)", text)}


@pytest.fixture(scope="module")
def char_trace() -> Trace:
    model = le.load(MODELS / "char" / "char.onnx")
    vocabulary = json.loads(model.metadata["vocabulary"])
    return model.trace(np.array([[vocabulary.index(sign) for sign in TEXT]]))


def wait_for(page: Any, place: str, text: str) -> None:
    """Wait until a text is shown; the page's policy forbids the driver's own way, which evaluates strings in it."""
    page.locator(place).filter(has_text=text).wait_for(timeout=10_000)


def assert_shown(page: Any, trace: Trace, layer: str, step: int, unit: int) -> None:
    """The hovered line and the equations show the trace's values to all their digits."""
    line = page.inner_text("#hovered")
    assert f"step {step + 1} " in line
    assert f"unit {unit} " in line
    found = numbers(line)
    for part in "figoch":
        value = f"{trace[layer][part][step, 0, unit]:.4f}"
        assert float(found[part]) == float(value), part
        assert value.replace("-", "−") in page.inner_text("#phases") or float(value) == 0


def test_it_opens_in_under_a_second(opened: Any) -> None:
    took = []
    for _ in range(5):
        page = opened("char")
        took.append(page.evaluate("performance.timing.loadEventEnd - performance.timing.navigationStart"))
    assert min(took) < 1000, took


def test_hovering_shows_the_values_of_the_trace(opened: Any, char_trace: Trace) -> None:
    page = opened("char")
    plots = page.query_selector_all("#heat .strip")
    (f,) = [plot for plot in plots if plot.query_selector(".name b.f")]
    box = f.query_selector(".plot").bounding_box()
    for across, down in ((0.1, 0.2), (0.5, 0.9), (0.93, 0.03)):
        page.mouse.move(box["x"] + box["width"] * across, box["y"] + box["height"] * down)
        line = page.inner_text("#hovered")
        step, unit = (int(re.search(rf"{name} (\d+)", line).group(1)) for name in ("step", "unit"))  # type: ignore[union-attr]
        assert abs(unit - 256 * down) <= 4
        found = numbers(line)
        for part in "figoch":
            assert float(found[part]) == float(f"{char_trace['/lstm/LSTM'][part][step - 1, 0, unit]:.4f}"), (part, line)
    page.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
    line = page.inner_text("#hovered")
    assert page.inner_text("#which").startswith("Unit " + re.search(r"unit (\d+)", line).group(1))  # type: ignore[union-attr]


def test_choosing_a_layer_a_unit_and_a_step(opened: Any, char_trace: Trace) -> None:
    page = opened("char")
    assert_shown(page, char_trace, "/lstm/LSTM", 0, 0)
    page.select_option("#layer", index=1)
    page.fill("#unit", "77")
    page.press("#unit", "Enter")
    page.fill("#step", "150")
    assert_shown(page, char_trace, "/lstm/LSTM_1", 150, 77)
    page.fill("#unit", "9999")
    page.press("#unit", "Enter")
    assert_shown(page, char_trace, "/lstm/LSTM_1", 150, 255)


def test_the_keyboard_goes_everywhere(opened: Any, char_trace: Trace) -> None:
    page = opened("char")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "heat":
            break
    assert page.evaluate("document.activeElement.id") == "heat"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    for key, step, unit in (
        ("ArrowRight", 1, 0), ("ArrowDown", 1, 1), ("PageDown", 11, 1), ("End", 199, 1), ("ArrowRight", 199, 1),
        ("Home", 0, 1), ("ArrowUp", 0, 0), ("ArrowUp", 0, 0),
    ):  # fmt: skip
        page.keyboard.press(key)
        assert_shown(page, char_trace, "/lstm/LSTM", step, unit)
        assert f"step {step + 1} " in page.inner_text("#told")


def test_playing_steps_through_the_equations(opened: Any, char_trace: Trace) -> None:
    page = opened("char")
    page.click("#play")
    for number in (2, 3, 4, 1):
        wait_for(page, ".phase.now h3", f"{number} ")
    page.click("#play")
    assert_shown(page, char_trace, "/lstm/LSTM", 1, 0)
    page.click("#on")
    page.click("#on")
    page.click("#back")
    assert_shown(page, char_trace, "/lstm/LSTM", 2, 0)


def test_reduced_motion_plays_whole_steps(opened: Any) -> None:
    page = opened("char", reduced_motion="reduce")
    page.click("#play")
    wait_for(page, "#which", "step 2 ")
    assert page.query_selector(".phase.now") is None
    assert page.evaluate("getComputedStyle(document.querySelector('.phase')).transitionDuration") == "0s"


def test_moments_jump(opened: Any, char_trace: Trace) -> None:
    page = opened("char")
    button = page.query_selector("#forgotten button")
    step, unit = (int(n) for n in re.findall(r"step (\d+) .*unit (\d+)", button.inner_text())[0])
    button.click()
    assert_shown(page, char_trace, "/lstm/LSTM", step - 1, unit)


def test_candidates_at_a_step(opened: Any, char_trace: Trace) -> None:
    page = opened("char")
    page.fill("#step", "3")
    scores = char_trace.outputs["logits"][0, 3].astype(np.float64)
    best = np.sort(np.exp(scores) / np.exp(scores).sum())[::-1][:8]
    rows = page.query_selector_all("#next tr")
    assert [row.query_selector(".number").inner_text() for row in rows] == [f"{p:.4f}" for p in best]
    assert f"‘{TEXT[4]}’ came" in page.inner_text("#came")


@pytest.mark.parametrize(
    "name", ["char", "digits", "readings", "gru", "rnn", "agreement", "large", "hostile", "network", "whole"]
)
def test_a_phone_scrolls_one_way_only(opened: Any, name: str) -> None:
    page = opened(name, PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["char", "readings", "gru", "rnn", "agreement", "network", "whole"])
def test_everybody_can_read_it(opened: Any, name: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for size in (SCREEN, PHONE):
        page = opened(name, size, color_scheme=scheme)
        violations = axe.run(page).response["violations"]
        serious = [
            (v["id"], [node["html"] for node in v["nodes"]][:3])
            for v in violations
            if v["impact"] in ("serious", "critical")
        ]
        assert not serious


def test_the_theme_is_the_systems_until_it_is_switched(opened: Any) -> None:
    def back(page: Any) -> int:
        return sum(map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]))

    light, dark = opened("char", color_scheme="light"), opened("char", color_scheme="dark")
    assert back(light) > 700 > 150 > back(dark)
    before = light.locator(".plot canvas").nth(4).screenshot()
    light.click("#theme")
    assert back(light) < 150
    assert light.locator(".plot canvas").nth(4).screenshot() != before
    light.click("#theme")
    assert back(light) > 700
    assert light.locator(".plot canvas").nth(4).screenshot() == before


def test_two_thousand_steps_of_512_units_are_usable(opened: Any) -> None:
    page = opened("large")
    assert page.evaluate("document.querySelectorAll('*').length") < 1500
    page.focus("#heat")
    took = page.evaluate("""() => {
        const heat = document.getElementById('heat'), times = [];
        const press = (key) => { const t = performance.now(); heat.dispatchEvent(new KeyboardEvent('keydown', {key})); times.push(performance.now() - t); };
        for (let k = 0; k < 20; k++) press('ArrowRight');
        return times.sort((a, b) => a - b)[10];
    }""")
    assert took < 250  # milliseconds; a few on a quiet machine
    page.get_by_label("Wider steps").click()
    page.keyboard.press("Home")
    page.focus("#heat")
    page.keyboard.press("End")
    assert "step 2000 " in page.inner_text("#hovered")


def test_rows_of_a_batch(opened: Any) -> None:
    case = NetCase(hidden=(8, 5), T=30, B=2)
    trace = model_of(case).trace(case.feeds())
    page = opened("readings")
    page.select_option("#row", "1")
    found = numbers(page.inner_text("#hovered"))
    assert float(found["c"]) == float(f"{trace['LSTM.0'].c[0, 1, 0]:.4f}")


@pytest.mark.parametrize(("name", "parts"), [("gru", "zrnh"), ("rnn", "h")])
def test_other_cells_show_their_own_parts(opened: Any, name: str, parts: str) -> None:
    page = opened(name)
    shown = [b.inner_text() for b in page.query_selector_all("#heat .name b[class]")]
    assert shown == list(parts)
    assert len(page.query_selector_all(".phase")) == len(parts)


def test_the_page_begins_at_what_was_found(opened: Any) -> None:
    shown, page = agreement(), opened("agreement")
    for finding, box in zip(shown.findings, page.query_selector_all(".finding"), strict=True):
        assert box.query_selector("h2").inner_text() == finding.heading
        assert len(box.query_selector_all("tbody tr")) == len(finding.table) - 1
        for jump, button in zip(finding.jumps, box.query_selector_all("button"), strict=True):
            button.click()
            assert page.inner_text("#which").startswith(f"Unit {jump.unit} at step {jump.step + 1} ")
    (number, *_), page = shown.findings, opened("agreement")
    assert page.inner_text("#which").startswith(f"Unit {number.jumps[0].unit} at step {number.jumps[0].step + 1} ")
    assert shown.tracks[0].values[number.jumps[0].step] in page.inner_text("#hovered")


def test_names_that_mean_harm_do_none(opened: Any) -> None:
    page = opened("hostile")
    assert page.title() == "<i>a</i>"
    for step in range(4):
        page.fill("#step", str(step))
    page.click(".finding button")
    assert page.query_selector("img") is None
    assert page.inner_text(".finding h2") == HARM
    assert page.inner_text("#next .word") == HARM.replace(" ", "␣")  # spaces are shown
    assert page.title() == "<i>a</i>"
    assert "<b>x</b>" in page.inner_text("#reading")
