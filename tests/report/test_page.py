"""The page, in a real browser: it stands alone, can be sorted, fits a phone, and shows names as they are."""

import dataclasses
import re

import numpy as np
import pytest

from detr.report.page import confusion_part, percent, render
from detr.report.worst import draw_pair
from tests.report.browser import Browser, find_browser
from tests.report.made_up import ap, made_up_report, made_up_run, made_up_summary, worst_image

NAN = float("nan")
SCRIPT = "<script>alert(1)</script>"
FEW = {SCRIPT: 0.5, "b & c": 0.9, "a": 0.3, "none of it": NAN}
MANY = {f"a class with a long name {i}": i % 10 / 10 for i in range(80)}
COLUMN = "[...document.querySelectorAll('#classes tbody tr')].map(r => r.cells[{}].textContent.trim())"
SORT = "document.querySelectorAll('#classes thead button')[{}].click()"


@pytest.fixture(scope="module")
def browser() -> Browser:
    return find_browser()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    image = worst_image(folder)
    for name, values in (("few", FEW), ("many", MANY)):
        pairs = [draw_pair(image, list(values))]
        html = render(made_up_run(), made_up_report(values, (image,)), made_up_summary(), pairs)
        (folder / f"{name}.html").write_text(html, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in ("few", "many")}


def test_nothing_is_loaded_and_nothing_goes_wrong(browser, pages):
    opened = browser.open(pages["few"])
    assert opened.console == []
    sources = re.findall(r'(?:src|href|url)(?:="|\()([^#"][^")]*)', re.sub(r'xmlns(:\w+)?="[^"]*"', "", opened.dom))
    assert len(sources) == 2  # pictures
    assert all(x.startswith("data:image/jpeg;base64,") for x in sources)


def test_an_error_on_the_page_would_be_noticed(browser, pages):
    assert browser.open(pages["few"], "nothing.there").console == ["Uncaught ReferenceError: nothing is not defined"]


def test_the_browser_decodes_the_pictures(browser, pages):
    sizes = "result = [...document.images].map(x => x.naturalWidth).join()"
    assert browser.result(pages["few"], sizes) == "426,426"


def test_a_click_makes_a_pair_of_pictures_larger(browser, pages):
    text = pages["few"].read_text(encoding="utf-8")
    figure = re.search(r'<figure>\s*<div class="pair">.*?</figure>', text, re.DOTALL)[0]
    page = pages["few"].with_name("two.html")
    page.write_text(text.replace(figure, 2 * figure), encoding="utf-8")
    widths = "const pair = document.querySelector('.pair'), before = pair.clientWidth; pair.click();"
    before, after = browser.result(page, f"{widths} result = [before, pair.clientWidth]").split(",")
    assert int(after) > 1.9 * int(before)


def test_a_class_is_sorted_by_its_name_and_by_its_ap(browser, pages):
    def after(*clicks: int, column: int = 0) -> list[str]:
        script = ";".join(SORT.format(i) for i in clicks)
        return browser.result(pages["few"], f"{script}; result = {COLUMN.format(column)}.join('|')").split("|")

    escaped = "&lt;script&gt;alert(1)&lt;/script&gt;"
    assert after(0) == [escaped, "a", "b &amp; c", "none of it"]
    assert after(0, 0) == ["none of it", "b &amp; c", "a", escaped]
    assert after(2, column=2) == ["90.0", "50.0", "30.0", "\N{EN DASH}"]  # nothing is last, in both directions
    assert after(2, 2, column=2) == ["30.0", "50.0", "90.0", "\N{EN DASH}"]


def test_the_curve_of_a_class_is_shown(browser, pages):
    choose = (
        "const c = document.getElementById('curve-class'); c.value = '1'; c.dispatchEvent(new Event('change'));"
        "result = [...document.querySelectorAll('#curves [data-class]')]"
        ".map(x => [x.classList[0], x.dataset.class, getComputedStyle(x).opacity].join(' ')).join('|')"
    )
    expected = "curve 0 0.08|mark 0 0|curve 1 1|mark 1 1|curve 2 0.08|mark 2 0"
    assert browser.result(pages["few"], choose) == expected


@pytest.mark.parametrize("name", ["few", "many"])
def test_the_page_fits_a_phone(browser, pages, name):
    opened = "for (const x of document.querySelectorAll('details')) x.open = true;"
    opened += "result = [innerWidth, document.documentElement.scrollWidth]"
    assert browser.result(pages[name], opened, width=375) == "375,375"


def test_figures_and_page_are_dark_where_the_reader_wants_it(browser, pages):
    colors = (
        "result = [getComputedStyle(document.body).backgroundColor,"
        "getComputedStyle(document.querySelector('#curves text')).fill].join('|')"
    )
    light, dark = (browser.result(pages["few"], colors, dark=dark).split("|") for dark in (False, True))

    def brightness(color: str) -> int:
        return sum(map(int, re.findall(r"\d+", color)))

    assert brightness(light[0]) > 3 * 240 > 3 * 60 > brightness(dark[0])
    assert brightness(light[1]) < 3 * 128 < brightness(dark[1])


def test_a_name_is_text_everywhere(browser, pages):
    count = "result = document.scripts.length + ' ' + document.querySelectorAll('b').length"
    assert browser.result(pages["few"], count) == "2 0"  # the page's own, and the test's
    assert browser.open(pages["few"]).dom.count("alert(1)") > 5


def test_two_pages_of_one_report_are_the_same(pages, tmp_path):
    image = worst_image(pages["few"].parent)
    again = render(made_up_run(), made_up_report(FEW, (image,)), made_up_summary(), [draw_pair(image, list(FEW))])
    assert again == pages["few"].read_text(encoding="utf-8")


def test_a_page_of_many_classes_stays_small(pages):
    assert pages["many"].stat().st_size < 600_000


def test_nothing_measured_is_a_dash():
    assert [percent(x) for x in (None, NAN, 0.0, 0.6312)] == ["\N{EN DASH}", "\N{EN DASH}", "0.0", "63.1"]


def test_the_most_confused_classes_are_shown():
    matrix = np.diag([9, 9, 9, 9, 0])
    matrix[3, 1], matrix[1, 4], matrix[4, 0] = 3, 8, 50
    part = confusion_part(matrix, ["a", "b", "c", "d"], most=2)
    assert part.names == ("b", "d")
    assert part.counts.tolist() == [[9, 0, 8], [3, 9, 0], [0, 0, 0]]
    np.testing.assert_allclose(part.shares, [[9 / 17, 0, 8 / 17], [0.25, 0.75, 0], [0, 0, 0]])
    assert part.hidden == 2
    assert part.pairs == (("d", "b", 3, 12),)


def test_masks_and_warnings_where_there_are_any():
    report = made_up_report({"one": 0.5})
    pages = [render(made_up_run(), report, made_up_summary(), [])]
    row = dataclasses.replace(report.classes[0], mask=ap(0.123))
    more = dataclasses.replace(report, mask=ap(0.345), classes=(row,), warnings=("the weights are newer",))
    pages.append(render(made_up_run(), more, made_up_summary(), []))
    for text in ("mask AP", ">12.3<", ">34.5<", "the weights are newer"):
        assert [text in page for page in pages] == [False, True]


@pytest.mark.parametrize("values", [{"one": 0.5}, {"one": NAN}, {"one": 0.0, "two": NAN}])
def test_little_is_no_error(browser, tmp_path, values):
    page = tmp_path / "page.html"
    page.write_text(render(made_up_run(), made_up_report(values), made_up_summary(), []), encoding="utf-8")
    opened = browser.open(page)
    assert opened.console == []
    assert "nan" not in re.sub(r"<(script|style).*?</\1>", "", opened.dom, flags=re.DOTALL).lower()
