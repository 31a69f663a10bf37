"""Licences and advisories: what is looked at, and that no answer is not taken for a good one."""

from __future__ import annotations

import json

from tests.audit import describe_advisories, find_unknown, read_licences


def test_every_installed_package_has_a_licence_that_was_looked_at() -> None:
    licences = read_licences()
    assert {"clinkd", "torch", "transformers"} <= licences.keys()
    assert find_unknown(licences) == []


def test_each_part_of_a_licence_counts() -> None:
    licences = {
        "a": "MIT AND GPL-3.0-only", "b": "UNKNOWN", "c": "MPL-2.0 AND (Apache-2.0 OR MIT)", "d": "ISC License (ISCL)",
        "nvidia-x": "UNKNOWN", "e": "Apache Software License; GNU General Public License (GPL)",
    }  # fmt: skip
    assert [line.partition(":")[0] for line in find_unknown(licences)] == ["a", "b", "e"]


def test_an_index_that_does_not_answer_is_not_a_clean_one() -> None:
    bad = {"name": "x", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["1.1"]}]}
    good, skipped = {"name": "y", "version": "1", "vulns": []}, {"name": "z", "skip_reason": "not found"}

    def describe(*packages: object) -> tuple[list[str], bool]:
        return describe_advisories(json.dumps({"dependencies": packages}))

    silent = "vulnerabilities: not looked up for all packages, the index does not answer"
    assert describe_advisories("") == describe(skipped) == ([silent], False)
    assert describe(good) == (["vulnerabilities: 0 known in 1 packages"], False)
    found = "x 1: CVE-1, mended in 1.1"
    assert describe(bad, good) == ([found, "vulnerabilities: 1 known in 2 packages"], True)
    half = "vulnerabilities: not looked up for 1 of 3 packages, the index does not answer"
    assert describe(bad, good, skipped) == ([found, half], True)
