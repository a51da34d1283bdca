"""What a table with a column a finding says: present, absent or unknown.

CheXpert's labeller writes 1 for a finding that a report affirms, 0 for one that it denies, -1 for
one that it leaves open, and nothing where it does not speak of it (Irvin et al. 2019, AAAI).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from datasets_scripts.labels import label_key, text_of

# What an open cell becomes: True present, False absent, None unknown.
POLICIES = {"ignore": None, "zeros": False, "ones": True}
CELLS = {"1": True, "0": False, "yes": True, "no": False}


def parse_policy(
    policy: str | dict[str, str], findings: Sequence[str], option: str
) -> dict[str, bool | None]:
    """What an open cell of each finding becomes, see `POLICIES`.

    Args:
        policy: one for all, or {finding: policy}, also as text; a finding that it does not name is
            ignored.
        findings: those that there are.
        option: its name, for messages.

    Raises:
        ValueError: a policy or a finding that is none.
    """
    given = policy
    if isinstance(given, str):
        try:
            given = yaml.load(given, yaml.BaseLoader)
        except yaml.YAMLError:
            given = None
    if isinstance(given, str):
        given = dict.fromkeys(findings, given)
    if not isinstance(given, dict) or not set(map(str, given.values())) <= set(POLICIES):
        raise ValueError(
            f"{option} {policy!r} is none of {', '.join(POLICIES)}, nor a mapping of findings to "
            "these, as {Atelectasis: ones, Edema: zeros}."
        )
    names = {label_key(name): name for name in findings}
    if unknown := [name for name in given if label_key(name) not in names]:
        raise ValueError(
            f"{option} names {unknown[0]!r}, which is no column of a finding: use "
            f"{', '.join(findings)}."
        )
    chosen = {names[label_key(name)]: POLICIES[value] for name, value in given.items()}
    return dict.fromkeys(findings) | chosen


def read_cells(
    rows: Iterable[dict[str, object]],
    findings: Sequence[str],
    uncertain: dict[str, bool | None],
    blank: dict[str, bool | None],
    table: Path,
) -> list[tuple[list[str], list[str]]]:
    """The findings that are present, and those that are unknown, of each row.

    Args:
        rows: of the table, with a column a finding.
        findings: those columns.
        uncertain: what a cell of -1 says of each finding: True present, False absent, None unknown.
        blank: what an empty cell says.
        table: for messages.

    Raises:
        ValueError: a cell is none of 1, 0, -1, yes, no and empty.
    """
    known: dict[str, dict[object, bool | None]] = {finding: {} for finding in findings}
    found = []
    for row in rows:
        present, unknown = [], []
        for finding, cells in known.items():
            cell = row[finding]
            if cell not in cells:
                text = text_of(cell).lower()
                if text not in {*CELLS, "-1", ""}:
                    raise ValueError(
                        f"{table} says {cell!r} of {finding}: 1, 0, -1 or nothing is needed."
                    )
                says = {**CELLS, "-1": uncertain[finding], "": blank[finding]}
                cells[cell] = says[text]
            if cells[cell]:
                present.append(finding)
            elif cells[cell] is None:
                unknown.append(finding)
        found.append((present, unknown))
    return found
