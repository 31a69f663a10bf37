"""Requests made from the API's own description, and damaged images: answered or refused as described, with no leak."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

import mutations
from serving import TOKEN, Server, json_of, serving, uri

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
    negative_data_rejection, unsupported_method,
]  # fmt: skip
LEAK = re.compile(r"Traceback|File \"|site-packages|/(?:home|root|tmp|usr|work|var)/|\.py\b|0x[0-9a-f]{6,}")


@pytest.fixture(scope="module")
def server(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(small_run) as found:
        yield found


def settled(examples: int) -> settings:
    """The same requests each time, however slow the machine."""
    health = [HealthCheck.filter_too_much, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=health)


@pytest.mark.parametrize("examples", [4, pytest.param(400, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_what_the_description_allows_and_what_it_does_not(server, mode, examples):
    headers = {"authorization": f"Bearer {TOKEN}"}
    described = schemathesis.openapi.from_url(f"{server.url}/openapi.json", headers=headers)
    statuses: Counter[int] = Counter()
    operations = [found.ok() for found in described.get_all_operations()]
    assert len(operations) == 13
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query):
            continue  # nothing of it can be wrong

        @settled(examples)
        @given(case=operation.as_strategy(generation_mode=mode))
        def asked(case: schemathesis.Case) -> None:
            told = case.call(headers=headers)
            statuses[told.status_code] += 1
            assert not LEAK.search(told.text), told.text[:500]
            case.validate_response(told, checks=CHECKS)

        asked()
    assert statuses[400] > examples
    assert json_of(server.client.get("/healthz"))["status"] == "ready"


# ---- damaged images -------------------------------------------------------------------------------------------------


def refused_or_shown(server: Server, content: bytes) -> bool:
    """Whether a damaged file is shown. Whatever it is, the next request is served as ever."""
    told = server.post("/v1/open", image=uri(content))
    assert told.status_code in (200, 400, 413), told.text[:300]
    if told.status_code != 200:
        message = told.json()["error"]["message"]
        assert not LEAK.search(message) and "\n" not in message and len(message) < 500, message
    return told.status_code == 200


@pytest.mark.parametrize("count", [40, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_images_are_shown_or_refused(server, count):
    shown = {mutant.name: refused_or_shown(server, mutant.content) for mutant in mutations.mutants(count, seed=7)}
    assert 0 < sum(shown.values()) < count == len(shown)
    assert json_of(server.client.get("/healthz"))["status"] == "ready"
    whole = server.post("/v1/open", image=uri(mutations.seeds()["CT_small.dcm"]))
    assert whole.status_code == 200 and whole.json()["width"] == 128


def test_damaged_requests_are_refused_with_a_line(server):
    """Bytes where JSON is wanted, and a base64 that is cut anywhere."""
    good = json.dumps({"image": uri(mutations.seeds()["CT_small.dcm"]), "phrase": "liver"}).encode()
    for mutant in mutations.damaged(good, 60, seed=3):
        told = server.client.post("/v1/ground", content=mutant, headers={"content-type": "application/json"})
        assert told.status_code in (200, 400)
        assert not LEAK.search(told.text)
