"""The web page in a real browser, against the real service: whole paths, and what must never happen on the way."""

import base64
import csv
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from headstart.training.prediction_lines import csv_lines

browsers = pytest.importorskip("playwright.sync_api", reason="these tests drive a browser: pip install playwright")
expect = browsers.expect
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")

#: Complains of what the content security policy forbids, as the console does of errors.
WATCH = "addEventListener('securitypolicyviolation', e => console.error('CSP', e.violatedDirective, e.blockedURI))"
PAGE = Path(__file__).parents[2] / "src" / "headstart" / "serve" / "page"
HOSTILE = ["<img src=x onerror=document.title='taken'>", "x" * 200, "\u202eشجرة {name} $&"]


def drawing(colour, shape, place=0, size=(160, 140)):
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    getattr(draw, shape)((20 + 3 * place, 20 + 2 * place, 100 + 3 * place, 100 + 2 * place), fill=colour)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def files(colour, shape, count, first=0):
    drawings = [drawing(colour, shape, place) for place in range(first, first + count)]
    return [{"name": f"{colour} {n}.png", "mimeType": "image/png", "buffer": data} for n, data in enumerate(drawings)]


@pytest.fixture(scope="module")
def browser():
    expect.set_options(timeout=30_000)
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with browsers.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *camera])
        yield found
        found.close()


@pytest.fixture
def visit(browser, service):
    """Opens the page; at the end nothing may have gone wrong that nobody expected."""
    wrong, contexts = [], []

    def opened(run=None, address=service[0].url, **options):
        context = browser.new_context(**{"locale": "en-GB", "viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        context.add_init_script(WATCH)
        page = context.new_page()
        page.wrong = wrong
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("filechooser", lambda chooser: None)  # so that choosers are caught from the start
        page.goto(address)
        if run is not None:
            expect(page.locator("#bench")).to_be_visible()
            page.select_option("#run", run)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture(scope="module")
def modules(browser):
    """A page from which the modules can be imported, without a service."""
    page = browser.new_page()
    page.route("**/*", lambda route: route.fulfill(path=PAGE / (route.request.url.rpartition("/")[2] or "icon.svg")))
    page.goto("http://page.test/")
    yield page
    page.close()


def says(text):
    """A pattern for a text in which the words of people stand between isolates, which nobody sees."""
    return re.compile("[\u2068\u2069]*".join(map(re.escape, text)))


def card(page, place):
    return page.locator(".card").nth(place)


def learn(page):
    page.locator("#learn-here .big").click()
    learned(page)


def learned(page):
    expect(page.locator("#learn-here .big")).to_have_text(re.compile("Learned|Gelernt|已学会"))


def show_images(page):
    for place, (name, colour, shape) in enumerate([("disc", "black", "ellipse"), ("box", "gray", "rectangle")]):
        card(page, place).locator(".name").fill(name)
        card(page, place).locator("input[type=file]").set_input_files(files(colour, shape, 3))
        expect(card(page, place).locator(".thumb")).to_have_count(3)


def show_texts(page, names=("cards", "refunds")):
    for place, (name, texts) in enumerate(zip(names, (["card lost", "card gone"], ["money back", "money again"]))):
        card(page, place).locator(".name").fill(name)
        card(page, place).locator("textarea").fill("\n".join(texts))


class Keyboard:
    """A person without a mouse."""

    def __init__(self, page):
        self.page, self.press, self.type = page, page.keyboard.press, page.keyboard.type

    def to(self, name, most=80):
        """Press Tab until what is focused is called so, and can be seen to be focused."""
        called = (
            "(one => (one.getAttribute('aria-label') ?? one.labels?.[0]?.textContent ?? one.textContent)"
            ".replace(/[\u2068\u2069]/g, '').trim())"
        )
        there = (
            f"[...document.querySelectorAll('*')].some(one => !one.disabled && new RegExp(name).test({called}(one)))"
        )
        self.page.wait_for_function(f"name => {there}", arg=f"^(?:{name})$")  # as who looks at the page does
        for _ in range(most):
            self.press("Tab")
            focused = self.page.evaluate(f"{called}(document.activeElement)")
            if re.fullmatch(name, focused):
                width = self.page.evaluate(
                    "getComputedStyle(document.activeElement).outlineStyle"
                    " + document.activeElement.matches(':focus-visible')"
                )
                assert width == "solidtrue", f"nobody sees that {focused!r} is focused"
                return
        raise AssertionError(f"Tab never comes to {name!r}")

    def replace(self, text):
        self.press("ControlOrMeta+a")
        self.type(text)

    def choose(self, some):
        """Press what asks for files, and choose some."""
        with self.page.expect_file_chooser() as chooser:
            self.press("Enter")
        chooser.value.set_files(some)


def test_images_by_keyboard_from_examples_to_answers_growth_and_export(visit):
    page = visit("icons")
    keys = Keyboard(page)
    for place, (name, colour, shape) in enumerate([("disc", "black", "ellipse"), ("box", "gray", "rectangle")], 1):
        keys.to(f"Name of class {place}")
        keys.replace(name)
        keys.to(f"Drop, paste or choose images for {name}")
        keys.choose(files(colour, shape, 3))
        expect(card(page, place - 1).locator(".count")).to_have_text("3 examples")
    keys.to("Remove example 1 of disc")
    keys.press("ArrowRight")
    keys.press("Delete")
    expect(card(page, 0).locator(".count")).to_have_text("2 examples")
    keys.to("Undo")
    keys.press("Enter")
    expect(card(page, 0).locator(".count")).to_have_text("3 examples")
    keys.to("Learn")
    keys.press("Enter")
    learned(page)
    expect(page.locator("#live")).to_have_text("Learned from 6 examples. Try it.")
    expect(page.locator(".estimate")).to_contain_text("of 6 examples were told right by the others")
    keys.to("Drop, paste or choose images to try")
    keys.choose([{**files("black", "ellipse", 1, 1)[0], "name": "what.png"}])
    expect(page.locator(".tried .verdict")).to_have_text("disc")
    expect(page.locator("#live")).to_contain_text("disc")
    assert sum(float(x) for x in re.findall(r"[\d.]+(?= %)", page.locator(".tried .answer").inner_text())[:3]) == (
        pytest.approx(100, abs=1)
    )

    keys.to("Add a class", most=120)
    keys.press("Enter")
    keys.replace("pie")
    keys.to("Drop, paste or choose images for pie")
    keys.choose(files("silver", "rectangle", 2))
    with page.expect_request("**/examples") as grown:
        keys.to("Learn the changes")
        keys.press("Enter")
    assert {example["label"] for example in grown.value.post_data_json["examples"]} == {"pie"}
    learned(page)
    # of the three classes, and of none of them
    expect(page.locator(".tried .bars li")).to_have_count(4)

    with page.expect_response("**/export?to=onnx") as answer:
        keys.to("ONNX")
        keys.press("Enter")
    if answer.value.ok:
        expect(page.locator("#live")).to_contain_text("was saved")
    else:  # what the service cannot do it says, where it was asked for
        expect(page.locator(".take .error")).to_contain_text(answer.value.json()["error"]["message"])
        page.wrong.clear()


def test_texts_by_keyboard_from_a_spreadsheet_to_answers(visit, service):
    page = visit("ngrams")
    keys = Keyboard(page)
    keys.to("Name of class 1")
    keys.replace("cards")
    keys.to("Examples of cards, one a line")
    keys.type("card question one\ncard question two")
    expect(card(page, 0).locator(".count")).to_have_text("2 examples")
    keys.to("Paste from a spreadsheet")
    keys.press("Enter")
    keys.to("Copied cells")
    keys.type('text;class\nmoney question one;refunds\n"money; question";refunds\ncard question three;cards')
    keys.to(r"Add the examples \(3\)")
    keys.press("Enter")
    expect(card(page, 1).locator(".name")).to_have_value("refunds")
    expect(card(page, 1).locator("textarea")).to_have_value("money question one\nmoney; question")
    expect(card(page, 0).locator(".count")).to_have_text("3 examples")
    keys.to("Learn")
    keys.press("Enter")
    learned(page)
    keys.to("Type or paste a text")
    keys.type("money question one")
    expect(page.locator(".trial .verdict")).to_have_text("refunds")
    expect(page.locator("#live")).to_contain_text("refunds")
    # a line that is taken back is taken back: the task is learned again, and the old one is gone
    with page.expect_request(lambda request: request.method == "DELETE") as gone:
        card(page, 0).locator("textarea").fill("card question one")
        keys.to("Learn the changes")
        keys.press("Enter")
    assert gone.value.response().status == 204
    expect(page.locator("#learn-state")).to_have_text("Learned from 3 examples. Try it.")
    expect(page.locator("#task option")).to_have_count(1 + stored(service[0], "ngrams"))


def stored(http, run):
    """How many tasks of a run the service has."""
    return sum(task["run"] == run for task in http("GET", "/v1/tasks?limit=100").json["tasks"])


def test_tables_by_keyboard_from_a_csv_to_a_download_without_formulas(visit):
    page = visit("curves")
    keys = Keyboard(page)
    lines = [f"{x};{3 * x if x < 5 else ''};=HYPERLINK(1);Größe {x}" for x in range(14)]
    table = "X;y;note;more\r\n" + "\r\n".join(lines)
    keys.to("Drop a CSV file, paste rows or choose a file")
    keys.choose([{"name": "mine.csv", "mimeType": "text/csv", "buffer": table.encode("cp1252")}])
    expect(page.locator(".facts")).to_contain_text("Known rows, to learn from: 5")
    expect(page.locator(".facts")).to_contain_text("Rows to be answered: 9")
    expect(page.locator("#examples")).to_contain_text(says("Not used: note, more"))
    keys.to("y in row 5")
    keys.replace("13")
    keys.to("Learn")
    with page.expect_request("**/v1/tasks") as sent:
        keys.press("Enter")
    rows = [example["row"] for example in sent.value.post_data_json["examples"]]
    assert rows[4] == {"x": "4", "y": "13"} and len(rows) == 5
    learned(page)
    answers = page.locator(".trial tbody tr")
    expect(answers).to_have_count(9)
    expect(answers.first.locator("td").nth(1)).to_have_text(re.compile(r"[\d.]+ – [\d.]+"))
    before = answers.first.locator("td").first.inner_text()
    assert np.isfinite(float(before))
    # a corrected row is answered anew
    keys.to("X in row 6", most=120)
    keys.replace("2")
    keys.press("Tab")
    expect(answers.first.locator("td").first).not_to_have_text(re.compile(f"{re.escape(before)}|…"))
    keys.to("Download as CSV", most=120)
    with page.expect_download() as download:
        keys.press("Enter")
    assert download.value.suggested_filename == "mine_answers.csv"
    found = list(csv.reader(Path(download.value.path()).read_text("utf-8-sig").splitlines()))
    assert found[0] == ["X", "y", "note", "more", "prediction", "low", "high"] and len(found) == 10
    assert found[1][:4] == ["2", "", "'=HYPERLINK(1)", "Größe 5"] and float(found[1][4]) == float(found[1][4])


def test_a_table_says_what_is_wrong_with_it(visit):
    page = visit("curves")
    choose = page.locator("#examples input[type=file]").first
    error = page.locator("#examples .error").first
    choose.set_input_files({"name": "a.csv", "mimeType": "text/csv", "buffer": b"x,y\n1,2\n3,4,5\n"})
    expect(error).to_contain_text(says("Line 3 has 3 cells, the heading has 2. Is the separator ,?"))
    choose.set_input_files({"name": "b.xlsx", "mimeType": "text/csv", "buffer": b"PK\3\4"})
    expect(error).to_contain_text(says("b.xlsx is a workbook"))
    choose.set_input_files({"name": "c.csv", "mimeType": "text/csv", "buffer": b"tag,wert\n1,2\n2,4\n3,\n"})
    expect(page.locator("#examples")).to_contain_text(says("Choose a column for: x"))
    expect(page.locator("#learn-state")).to_contain_text(says("Choose a column for: x"))
    page.get_by_label(says("Column for x")).select_option("tag")
    page.get_by_label(says("What is to be told (y)")).select_option("wert")
    expect(page.locator(".facts")).to_contain_text("Known rows, to learn from: 2")
    learn(page)
    expect(page.locator(".trial tbody tr")).to_have_count(1)
    # what the service cannot read it says itself
    page.get_by_label(says("wert in row 1")).fill("much")
    page.get_by_label(says("wert in row 1")).press("Tab")
    page.locator("#learn-here .big").click()
    expect(page.locator("#learn-here .error p")).to_contain_text("much")
    page.wrong.clear()


@pytest.mark.parametrize("width", [1280, 390])
def test_hostile_names_are_names(visit, width):
    page = visit("ngrams", viewport={"width": width, "height": 800})
    page.locator(".add").click()
    for place, (name, text) in enumerate(zip(HOSTILE, ("card question", "money question", "rate question"))):
        card(page, place).locator(".name").fill(name)
        card(page, place).locator("textarea").fill(f"{text} one\n{text} {name}")
    learn(page)
    page.locator(".trial textarea").fill("card question two")
    expect(page.locator(".trial .bars li")).to_have_count(3)
    expect(page.locator(".trial .verdict")).to_have_text(HOSTILE[0])
    assert sorted(page.locator(".trial .bars .label").all_inner_texts()) == sorted(HOSTILE)
    card(page, 0).get_by_role("button").last.click()
    expect(page.locator(".undo")).to_contain_text(HOSTILE[0])
    assert page.locator("img").count() == 0 and page.title() == "headstart"
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_none_of_these_is_asked_for_and_said(visit):
    page = visit("ngrams")
    show_texts(page)
    learn(page)
    chances = {"cards": 0.06, "refunds": 0.04}
    told = {"probability": 0.06, "probabilities": chances, "unknown": 0.9, "set": ["cards", "refunds"]}
    answers = [{"prediction": "cards", **told}, {"prediction": None, **told}]
    asked = []

    def answer(route):
        asked.append(route.request.post_data_json)
        route.fulfill(json={"predictions": [answers["reject" in asked[-1]]]})

    page.route("**/predict", answer)
    page.locator(".trial textarea").fill("what is for dinner?")
    expect(page.locator(".trial .verdict")).to_have_text("cards")
    expect(page.locator(".trial .answer")).to_contain_text(says("Could be any of: cards, refunds"))
    expect(page.locator(".trial .bars li")).to_have_text(["cards6 %", "refunds4 %", "None of these90 %"])
    page.get_by_label("Say “none of these”").select_option(label="when in doubt (5 in 100 that do belong)")
    expect(page.locator(".trial .verdict")).to_have_text("None of these")
    assert [one.get("reject") for one in asked] == [None, 0.05]


def test_a_task_is_opened_again_grown_and_deleted(visit):
    page = visit("ngrams")
    show_texts(page, names=("one", "two"))
    page.get_by_label("Name of the task").fill("opened again")
    learn(page)
    page = visit("ngrams")
    page.get_by_label("Task", exact=True).select_option("opened again")
    expect(card(page, 0).locator(".count")).to_have_text("2 learned before")
    expect(card(page, 0).locator(".name")).to_have_attribute("readonly", "")
    card(page, 0).locator("textarea").fill("card found")
    expect(page.locator("#learn-state")).to_contain_text("Changes that are not learned yet: 1")
    learn(page)
    expect(card(page, 0).locator(".count")).to_have_text("3 learned before")
    expect(page.locator("#learn-state")).to_have_text("Learned from 5 examples. Try it.")
    page.get_by_role("button", name="Delete this task").click()
    with page.expect_response(lambda answer: answer.request.method == "DELETE") as gone:
        page.get_by_role("button", name="Delete for good").click()
    assert gone.value.status == 204
    expect(page.locator("#live")).to_contain_text("The task was deleted")


def test_a_table_task_is_opened_again_asked_and_grown(visit, service):
    http, _ = service
    rows = [{"row": {"x": x, "y": 2 * x}} for x in range(4)]
    task = http("POST", "/v1/tasks", {"run": "curves", "name": "a curve", "examples": rows}).json
    page = visit("curves")
    page.get_by_label("Task", exact=True).select_option("a curve")
    expect(page.locator("#examples")).to_contain_text("4 learned before")
    table = {"name": "a.csv", "mimeType": "text/csv", "buffer": b"x,y\n1,\n2,\n"}
    page.locator("#examples input[type=file]").first.set_input_files(table)
    expect(page.locator(".trial tbody tr")).to_have_count(2)
    page.get_by_label(says("y in row 2")).fill("4")
    page.get_by_label(says("y in row 2")).press("Tab")
    expect(page.locator(".trial tbody tr")).to_have_count(1)
    learn(page)
    assert http("GET", f"/v1/tasks/{task['id']}").json["counts"] == [5]


def test_a_row_unlike_all_that_was_trained_on_says_so_on_the_page_and_in_its_csv(
    visit, settings_of, tmp_path, tables_run
):
    from headstart.serve.server import running

    with running(settings_of(tmp_path / "tasks.db", (str(tables_run("nearest", "ill")),))) as (address, _):
        page = visit(address=address)
        expect(page.locator("#bench")).to_be_visible()
        lines = [f"{x},hay,{x > 3}" for x in range(8)] + ["7,hay,", "1e9,algae,"]
        table = {"name": "a.csv", "mimeType": "text/csv", "buffer": "\n".join(["x,food,ill", *lines]).encode()}
        page.locator("#examples input[type=file]").first.set_input_files(table)
        learn(page)
        answers = page.locator(".trial tbody tr")
        expect(answers).to_have_count(2)
        expect(answers.last).to_contain_text(says("Unlike anything it was trained on: x, food"))
        expect(answers.first).not_to_contain_text("Unlike")
        with page.expect_download() as download:
            page.get_by_role("button", name="Download as CSV").click()
        rows = list(csv.DictReader(Path(download.value.path()).read_text("utf-8-sig").splitlines()))
        assert [row["unseen"] for row in rows] == ["", "x; food"] and rows[0]["prediction"] == "True"
        shares = [float(rows[0][f"probability of {label}"]) for label in ("False", "True")]
        assert sum(shares) == pytest.approx(1) and float(rows[0]["probability"]) == max(shares)


def test_more_than_a_request_may_hold_is_sent_in_parts(visit, settings_of, tmp_path):
    from headstart.serve.contract import Limits
    from headstart.serve.server import running

    limits = Limits(body_bytes=3000, adapt_seconds=120, predict_seconds=60)
    with running(settings_of(tmp_path / "tasks.db", ("ngrams",), limits=limits)) as (address, _):
        page = visit(address=address)
        expect(page.locator("#bench")).to_be_visible()
        for place, word in enumerate(("card", "money")):
            card(page, place).locator("textarea").fill("\n".join(f"{word} question {n} {'x' * 60}" for n in range(30)))
        asked = []
        page.on("request", lambda request: asked.append(request.url) if request.method == "POST" else None)
        # the third part gets lost on its way, and the others are not sent again
        page.route("**/examples", lambda route: route.abort() if len(asked) == 3 else route.continue_())
        page.locator("#learn-here .big").click()
        expect(page.locator("#learn-here > .error")).to_contain_text("cannot be reached")
        expect(page.locator("#learn-state")).to_contain_text("Changes that are not learned yet")
        page.get_by_role("button", name="Try again").click()
        learned(page)
        expect(page.locator("#learn-state")).to_have_text("Learned from 60 examples. Try it.")
        assert sum(url.endswith("/v1/tasks") for url in asked) == 1 and len(asked) == 4
        page.wrong.clear()


def test_images_are_dropped_pasted_and_taken_by_the_webcam(visit):
    page = visit("icons", permissions=["camera"])
    send = """([selector, kind, texts]) => {
        const data = new DataTransfer();
        for (const text of texts) {
            const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
            data.items.add(new File([bytes], "a.png", { type: "image/png" }));
        }
        const options = { bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data };
        const event = kind === "paste" ? new ClipboardEvent(kind, options) : new DragEvent(kind, options);
        document.querySelector(selector).dispatchEvent(event);
    }"""
    texts = [base64.b64encode(drawing("black", "ellipse", n)).decode() for n in range(2)]
    page.evaluate(send, [".card .drop", "drop", texts])
    expect(card(page, 0).locator(".thumb")).to_have_count(2)
    card(page, 1).locator(".drop").focus()
    page.evaluate(send, [".card:nth-child(2) .drop", "paste", texts[:1]])
    expect(card(page, 1).locator(".thumb")).to_have_count(1)
    page.get_by_label(says("Webcam for Class 2")).click()
    take = page.get_by_role("button", name="Take a picture")
    expect(page.locator("video")).to_be_visible()
    page.locator("video").evaluate("video => video.videoWidth || new Promise((done) => (video.onloadeddata = done))")
    take.focus()
    page.keyboard.press("Enter")
    expect(card(page, 1).locator(".thumb")).to_have_count(2)
    page.get_by_role("button", name="Stop the webcam").click()
    learn(page)
    page.evaluate(send, [".trial .drop", "drop", texts])
    expect(page.locator(".tried li .verdict")).to_have_count(2)
    page.get_by_role("button", name="Webcam, answered as you move").click()
    expect(page.locator(".live .bars")).to_be_visible()
    expect(page.locator(".live .verdict")).to_have_text("Class 2")
    page.get_by_role("button", name="Stop the webcam").click()


def test_all_images_that_are_tried_at_once_are_answered(visit):
    page = visit("icons")
    show_images(page)
    learn(page)
    page.locator(".trial input[type=file]").set_input_files(files("black", "ellipse", 15))
    verdicts = page.locator(".tried li .verdict")
    expect(verdicts).to_have_count(15)
    page.locator(".trial input[type=file]").set_input_files(files("gray", "rectangle", 1))
    expect(verdicts).to_have_count(12)


def test_folders_that_are_dropped_become_classes(visit, tmp_path):
    page = visit("icons")
    for name, colour in (("cups", "black"), ("spoons", "gray")):
        (tmp_path / name).mkdir()
        for place in range(2):
            (tmp_path / name / f"{place}.png").write_bytes(drawing(colour, "ellipse", place))
        (tmp_path / name / ".hidden").write_bytes(b"")
    box = page.locator(".add").bounding_box()
    dropped = {"items": [], "files": [str(tmp_path / "cups"), str(tmp_path / "spoons")], "dragOperationsMask": 1}
    devices = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        devices.send("Input.dispatchDragEvent", {"type": kind, "x": box["x"] + 9, "y": box["y"] + 9, "data": dropped})
    for place, name in enumerate(("cups", "spoons")):
        expect(card(page, place).locator(".name")).to_have_value(name)
        expect(card(page, place).locator(".thumb")).to_have_count(2)


def test_images_are_sent_small_and_upright(visit):
    page = visit("icons")
    large = Image.new("RGB", (3000, 1000), "white")
    ImageDraw.Draw(large).rectangle((0, 0, 900, 900), fill="black")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned: the camera was held on its side
    exif[0x010F] = "a camera"
    file = io.BytesIO()
    large.save(file, "JPEG", exif=exif)
    big = {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": file.getvalue()}
    broken = {"name": "broken.png", "mimeType": "image/png", "buffer": b"no image"}
    card(page, 0).locator("input[type=file]").set_input_files([big, broken])
    expect(card(page, 0).locator(".error", has_text="broken.png")).to_be_visible()
    expect(card(page, 0).locator(".thumb")).to_have_count(1)
    card(page, 1).locator("input[type=file]").set_input_files(files("black", "ellipse", 1))
    expect(card(page, 1).locator(".thumb")).to_have_count(1)
    with page.expect_request("**/v1/tasks") as sent:
        learn(page)
    texts = {example["label"]: example["image"] for example in sent.value.post_data_json["examples"]}
    found = Image.open(io.BytesIO(base64.b64decode(texts["Class 1"])))
    assert found.size == (171, 512) and not found.getexif()
    assert np.asarray(found.convert("L"))[40, 130] < 60 and np.asarray(found.convert("L"))[40, 10] > 200


def test_a_lost_connection_loses_nothing(visit):
    page = visit("ngrams")
    show_texts(page)
    page.route("**/v1/tasks", lambda route: route.abort())
    page.locator("#learn-here .big").click()
    error = page.locator("#learn-here > .error")
    expect(error).to_contain_text("The service cannot be reached. Nothing is lost")
    expect(card(page, 0).locator("textarea")).to_have_value("card lost\ncard gone")
    page.unroute("**/v1/tasks")
    page.get_by_role("button", name="Try again").click()
    learned(page)
    expect(error).to_be_empty()
    assert all("ERR_FAILED" in said for said in page.wrong)
    page.wrong.clear()


def test_a_request_that_was_answered_unheard_makes_no_second_task(visit, service):
    page = visit("ngrams")
    show_texts(page, names=("heard", "unheard"))
    before = stored(service[0], "ngrams")

    def unheard(route):
        route.fetch()
        route.abort()

    page.route("**/v1/tasks", unheard, times=1)
    page.locator("#learn-here .big").click()
    page.get_by_role("button", name="Try again").click()
    learned(page)
    assert stored(service[0], "ngrams") == before + 1
    page.wrong.clear()


def test_what_the_service_refuses_is_said_as_it_says_it(visit):
    page = visit("ngrams")
    show_texts(page)
    card(page, 0).locator("textarea").fill("\n".join(f"card {n}" for n in range(101)))
    page.locator("#learn-here .big").click()
    said = page.locator("#learn-here .error p")
    expect(said).to_contain_text("at most 100 of a class are taken")
    expect(said).to_have_attribute("lang", "en")
    assert len(page.wrong) == 1 and "422" in page.wrong.pop()


def test_leaving_with_examples_that_are_not_learned_asks_first(visit):
    page = visit("ngrams")
    show_texts(page)
    asked = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.dismiss()))
    page.evaluate("setTimeout(() => location.reload())")
    page.wait_for_timeout(500)
    assert asked == ["beforeunload"]
    expect(card(page, 0).locator("textarea")).to_have_value("card lost\ncard gone")
    learn(page)
    page.reload()
    expect(page.locator("#bench")).to_be_visible()
    assert asked == ["beforeunload"]


def test_a_service_with_tokens_asks_for_one(visit, settings_of, tmp_path):
    from headstart.serve.server import running
    from headstart.serve.tokens import hash_of

    token = "an-open-secret-of-32-letters-0123"
    settings = settings_of(tmp_path / "tasks.db", ("ngrams",), token=hash_of(token, "here"))
    with running(settings) as (address, _):
        page = visit(address=address)
        expect(page.get_by_label("Token")).to_be_focused()
        page.keyboard.type("not this one")
        page.keyboard.press("Enter")
        expect(page.locator("#token-error")).to_contain_text("did not take this token")
        page.keyboard.type(token)
        page.keyboard.press("Enter")
        expect(page.locator("#bench")).to_be_visible()
        expect(page.locator("#lock")).to_be_hidden()
        show_texts(page)
        learn(page)
        page.reload()  # it is kept as long as the tab is open, and nowhere else
        expect(page.locator("#bench")).to_be_visible()
        assert page.evaluate("JSON.stringify(localStorage)") == "{}"
        assert all("401" in said for said in page.wrong)
        page.wrong.clear()


def test_the_languages_have_the_same_texts_and_the_page_speaks_each(visit):
    page = visit("ngrams", locale="de-DE")
    texts = page.evaluate("import('./texts.js').then(({ texts }) => texts)")
    assert list(texts) == ["en", "de", "zh"]
    for other in ("de", "zh"):
        assert list(texts[other]) == list(texts["en"])
        for key, text in texts["en"].items():
            assert text.strip() and set(re.findall(r"\{\w+\}", texts[other][key])) == set(
                re.findall(r"\{\w+\}", text)
            ), key
    expect(page.locator("html")).to_have_attribute("lang", "de")
    show_texts(page, names=("karten", "erstattung"))
    learn(page)
    for tag in ("zh", "en", "de"):
        page.locator("#language").select_option(tag)
        expect(page.locator("html")).to_have_attribute("lang", tag)
        said = page.evaluate("document.body.innerText")
        for key in ("examples", "try", "learn_done", "class_add", "strictness", "export", "try_text"):
            assert texts[tag][key] in said, key
    page.reload()
    expect(page.locator("#learn-title")).to_have_text("Lernen")
    used = set()
    for file in PAGE.iterdir():
        used |= set(re.findall(r"[\w]+", file.read_text())) if file.name != "texts.js" else set()
    made = re.compile(r"(run|strictness|export|table_show)_\w+")
    assert [key for key in texts["en"] if key not in used and not made.fullmatch(key)] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_written_can_be_read_in_light_and_dark(visit, scheme):
    page = visit("ngrams", color_scheme=scheme)
    show_texts(page)
    learn(page)
    page.locator(".trial textarea").fill("card question")
    expect(page.locator(".trial .bars")).to_be_visible()
    worst = page.evaluate(
        """() => {
            const light = (colour) => {
                const [r, g, b] = colour.match(/[\\d.]+/g).map((part) => {
                    const share = part / 255;
                    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
                });
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const behind = (element) => {
                const own = getComputedStyle(element).backgroundColor;
                return /, 0\\)$/.test(own) ? behind(element.parentElement) : own;
            };
            const found = [...document.querySelectorAll("h1,h2,h3,p,label,button,input,textarea,select,.count,.value")]
                .filter((element) => element.checkVisibility() && !element.closest("[aria-disabled], .unseen, .skip"))
                .map((element) => {
                    const pair = [light(getComputedStyle(element).color), light(behind(element))].sort((a, b) => b - a);
                    return [(pair[0] + 0.05) / (pair[1] + 0.05), element.outerHTML.slice(0, 80)];
                });
            return found.sort((a, b) => a[0] - b[0])[0];
        }"""
    )
    assert worst[0] >= 4.5, worst
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 120) == (scheme == "dark")


def test_everything_that_is_operated_has_a_name(visit):
    page = visit("icons")
    show_images(page)
    learn(page)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input:not([type=file]), select, textarea, progress")]
            .filter((element) => element.checkVisibility())
            .filter((element) => !(element.getAttribute("aria-label") || element.labels?.length
                || element.getAttribute("aria-labelledby") || element.textContent.trim()))
            .map((element) => element.outerHTML)"""
    )
    assert nameless == []


@pytest.mark.parametrize(
    "text, rows",
    [
        ("a,b\n1,2\n", [["a", "b"], ["1", "2"]]),
        ("\ufeffa;b\r\n1,5;2\r\n", [["a", "b"], ["1,5", "2"]]),
        ('a,b\n"x, ""y""\nz",2', [["a", "b"], ['x, "y"\nz', "2"]]),
        ("a\tb\n\n1\t\n", [["a", "b"], ["1", ""]]),
        ("alone\n1\n", [["alone"], ["1"]]),
        ("a,b\n1,\n,2\n\n", [["a", "b"], ["1", ""], ["", "2"]]),
    ],
)
def test_tables_are_read_as_they_are_meant(modules, text, rows):
    assert modules.evaluate("(text) => import('./csv.js').then((csv) => csv.rows(text))", text) == rows


def test_no_cell_of_a_written_table_is_a_formula(modules):
    cells = ["=1+1", "+x", "-x", "@a", "\t=1", "＝1", " =1", "-1.5", "+2e3", "-0,5", "plain", 'a "b"', "", None, 3]
    text = modules.evaluate("(row) => import('./csv.js').then((csv) => csv.written([row]))", cells)
    (row,) = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""))
    quoted = ["'=1+1", "'+x", "'-x", "'@a", "'\t=1", "'＝1", "' =1"]
    assert row == [*quoted, "-1.5", "+2e3", "-0,5", "plain", 'a "b"', "", "", "3"]


@pytest.mark.parametrize(
    "answers",
    [
        [
            {
                "prediction": "a",
                "probability": 0.7,
                "probabilities": {"a": 0.7, "=b": 0.1},
                "set": ["a"],
                "unknown": 0.2,
            },
            {"prediction": None, "probability": 0.2, "probabilities": {"a": 0.2, "=b": 0.1}, "set": ["a", "=b"]}
            | {"unknown": 0.7},
        ],
        [{"prediction": "a", "probability": 1.0, "probabilities": {"a": 1.0, "b": 0.0}}] * 2,
        [{"prediction": 1.5, "low": 1.25, "high": 2.0}, {"prediction": 1e300, "low": -1e300, "high": 1e301}],
        [{"prediction": 1.5, "unseen": []}, {"prediction": 2.5, "unseen": ["x", "y"]}],
    ],
)
def test_answers_are_written_as_the_command_writes_them(modules, answers):
    """The service says null of what the command does not say."""
    blank = {"unknown": None, "set": None, "unseen": None}
    code = "(answers) => import('./csv.js').then((csv) => csv.answerTable(answers, 'none'))"
    found = modules.evaluate(code, [blank | answer for answer in answers])
    header, *lines = csv.reader(io.StringIO("".join(csv_lines(answers))))
    assert found["header"] == header
    for own, line in zip(found["lines"], lines, strict=True):
        for value, text in zip(own, line, strict=True):
            assert value == (text if isinstance(value, str) else float(text))


@pytest.mark.parametrize(
    "shown, expected",
    [
        ("a1 a2 b1", {"add": [], "drop": [], "anew": False, "changes": 0}),
        ("a1 a2 b1 b2 c1", {"add": ["b2", "c1"], "drop": [], "anew": False, "changes": 2}),
        ("a1 a2", {"add": [], "drop": ["b"], "anew": False, "changes": 1}),
        ("a1 a2 c1", {"add": ["c1"], "drop": ["b"], "anew": False, "changes": 2}),
        ("a1 b1", {"add": ["a1", "b1"], "drop": [], "anew": True, "changes": 1}),
        ("kept:a a1 a2 b1 a3", {"add": ["kept:a", "a3"], "drop": [], "anew": False, "changes": 2}),
    ],
)
def test_what_is_asked_of_the_service_is_what_has_changed(modules, shown, expected):
    code = """([shown, sent]) => import('./plan.js').then(({ plan }) => {
        const label = (key) => key.replace("kept:", "")[0];
        const examples = (text) => text.split(" ").map((key) => ({ key, label: label(key) }));
        const found = plan(examples(shown), { sent: new Map(examples(sent).map(({ key, label }) => [key, label])) });
        return { ...found, add: found.add.map(({ key }) => key) };
    })"""
    assert modules.evaluate(code, [shown, "a1 a2 b1"]) == expected
