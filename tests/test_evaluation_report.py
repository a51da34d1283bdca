"""The report says what the folder's files say, escaped, in one page that needs nothing else."""

import base64
import json
import os
import re
import shutil
from html.parser import HTMLParser

import pytest
from report_folders import AWKWARD, FIGURES, MODELS, content, entry, full_content, make_folder
from selenium import webdriver
from selenium.webdriver.common.by import By

from evaluation.metrics import METRIC_NAMES, format_metric
from evaluation.pages.report import write_report

FLAGS = "headless=new no-sandbox disable-gpu disable-dev-shm-usage disable-background-networking"


class Page(HTMLParser):
    """Text, tags with their attributes, and the rows of each table by its caption."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.words, self.tables = [], [], {}
        self.cell = None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.rows = []
        elif tag == "tr":
            self.rows.append([])
        if tag in ("caption", "th", "td"):
            self.cell = ""

    def handle_endtag(self, tag):
        if tag == "caption":
            self.tables[self.cell] = self.rows
        elif tag in ("th", "td"):
            self.rows[-1].append(self.cell.replace("\N{NO-BREAK SPACE}", " "))

    def handle_data(self, data):
        self.words.append(data)
        if self.cell is not None:
            self.cell += data

    @property
    def text(self):
        return " ".join(" ".join(self.words).replace("\N{NO-BREAK SPACE}", " ").split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def written(folder):
    """The page, and the text of the Markdown with its escapes undone."""
    write_report(folder)
    page = Page((folder / "report.html").read_text())
    markdown = (folder / "report.md").read_text()
    plain = re.sub(r"\\(.)", r"\1", markdown).replace("&lt;", "<").replace("&amp;", "&")
    for text in (page.text, markdown):
        assert not re.search(r"\b(NaN|nan|None|inf)\b", text)
    return page, " ".join(plain.split())


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports") / "full report"
    return make_folder(folder, full_content())


def test_every_number_is_in_the_page_and_in_the_markdown(full):
    page, markdown = written(full)
    report = full_content()
    rows = page.tables[
        "Value and 95 % interval at each model's operating point, "
        "PNEUMONIA being the positive class"
    ]
    assert rows[0] == ["Metric", *MODELS]
    shown = {row[0]: row[1:] for row in rows[1:]}
    for key, title in METRIC_NAMES.items():
        if key in report["models"][AWKWARD]["metrics"]:
            values = [format_metric(model["metrics"][key]) for model in report["models"].values()]
            assert shown[title] == values
            assert f"| {title} | {' | '.join(values)} |" in markdown
    assert f"The calibration of {AWKWARD} does harm here: the log loss rises from 0.1" in page.text
    assert f"The calibration of {MODELS[0]} does harm" not in page.text
    raw = [format_metric(model["uncalibrated"]["brier"]) for model in report["models"].values()]
    before = page.tables["Before (raw logits) and after calibration"]
    assert ["Brier score, before", *raw] in before
    points = page.tables["At the operating point and at fixed points"]
    assert ["PPV where 10% have it", *["0.310 [0.290, 0.330]"] * 2] in points
    assert ["NPV where 10% have it", *["undefined (note 1)"] * 2] in points
    counts = report["models"][MODELS[0]]["metrics"], report["models"][AWKWARD]["metrics"]
    confusion = page.tables["Images by truth and decision"]
    assert ["False negative", *(str(metrics["fn"]) for metrics in counts)] in confusion
    priors = page.tables["Probabilities moved to another share of the classes (prior correction)"]
    true = report["models"][MODELS[0]]["prevalence"]["true"]
    cells = [format_metric(true[key]) for key in ("accuracy", "ece")]
    assert [MODELS[0], "the split's own share"] in [row[:2] for row in priors]
    assert cells in [row[3:] for row in priors]
    assert [AWKWARD, "estimated by EM", "PNEUMONIA 59.0%", "0.800 [0.780, 0.820]"] == (
        next(row[:4] for row in priors if row[:2] == [AWKWARD, "estimated by EM"])
    )
    facts = {row[0]: row[1:] for row in page.tables["Models"]}
    assert facts["SHA-256 of the weights"] == ["0a" * 32, "1a" * 32]
    assert facts["Calibration"][0] == "temperature scaling, T = 1.500"
    for part in (
        "120 images of 60 patients, 60 NORMAL (50.0%), 60 PNEUMONIA (50.0%)",
        "variant lung box",
        "Research only, not a medical device",
        "Note 1: needs a negative decision.",
        f"AUROC, {MODELS[0]} minus {AWKWARD}: +0.031 [+0.012, +0.050] (DeLong, z = 3.20, "
        "p = 0.001; with the images of a patient taken together, p = 0.021); "
        f"{MODELS[0]} ranks these images better.",
        f"Does {MODELS[0]} look at the lungs more than {AWKWARD}? Yes: the share of its heatmap "
        "inside them differs by +0.050 [+0.030, +0.070].",
        "Note 1: against all 60 images of NORMAL.",
        "PNEUMONIA 98.2%, NORMAL 1.8% (wrong)",
        "PNEUMONIA over 99.9%, NORMAL under 0.1%",
        "Original width: <= 1,024",
        "Subtype: unknown",
        "0.914 [0.894, 0.934]",
        "0.912 [0.892, 0.932]",
        "PNEUMONIA 98.2%, NORMAL 1.8%",
        "--rescore predictions.csv --output_dir",
        report["command"],
    ):
        assert part in page.text, part
        assert part in markdown, part


def test_the_page_is_semantic_and_holds_every_image(full):
    page, _ = written(full)
    assert len(page.all("h1")) == 1
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    assert len(page.tables) == len(page.all("table"))  # each has a caption of its own
    images = page.all("img")
    assert len(images) == len(FIGURES) + 3
    assert all(image["alt"] for image in images)
    contents = [base64.b64decode(image["src"].split(",")[1]) for image in images]
    for path in (*(full / "gallery").iterdir(), *(full / "figures").glob("*.svg")):
        assert contents.count(path.read_bytes()) == 1
    places = {link["href"] for link in page.all("a")}
    assert places == {f"#{heading['id']}" for heading in page.all("h2")}


def test_the_markdown_shows_markup_and_links_every_file(full):
    _, _ = written(full)
    markdown = (full / "report.md").read_text()
    assert "a&lt;b &amp; c|d\\_\\*e\\*" in markdown
    assert "<b" not in re.sub(r"```.*?```", "", markdown, flags=re.DOTALL)
    links = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", markdown)
    assert len(links) == len(FIGURES) + 3
    assert all((full / link.replace("%20", " ")).is_file() for link in links)
    for line in markdown.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (3, 4, 6, 7)


def test_a_rescore_of_one_model_leaves_out_what_it_has_not(tmp_path):
    report = content(models=MODELS[:1])
    report["models"][MODELS[0]] |= {"weights_sha256": None, "num_parameters": None}
    page, markdown = written(make_folder(tmp_path / "r", report, gallery=False, figures=()))
    titles = [heading["id"] for heading in page.all("h2")]
    assert titles == [
        "results",
        "confusion-matrices",
        "calibration",
        "operating-point",
        "what-was-validated",
        "compute-it-again",
    ]
    assert not page.all("img")
    for part in (
        "There is no gallery of errors: it needs the images and the models.",
        "No calibration was fitted",
    ):
        assert part in page.text and part in markdown
    assert ["Parameters", "unknown"] in page.tables["Models"]
    assert ["Decision", "the class with the largest probability"] in page.tables["Models"]


@pytest.mark.parametrize("multi_label", [False, True])
def test_more_classes_have_a_row_each(tmp_path, multi_label):
    names = ("Mass", "No <finding>", "Edema")
    report = content(names, multi_label)
    del report["models"][AWKWARD]["metrics"]["classes"]["Mass"]["auroc"]["low"]
    report["models"][AWKWARD]["metrics"]["classes"]["Mass"]["auroc"] |= {
        "low": None,
        "reason": "every resample gives the same value",
    }
    delong = {"difference": 0.0, "low": -0.02, "high": 0.02, "z": 0.1, "p": 0.92}
    parts = {"Mass": {"delong": delong, "differences": {"auroc": entry(0)}}}
    parts["Edema"] = {
        "delong": {"difference": None, "reason": "no image of Edema"},
        "differences": {"auroc": {"value": None, "reason": "no image of Edema"}},
    }
    a, b = MODELS
    averages = {"macro": {"auroc": entry(0.01), "ppv_at_prevalence": {"0.1": entry(-0.2)}}}
    pair = {"a": a, "b": b, "n": 120, "patients": 60, "classes": parts, **averages}
    report["comparisons"] = [pair]
    page, _ = written(make_folder(tmp_path / "r", report))
    for model in MODELS:
        table = page.tables[f"{model}: Each class against the rest"]
        assert [row[0] for row in table[1:]] == list(names)
    mass = report["models"][AWKWARD]["metrics"]["classes"]["Mass"]
    table = page.tables[f"{AWKWARD}: Each class against the rest"]
    shown = ["120", f"{mass['prevalence']:.3f}", f"{mass['auroc']['value']:.3f} (note 1)"]
    assert table[1][1:4] == shown
    assert "Note 1: no interval: every resample gives the same value." in page.text
    assert "these images do not tell the two models apart" in page.text
    assert f"DeLong's test of {a} against {b} (AUROC of Edema) is undefined" in page.text
    caption = f"Paired differences, {a} minus {b}, on the same 120 images of 60 patients "
    differences = page.tables[f"{caption}[95 % interval]"]
    assert ["Macro: AUROC", "+0.010 [-0.010, +0.030]"] in differences
    assert ["Macro: PPV where 10% have it", "-0.200 [-0.220, -0.180]"] in differences
    assert ["Edema: AUROC", "undefined (note 1)"] in differences
    if not multi_label:
        counts = report["models"][a]["metrics"]["confusion_matrix"][2]
        assert page.tables[f"{a}: images"][3] == ["Edema", *map(str, counts)]


def test_names_that_figures_write_in_other_letters_are_told(tmp_path):
    folder = make_folder(tmp_path / "r", content(("正常", "肺炎")), gallery=False)
    page, markdown = written(folder)
    told = "Figures write ZhengChang for 正常 and FeiYan for 肺炎."
    assert told in page.text and told in markdown
    assert "Figures write" not in written(make_folder(tmp_path / "s", content()))[1]


def test_a_figure_too_large_as_svg_is_shown_as_png(tmp_path):
    folder = make_folder(tmp_path / "r", content(), gallery=False, figures=("roc", "pr"))
    (folder / "figures" / "pr.png").unlink()
    for stem in ("roc", "pr"):
        with (folder / "figures" / f"{stem}.svg").open("a") as file:
            file.write(f"<!-- {'x' * 500_000} -->")
    page, _ = written(folder)
    shown = {image["alt"].split(";")[0]: image["src"][:15] for image in page.all("img")}
    svg, png = "data:image/svg+", "data:image/png;"
    assert shown == {"ROC curve": png, "Precision-recall curve": svg}  # that one has no PNG


def test_wrong_folders_get_a_sentence_and_no_report(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.json"):
        write_report(tmp_path)
    folder = make_folder(tmp_path / "r", {"title": "x", "command": "y", "models": {}})
    with pytest.raises(ValueError, match=r"metrics\.json lacks dataset; validate\.py writes"):
        write_report(folder)
    report = content()
    (folder / "metrics.json").write_text(json.dumps(report | {"models": {}}))
    with pytest.raises(ValueError, match="has no model"):
        write_report(folder)
    del report["models"][AWKWARD]["uncalibrated"]
    (folder / "metrics.json").write_text(json.dumps(report))
    with pytest.raises(ValueError, match=r"model 'a<b .* lacks uncalibrated"):
        write_report(folder)
    (folder / "metrics.json").write_text(json.dumps(content()))
    (folder / "gallery" / "case 1.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"case 1\.jpg"):
        write_report(folder)
    (folder / "gallery.json").write_text("{}")
    with pytest.raises(ValueError, match="a list is needed"):
        write_report(folder)
    assert not list(folder.glob("report.*"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        reason = "chromium and chromedriver are not installed"
        pytest.fail(reason) if "CI" in os.environ else pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*FLAGS.split(), f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_the_page_opens_offline_and_fits(full, browser, tmp_path, width, scheme):
    write_report(full)
    moved = shutil.copy(full / "report.html", tmp_path / "report.html")  # alone, it is whole
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": features})
    browser.get(f"file://{moved}")
    root = "return document.documentElement."
    assert browser.execute_script(f"{root}scrollWidth <= innerWidth")
    assert browser.execute_script(f"{root}clientWidth") <= width
    images = browser.find_elements(By.TAG_NAME, "img")
    assert len(images) == len(FIGURES) + 3
    assert all(int(image.get_property("naturalWidth")) > 0 for image in images)
    tables = browser.find_elements(By.TAG_NAME, "table")
    wide = [table for table in tables if table.size["width"] > width]
    assert bool(wide) is (width == 390)  # those scroll inside themselves
    page = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (page == "rgb(255, 255, 255)") is (scheme == "light")
    requests = []
    for log in browser.get_log("performance"):
        message = json.loads(log["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            if message["params"]["documentURL"].startswith("file:"):  # not the browser's own page
                requests.append(message["params"]["request"]["url"])
    outside = [url for url in requests if not url.startswith(("data:", "file:"))]
    assert requests and not outside
    assert not [log for log in browser.get_log("browser") if log["level"] == "SEVERE"]


def test_the_page_prints_whole(full, browser):
    write_report(full)
    browser.get(f"file://{full}/report.html")
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"paperWidth": 8.27, "paperHeight": 11.7})
    pdf = base64.b64decode(printed["data"])
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 20
    # No table is wider than the printed page: 688 pixels between A4's margins, at 96 an inch.
    screen = {"width": 688, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    for table in browser.find_elements(By.TAG_NAME, "table"):
        assert table.size["width"] <= 688
