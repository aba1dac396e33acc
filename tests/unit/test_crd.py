"""The CRD as kubectl shows it."""

from typing import Any

from vaultml_common import variables
from vaultml_operator import crd, reasons
from vaultml_operator.api.environment import FIELDS

WIDEST = {
    "Name": "a-pipeline-whose-name-has-34-chars",
    "Ready": "Unknown",
    "Replicas": "1000/1000",
    "Desired": "1000",
    "Lag": "10000000",
    "Rate": "1234.5/s",
    "Reason": max(reasons.NAMES, key=len),
    "Age": "5y364d",
}


def columns() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = crd.definition()["spec"]["versions"][0]["additionalPrinterColumns"]
    return found


def test_a_row_fits_into_120_characters() -> None:
    shown = ["Name", *(each["name"] for each in columns() if each["priority"] == 0)]
    assert shown == list(WIDEST)
    assert sum(max(len(name), len(WIDEST[name])) for name in shown) + 3 * (len(shown) - 1) <= 120


def test_the_first_short_name_is_ours_alone() -> None:
    assert crd.definition()["spec"]["names"]["shortNames"][0] == "vmlp"


def test_each_variable_that_the_operator_sets_names_a_field_that_there_is() -> None:
    assert set(FIELDS) == set(variables.SPEC)
    spec = crd.definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    for path in filter(None, FIELDS.values()):
        schema = spec
        for step in path.split("."):
            schema = schema["properties"][step]
