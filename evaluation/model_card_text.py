"""The parts of a model card that are prose: use, limitations, and the reporting guideline."""

from evaluation.table import markdown_table

# Copies of the Kermany images on the Hub.
KERMANY_IDS = ("keremberke/chest-xray-classification", "hf-vision/chest-xray-pneumonia")
OUT_OF_SCOPE = {
    "kermany": "- Adults, infants, and findings other than pneumonia: the training images show "
    "none of them.\n",
    "phantom": "- Real X-rays: it has seen synthetic ones only.\n",
}
LIMITATIONS = {
    "kermany": """\
- All images come from one paediatric centre (Guangzhou), from children aged 1 to 5: nothing here \
says how the model does on adults, in other hospitals or with other machines.
- Labels are what experts read in the image, and some are wrong; a third expert checked the \
official test images only.
- The classes also differ in image size, aspect ratio, exposure and corner markers, such as the \
letter R; a model can score well on such shortcuts.
""",
    "phantom": """\
- The images are synthetic phantoms: the numbers show that the code works and say nothing about \
real X-rays.
""",
}
DATA_NOTES = {
    "kermany": """\
Kermany et al., *Identifying Medical Diagnoses and Treatable Diseases by Image-Based Deep \
Learning*, Cell 172, 2018 ([doi](https://doi.org/10.1016/j.cell.2018.02.010)), CC BY 4.0: frontal \
X-rays of children aged 1 to 5 from routine care at one centre.

""",
    "phantom": """\
Synthetic chests made by the project's own code; a patient is a phantom.

""",
}
GENERAL_LIMITATIONS = """\
- Probabilities and thresholds are as good as the images are like those of the training and \
validation splits, shares of the classes included. PPV and NPV hold at the prevalence of the test \
split only, unless another is stated.
- The model knows only the classes above; any other finding is given to one of them, or missed.
- A heatmap shows where a score comes from, not that the reason is medical.
- One training run is no evidence that one kind of model is better than another."""


def source_of(dataset: dict) -> str:
    """The data set's source, its copies on the Hub included."""
    return "kermany" if dataset["name"] in KERMANY_IDS else dataset["source"]


def intended_use(source: str) -> str:
    return f"""## Intended use

- **Users:** researchers, engineers and students of medical image analysis, and reviewers of their \
work.
- **Uses:** comparing methods on the data below, external validation on other data, teaching, and \
a start for fine-tuning. It has no place in a care pathway.

Out of scope:

- Anything that touches a patient: diagnosis, triage, screening, a second opinion. This is not a \
medical device, and no regulator has cleared it.
{OUT_OF_SCOPE.get(source, "")}\
- Images that are no chest X-ray of the kind it was trained on. It gives those probabilities too, \
and nothing in them warns."""


def limitations(source: str) -> str:
    return f"## Limitations\n\n{LIMITATIONS.get(source, '')}{GENERAL_LIMITATIONS}"


def tripod_items(source: str, arguments: dict, has_evidence: bool) -> str:
    """The TRIPOD+AI items that the card answers, with the guideline's numbers.

    Collins et al., BMJ 2024;385:e078378, table 2; the titles are our own words.
    """
    results = "Results" + (" and External validation (no subgroups)" if has_evidence else "")
    rows = [
        ("3b", "Target population, purpose and users", "Intended use"),
        ("5a", "Sources of the data", "Data; dataset.json"),
        ("6a", "Setting, number and place of the centres", "Limitations"),
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
    answered = {"6a": source == "kermany", "13": "class_weights" in arguments}
    table = markdown_table(
        ["Item", "What it asks for", "Where"],
        [list(row) for row in rows if answered.get(row[0], True)],
        left=3,
    )
    return f"""## Reporting guideline

The items of TRIPOD+AI (Collins et al., [BMJ 2024;385:e078378]\
(https://doi.org/10.1136/bmj-2023-078378)) that this card answers, whole or in part; the others \
it leaves open.

{table}"""
