"""The parts of a model card that are prose: use, limitations, and the reporting guideline.

What is said of the data comes from `facts` in the run's dataset.json, which its source put there.
"""

from evaluation.pages.markdown import escape, table
from evaluation.table import markdown_table

UNKNOWN_SOURCE = (
    "Nothing is recorded of where these images come from: neither whose they are, nor their "
    "licence, nor their limits."
)
GENERAL_LIMITATIONS = """\
- Probabilities and thresholds are as good as the images are like those of the training and \
validation splits, shares of the classes included. PPV and NPV hold at the prevalence of the split \
that they were computed on only, unless another is stated.
- The model knows only the classes above; any other finding is given to one of them, or missed.
- A heatmap shows where a score comes from, not that the reason is medical.
- One training run is no evidence that one kind of model is better than another."""


def intended_use(facts: dict, config: dict) -> str:
    """Who may use the model for what, and what it is not for."""
    threshold = config.get("outlier_threshold")
    if threshold is None:
        outliers = "It gives those probabilities too, and nothing in them warns."
    else:
        outliers = (
            f"A detector beside the classifier is there to flag them (`outlier_score` above "
            f"{threshold:.3g}): `model.assess` then gives no probability, and the pipeline marks "
            "its answer. What the detector misses gets probabilities like any X-ray, and "
            "`model(...)` gives them to everything."
        )
    ages = ""
    if config.get("age_range"):
        low, high = config["age_range"]
        ages = (
            f"- People younger than {low:g} or older than {high:g} years, whom it was not trained "
            "on: `model.assess` warns where the file tells the age.\n"
        )
    return f"""## Intended use

- **Users:** researchers, engineers and students of medical image analysis, and reviewers of their \
work.
- **Uses:** comparing methods on the data below, external validation on other data, teaching, and \
a start for fine-tuning. It has no place in a care pathway.

Out of scope:

- Anything that touches a patient: diagnosis, triage, screening, a second opinion. This is not a \
medical device, and no regulator has cleared it.
{items(facts.get("out_of_scope"))}{ages}\
- Images that are no chest X-ray of the kind it was trained on. {outliers}"""


def source_of_data(facts: dict) -> str:
    """What the data set is, whose images it holds, and who may use them."""
    titles = {
        "title": "Title",
        "citation": "Citation",
        "licence": "Licence",
        "population": "Population",
    }
    found = [
        f"- **{title}:** {escape(facts[key])}" for key, title in titles.items() if facts.get(key)
    ]
    return "\n".join(found) or UNKNOWN_SOURCE


def limitations(facts: dict) -> str:
    """What the numbers do not say."""
    return f"## Limitations\n\n{items(facts.get('limits'))}{GENERAL_LIMITATIONS}"


def items(sentences: str | list[str] | None) -> str:
    """A line of a list for each sentence."""
    sentences = [sentences] if isinstance(sentences, str) else sentences or []
    return "".join(f"- {escape(sentence)}\n" for sentence in sentences)


def tripod_items(facts: dict, arguments: dict, has_evidence: bool) -> str:
    """The TRIPOD+AI items that the card answers, with the guideline's numbers.

    Collins et al., BMJ 2024;385:e078378, table 2; the titles are our own words.
    """
    results = "Results" + (" and External validation (no subgroups)" if has_evidence else "")
    rows = [
        ("3b", "Target population, purpose and users", "Intended use"),
        ("5a", "Sources of the data", "Data; dataset.json"),
        ("6a", "Setting, number and place of the centres", "Data and Limitations"),
        ("12a", "How the data were divided", "Data and Protocol"),
        ("12b", "How the input is transformed", "Protocol; preprocessor_config.json"),
        (
            "12c",
            "Kind of model, how it was built and chosen",
            "Training, hardware and time; training_args.json",
        ),
        ("12e", "Measures and plots of performance", "Protocol, Results and Figures"),
        ("12g", "How predictions are computed", "Use; the code beside the weights"),
        ("13", "Class imbalance: what was done about it", "Training, hardware and time"),
        (
            "15",
            "Output, and how its thresholds were chosen",
            "Calibration and thresholds; training_args.json",
        ),
        ("18e", "Availability of the data", "Data; predictions_*.csv"),
        ("21", "Patients and cases in each analysis", "Data"),
        ("22", "The whole model, for use on new patients", "Use; model.safetensors, config.json"),
        ("23a", "Performance with confidence intervals", results),
        ("26", "Limitations", "Limitations"),
    ]
    answered = {"6a": bool(facts.get("population")), "13": "class_weights" in arguments}
    rows = [row for row in rows if answered.get(row[0], True)]
    return f"""## Reporting guideline

The items of TRIPOD+AI (Collins et al., [BMJ 2024;385:e078378]\
(https://doi.org/10.1136/bmj-2023-078378)) that this card answers, whole or in part; the others \
it leaves open.

{table(["Item", "What it asks for", "Where"], rows, left=3)}"""


def arguments_of(rows: list[list[str]]) -> str:
    """The arguments of a run, folded: a row is a name and a value."""
    return f"""<details>
<summary>Arguments of the run</summary>

{markdown_table(["Argument", "Value"], rows, left=2)}

</details>"""
